"""Vector and mask registers over pause, fork and reset: what a processor has, a saved machine keeps."""

import os

import e2b
import pytest
from support import create, eventually, http_call, patient, run

PROGRAM = os.environ.get("HATCHERY_REGISTER_HOLDER")
WIDTH = os.environ.get("HATCHERY_REGISTER_WIDTH")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not PROGRAM, reason="HATCHERY_REGISTER_HOLDER is not set: nothing holds registers"),
]


def lines(box):
    """What it has told so far: nothing, not even a file, before its shell has come to the program."""
    return run(box, "cat /tmp/holder.log || true").stdout.split()


def looks(box):
    """How often all registers had their values; fails when one was lost."""
    told = lines(box)
    assert "lost" not in told, told
    return int(told[-1]) if len(told) > 1 else 0


def goes_on(box, since):
    """Two looks more: one may have been over when the machine was saved."""
    eventually("it looks again", 60, lambda: looks(box) > since + 1)
    assert run(box, "pgrep -x holder").stdout.strip()


def test_registers_outlive_pause_fork_and_reset():
    box = create()
    children = []
    try:
        with open(PROGRAM, "rb") as program:
            box.files.write("/tmp/holder", program.read())
        start = "chmod 755 /tmp/holder && exec /tmp/holder > /tmp/holder.log"
        box.commands.run(start, background=True, timeout=0)
        eventually("it has looked once", 60, lambda: looks(box) > 0)
        assert WIDTH in (None, lines(box)[0])
        path = f"/sandboxes/{box.sandbox_id}"
        assert http_call("POST", path + "/checkpoints", {"name": "held"}, timeout=120).status == 201
        checkpoint = looks(box)
        goes_on(box, checkpoint)

        before = looks(box)
        assert box.pause(request_timeout=patient(60))
        box = e2b.Sandbox.connect(
            box.sandbox_id, timeout=int(patient(300)), request_timeout=patient(60)
        )
        goes_on(box, before)

        before = looks(box)
        forked = box.fork(count=2, timeout=int(patient(300)), request_timeout=patient(120))
        children = [child for child in forked if not isinstance(child, Exception)]
        assert len(children) == 2, forked
        for each in [box, *children]:
            goes_on(each, before)

        assert http_call("POST", path + "/reset", {"checkpoint": "held"}, timeout=120).status == 204
        goes_on(box, checkpoint)
    finally:
        for each in [box, *children]:
            each.kill()
