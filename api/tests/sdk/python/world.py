"""What stands for the Internet: servers on this machine's loopback, which the lab's host reaches as
HATCHERY_WORLD. One HTTP server with a package index for each of pip, npm and apt, a git repository that takes
pushes, a slow stream and an echo; the same over TLS, which remembers whose requests had which authorization
(`authority.pem` is trusted by the server under test, and signed `api.test.pem`); and a name server.
"""

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import socket
import ssl
import struct
import subprocess
import tarfile
import threading
import time
import zipfile

ADDRESS = os.environ.get("HATCHERY_WORLD", "")
HTTP_PORT = 18080
TLS_PORT = 18443
DNS_PORT = 53
NAME = "packages.test"
URL = f"http://{NAME}:{HTTP_PORT}"
TLS_NAME = "api.test"
TLS_URL = f"https://{TLS_NAME}:{TLS_PORT}"
CERTIFICATE = pathlib.Path(__file__).with_name("api.test.pem")

# What the name server answers; another name does not exist.
NAMES = {NAME: ADDRESS, TLS_NAME: ADDRESS, "gateway.test": ADDRESS, "rebind.test": "10.9.9.9"}
SILENT = "silent.test"


def wheel():
    """A package for pip whose module has an answer."""
    info = "hatchling_hello-1.0.dist-info"
    files = {
        "hatchling_hello.py": "ANSWER = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: hatchling-hello\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


def tar_gz(files, mode=0o644):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(text), mode
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def npm_package():
    manifest = {"name": "hatchling-hello", "version": "1.0.0", "main": "index.js"}
    return tar_gz({"package/package.json": json.dumps(manifest), "package/index.js": "module.exports = 42\n"})


def npm_index(package):
    digest = "sha512-" + base64.b64encode(hashlib.sha512(package).digest()).decode()
    dist = {"tarball": f"{URL}/npm/hatchling-hello-1.0.0.tgz", "integrity": digest}
    version = {"name": "hatchling-hello", "version": "1.0.0", "main": "index.js", "dist": dist}
    index = {"name": "hatchling-hello", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return json.dumps(index).encode()


CONTROL = """Package: hatchling-hello
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@packages.test>
Description: says hello
"""


def deb():
    """A Debian package: an `ar` archive of three members."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": tar_gz({"./control": CONTROL}),
        "data.tar.gz": tar_gz({"./usr/bin/hatchling-hello": "#!/bin/sh\necho 42\n"}, mode=0o755),
    }
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def apt_files():
    package = deb()
    listed = CONTROL + (
        f"Filename: ./hatchling-hello.deb\nSize: {len(package)}\n"
        f"SHA256: {hashlib.sha256(package).hexdigest()}\n\n"
    )
    packages = gzip.compress(listed.encode())
    release = (
        "Origin: test\nDate: Mon, 30 Nov 2026 00:00:00 UTC\nSHA256:\n"
        f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages.gz\n"
        f" {hashlib.sha256(listed.encode()).hexdigest()} {len(listed)} Packages\n"
    )
    return {
        "/apt/Release": release.encode(),
        "/apt/Packages": listed.encode(),
        "/apt/Packages.gz": packages,
        "/apt/hatchling-hello.deb": package,
    }


def files():
    package = npm_package()
    name = "hatchling_hello-1.0-py3-none-any.whl"
    return {
        "/hello": b"hello from outside\n",
        "/simple/hatchling-hello/": f'<a href="/wheels/{name}">{name}</a>'.encode(),
        f"/wheels/{name}": wheel(),
        "/npm/hatchling-hello": npm_index(package),
        "/npm/hatchling-hello-1.0.0.tgz": package,
        **apt_files(),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files = {}
    git_root = None
    authorized = []

    def parse_request(self):
        parsed = super().parse_request()
        if parsed:
            self.authorized.append((self.path, self.headers.get("Authorization")))
        return parsed

    def answer(self, status, body, kind="application/octet-stream"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0].replace("/./", "/")
        if path.startswith("/git/"):
            self.git()
        elif path == "/stream":
            self.stream()
        elif path.startswith("/zeros/"):
            self.answer(200, bytes(int(path.split("/")[2])))
        elif path in self.files:
            html = path.startswith("/simple/")
            self.answer(200, self.files[path], "text/html" if html else "application/octet-stream")
        else:
            self.answer(404, b"no such file\n")

    do_HEAD = do_GET

    def do_POST(self):
        if self.path.startswith("/git/"):
            self.git()
        else:
            self.answer(200, self.body())

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        out = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def stream(self):
        """A line every tenth of a second, for as long as somebody reads."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3000):
            try:
                self.wfile.write(f"{number}\n".encode())
            except OSError:
                break
            time.sleep(0.1)
        self.close_connection = True

    def git(self):
        """`git http-backend`, as any web server runs it."""
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.git_root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REMOTE_USER": "pusher",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path.removeprefix("/git"),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=self.body(), capture_output=True, env=environment, check=True
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(fields.pop("Status", "200 OK").split()[0])
        self.answer(status, body, fields.get("Content-Type", "text/plain"))

    def log_message(self, *_):
        pass


def dns_answer(query):
    """The answer to one question, `None` to be silent."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    question = query[12 : at + 5]
    name, (kind,) = ".".join(labels).lower(), struct.unpack(">H", question[-4:-2])
    if name == SILENT:
        return None
    known = NAMES.get(name)
    records = []
    if known and kind == 1:
        records = [b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 30, 4) + socket.inet_aton(known)]
    flags = 0x8180 if known else 0x8183
    return query[:2] + struct.pack(">HHHHH", flags, 1, len(records), 0, 0) + question + b"".join(records)


class World:
    """The servers, from their start to their end."""

    def __init__(self, folder):
        repository = folder / "project.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", repository], check=True)
        self.authorized = []
        served = {"files": files(), "git_root": folder, "authorized": self.authorized}
        handler = type("Served", (Handler,), served)
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", HTTP_PORT), handler)
        self.https = http.server.ThreadingHTTPServer(("127.0.0.1", TLS_PORT), handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATE)
        # The handshake is each connection's own thread's.
        self.https.socket = tls.wrap_socket(self.https.socket, server_side=True, do_handshake_on_connect=False)
        self.dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.dns.bind(("127.0.0.1", DNS_PORT))
        self.asked = []
        for server in (self.http, self.https):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=self.answer_names, daemon=True).start()

    def answer_names(self):
        while True:
            try:
                query, sender = self.dns.recvfrom(4096)
            except OSError:
                return
            self.asked.append(query)
            if answer := dns_answer(query):
                self.dns.sendto(answer, sender)

    def close(self):
        for server in (self.http, self.https):
            server.shutdown()
            server.server_close()
        self.dns.close()
