"""Pause and resume: what stands still, what goes on, and what is gone."""

import json
import time

import e2b
import pytest
from support import NotRunning, SandboxNotFound, create, eventually, patient, run
from test_unique import server_time

pytestmark = pytest.mark.vm

# Counts, and tells a token that it keeps in memory alone. By the shell, which costs an emulated guest a fortieth
# of Python: it starts no process to wait, and its lines are read without one.
COUNTER = """
printf -v token %08x%08x $SRANDOM $SRANDOM
exec {idle}<> <(:)
for ((n = 1; ; n++)); do
    echo $n $token
    echo $n $token $$ >> /tmp/count
    read -rt PERIOD -u $idle
done
""".replace("PERIOD", str(patient(0.1)))  # twenty of them at once must leave a slow host time for others


def counter(box):
    """Starts the counter; its process."""
    box.files.write("/tmp/counter", COUNTER)
    handle = box.commands.run("exec bash /tmp/counter", background=True, timeout=0)
    eventually("it counts", 20, lambda: run(box, "cat /tmp/count || true").stdout)
    return handle


def count(box):
    n, token, pid = box.files.read("/tmp/count").splitlines()[-1].split()
    return int(n), token, int(pid)


def state(box):
    return box.get_info().state


def resume(box):
    return e2b.Sandbox.connect(box.sandbox_id, timeout=int(patient(300)), request_timeout=patient(30))


def test_memory_files_and_processes_go_on():
    box = create(envs={"MINE": "yes"}, metadata={"test": "pause"})
    try:
        handle = counter(box)
        boot_id = run(box, "cat /proc/sys/kernel/random/boot_id").stdout
        before = count(box)
        assert box.pause(request_timeout=patient(60))
        assert state(box) == e2b.SandboxState.PAUSED
        with pytest.raises(NotRunning):
            box.commands.run("true", timeout=patient(20))
        paused = e2b.Sandbox.list(query=e2b.SandboxQuery(state=[e2b.SandboxState.PAUSED], metadata={"test": "pause"}))
        assert [other.sandbox_id for other in paused.next_items()] == [box.sandbox_id]
        time.sleep(3)
        again = resume(box)
        assert again.sandbox_id == box.sandbox_id
        first = count(again)
        assert first[1:] == before[1:], "the same process with the same memory"
        eventually("it goes on", 20, lambda: count(again)[0] > first[0])
        assert run(again, "cat /proc/sys/kernel/random/boot_id").stdout == boot_id
        assert run(again, "echo $MINE $(hostname)").stdout == f"yes {box.sandbox_id}\n"
        earliest = server_time(again)
        inside = float(run(again, "date +%s.%N").stdout)
        latest = server_time(again)
        assert earliest - 0.05 < inside < latest + 0.05, "its clock is right"
        assert handle.pid in [process.pid for process in again.commands.list()]
        # The output that it writes from now on, over a connection of now.
        heard = []
        again.commands.connect(handle.pid, timeout=0).disconnect()
        live = again.commands.connect(handle.pid, timeout=0)
        eventually("it is heard", 20, lambda: heard or next_line(live, heard))
        assert heard[0].split()[1] == before[1]
        assert again.commands.kill(handle.pid)
    finally:
        box.kill()


def next_line(handle, heard):
    for out, _, _ in handle:
        if out:
            heard.append(out)
            handle.disconnect()
            return True
    return False


def test_again_and_again():
    """Each time the memory is of the last moment, not of an earlier pause."""
    box = create()
    try:
        for n in range(4):
            run(box, f"echo {n} > /dev/shm/memory; echo {n} > /var/tmp/disk")
            assert box.pause(request_timeout=patient(60))
            box = resume(box)
            assert run(box, "cat /dev/shm/memory /var/tmp/disk").stdout == f"{n}\n{n}\n"
        run(box, "head -c 30M /dev/urandom > /dev/shm/large; sha256sum < /dev/shm/large > /dev/shm/sum")
        assert box.pause(request_timeout=patient(60))
        box = resume(box)
        assert run(box, "sha256sum < /dev/shm/large | cmp - /dev/shm/sum").exit_code == 0
    finally:
        box.kill()


def test_files_only():
    box = create()
    try:
        counter(box)
        boot_id = run(box, "cat /proc/sys/kernel/random/boot_id").stdout
        run(box, "echo kept > /home/user/kept; echo lost > /dev/shm/lost")
        assert box.pause(keep_memory=False, request_timeout=patient(60))
        again = resume(box)
        assert again.sandbox_id == box.sandbox_id
        assert run(again, "cat /home/user/kept; cat /dev/shm/lost || true").stdout == "kept\n"
        assert run(again, "cat /proc/sys/kernel/random/boot_id").stdout != boot_id
        assert again.commands.list() == []
    finally:
        box.kill()


def reboot(box):
    limits = {"timeout": int(patient(300)), "request_timeout": patient(60)}
    return e2b.Sandbox.connect(box.sandbox_id, on_resume="reboot", **limits)


def test_a_reboot_leaves_the_memory_behind():
    """Paused in full, it boots over its disk; one that runs is not booted anew."""
    box = create(envs={"MINE": "yes"})
    try:
        counter(box)
        boot_id = run(box, "cat /proc/sys/kernel/random/boot_id").stdout
        run(box, "echo kept > /home/user/kept; sync; echo lost > /dev/shm/lost")
        assert box.pause(request_timeout=patient(60))
        again = reboot(box)
        assert again.sandbox_id == box.sandbox_id
        assert run(again, "cat /home/user/kept; cat /dev/shm/lost || true").stdout == "kept\n"
        second = run(again, "cat /proc/sys/kernel/random/boot_id").stdout
        assert second != boot_id
        assert again.commands.list() == []
        assert run(again, "echo $MINE $(hostname)").stdout == f"yes {box.sandbox_id}\n"
        run(again, "echo new > /dev/shm/new")
        reboot(again)
        assert run(again, "cat /dev/shm/new").stdout == "new\n", "it ran: nothing has changed"
        assert again.pause(request_timeout=patient(60))
        again = resume(again)
        assert run(again, "cat /dev/shm/new /proc/sys/kernel/random/boot_id").stdout == "new\n" + second
    finally:
        box.kill()


def test_a_paused_one_is_killed():
    box = create()
    assert box.pause(request_timeout=patient(60))
    assert box.kill() is True
    assert box.kill() is False
    with pytest.raises(SandboxNotFound):
        resume(box)


def test_the_deadline_pauses_and_traffic_resumes():
    box = create(timeout=int(patient(1)), lifecycle={"on_timeout": "pause", "auto_resume": True})
    try:
        run(box, "echo here > /dev/shm/here")
        eventually("it is paused", 60, lambda: state(box) == e2b.SandboxState.PAUSED)
        assert run(box, "cat /dev/shm/here").stdout == "here\n"
        assert state(box) == e2b.SandboxState.RUNNING
    finally:
        box.kill()


def test_the_guest_has_entropy_of_its_own_after_each_resume():
    box = create()
    drawn = []
    try:
        for _ in range(3):
            drawn.append(run(box, "od -An -tx1 -N16 /dev/urandom").stdout)
            assert box.pause(request_timeout=patient(60))
            box = resume(box)
            drawn.append(run(box, "cat /run/hatchery/generation").stdout)
        assert len(set(drawn)) == len(drawn), json.dumps(drawn)
    finally:
        box.kill()
