"""What every test file shares: the server's address, patience, raw HTTP, commands on the host.

The server is named by E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY, as for any SDK user. Besides:

HATCHERY_TIME_SCALE   every limit that is not under test is multiplied by it (the lab: 10)
HATCHERY_BIG_MIB      size of the large upload, 100 unless told
HATCHERY_OTHER_KEY    another API key of the server: its owner sees nothing of E2B_API_KEY's
HATCHERY_NATIVE=1     the agent runs as an ordinary process: tests marked `vm` are skipped
HATCHERY_HOST_CMD     a command line that runs its last argument by a shell on the server's host
HATCHERY_TLS_DOMAIN   a domain that the server serves TLS for, HATCHERY_TLS_ROOT what to trust for it
HATCHERY_STATE_DIR    the server's state folder on that host
HATCHERY_SERVER_START a shell command, run on that host, that starts the server again
HATCHERY_SERVER_LOG   the server's log on that host
HATCHERY_SERVER_PID   a file on that host that holds the server's process id; else the one `hatchery`
HATCHERY_VMM_NAME     the name of the VM processes, `hatchery-vmm` unless told
"""

import http.client
import json
import os
import shlex
import socket
import struct
import subprocess
import time
import urllib.parse

import e2b
import pytest

SCALE = float(os.environ.get("HATCHERY_TIME_SCALE", "1"))
BIG_MIB = int(os.environ.get("HATCHERY_BIG_MIB", "100"))
NATIVE = os.environ.get("HATCHERY_NATIVE") == "1"
HOST_CMD = shlex.split(os.environ.get("HATCHERY_HOST_CMD", ""))
STATE_DIR = os.environ.get("HATCHERY_STATE_DIR", "")
SERVER_START = os.environ.get("HATCHERY_SERVER_START", "")
SERVER_LOG = os.environ.get("HATCHERY_SERVER_LOG", "")
SERVER_PID = os.environ.get("HATCHERY_SERVER_PID", "")
VMM_NAME = os.environ.get("HATCHERY_VMM_NAME", "hatchery-vmm")

API = os.environ.get("E2B_API_URL", "http://127.0.0.1:3000")
KEY = os.environ.get("E2B_API_KEY", "")
ENVD_PORT = 49983

# Older SDKs have fewer classes: the nearest parent that they raise instead.
NotRunning = getattr(e2b, "SandboxNotRunningException", e2b.TimeoutException)
SandboxNotFound = getattr(e2b, "SandboxNotFoundException", e2b.NotFoundException)
FileNotFound = getattr(e2b, "FileNotFoundException", e2b.NotFoundException)

# A mark for tests that end the server.
restarts = pytest.mark.skipif(
    not SERVER_START, reason="HATCHERY_SERVER_START is not set: cannot restart the server"
)


def patient(seconds):
    """A limit for something that must happen, stretched for slow hosts."""
    return seconds * SCALE


def create(**options):
    """A sandbox with limits that suit the host's speed."""
    options.setdefault("timeout", int(patient(300)))
    options.setdefault("request_timeout", max(60, patient(30)))
    return e2b.Sandbox.create(**options)


def run(box, command, **options):
    options.setdefault("timeout", max(60, patient(30)))
    return box.commands.run(command, **options)


def eventually(what, seconds, check):
    """Calls `check` until it gives something true; fails with `what` after `seconds`, scaled."""
    deadline = time.monotonic() + patient(seconds)
    while True:
        got = check()
        if got:
            return got
        assert time.monotonic() < deadline, f"{what}: not within {patient(seconds):.0f} s, last {got!r}"
        time.sleep(0.1)


def on_host(script, timeout=60):
    """Runs a shell script on the server's host and returns what it prints."""
    done = subprocess.run(
        [*HOST_CMD, script],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=patient(timeout),
        check=False,
    )
    assert done.returncode == 0, f"{script!r} on the host: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def pids_script(name, parent="*"):
    """Processes on the host by name and parent, by the shell alone: a lab has little else. A zombie
    counts: somebody forgot to wait for it."""
    return f"""for s in /proc/[0-9]*/stat; do
        {{ read p comm state ppid rest < $s; }} 2>/dev/null || continue
        case "$comm $ppid" in "({name}) "{parent}) echo $p;; esac
    done"""


def server_pid():
    if SERVER_PID:
        return on_host(f"cat '{SERVER_PID}'").strip()
    return on_host(pids_script("hatchery")).split()[0]


def vm_pids_script(server):
    return pids_script(VMM_NAME, server)


def vm_pids():
    """The server's VM processes."""
    return set(on_host(vm_pids_script(server_pid())).split())


def living(pids):
    """Those of these processes that run; one that is dead and not waited for yet does not."""
    return on_host(f"for p in {pids}; do grep -hs '^State:' /proc/$p/status | grep -v Z; done; true")


def healthy():
    try:
        return http_call("GET", "/health", key=None).status < 300
    except OSError:
        return False


def start_server(first=""):
    """Starts the server again; `first` is done before by the shell that starts it."""
    on_host(f"{first}\n{SERVER_START}")
    eventually("the server answers", 30, healthy)


def restart_server(first=""):
    """The same with one that runs, which ends in order."""
    old = server_pid()
    on_host(f"kill {old}")
    eventually("the server ends", 30, lambda: living(old) == "")
    start_server(first)


# Raw HTTP, for what no SDK would send.


def address():
    parts = urllib.parse.urlsplit(API)
    return parts.hostname, parts.port or 80


class Answer:
    """Status, headers (lower-case names) and body of one response."""

    def __init__(self, response):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"


def http_call(method, path, body=None, headers=None, key=KEY, timeout=30):
    """One request on a connection of its own. `key=None` sends no API key."""
    connection = http.client.HTTPConnection(*address(), timeout=patient(timeout))
    try:
        headers = dict(headers or {})
        if key is not None:
            headers["X-API-KEY"] = key
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body=body, headers=headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def token_of(box):
    return box.connection_config.sandbox_headers["X-Access-Token"]


def envd_headers(box, **more):
    return {
        "E2b-Sandbox-Id": box.sandbox_id,
        "E2b-Sandbox-Port": str(ENVD_PORT),
        "X-Access-Token": token_of(box),
        **more,
    }


def envd_call(box, method, path, body=None, headers=None, **options):
    return http_call(method, path, body, envd_headers(box, **(headers or {})), key=None, **options)


def envelope(message, flags=0):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


def frames(body):
    """The (flags, message) pairs of a Connect stream."""
    at = 0
    while at < len(body):
        flags, size = struct.unpack_from(">BI", body, at)
        yield flags, json.loads(body[at + 5 : at + 5 + size])
        at += 5 + size


def start_request(command):
    return {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]}, "stdin": False}


def raw_connection(receive_buffer=None):
    """A TCP connection to the server, optionally with a small receive buffer."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(patient(30))
    connection.connect(address())
    return connection


def request_bytes(method, path, headers, body=b""):
    """A request as bytes, for connections that are cut or fed by hand."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def start_stream_bytes(box, command):
    """The bytes that start `command` and ask for its output."""
    body = envelope(start_request(command))
    headers = envd_headers(
        box,
        **{
            "Content-Type": "application/connect+json",
            "Connect-Protocol-Version": "1",
            "Content-Length": str(len(body)),
        },
    )
    return request_bytes("POST", "/process.Process/Start", headers, body)
