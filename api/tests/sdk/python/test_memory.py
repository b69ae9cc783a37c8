"""The host runs out of memory while sandboxes are made: refused in time or told truly, and nothing half-made."""

from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import (
    STATE_DIR,
    create,
    eventually,
    http_call,
    living,
    on_host,
    patient,
    restart_server,
    restarts,
    run,
    server_pid,
    vm_pids,
)

pytestmark = [pytest.mark.vm, pytest.mark.fault, restarts]

GROUP = "/sys/fs/cgroup/hatchery-small"


@pytest.fixture
def small():
    """Starts the server with so much memory for it and its machines, and a configuration. The group stands for
    a host, and for one without control groups of our own: they have `test_resources.py`."""
    there = on_host(
        f"echo +memory > /sys/fs/cgroup/cgroup.subtree_control && mkdir -p {GROUP} && ls {GROUP}/memory.max || true"
    )
    if not there:
        pytest.skip("the server's host has no control groups of version 2 that limit memory")
    config = f"{STATE_DIR}.small.toml"

    def start(limit_mib, limits=""):
        groups = '[resources]\\ncgroup = "off"\\n'
        on_host(f"printf '{groups}[limits]\\n{limits}\\n' > '{config}'; echo {limit_mib}M > {GROUP}/memory.max")
        restart_server(f"export HATCHERY_CONFIG='{config}'; echo $$ > {GROUP}/cgroup.procs")

    yield start
    on_host(f"echo max > {GROUP}/memory.max")
    restart_server()
    on_host(f"rm -f '{config}'; rmdir {GROUP}")


def group(file):
    return on_host(f"cat {GROUP}/{file}")


def killed_by_the_kernel():
    return int(dict(line.split() for line in group("memory.events").splitlines())["oom_kill"])


def make():
    return http_call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 3000}, timeout=60)


def reach(sandbox_id):
    return e2b.Sandbox.connect(sandbox_id, timeout=3000, request_timeout=patient(30))


def made(answer):
    assert answer.status == 201, answer
    return reach(answer.json()["sandboxID"])


def listed():
    return {each["sandboxID"] for each in http_call("GET", "/v2/sandboxes").json()}


def is_refused(answer):
    """With the words for it, and when to come again."""
    if answer.status != 503:
        return False
    assert answer.json()["error_code"] == "host_memory_low", answer
    assert "limits.min_memory_mb" in answer.json()["message"], answer
    assert (answer.headers["should-retry"], answer.headers["retry-after"]) == ("false", "5"), answer
    return True


def is_copied():
    """Makes a sandbox and kills it; whether it was a copy."""
    answer = make()
    assert made(answer).kill()
    return "claim;" in answer.headers["server-timing"]


def test_nothing_begins_when_memory_is_short(small):
    """Creations and resumptions are refused before anybody has to die; an end makes room again."""
    small(640)
    first = create()
    assert run(first, "echo works").stdout == "works\n"
    asleep = create()
    assert asleep.pause(request_timeout=patient(60))
    boxes, refused = [first], None
    while not refused:
        assert len(boxes) < 10, f"nothing was refused: {group('memory.stat')}"
        run(boxes[-1], "head -c 100M /dev/zero > /dev/shm/own", user="root", timeout=patient(60))
        answer = make()
        if is_refused(answer):
            refused = answer
        else:
            boxes.append(made(answer))
    assert is_refused(http_call("POST", f"/sandboxes/{asleep.sandbox_id}/connect", {"timeout": 300}))
    assert http_call("GET", f"/sandboxes/{asleep.sandbox_id}").json()["state"] == "paused"
    batch = http_call("POST", "/sandboxes:batch", {"templateID": "base", "count": 3}, timeout=60)
    assert is_refused(batch), batch
    assert listed() == {each.sandbox_id for each in [*boxes, asleep]}
    assert len(vm_pids()) == len(boxes)
    for each in boxes:
        assert run(each, "echo works").stdout == "works\n"
    assert killed_by_the_kernel() == 0
    boxes.pop().kill()
    again = eventually("there is room again", 10, lambda: (answer := make()).status == 201 and answer)
    boxes.append(made(again))
    assert run(boxes[-1], "echo works").stdout == "works\n"
    for each in [*boxes, asleep]:
        each.kill()


def test_memory_runs_out_under_a_storm(small):
    """Nobody looks ahead, and the kernel ends machines while others are made. What was delivered works or is
    gone; the others were told; the server goes on, and copies again."""
    small(4096, "min_memory_mb = 0")
    warm = create()
    assert run(warm, "echo works").stdout == "works\n"
    assert warm.kill()
    eventually("its VM process is reaped", 10, lambda: not vm_pids())
    server, files = server_pid(), on_host(f"find '{STATE_DIR}' | sort")
    stat = dict(line.split() for line in group("memory.stat").splitlines())
    # Files that the kernel can drop are not used up.
    kept = int(group("memory.current")) - int(stat["active_file"]) - int(stat["inactive_file"])
    on_host(f"echo {(kept >> 20) + 24}M > {GROUP}/memory.max")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: make(), range(32)))
    failed = [answer for answer in answers if answer.status != 201]
    delivered = {answer.json()["sandboxID"] for answer in answers if answer.status == 201}
    print(f"{len(delivered)} made, {len(failed)} failed, {killed_by_the_kernel()} ended by the kernel")
    assert failed and killed_by_the_kernel() > 0, "memory did not run out"
    for answer in failed:
        assert answer.status == 500 and answer.headers["should-retry"] == "false", answer
        assert answer.json()["error_code"] == "sandbox_start_failed" and answer.json()["message"], answer
    print({answer.json()["message"] for answer in failed})
    assert living(server), "the server goes on"
    on_host(f"echo max > {GROUP}/memory.max")
    alive = listed()
    assert alive <= delivered
    eventually("no other machine is there", 10, lambda: len(vm_pids()) == len(listed()))
    for sandbox_id in alive:
        box = reach(sandbox_id)
        assert run(box, "echo works").stdout == "works\n"
        box.kill()
    eventually("all are reaped", 10, lambda: not vm_pids())
    assert on_host(f"find '{STATE_DIR}' | sort") == files
    eventually("sandboxes are copies again", 10, is_copied)
