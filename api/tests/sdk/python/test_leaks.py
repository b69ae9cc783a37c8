"""Many sandboxes made and killed: nothing may stay. Prints the numbers it compares."""

import json
import os

import pytest
from support import (
    STATE_DIR,
    create,
    eventually,
    http_call,
    on_host,
    run,
    server_pid,
    vm_pids_script,
)

ROUNDS = int(os.environ.get("HATCHERY_LEAK_ROUNDS", "50"))

# Counts on the host, by nothing but /proc and find. Memory in KiB.
COUNT = f"""
vms=$({vm_pids_script("$pid")})
groups=$(ls -d /sys/fs/cgroup/hatchery-*/vm-* 2>/dev/null | wc -l)
count() {{ ls "$1" 2>/dev/null | wc -l; }}
files=0
[ -n "{STATE_DIR}" ] && files=$(find "{STATE_DIR}" | wc -l)
rss=$(sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status)
children=$(cat /proc/$pid/task/*/children 2>/dev/null | wc -w)
echo "{{\\"vm_processes\\": $(echo $vms | wc -w), \\"children\\": $children, \\"groups\\": $groups, \\"server_fds\\": $(count /proc/$pid/fd),\
 \\"server_threads\\": $(count /proc/$pid/task), \\"files\\": $files, \\"server_kib\\": $rss}}"
"""


def counts():
    """A steady count: the same twice in a row, because ends are tidied off the path."""
    command = os.environ.get("HATCHERY_LEAK_CMD") or f"pid={server_pid()}\n{COUNT}"
    return json.loads(on_host(command))


def one_life(number):
    box = create(metadata={"round": str(number)})
    try:
        assert run(box, f"echo {number}").stdout == f"{number}\n"
        box.files.write("/tmp/x", b"x" * 10_000)
    finally:
        assert box.kill()


@pytest.mark.leaks
def test_nothing_stays(capsys):
    for number in range(3):  # caches, pools and allocator arenas fill up
        one_life(number)
    before = steady()
    for number in range(ROUNDS):
        one_life(number)
    after = steady()
    with capsys.disabled():
        print(f"\nafter {ROUNDS} sandboxes:")
        for name, was in before.items():
            print(f"  {name:15} {was:>8} -> {after[name]:>8}")
    for name in ("vm_processes", "children", "files", "groups"):
        assert after[name] == before[name], name
    # Idle client connections and worker threads come and go by a few.
    assert abs(after["server_fds"] - before["server_fds"]) <= 3
    assert after["server_threads"] <= before["server_threads"] + 2
    assert after["server_kib"] - before["server_kib"] < 100 * ROUNDS, "100 KiB per sandbox would be a leak"
    assert [each for each in http_call("GET", "/v2/sandboxes").json() if "round" in each.get("metadata", {})] == []


def steady():
    last = {}

    def same_twice():
        nonlocal last
        now = counts()
        shape = {name: value for name, value in now.items() if name != "server_kib"}
        previous, last = {name: value for name, value in last.items() if name != "server_kib"}, now
        return shape == previous and now

    return eventually("the counts settle", 30, same_twice)
