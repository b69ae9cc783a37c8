"""Programs that listen in a sandbox, reached from outside: by host name, by headers, by WebSocket."""

import base64
import hashlib
import os
import random
import time

import pytest
from support import address, create, eventually, http_call, patient, raw_connection, run

# Says back what it hears over a WebSocket, with nothing but Python.
SOCKET_SERVER = r"""
import base64, hashlib, socketserver, sys

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        headers = {}
        while line := self.rfile.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        magic = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                         b"Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accept.encode())
        while head := self.rfile.read(2):
            length, mask = head[1] & 127, self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([head[0], length]) + text)

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

Server(("127.0.0.1", int(sys.argv[1])), Echo).serve_forever()
"""


def own_port():
    """A port that nobody else has: natively all sandboxes share this machine's."""
    return random.randrange(20_000, 30_000)


def headers(box, port, **more):
    return {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": str(port), **more}


def get(box, port, path="/", **more):
    return http_call("GET", path, headers=headers(box, port, **more), key=None)


def serve_folder(box, port):
    """`python3 -m http.server` in a folder with a page, in the background."""
    folder = f"/tmp/site-{port}"
    box.files.write(f"{folder}/index.html", f"hello from {box.sandbox_id}")
    command = f"cd {folder} && exec python3 -m http.server --bind 127.0.0.1 {port}"
    box.commands.run(command, background=True, timeout=0)

    def listens():
        # Who asks all the time takes a slow guest's processor from the server that is to start.
        time.sleep(patient(0.2))
        return get(box, port).status == 200

    eventually("the server listens", 30, listens)


def test_a_web_server_is_reached_by_headers_and_by_host_name(fresh):
    port = own_port()
    closed = get(fresh, port)
    assert closed.status == 502 and "port is not open" in closed.json()["message"]
    serve_folder(fresh, port)
    page = get(fresh, port)
    assert page.body.decode() == f"hello from {fresh.sandbox_id}"
    assert page.headers["content-type"] == "text/html"
    assert get(fresh, port, "/none").status == 404
    assert fresh.get_host(port).startswith(f"{port}-{fresh.sandbox_id}.")
    # The first label says all: whatever the domain is.
    name = f"{port}-{fresh.sandbox_id}.localhost"
    assert http_call("GET", "/", headers={"Host": name}, key=None).body == page.body


def test_a_large_file_comes_whole_and_commands_go_on_meanwhile(fresh):
    port = own_port()
    serve_folder(fresh, port)
    run(fresh, f"head -c 20000000 /dev/urandom > /tmp/site-{port}/large")
    expected = run(fresh, f"sha256sum < /tmp/site-{port}/large").stdout.split()[0]
    large = http_call("GET", "/large", headers=headers(fresh, port), key=None, timeout=120)
    assert hashlib.sha256(large.body).hexdigest() == expected
    assert run(fresh, "echo on").stdout == "on\n"


def frame(text):
    mask = os.urandom(4)
    masked = bytes(b ^ mask[i % 4] for i, b in enumerate(text))
    return bytes([0x81, 0x80 | len(text)]) + mask + masked


def receive(connection, length):
    got = b""
    while len(got) < length:
        piece = connection.recv(length - len(got))
        assert piece, f"the end after {got!r}"
        got += piece
    return got


def test_a_websocket_goes_both_ways(fresh):
    port = own_port()
    fresh.files.write("/tmp/websocket_echo.py", SOCKET_SERVER)
    command = f"exec python3 /tmp/websocket_echo.py {port}"
    fresh.commands.run(command, background=True, timeout=0)
    listens = f"until ss -ltn | grep -q :{port}; do sleep 0.5; done"
    run(fresh, listens)
    key = base64.b64encode(os.urandom(16)).decode()
    with raw_connection() as connection:
        connection.settimeout(patient(30))
        lines = [
            "GET /echo HTTP/1.1",
            f"Host: {port}-{fresh.sandbox_id}.localhost",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += receive(connection, 1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        accept = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        assert base64.b64encode(accept) in answer
        for n in range(20):
            text = f"message {n}".encode()
            connection.sendall(frame(text))
            assert receive(connection, 2 + len(text)) == bytes([0x81, len(text)]) + text


@pytest.mark.vm
def test_traffic_resumes_a_paused_sandbox_and_finds_its_server(fresh):
    port = own_port()
    box = create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        serve_folder(box, port)
        box.pause()
        page = get(box, port)
        assert page.status == 200, page
        assert page.body.decode() == f"hello from {box.sandbox_id}"
    finally:
        box.kill()


@pytest.mark.vm
def test_a_fork_serves_what_its_parent_served_and_each_its_own(fresh):
    port = own_port()
    serve_folder(fresh, port)
    (child,) = fresh.fork(count=1, timeout=int(patient(300)))
    try:
        child.files.write(f"/tmp/site-{port}/index.html", "the child's")
        assert get(child, port).body == b"the child's"
        assert get(fresh, port).body.decode() == f"hello from {fresh.sandbox_id}"
    finally:
        child.kill()


def test_a_private_sandbox_asks_for_its_traffic_token():
    port = own_port()
    box = create(network={"allow_public_traffic": False})
    try:
        token = box.traffic_access_token
        assert token
        assert get(box, port).status == 403
        shown = {"e2b-traffic-access-token": token}
        assert get(box, port, **shown).status == 502, "it may come in, and nobody listens"
        assert run(box, "echo on").stdout == "on\n"
    finally:
        box.kill()


@pytest.mark.vm
def test_nothing_but_the_loopback_of_the_guest_is_reached(fresh):
    """Not this service, whose port is one of the host's loopback address."""
    _, port = address()
    for own in [port, 3000, 22]:
        answer = get(fresh, own)
        assert answer.status == 502 and "port is not open" in answer.json()["message"]
