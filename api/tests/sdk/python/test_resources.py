"""What a sandbox may take of its host: a guest that fills its memory, its processor and its disk in turn ends nobody
and keeps nobody waiting for long, and a volume that is full makes writers wait and nothing else."""

import statistics
import time

import e2b
import pytest
from support import (
    NATIVE,
    SERVER_LOG,
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

pytestmark = pytest.mark.fault

ROUNDS = 6
EACH = 3
# A neighbour's exec beside a guest that takes all it can, where the host has a processor more than that guest.
UNTOUCHED = 1.3
# Where there is one for all, the two share it: what takes all of it alone takes twice as long, and a little.
SHARED = 2.6

# Each does it again and again, and is stopped and let go from outside.
FILLERS = {
    "memory": "python3 -c 'bytearray(1 << 30)' 2>/dev/null; python3 -c 'bytearray(200 << 20)'",
    "processor": ":",
    "disk": "dd if=/dev/zero of=/home/user/filler bs=64k count=256 conv=fsync 2>/dev/null; rm /home/user/filler",
}


def limited():
    return "memory" in http_call("GET", "/health", key=None).json()["resources"]["standing"]


def groups():
    """The control groups of VM processes, by process."""
    if not (pids := vm_pids()):
        return {}
    script = "; ".join(f"echo {pid} $(sed -n s/^0:://p /proc/{pid}/cgroup)" for pid in pids)
    return dict(line.split() for line in on_host(script).splitlines())


def exec_ms(box):
    """How long some commands take, one by one."""
    for _ in range(EACH):
        start = time.monotonic()
        assert run(box, "echo here").stdout == "here\n"
        yield 1000 * (time.monotonic() - start)


@pytest.mark.vm
def test_each_vm_process_is_in_a_group_of_its_own_and_leaves_none():
    if not limited():
        pytest.skip("the server's host delegates no control groups to it")
    box = create()
    eventually("its group is there", 30, lambda: len(groups()) > 0)
    try:
        now = groups()
        assert len(set(now.values())) == len(now), now
        assert all("/hatchery-" in path and "/vm-" in path for path in now.values()), now
        mine = next(iter(set(now.values())))
        read = f"cd /sys/fs/cgroup{mine}; cat memory.max memory.swap.max memory.oom.group cpu.max pids.max"
        limits = on_host(read).split()
        # Without swap in the kernel there is no limit of it.
        assert int(limits[0]) >= 512 << 20 and limits[-1] == "512" and limits[-3] == "150000", limits
    finally:
        box.kill()
    parent = next(iter(now.values())).rsplit("/", 1)[0]
    folders = f"find /sys/fs/cgroup{parent} -mindepth 1 -type d | wc -l"
    eventually("no more groups than VM processes", 60, lambda: int(on_host(folders)) == len(vm_pids()))


@pytest.mark.vm
@pytest.mark.parametrize("what", FILLERS)
def test_a_guest_that_fills_itself_leaves_its_neighbour_alone(what, capsys):
    if not limited():
        pytest.skip("the server's host delegates no control groups to it")
    most = UNTOUCHED if int(on_host("nproc")) > 1 else SHARED
    quiet, noisy = create(), create()
    try:
        noisy.files.write("/tmp/fill", f"echo $$ > /tmp/filler; while :; do {FILLERS[what]}; done")
        noisy.commands.run("exec setsid sh /tmp/fill", background=True, timeout=0)
        eventually("it fills", 10, lambda: noisy.files.exists("/tmp/filler"))
        alone, beside = [], []
        # In turns: whatever else goes on on this host is in both.
        for _ in range(ROUNDS):
            run(noisy, "kill -STOP -- -$(cat /tmp/filler)")
            alone += exec_ms(quiet)
            run(noisy, "kill -CONT -- -$(cat /tmp/filler)")
            beside += exec_ms(quiet)
        alone, beside = statistics.median(alone), statistics.median(beside)
        with capsys.disabled():
            print(f"\n{what}: exec {alone:.0f} ms alone, {beside:.0f} ms beside, {beside / alone:.2f} times")
        assert beside <= most * alone
        run(noisy, "kill -KILL -- -$(cat /tmp/filler)")
        assert run(noisy, "echo still").stdout == "still\n"
        assert quiet.is_running()
    finally:
        quiet.kill()
        noisy.kill()


@pytest.mark.vm
def test_a_vm_process_that_needs_more_memory_than_its_limit_ends_alone():
    if not limited():
        pytest.skip("the server's host delegates no control groups to it")
    box, neighbour = create(), create()
    try:
        assert run(box, "head -c 64M /dev/zero > /dev/shm/big && echo big").stdout == "big\n"
        paths = " ".join(f"/sys/fs/cgroup{path}" for path in groups().values())
        sizes = f"for g in {paths}; do echo $(cat $g/memory.current) $g; done"
        size, mine = max((int(line.split()[0]), line.split()[1]) for line in on_host(sizes).splitlines())
        assert size > 64 << 20, "the largest is the one that was filled"
        on_host(f"echo {size} > {mine}/memory.max")
        handle = box.commands.run("head -c 100M /dev/zero > /dev/shm/more; sleep 600", background=True, timeout=0)
        with pytest.raises(e2b.SandboxException):
            handle.wait()
        eventually("it is not running", 20, lambda: not box.is_running())
        assert run(neighbour, "echo alive").stdout == "alive\n"
        eventually("its group is gone", 20, lambda: on_host(f"ls -d {mine} 2>/dev/null || echo gone") == "gone\n")
        if SERVER_LOG:
            assert "host memory limit of this sandbox" in on_host(f"cat '{SERVER_LOG}'")
    finally:
        neighbour.kill()


def volume_mib(column):
    return int(on_host(f"df -m {STATE_DIR} | tail -n 1").split()[column])


@pytest.mark.vm
@pytest.mark.skipif(not STATE_DIR or NATIVE, reason="HATCHERY_STATE_DIR is not set, or there is no disk of a guest")
def test_a_full_volume_makes_writers_wait_and_nobody_else():
    if volume_mib(1) > 1500:
        pytest.skip("the volume of the server's folder is too large to be filled: mount a small one there")
    writer, neighbour = create(), create()
    filler = f"{STATE_DIR}/filler"
    try:
        assert run(writer, "echo before > ~/kept && sync").exit_code == 0
        on_host(f"dd if=/dev/zero of={filler} bs=1M 2>/dev/null; df -m {STATE_DIR}", timeout=300)
        assert volume_mib(3) == 0
        script = "dd if=/dev/urandom of=$HOME/big bs=64k count=64 conv=fsync 2>/dev/null && echo written"
        handle = writer.commands.run(script, background=True, timeout=0)
        time.sleep(patient(2))
        assert run(neighbour, "echo alive").stdout == "alive\n"
        assert run(writer, "cat ~/kept").stdout == "before\n", "what needs no room goes on"
        eventually(
            "nothing new begins",
            30,
            lambda: http_call("POST", "/v2/sandboxes", {"templateID": "base"}).status == 503,
        )
        refused = http_call("POST", "/v2/sandboxes", {"templateID": "base"})
        assert refused.json()["error_code"] == "host_disk_low", refused
        on_host(f"rm {filler}")
        assert handle.wait().stdout == "written\n"
        assert run(writer, "sync; dmesg | grep -ci 'I/O error' || true", user="root").stdout == "0\n"
        eventually("sandboxes begin again", 30, can_create)
    finally:
        on_host(f"rm -f {filler}")
        writer.kill()
        neighbour.kill()
    assert server_pid()


def can_create():
    try:
        create().kill()
        return True
    except Exception:  # noqa: BLE001: any refusal is "not yet"
        return False
