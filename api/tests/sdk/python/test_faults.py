"""Kill the VM process, the guest's kernel, its agent, the server: prompt and true errors, then a clean start."""

import time

import e2b
import pytest
from support import (
    NotRunning,
    SandboxNotFound,
    SERVER_START,
    STATE_DIR,
    create,
    eventually,
    http_call,
    on_host,
    patient,
    run,
    server_pid,
    vm_pids,
)
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


restarts = pytest.mark.skipif(
    not SERVER_START, reason="HATCHERY_SERVER_START is not set: cannot restart the server"
)


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
    eventually("no VM process outlives the server", 15, lambda: _living(orphans) == "")
    on_host(SERVER_START)
    eventually("the server answers", 30, _healthy)
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
        on_host(SERVER_START)
        eventually("the server answers", 30, _healthy)
        assert http_call("GET", f"/sandboxes/{box.sandbox_id}").json() == snapshot
        again = resume(box)
        first = count(again)
        assert first[1:] == before[1:], "the same process with the same memory"
        eventually("it goes on", 20, lambda: count(again)[0] > first[0])
        assert run(again, "cat /home/user/kept; echo $MINE").stdout == "kept\nyes\n"
    finally:
        box.kill()


@restarts
def test_the_server_is_asked_to_stop():
    """SIGTERM: it ends by itself, soon, with everything it started, and its folder is tidy."""
    box = create()
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    vms, server = " ".join(vm_pids()), server_pid()
    on_host(f"kill -TERM {server}")
    dies_promptly(handle)
    eventually("the server ends", 30, lambda: _living(server) == "")
    assert _living(vms) == "", "a VM process outlives the server"
    if STATE_DIR:
        assert on_host(f'find "{STATE_DIR}" -name "*{box.sandbox_id}*"; find "{STATE_DIR}" -type s') == ""
    on_host(SERVER_START)
    eventually("the server answers", 30, _healthy)
    works()


def _living(pids):
    """Those of these processes that run; one that is dead and not waited for yet does not."""
    return on_host(f"for p in {pids}; do grep -hs '^State:' /proc/$p/status | grep -v Z; done; true")


def _healthy():
    try:
        return http_call("GET", "/health", key=None).status < 300
    except OSError:
        return False
