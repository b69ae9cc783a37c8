"""What no SDK sends: wrong keys and tokens, broken bodies, cut connections, lies about lengths."""

import json
import os
import struct
import time

import pytest
from support import (
    API,
    KEY,
    NATIVE,
    SCALE,
    address,
    envd_call,
    envd_headers,
    envelope,
    eventually,
    frames,
    http_call,
    patient,
    raw_connection,
    request_bytes,
    run,
    start_request,
    start_stream_bytes,
    token_of,
)

STREAM = {"Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
UNARY = {"Content-Type": "application/json", "Connect-Protocol-Version": "1"}


def error_of(answer, status):
    """The JSON error body, whose `code` must repeat the status: the JS SDK reads it there."""
    assert answer.status == status, answer
    body = answer.json()
    assert body["code"] == status and body["message"], body
    return body["message"]


def closed_or_refused(connection, *statuses):
    """The server answers with one of `statuses`, or hangs up; it does not just stay silent."""
    try:
        head = connection.recv(4096)
    except ConnectionResetError:
        return
    assert head == b"" or int(head.split()[1]) in statuses, head[:200]


# The control plane.


def test_health():
    assert http_call("GET", "/health", key=None).status in (200, 204)


@pytest.mark.parametrize("key", [None, "", "nonsense", "e2b_" + "0" * 39 + "f", KEY + "0", KEY[:-1]])
def test_keys(key):
    for method, path in [("GET", "/v2/sandboxes"), ("POST", "/v2/sandboxes"), ("DELETE", "/sandboxes/i1")]:
        error_of(http_call(method, path, key=key), 401)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"base"',
        b"{}",
        b'{"templateID": 7}',
        b'{"templateID": "base", "timeout": "soon"}',
        b'{"templateID": "base", "timeout": 1e300}',
        b'{"templateID": "base", "metadata": {"a": 1}}',
        b'{"templateID": "base", "envVars": ["A=1"]}',
        b'{"templateID": "\\ud800"}',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a":' * 20_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed_creates(body):
    error_of(http_call("POST", "/v2/sandboxes", body, {"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize("template", ["../../etc/passwd", "base\0", "x" * 10_000, "", "BASE", "/", "base/../base"])
def test_strange_templates(template):
    answer = http_call("POST", "/v2/sandboxes", {"templateID": template})
    assert answer.status in (400, 404), answer
    assert answer.json()["code"] == answer.status


def test_bad_environment_names():
    for name in ("", "A=B", "A\0B"):
        answer = http_call("POST", "/v2/sandboxes", {"templateID": "base", "envVars": {name: "1"}})
        error_of(answer, 400)


def test_an_oversize_body_is_refused_early():
    """The server must not wait for, or keep, a gigabyte that it was only told of."""
    connection = raw_connection()
    headers = {"X-API-KEY": KEY, "Content-Type": "application/json", "Content-Length": 1 << 30}
    connection.sendall(request_bytes("POST", "/v2/sandboxes", headers, b" " * 65536))
    closed_or_refused(connection, 400, 413)
    connection.close()


def test_an_endless_chunked_body_is_cut():
    connection = raw_connection()
    headers = {"X-API-KEY": KEY, "Content-Type": "application/json", "Transfer-Encoding": "chunked"}
    connection.sendall(request_bytes("POST", "/v2/sandboxes", headers))
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    try:
        for _ in range(1024):  # 64 MiB, far beyond any honest create
            connection.sendall(chunk)
    except (BrokenPipeError, ConnectionResetError):
        return
    closed_or_refused(connection, 400, 413)
    connection.close()


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/sandboxes/..%2f..%2fetc", "/sandboxes/%00", "/sandboxes/" + "a" * 5000, "/v9/sandboxes", "//", "/%"],
)
def test_unknown_paths(path):
    answer = http_call("GET", path)
    assert answer.status in (400, 404), answer
    assert answer.json()["code"] == answer.status


def test_wrong_methods():
    for method, path in [("PUT", "/v2/sandboxes"), ("POST", "/health"), ("PATCH", "/sandboxes/i1")]:
        answer = http_call(method, path)
        assert answer.status in (404, 405), answer


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "nextToken=%FF%00", "state=flying"])
def test_bad_list_queries(query):
    error_of(http_call("GET", f"/v2/sandboxes?{query}"), 400)


def test_calls_on_missing_sandboxes():
    error_of(http_call("GET", "/sandboxes/inosuchsandbox00000"), 404)
    error_of(http_call("DELETE", "/sandboxes/inosuchsandbox00000"), 404)
    error_of(http_call("POST", "/sandboxes/inosuchsandbox00000/timeout", {"timeout": 5}), 404)
    error_of(http_call("POST", "/sandboxes/inosuchsandbox00000/connect", {"timeout": 5}), 404)


# Routing to sandboxes.


def test_a_missing_sandbox_is_502():
    headers = {"E2b-Sandbox-Id": "inosuchsandbox00000", "E2b-Sandbox-Port": "49983"}
    for path in ("/health", "/files?path=x", "/process.Process/List"):
        answer = http_call("GET", path, headers=headers, key=None)
        assert "was not found" in error_of(answer, 502)
        assert answer.json()["sandboxId"] == "inosuchsandbox00000"


def test_a_closed_port_is_502(box):
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8080"}
    answer = http_call("GET", "/", headers=headers, key=None)
    assert "port is not open" in error_of(answer, 502)


@pytest.mark.parametrize(
    "headers",
    [
        {"E2b-Sandbox-Id": "i1"},
        {"E2b-Sandbox-Port": "49983"},
        {"E2b-Sandbox-Id": "i1", "E2b-Sandbox-Port": "x"},
        {"E2b-Sandbox-Id": "i1", "E2b-Sandbox-Port": "70000"},
        {"E2b-Sandbox-Id": "../..", "E2b-Sandbox-Port": "49983"},
    ],
)
def test_bad_routing_headers(headers):
    assert http_call("GET", "/health", headers=headers, key=None).status == 400


def test_routing_by_host_name(box):
    host = {"Host": f"49983-{box.sandbox_id}.sandboxes.localhost", "X-Access-Token": token_of(box)}
    assert http_call("GET", "/health", headers=host, key=None).status == 204
    body = b"by host name"
    posted = http_call(
        "POST",
        "/files?path=/tmp/by-host",
        body,
        {**host, "Content-Type": "application/octet-stream"},
        key=None,
    )
    assert posted.status == 200, posted
    assert http_call("GET", "/files?path=/tmp/by-host", headers=host, key=None).body == body


# The sandbox's own API.


def test_tokens(box):
    for token in (None, "", "wrong", token_of(box)[:-1], token_of(box) + "0"):
        headers = envd_headers(box)
        del headers["X-Access-Token"]
        if token is not None:
            headers["X-Access-Token"] = token
        for method, path in [("POST", "/process.Process/List"), ("POST", "/filesystem.Filesystem/Stat")]:
            answer = http_call(method, path, b"{}", {**headers, **UNARY}, key=None)
            assert "access token" in error_of(answer, 401)
        answer = http_call("GET", "/files?path=/etc/hostname", headers=headers, key=None)
        error_of(answer, 401)
        start = http_call(
            "POST", "/process.Process/Start", envelope(start_request("id")), {**headers, **STREAM}, key=None
        )
        assert b"start" not in start.body and b"unauth" in start.body.lower(), start
        assert http_call("GET", "/health", headers=headers, key=None).status == 204


def test_another_sandboxes_token_is_wrong(box, fresh):
    headers = {**envd_headers(box), "X-Access-Token": token_of(fresh), **UNARY}
    error_of(http_call("POST", "/process.Process/List", b"{}", headers, key=None), 401)


def test_internal_routes_are_hidden(box):
    for path in ("/init", "/freeze", "/unfreeze", "/fsfreeze", "/upgrade"):
        assert envd_call(box, "POST", path, b"{}", UNARY).status == 404


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"path": 7}', b"\xff", b"[" * 50_000])
def test_malformed_unary_calls(box, body):
    answer = envd_call(box, "POST", "/filesystem.Filesystem/Stat", body, UNARY)
    assert answer.status == 400, answer
    assert answer.json()["code"] == "invalid_argument"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        envelope(b"{"),
        envelope(b"[]"),
        envelope(b"{}"),
        envelope({"process": {"cmd": 7}}),
        envelope({"process": {"cmd": ""}}),
        envelope({"process": {"cmd": "/bin/true", "args": ["a\0b"]}}),
        envelope({"process": {"cmd": "/bin/true", "envs": {"A=B": "1"}}}),
        struct.pack(">BI", 0, 0xFFFF_FFFF) + b"x" * 100,
        struct.pack(">BI", 0, 100) + b"{}",
        struct.pack(">BI", 1, 2) + b"{}",
        envelope(start_request("true")) + b"trailing",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_malformed_starts(box, body):
    """Errors of a stream are HTTP 200 with a last frame that tells; nothing may run."""
    answer = envd_call(box, "POST", "/process.Process/Start", body, STREAM)
    assert answer.status == 200, answer
    seen = list(frames(answer.body))
    assert seen and seen[-1][0] & 2, answer
    if b"trailing" not in body:  # what follows the one message may be ignored
        assert "error" in seen[-1][1], answer
        assert not [message for _, message in seen if "event" in message]


