"""What a sandbox has from the one that it goes on from: the table of api/PROTOCOL.md §10.6, as the SDK shows it."""

import datetime

import e2b
from support import create, http_call, patient, run

ENVS = {"A": "parent", "B": "parent"}
METADATA = {"of": "parent"}
POLICY = {"on_timeout": "pause", "auto_resume": True}
LONG, SHORT = int(patient(600)), int(patient(120))


def parent():
    return create(envs=ENVS, metadata=METADATA, lifecycle=POLICY, timeout=LONG)


def variables(box):
    """As its processes have them."""
    said = run(box, "echo $A $B $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEMPLATE_ID").stdout.split()
    assert said[2:4] == ["true", box.sandbox_id]
    return said[:2], said[4]


def is_policy(info, on_timeout, auto_resume):
    policy = info.lifecycle
    return (policy["on_timeout"], policy["auto_resume"]) == (on_timeout, auto_resume)


def lives(info, seconds):
    """It has so long to live, but for what the test took until now."""
    left = (info.end_at - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
    return seconds - patient(60) < left <= seconds


def test_a_fork_has_everything_but_the_time_to_live():
    box = parent()
    children = []
    try:
        children = box.fork(count=2, timeout=SHORT, request_timeout=patient(60))
        for child in children:
            assert variables(child) == (["parent", "parent"], "base")
            info = child.get_info()
            assert info.metadata == METADATA and is_policy(info, "pause", True)
            assert lives(info, SHORT)
    finally:
        for each in [box, *children]:
            each.kill()


def test_a_snapshot_gives_its_variables_and_nothing_else():
    box = parent()
    boxes, snapshot = [], None
    try:
        snapshot = box.create_snapshot(request_timeout=patient(60)).snapshot_id
        box.kill()
        boxes.append(create(template=snapshot, timeout=SHORT))
        assert variables(boxes[0]) == (["parent", "parent"], snapshot)
        info = boxes[0].get_info()
        assert info.metadata == {} and is_policy(info, "kill", False) and lives(info, SHORT)
        boxes.append(create(template=snapshot, envs={"B": "own"}, metadata={"of": "own"}))
        assert variables(boxes[1]) == (["parent", "own"], snapshot)
        assert boxes[1].get_info().metadata == {"of": "own"}
    finally:
        for each in [box, *boxes]:
            each.kill()
        if snapshot:
            e2b.Sandbox.delete_snapshot(snapshot)


def test_a_resumed_one_is_what_it_was_with_a_new_time_to_live():
    box = parent()
    try:
        before = box.get_info()
        assert box.pause(request_timeout=patient(60))
        again = e2b.Sandbox.connect(box.sandbox_id, timeout=SHORT, request_timeout=patient(30))
        assert variables(again) == (["parent", "parent"], "base")
        info = again.get_info()
        assert info.metadata == METADATA and is_policy(info, "pause", True) and lives(info, SHORT)
        assert info.started_at == before.started_at
        e2b.Sandbox.connect(box.sandbox_id, timeout=1)
        assert lives(again.get_info(), SHORT), "who runs is not given less"
    finally:
        box.kill()


def test_a_reset_one_stays_what_it_is():
    box = parent()
    try:
        before = box.get_info()
        path = f"/sandboxes/{box.sandbox_id}"
        assert http_call("POST", path + "/checkpoints", {"name": "c"}, timeout=60).status == 201
        for body in [{}, {"checkpoint": "c"}]:
            answer = http_call("POST", path + "/reset", body, timeout=60)
            assert answer.status == 204, answer
            assert variables(box) == (["parent", "parent"], "base")
            assert box.get_info() == before
    finally:
        box.kill()
