"""Checkpoints, and many sandboxes by one request: what E2B's API does not have."""

import json
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import create, eventually, http_call, patient, run

COUNTER = """
import os, sys, time
values, n = [], 0
while True:
    n += 1
    if os.path.exists("/tmp/say"):
        values.append(open("/tmp/say").read())
        os.remove("/tmp/say")
    with open("/tmp/state.new", "w") as file:
        file.write(f"{n} {os.getpid()} {' '.join(values)}")
    os.rename("/tmp/state.new", "/tmp/state")
    time.sleep(0.1)
"""


def kill_all(ids):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(e2b.Sandbox.kill, ids))


def post(path, body, timeout=60):
    return http_call("POST", path, body, timeout=timeout)


def state(box):
    """What the process in the sandbox has in its memory: a count, its number and what it was told."""
    n, pid, *values = run(box, "cat /tmp/state").stdout.split(" ")
    return int(n), int(pid), [value for value in values if value]


def told(box, value):
    box.files.write("/tmp/say", value)
    eventually(f"it knows {value}", 20, lambda: value in state(box)[2])


def ids_of(lines):
    return [line["sandbox"]["sandboxID"] for line in lines if "sandbox" in line]


def test_the_tree_is_told():
    box = create()
    try:
        path = f"/sandboxes/{box.sandbox_id}"
        names = ["a", "b"]
        nodes = [post(path + "/checkpoints", {"name": name}) for name in names]
        assert [node.status for node in nodes] == [201, 201], nodes
        first, second = [node.json() for node in nodes]
        assert first["parentID"] is None and second["parentID"] == first["checkpointID"]
        assert post(path + "/reset", {"checkpoint": "a"}).status == 204
        assert run(box, "echo it works").stdout == "it works\n"
        tree = http_call("GET", path + "/checkpoints").json()
        assert [node["name"] for node in tree["checkpoints"]] == names
        assert tree["current"] == first["checkpointID"] and tree["bytes"] > 0
        assert http_call("DELETE", path + "/checkpoints/a").status == 204
        answer = post(path + "/reset", {"checkpoint": "a"})
        assert answer.status == 404 and answer.json()["error_code"] == "checkpoint_not_found"
    finally:
        box.kill()
    assert http_call("GET", path + "/checkpoints").status == 404


@pytest.mark.vm
def test_a_process_goes_back_and_forth_in_its_tree():
    box = create()
    children = []
    try:
        path = f"/sandboxes/{box.sandbox_id}"
        box.files.write("/tmp/counter.py", COUNTER)
        handle = box.commands.run("exec python3 /tmp/counter.py", background=True, timeout=0)
        eventually("it counts", 20, lambda: run(box, "cat /tmp/state || true").stdout)
        told(box, "one")
        assert post(path + "/checkpoints", {"name": "c1"}).status == 201
        at_c1 = state(box)
        told(box, "two")
        run(box, "echo two > /home/user/two; sync")
        assert post(path + "/checkpoints", {"name": "c2"}).status == 201
        run(box, "sudo rm -rf /usr/lib/python3* /home/user/two; true", timeout=patient(60))
        box.commands.kill(handle.pid)

        assert post(path + "/reset", {"checkpoint": "c1"}).status == 204
        eventually("it counts on", 20, lambda: state(box)[0] > at_c1[0])
        assert state(box)[1:] == (handle.pid, ["one"])
        assert run(box, "ls /home/user").stdout == ""
        assert post(path + "/reset", {"checkpoint": "c2"}).status == 204
        assert state(box)[1:] == (handle.pid, ["one", "two"])
        assert run(box, "cat /home/user/two; python3 -c 'print(3)'").stdout == "two\n3\n"
        told(box, "three")

        body = {"checkpoint": "c1", "count": 3, "timeout": int(patient(120))}
        children = ids_of(post(path + "/fork", body, timeout=120).json())
        assert len(children) == 3
        for n, child in enumerate(children):
            other = e2b.Sandbox.connect(child)
            assert state(other)[1:] == (handle.pid, ["one"])
            told(other, f"child{n}")
            assert state(other)[2] == ["one", f"child{n}"], "each for itself"
        assert state(box)[2] == ["one", "two", "three"]
    finally:
        kill_all([box.sandbox_id, *children])


def test_a_batch():
    body = {"templateID": "base", "count": 20, "timeout": int(patient(120))}
    body["metadata"] = {"test": "batch"}
    answer = http_call("POST", "/sandboxes:batch", body, timeout=300)
    assert answer.status == 200, answer
    *lines, last = [json.loads(line) for line in answer.body.splitlines()]
    ids = ids_of(lines)
    try:
        assert last["summary"] == {"count": 20, "created": 20, "failed": 0}
        assert sorted(line["index"] for line in lines) == list(range(20))
        assert len(set(ids)) == 20
        with ThreadPoolExecutor(4) as pool:
            boxes = list(pool.map(e2b.Sandbox.connect, ids))
            said = list(pool.map(lambda box: run(box, "echo $E2B_SANDBOX_ID").stdout, boxes))
        assert said == [f"{id}\n" for id in ids]
        assert boxes[0].get_info().metadata == {"test": "batch"}
    finally:
        kill_all(ids)


def test_a_batch_without_room_is_refused_at_once():
    body = {"templateID": "base", "count": 1000, "timeout": 60}
    answer = http_call("POST", "/sandboxes:batch", body)
    assert answer.status == 429, answer
    assert answer.headers["should-retry"] == "false" and answer.headers["retry-after"]
