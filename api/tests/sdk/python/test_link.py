"""Who speaks for the guest: its agent alone, however other processes of it ask for its connection."""

import json

import e2b
import pytest
from support import create, patient, run

pytestmark = pytest.mark.vm

# Calls the service as the agent does, from ports of each kind, and says what became of it.
KNOCK = r"""
import errno, json, socket

def knock(source):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as call:
        call.settimeout(20)
        try:
            if source:
                call.bind((socket.VMADDR_CID_ANY, source))
            call.connect((socket.VMADDR_CID_HOST, 1024))
            return "connected"
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))

print(json.dumps([knock(source) for source in [None, 5000, 1000, 1023]]))
"""


def knock(box, how="", **options):
    box.files.write("/tmp/knock.py", KNOCK)
    return json.loads(run(box, f"{how} python3 /tmp/knock.py", **options).stdout)


def test_nobody_but_the_agent_connects(fresh):
    listener = fresh.commands.run("head -n 2", background=True, stdin=True, timeout=0)
    # Of a port of its own choice the kernel says no, of the others the host does.
    assert knock(fresh) == ["ECONNRESET", "ECONNRESET", "EACCES", "EACCES"]
    # Root of a user namespace is nobody in the guest's own.
    assert knock(fresh, "unshare --user --map-root-user") == ["ECONNRESET", "ECONNRESET", "EACCES", "EACCES"]
    # While the agent's connection stands not even root of the guest gets another.
    as_root = knock(fresh, user="root")
    assert "connected" not in as_root and as_root[:3] == ["ECONNRESET"] * 3
    # What was open is, and what is new begins.
    fresh.commands.send_stdin(listener.pid, "still\n")
    fresh.commands.send_stdin(listener.pid, "there\n")
    assert run(fresh, "echo new").stdout == "new\n"
    assert listener.wait().stdout == "still\nthere\n"


def test_nobody_takes_the_place_in_a_machine_that_was_stored():
    box = create()
    try:
        assert "connected" not in knock(box)
        flood = "while :; do python3 /tmp/knock.py; done > /tmp/knocks 2>&1"
        box.commands.run(flood, background=True, timeout=0)
        assert box.pause(request_timeout=patient(60))
        box = e2b.Sandbox.connect(box.sandbox_id, timeout=int(patient(300)), request_timeout=patient(30))
        assert run(box, "echo back").stdout == "back\n"
        assert "connected" not in knock(box)
        assert run(box, "grep -c connected /tmp/knocks || true").stdout == "0\n"
    finally:
        box.kill()
