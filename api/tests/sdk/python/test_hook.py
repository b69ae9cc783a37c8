"""The clone hook: run and waited for before anybody is served, and nobody is delivered without it."""

import time
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import create, http_call, patient, run

pytestmark = pytest.mark.vm

# The agent's own bound, seconds, whatever the speed of the host.
LIMIT = 10


def install(box, script):
    box.files.write("/tmp/hook", f"#!/bin/sh\n{script}\n")
    run(box, "install -D -m 755 /tmp/hook /etc/hatchery/clone-hook", user="root")


def fork(box, count=1):
    return box.fork(count=count, timeout=int(patient(120)), request_timeout=patient(120))


def test_it_is_waited_for():
    """A child's first command finds all of its work done, with the child's generation."""
    box = create()
    boxes = [box]
    try:
        install(box, "sleep 2; echo $HATCHERY_GENERATION > /tmp/hooked")
        boxes += fork(box, 3)
        told = [run(child, "cat /tmp/hooked /run/hatchery/generation").stdout.split() for child in boxes[1:]]
        assert all(len(each) == 2 and each[0] == each[1] for each in told), told
        assert len({each[0] for each in told}) == 3
        assert run(box, "test ! -e /tmp/hooked").exit_code == 0, "the parent is no clone"
        # The same for one that was paused.
        assert box.pause(request_timeout=patient(60))
        again = e2b.Sandbox.connect(box.sandbox_id, request_timeout=patient(60))
        hooked, own = run(again, "cat /tmp/hooked /run/hatchery/generation").stdout.split()
        assert hooked == own
    finally:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda each: each.kill(), boxes))


HOOKS = {"fails": ("exit 3", "clone hook"), "hangs": ("sleep 1000", "clone hook")}


@pytest.mark.parametrize("how", HOOKS)
def test_nobody_is_delivered_without_it(how):
    script, words = HOOKS[how]
    box = create()
    snapshot = None
    before = {each["sandboxID"] for each in http_call("GET", "/v2/sandboxes").json()}
    try:
        install(box, script)
        snapshot = box.create_snapshot(request_timeout=patient(120)).snapshot_id
        start = time.monotonic()
        answer = http_call("POST", "/v2/sandboxes", {"templateID": snapshot, "timeout": 300}, timeout=120)
        taken = time.monotonic() - start
        assert answer.status == 500 and words in answer.json()["message"], answer
        (child,) = fork(box)
        assert isinstance(child, Exception), "a child is delivered"
        answer = http_call("GET", "/v2/sandboxes").json()
        assert {each["sandboxID"] for each in answer} == before, "nothing half-made is listed"
        assert taken < LIMIT + patient(3), f"{taken:.1f} s"
        assert how == "fails" or taken >= LIMIT - 1
        # The parent runs on, and is what it was.
        assert run(box, "echo on").stdout == "on\n"
        assert box.pause(request_timeout=patient(60))
        answer = http_call("POST", f"/sandboxes/{box.sandbox_id}/connect", {"timeout": 300}, timeout=120)
        assert answer.status == 500 and words in answer.json()["message"], answer
        assert http_call("GET", f"/sandboxes/{box.sandbox_id}").json()["state"] == "paused"
    finally:
        box.kill()
        if snapshot:
            e2b.Sandbox.delete_snapshot(snapshot)
