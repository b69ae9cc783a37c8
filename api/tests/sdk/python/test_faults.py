"""Kill the VM process, the guest's kernel, its agent, the server: prompt and true errors, then a clean start."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import (
    BIG_MIB,
    NATIVE,
    NotRunning,
    SCALE,
    SandboxNotFound,
    STATE_DIR,
    create,
    eventually,
    http_call,
    living,
    on_host,
    patient,
    restarts,
    run,
    server_pid,
    start_server,
    vm_pids,
)
from test_branches import tell
from test_pause import count, counter, resume

pytestmark = pytest.mark.fault

PROMPT = 8


def dies_promptly(handle, extra=0):
    """The running command ends with an exception of the SDK, soon; returns it."""
    start = time.monotonic()
    with pytest.raises(e2b.SandboxException) as caught:
        handle.wait()
    assert time.monotonic() - start < patient(PROMPT + extra)
    assert not isinstance(caught.value, e2b.CommandExitException), "it ended by itself"
    return caught.value


def is_gone(box):
    eventually("it is not running", 20, lambda: not box.is_running())
    with pytest.raises(SandboxNotFound):
        box.get_info()
    with pytest.raises(NotRunning):
        box.commands.run("true", timeout=patient(20))


def works():
    box = create()
    try:
        assert run(box, "echo works").stdout == "works\n"
    finally:
        box.kill()


def test_the_vm_process_is_killed():
    before = vm_pids()
    box = create()
    mine = vm_pids() - before
    assert len(mine) == 1, f"one new VM process, got {mine}"
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    on_host(f"kill -9 {mine.pop()}")
    dies_promptly(handle)
    is_gone(box)
    eventually("it is reaped", 10, lambda: vm_pids() <= before)
    works()


# Root in the guest owns the guest, and may break it. Each script ends the whole machine.
ENDS = {
    "the kernel panics": """
import pathlib
pathlib.Path("/proc/sys/vm/panic_on_oom").write_text("2")
# That of its cgroup is soon used up; the kernel panics of it as of its own.
group = pathlib.Path("/proc/self/cgroup").read_text().strip().removeprefix("0::")
pathlib.Path(f"/sys/fs/cgroup{group}/memory.max").write_text("64M")
hog = []
while True:
    hog.append(bytearray(1 << 20))
""",
    "the agent crashes": """
