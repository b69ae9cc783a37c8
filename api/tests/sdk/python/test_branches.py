"""Forks, snapshots and resets: many go on from one moment, each as somebody of its own."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import SandboxNotFound, create, eventually, http_call, patient, run
from test_pause import count, counter
from test_unique import server_time

pytestmark = pytest.mark.vm

CHILDREN = int(os.environ.get("HATCHERY_CHILDREN", "20"))


def kill_all(boxes):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda box: box.kill(), boxes))


# One process beside the shell: each costs an emulated guest a million instructions.
TELL = """read -r name < /proc/sys/kernel/hostname
read -r generation < /run/hatchery/generation
read -r machine < /etc/machine-id
printf '%s\\n' $EPOCHREALTIME $name $E2B_SANDBOX_ID $generation "$(od -An -tx1 -N16 /dev/urandom)" $machine"""


def tell(box):
    """Who a child is: name, kernel's and user's randomness, and how wrong its clock is."""
    before = server_time(box)
    words = run(box, TELL).stdout.splitlines()
    after = server_time(box)
    now, hostname, own_id, generation, entropy, machine_id = words
    assert hostname == own_id == box.sandbox_id
    assert before - 0.05 < float(now) < after + 0.05, "its clock is right"
    return generation, entropy, machine_id


def test_children_go_on_from_the_same_value():
    box = create(metadata={"test": "fork"})
    children = []
    try:
        handle = counter(box)
        before = count(box)
        forked = box.fork(count=CHILDREN, timeout=int(patient(120)), request_timeout=patient(120))
        after = count(box)
        errors = [child for child in forked if isinstance(child, Exception)]
        children = [child for child in forked if not isinstance(child, Exception)]
        assert errors == [] and len(children) == CHILDREN
        assert len({child.sandbox_id for child in children} | {box.sandbox_id}) == CHILDREN + 1
        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(count, children))
            told = list(pool.map(tell, children))
        # The token and the process were there before: each child has the parent's.
        assert {one[1:] for one in counts} == {before[1:]} == {after[1:]}
        assert all(one[0] >= before[0] for one in counts)
        for values in zip(*told):
            assert len(set(values)) == CHILDREN
        # They count on, each on its own.
        first = children[0]
        eventually("it counts on", 20, lambda: count(first)[0] > counts[0][0])
        assert first.commands.kill(handle.pid)
        eventually("the others still count", 20, lambda: count(children[1])[0] > counts[1][0])
        assert first.get_info().metadata == {"test": "fork"}
        assert box.is_running()
    finally:
        kill_all([box, *children])


def test_a_snapshot_is_a_template():
    box = create()
    boxes = []
    try:
        counter(box)
        before = count(box)
        run(box, "echo stored > /home/user/stored")
        snapshot = box.create_snapshot(request_timeout=patient(120))
        assert count(box)[1:] == before[1:], "it goes on"
        listed = e2b.Sandbox.list_snapshots().next_items()
        assert snapshot.snapshot_id in [other.snapshot_id for other in listed]
        assert box.kill()
        with ThreadPoolExecutor(2) as pool:
            boxes = list(pool.map(lambda _: create(template=snapshot.snapshot_id), range(10)))
        for other in boxes:
            assert count(other)[1:] == before[1:]
            assert run(other, "cat /home/user/stored").stdout == "stored\n"
        told = [tell(other) for other in boxes]
        for values in zip(*told):
            assert len(set(values)) == len(boxes)
        assert e2b.Sandbox.delete_snapshot(snapshot.snapshot_id) is True
        assert e2b.Sandbox.delete_snapshot(snapshot.snapshot_id) is False
        with pytest.raises(e2b.SandboxException):
            create(template=snapshot.snapshot_id)
        assert count(boxes[0])[1:] == before[1:], "what came of it stays"
    finally:
        kill_all([box, *boxes])


def test_a_trashed_sandbox_is_reset():
    box = create(envs={"MINE": "yes"})
    try:
        run(box, "echo old > /home/user/old; sudo rm -rf /usr/bin/* /etc/passwd", timeout=patient(60))
        with pytest.raises((e2b.SandboxException, e2b.AuthenticationException)):
            run(box, "ls /home/user")
        answer = http_call("POST", f"/sandboxes/{box.sandbox_id}/reset", timeout=60)
        assert answer.status == 204, answer
        assert run(box, "ls /home/user").stdout == "", "the file is gone, the programs are back"
        assert run(box, "echo $MINE $(hostname)").stdout == f"yes {box.sandbox_id}\n"
    finally:
        box.kill()
    answer = http_call("POST", f"/sandboxes/{box.sandbox_id}/reset")
    assert answer.status == 404, answer
    with pytest.raises(SandboxNotFound):
        box.get_info()


def test_a_branch_of_a_branch():
    """Each generation sees what those before it wrote, in memory and on the disk, and nobody else."""
    boxes = [create()]
    try:
        for n in range(3):
            run(boxes[-1], f"echo {n} >> /dev/shm/line; echo {n} >> /var/tmp/line; sync")
            (child,) = boxes[-1].fork(timeout=int(patient(60)), request_timeout=patient(60))
            assert not isinstance(child, Exception), child
            boxes.append(child)
        time.sleep(1)
        for n, box in enumerate(boxes):
            lines = "".join(f"{k}\n" for k in range(min(n + 1, 3)))
            assert run(box, "cat /dev/shm/line").stdout == lines
            assert run(box, "cat /var/tmp/line").stdout == lines
    finally:
        kill_all(boxes)