def test_unknown_procedures(box):
    for path in ("/process.Process/Nope", "/nope.Nope/Start", "/process.Process/"):
        assert envd_call(box, "POST", path, b"{}", UNARY).status in (404, 501)


def test_unknown_fields_are_ignored(box):
    answer = envd_call(box, "POST", "/filesystem.Filesystem/Stat", b'{"path":"/tmp","new":[1]}', UNARY)
    assert answer.status == 200 and answer.json()["entry"]["path"] == "/tmp"


@pytest.mark.parametrize("path", ["", "%00", "a%00b", "/tmp/" + "n" * 300, "/" + "p/" * 3000])
def test_bad_file_paths(box, path):
    answer = envd_call(box, "GET", f"/files?path={path}")
    assert 400 <= answer.status < 500, answer
    answer = envd_call(
        box, "POST", f"/files?path={path}", b"x", {"Content-Type": "application/octet-stream"}
    )
    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize(
    "content_type, body",
    [
        ("text/plain", b"x"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut'),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 20_000),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b"),
    ],
    ids=["plain", "no boundary", "no part", "cut part", "many headers", "long boundary"],
)
def test_bad_uploads(box, content_type, body):
    answer = envd_call(box, "POST", "/files?path=/tmp/bad-upload", body, {"Content-Type": content_type})
    error_of(answer, 400)


def test_a_duplicate_path_in_one_upload_is_refused(box):
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="/tmp/twice"\r\n\r\nx\r\n'
    answer = envd_call(
        box, "POST", "/files", part * 2 + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}
    )
    error_of(answer, 400)