import re
for line in open("/proc/1/maps"):
    code = re.match("([0-9a-f]+)-([0-9a-f]+) r-x", line)
    if code and "[v" not in line:
        start, end = (int(address, 16) for address in code.groups())
        with open("/proc/1/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(b"\\xcc" * (end - start))
""",
    "the guest reboots": "import ctypes; ctypes.CDLL(None).reboot(0x1234567)",
}


@pytest.mark.vm
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.replace(" ", "-"))
def test_the_machine_ends_from_inside(end):
    before = vm_pids()
    box = create()
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    box.files.write("/tmp/end.py", ENDS[end])
    killer = box.commands.run("exec python3 /tmp/end.py", background=True, user="root", timeout=0)
    dies_promptly(handle, extra=20)
    dies_promptly(killer)
    is_gone(box)
    eventually("its VM process is reaped", 10, lambda: vm_pids() <= before)
    works()


@pytest.mark.vm
def test_the_agent_shrugs_off_signals(fresh):
    run(fresh, "kill -9 1; kill -TERM 1; kill -INT 1; kill -HUP 1; true", user="root")
    assert run(fresh, "echo alive").stdout == "alive\n"


def test_one_death_leaves_the_others_alone(box):
    before = vm_pids()
    victim = create()
    mine = vm_pids() - before
    handle = box.commands.run("read line; echo $line", background=True, stdin=True, timeout=0)
    on_host("kill -9 " + " ".join(mine))
    eventually("the victim is gone", 20, lambda: not victim.is_running())
    box.commands.send_stdin(handle.pid, "unharmed\n")
    assert handle.wait().stdout == "unharmed\n"


@restarts
def test_the_server_is_killed_and_started_again():
    box = create()
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    orphans = " ".join(vm_pids())
    on_host(f"kill -9 {server_pid()}")
    start = time.monotonic()
    with pytest.raises(Exception):  # noqa: B017 - no server: the SDK can only tell of the connection
        handle.wait()
    assert time.monotonic() - start < patient(PROMPT)
    eventually("no VM process outlives the server", 15, lambda: living(orphans) == "")
    start_server()
    assert http_call("GET", "/v2/sandboxes").json() == []
    assert not box.is_running()
    with pytest.raises(SandboxNotFound):
        box.get_info()
    if STATE_DIR:
        leftovers = on_host(f'find "{STATE_DIR}" -name "*{box.sandbox_id}*"')
        assert leftovers == ""
    works()


@restarts
@pytest.mark.vm
def test_what_is_paused_outlives_the_server():
    """Files, processes and what they have in memory are there after the server was killed."""
    box = create(envs={"MINE": "yes"})
    try:
        counter(box)
        run(box, "echo kept > /home/user/kept")
        before = count(box)
        assert box.pause(request_timeout=patient(60))
        snapshot = http_call("GET", f"/sandboxes/{box.sandbox_id}").json()
        assert snapshot["state"] == "paused"
        on_host(f"kill -9 {server_pid()}")
        start_server()
        assert http_call("GET", f"/sandboxes/{box.sandbox_id}").json() == snapshot
        again = resume(box)
        first = count(again)
        assert first[1:] == before[1:], "the same process with the same memory"
        eventually("it goes on", 20, lambda: count(again)[0] > first[0])
        assert run(again, "cat /home/user/kept; echo $MINE").stdout == "kept\nyes\n"
    finally:
        box.kill()


def post(box, what, body):
    """The status of a call that may lose its server; 0 without an answer."""
    try:
        return http_call("POST", f"/sandboxes/{box.sandbox_id}/{what}", body, timeout=60).status
    except OSError:
        return 0


def while_killing(call, pids, after):
    """Kills processes on the host so many seconds after `call` begins; what the call gives."""
    ready = threading.Event()

    def kill():
        ready.set()
        on_host(f"sleep {after}; kill -9 {pids} 2>/dev/null; true")

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        ready.wait()
        given = call()
        killed.result()
    return given


# What is asked for, and a good answer.
STEPS = {
    "pause": ({}, 204),
    "snapshots": ({"name": "at-a-step"}, 201),
    "fork": ({"count": 2, "timeout": 60}, 201),
    "reset": ({}, 204),
}
MOMENTS = (0.0, 0.1, 0.3)


def delete_snapshot():
    assert http_call("DELETE", "/templates/at-a-step").status in (204, 404)


def end_others(before):
    """Children that came of it."""
    for each in http_call("GET", "/v2/sandboxes").json():
        if each["sandboxID"] not in before:
            http_call("DELETE", f"/sandboxes/{each['sandboxID']}")


@pytest.mark.parametrize("step", STEPS)
def test_the_vm_process_is_killed_at_a_step(step, box):
    """What was answered is true; otherwise it is gone. Nothing half-made stays, others go on."""
    box.is_running()
    before, others = vm_pids(), {each["sandboxID"] for each in http_call("GET", "/v2/sandboxes").json()}
    for after in MOMENTS:
        body, good = STEPS[step]
        victim = create()
        mine = " ".join(vm_pids() - before)
        status = while_killing(lambda: post(victim, step, body), mine, after)
        assert status in (good, 404, 409, 500), status
        if step == "pause" and status == good:
            again = resume(victim)
            assert run(again, "echo on").stdout == "on\n"
            again.kill()
        elif step == "reset" and status == good and victim.is_running():
            victim.kill()  # the old machine was killed, the new one runs
        else:
            is_gone(victim)
        if step == "snapshots":
            if status == good:
                made = create(template="at-a-step")
                assert run(made, "echo on").stdout == "on\n"
                made.kill()
            delete_snapshot()
        end_others(others)
        eventually("its VM processes are reaped", 10, lambda: vm_pids() <= before)
        assert run(box, "echo unharmed").stdout == "unharmed\n"
        if STATE_DIR:
            assert on_host(f'ls "{STATE_DIR}/snapshots/tmp" "{STATE_DIR}/layers" | grep -v :; true').strip() == ""


@restarts
@pytest.mark.parametrize("step", ["create", *STEPS])
def test_the_server_is_killed_at_a_step(step):
    """Started again it has what it had said it had, and nothing else."""
    keeper = create()
    counting = None if NATIVE else (counter(keeper), count(keeper))[1]
    assert keeper.pause(request_timeout=patient(60))
    # With microVMs a start takes long: the stand-ins try more moments, and `tests/crash.rs` many.
    for after in MOMENTS if NATIVE else MOMENTS[1:2]:
        body, good = STEPS.get(step, ({"templateID": "base", "timeout": 60}, 201))
        victim = create()
        orphans = " ".join(vm_pids())
        if step == "create":
            call = lambda: post_create(body)  # noqa: E731
        else:
            call = lambda: post(victim, step, body)  # noqa: E731
        status = while_killing(call, server_pid(), after)
        eventually("no VM process outlives the server", 15, lambda: living(orphans) == "")
        start_server()
        answer = http_call("GET", f"/sandboxes/{victim.sandbox_id}")
        if step == "pause" and status == good:
            assert answer.json()["state"] == "paused"
        if answer.status == 200:
            assert step == "pause" and answer.json()["state"] == "paused", answer
            again = resume(victim)
            assert run(again, "echo on").stdout == "on\n"
            again.kill()
        names = [each["snapshotID"] for each in http_call("GET", "/snapshots").json()]
        assert "at-a-step:default" in names or not (step == "snapshots" and status == good)
        delete_snapshot()
        assert http_call("GET", "/v2/sandboxes?state=running").json() == []
        if STATE_DIR:
            assert on_host(f'ls "{STATE_DIR}/snapshots/tmp" "{STATE_DIR}/layers" | grep -v :; true').strip() == ""
    again = resume(keeper)
    if counting:
        assert count(again)[1:] == counting[1:], "the same process with the same memory"
    again.kill()


def post_create(body):
    try:
        return http_call("POST", "/v2/sandboxes", body, timeout=60).status
    except OSError:
        return 0


# Writes one number over all of its memory, then the next, for ever; tells whether memory is as it can be
# between two instructions: some of one number, then only of the number before.
DIRTIER = """
import mmap, sys
size = int(sys.argv[1]) << 20
memory, page, n = mmap.mmap(-1, size), 4096, 0
while True:
    n += 1
    word = n.to_bytes(8, "little") * (page // 8)
    for at in range(0, size, page):
        memory[at : at + page] = word
    with open("/tmp/round", "w") as file:
        file.write(str(n))
"""
# Looks at that memory from outside; the process is stopped.
CHECKER = """
import re, sys
pid, size = int(sys.argv[1]), int(sys.argv[2]) << 20
areas = [re.match("([0-9a-f]+)-([0-9a-f]+) rw-s .*/dev/zero", line) for line in open(f"/proc/{pid}/maps")]
start = next(int(a[1], 16) for a in areas if a and int(a[2], 16) - int(a[1], 16) == size)
numbers = []
with open(f"/proc/{pid}/mem", "rb") as memory:
    for at in range(0, size, 4096):
        memory.seek(start + at)
        page = memory.read(4096)
        words = {page[:8]}
        if page != page[:8] * 512:
            words = {page[i : i + 8] for i in range(0, 4096, 8)}
        numbers.append({int.from_bytes(word, "little") for word in words})
flat = [n for page in numbers for n in (sorted(page, reverse=True))]
steps = [(a, b) for a, b in zip(flat, flat[1:]) if a != b]
good = len(steps) <= 1 and all(a == b + 1 for a, b in steps)
print("good" if good else f"torn: {steps[:5]}", flat[0])
"""
# Less on an emulated host, where three guests that write all the time share one processor.
DIRTY_MIB = min(192, 2 * BIG_MIB)


@pytest.mark.vm
def test_a_guest_that_dirties_all_its_memory_is_saved_whole():
    """Snapshot and child are of one moment, and the guest goes on, while every page changes."""
    box = create()
    boxes = [box]

    def stop(each):
        assert not isinstance(each, Exception), each
        run(each, f"kill -STOP {handle.pid}")
        return each

    try:
        box.files.write("/tmp/dirtier.py", DIRTIER)
        box.files.write("/tmp/checker.py", CHECKER)
        handle = box.commands.run(f"exec python3 /tmp/dirtier.py {DIRTY_MIB}", background=True, timeout=0)
        eventually("it has written all once", 30, lambda: run(box, "ls /tmp").stdout.count("round"))
        snapshot = box.create_snapshot(request_timeout=patient(120)).snapshot_id
        boxes += box.fork(timeout=int(patient(120)), request_timeout=patient(120))
        # Saved while they wrote; looked at while nobody does, or three would take one processor from who looks.
        for each in boxes:
            stop(each)
        boxes.append(stop(create(template=snapshot, request_timeout=patient(120))))
        for each in boxes:
            told = run(each, f"python3 /tmp/checker.py {handle.pid} {DIRTY_MIB}", user="root", timeout=patient(60))
            assert told.stdout.startswith("good"), told.stdout
        first = int(run(box, f"cat /tmp/round; kill -CONT {handle.pid}").stdout or "0")
        eventually("it goes on", 30, lambda: int(run(box, "cat /tmp/round").stdout or "0") > first)
        e2b.Sandbox.delete_snapshot(snapshot)
    finally:
        for each in boxes:
            if not isinstance(each, Exception):
                each.kill()


@restarts
def test_the_server_is_asked_to_stop():
    """SIGTERM: it ends by itself, soon, with everything it started, and its folder is tidy."""
    box = create()
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    vms, server = " ".join(vm_pids()), server_pid()
    on_host(f"kill -TERM {server}")
    dies_promptly(handle)
    eventually("the server ends", 30, lambda: living(server) == "")
    assert living(vms) == "", "a VM process outlives the server"
    if STATE_DIR:
        assert on_host(f'find "{STATE_DIR}" -name "*{box.sandbox_id}*"; find "{STATE_DIR}" -type s') == ""
    start_server()
    works()


# Sandboxes of one fork, and of one snapshot: fewer on an emulated host, where `test_branches.py` looks at as many
# by themselves.
FORKED, SNAPSHOT = (20, 10) if SCALE == 1 else (5, 3)


@restarts
@pytest.mark.vm
def test_one_sandbox_through_all_of_it():
    """Create, pause, the server is killed and started, connect, fork, snapshot, trash and reset: one program."""
    box = create(envs={"MINE": "yes"}, metadata={"test": "all-of-it"})
    boxes, snapshot = [box], None
    try:
        counter(box)
        run(box, "echo kept > /home/user/kept")
        before = count(box)
        assert box.pause(request_timeout=patient(60))
        on_host(f"kill -9 {server_pid()}")
        start_server()
        box = resume(box)
        assert box.sandbox_id == boxes[0].sandbox_id
        assert count(box)[1:] == before[1:] and count(box)[0] >= before[0]
        assert run(box, "cat /home/user/kept; echo $MINE").stdout == "kept\nyes\n"

        children = box.fork(count=FORKED, timeout=int(patient(120)), request_timeout=patient(240))
        boxes += [child for child in children if not isinstance(child, Exception)]
        assert len(boxes) == FORKED + 1, [child for child in children if isinstance(child, Exception)]
        at_fork = [count(child) for child in boxes[1:]]
        assert {each[1:] for each in at_fork} == {before[1:]}
        told = [tell(child) for child in boxes[1:]]
        assert all(len(set(values)) == FORKED for values in zip(*told))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda child: child.kill(), boxes[1:]))

        snapshot = box.create_snapshot(request_timeout=patient(120)).snapshot_id
        boxes = [box] + [create(template=snapshot, request_timeout=patient(60)) for _ in range(SNAPSHOT)]
        assert {count(each)[1:] for each in boxes} == {before[1:]}
        assert all(len(set(values)) == SNAPSHOT for values in zip(*[tell(each) for each in boxes[1:]]))

        trashed = boxes[1]
        run(trashed, "sudo rm -rf /usr/bin/* /home/user", timeout=patient(60))
        assert http_call("POST", f"/sandboxes/{trashed.sandbox_id}/reset", timeout=60).status == 204
        assert run(trashed, "cat /home/user/kept; hostname").stdout == f"kept\n{trashed.sandbox_id}\n"
        assert count(trashed)[1:] == before[1:]
    finally:
        for each in boxes:
            each.kill()
        if snapshot:
            e2b.Sandbox.delete_snapshot(snapshot)