# Connections.


def test_a_client_that_vanishes_during_an_upload(box):
    headers = envd_headers(box, **{"Content-Type": "application/octet-stream", "Content-Length": 50_000_000})
    for _ in range(5):
        connection = raw_connection()
        connection.sendall(request_bytes("POST", "/files?path=/tmp/vanish", headers, os.urandom(200_000)))
        connection.close()
    assert run(box, "echo alive").stdout == "alive\n"
    box.files.write("/tmp/vanish", "whole")
    assert box.files.read("/tmp/vanish") == "whole"
    holders = "ls -l /proc/1/fd 2>/dev/null | grep -c /tmp/vanish || true"
    if not NATIVE:
        eventually("the agent closes the file", 10, lambda: run(box, holders, user="root").stdout == "0\n")


def test_a_client_that_vanishes_during_a_download(box):
    run(box, "head -c 30000000 /dev/zero > /tmp/zeros")
    for _ in range(5):
        connection = raw_connection(receive_buffer=8192)
        connection.sendall(request_bytes("GET", "/files?path=/tmp/zeros", envd_headers(box)))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.close()
    assert run(box, "echo alive; rm /tmp/zeros").stdout == "alive\n"


def test_a_client_that_vanishes_leaves_its_command_running(box):
    connection = raw_connection()
    connection.sendall(start_stream_bytes(box, "sleep 3603"))
    assert b"200" in connection.recv(100)
    eventually("it runs", 10, lambda: _sleeper(box))
    connection.close()
    time.sleep(1)
    left = _sleeper(box)
    assert left, "the command goes on without its client"
    assert box.commands.kill(left[0].pid)


def _sleeper(box):
    return [each for each in box.commands.list() if "sleep 3603" in " ".join(each.args)]


def test_an_early_answer_reaches_a_client_that_is_still_sending(box):
    """Refused before the body was read: the client may finish sending and then read why."""
    wrong_user = "/files?path=/tmp/x&username=nobody-of-that-name"
    missing = {"E2b-Sandbox-Id": "inosuchsandbox00000", "E2b-Sandbox-Port": "49983"}
    for status, path, headers in [
        (401, "/v2/sandboxes", {"X-API-KEY": "wrong"}),
        (401, wrong_user, envd_headers(box, **{"Content-Type": "application/octet-stream"})),
        (401, "/process.Process/List", {**envd_headers(box), **UNARY, "X-Access-Token": "wrong"}),
        (502, "/process.Process/List", {**missing, **UNARY}),
    ]:
        connection = raw_connection()
        connection.sendall(request_bytes("POST", path, {**headers, "Transfer-Encoding": "chunked"}))
        for _ in range(5):
            time.sleep(0.1)
            connection.sendall(b"1\r\n{\r\n")
        connection.sendall(b"0\r\n\r\n")
        head = connection.recv(4096)
        assert int(head.split()[1]) == status, head
        connection.close()


def test_half_closed_connections(box):
    """The client ends its side after the request, as HTTP allows; the answer still comes."""
    import socket

    connection = raw_connection()
    body = b'{"path":"/tmp"}'
    headers = {**envd_headers(box), **UNARY, "Content-Length": len(body)}
    connection.sendall(request_bytes("POST", "/filesystem.Filesystem/Stat", headers, body))
    connection.shutdown(socket.SHUT_WR)
    head = connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 200") or head == b"", head
    connection.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/sandboxes HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"GET /health HTTP/1.1\r\nHost: x\r\nBad Header : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_not_http(raw):
    connection = raw_connection()
    try:
        connection.sendall(raw)
    except (BrokenPipeError, ConnectionResetError):
        return
    closed_or_refused(connection, 400, 401, 404, 405, 411, 413, 414, 431, 505)
    connection.close()


def test_pipelined_requests():
    connection = raw_connection()
    connection.sendall(request_bytes("GET", "/health", {}) * 2)
    received = b""
    while received.count(b"HTTP/1.1 2") < 2:
        more = connection.recv(4096)
        assert more, received
        received += more
    connection.close()


def test_idle_connections_do_not_block_others():
    idle = [raw_connection() for _ in range(200 if SCALE == 1 else 50)]  # slow to make in the lab
    for connection in idle:
        connection.sendall(b"POST /v2/sandboxes HTTP/1.1\r\nHost: x\r\n")
    start = time.monotonic()
    assert http_call("GET", "/health", key=None).status in (200, 204)
    assert time.monotonic() - start < patient(2)
    for connection in idle:
        connection.close()


def test_http2_without_tls():
    """The preface of h2c, an empty SETTINGS, and the server's SETTINGS in answer."""
    connection = raw_connection()
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
    answer = connection.recv(9)
    assert len(answer) == 9 and answer[3] == 4, answer
    connection.close()


def test_the_suite_speaks_to_loopback():
    """Hostile traffic goes to this machine only."""
    assert address()[0] in ("127.0.0.1", "localhost", "::1"), API
    assert json.dumps(API)
