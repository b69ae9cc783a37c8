"""The pager is killed: whose memory it had not brought yet ends, and says why; all others go on."""

import time
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import (
    SERVER_LOG,
    STATE_DIR,
    create,
    eventually,
    http_call,
    on_host,
    patient,
    pids_script,
    restart_server,
    restarts,
    run,
    server_pid,
    vm_pids,
)
from test_faults import PROMPT, is_gone
from test_leaks import steady
from test_pause import resume

pytestmark = [pytest.mark.vm, pytest.mark.fault, restarts]

# So much of a sandbox's memory is its own: more than comes while a client gets its answer.
MIB = 128
READ = "md5sum < /dev/shm/own"


@pytest.fixture(scope="module")
def lazy():
    """A server with `clones.lazy` whenever it is started anew; afterwards one as it was."""
    config = f"{STATE_DIR}.lazy.toml"
    on_host(f"printf '[clones]\\nlazy = true\\n' > '{config}'")
    yield f"export HATCHERY_CONFIG='{config}' HATCHERY_LOG=info,vmm=debug"
    restart_server()
    on_host(f"rm -f '{config}'")


def asleep(lazy, *sizes):
    """Sandboxes that were paused before the server was started, so that nobody has their memory; and the
    digests of what they keep there; none of what a test never has back."""
    boxes = []
    for size in sizes:
        box = create()
        fill = f"yes {box.sandbox_id} | head -c {size}M > /dev/shm/own"
        fill += f"; {READ}" if size < MIB else ""
        boxes.append((box, run(box, fill, user="root", timeout=patient(60)).stdout))
        assert box.pause(request_timeout=patient(120))
    restart_server(lazy)
    create().kill()  # it waits for the machines that are made when a server starts
    eventually("no machine is there", 10, lambda: not vm_pids())
    return boxes


def came_whole(box, digest):
    assert run(box, READ, user="root", timeout=patient(60)).stdout == digest


def pager():
    """The pager's process; empty before it was needed."""
    return on_host(pids_script("hatchery-pager", server_pid())).strip()


def said(box, words):
    """The lines of the log about this sandbox with these words."""
    return on_host(f"grep -F '{box.sandbox_id}' '{SERVER_LOG}' | grep -F '{words}' || true").splitlines()


def all_is_there(box):
    return said(box, "all memory is loaded")


def ends_of(box):
    return said(box, "sandbox ended by itself")


def counted():
    """What must be as before. Of descriptors a few come and go with clients; sealed memory does not."""
    now = steady()
    memory = on_host(f"ls -l /proc/{server_pid()}/fd | grep -c memfd: || true")
    kept = ("vm_processes", "children", "files")
    return {name: now[name] for name in kept} | {"memfds": int(memory)}, now["server_fds"]


def while_it_waits(box, killed):
    """Kills processes, the pager among them, while a command in the sandbox needs memory that does not come;
    how the command ended."""
    on_host(f"kill -STOP {pager()}")
    assert not all_is_there(box), f"{MIB} MiB came before anybody could look"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(box.commands.run, READ, user="root", timeout=0)
        time.sleep(1)
        assert not reading.done(), "it does not need the memory"
        on_host(f"kill -9 {killed}")
        return reading.exception(timeout=patient(PROMPT))


def test_the_pager_is_killed_under_a_sandbox_that_runs(lazy):
    """It ends, and the log says why. Others go on: memory that is whole needs no pager."""
    (whole, digest), (victim, _), (later, later_digest) = asleep(lazy, 8, MIB, 8)
    whole = resume(whole)
    came_whole(whole, digest)
    eventually("all of its memory has come", 20, lambda: all_is_there(whole))
    handle = whole.commands.run("read line; echo $line", background=True, stdin=True, timeout=0)
    before, files = counted()
    others, first = vm_pids(), pager()

    victim = resume(victim)
    error = while_it_waits(victim, first)
    assert isinstance(error, e2b.SandboxException), error
    assert not isinstance(error, e2b.CommandExitException), error
    is_gone(victim)
    eventually("its VM process is reaped", 10, lambda: vm_pids() == others)
    ends = ends_of(victim)
    assert len(ends) == 1 and "the pager of this machine's memory failed: it is gone" in ends[0], ends
    whole.commands.send_stdin(handle.pid, "unharmed\n")
    assert handle.wait().stdout == "unharmed\n"

    later = resume(later)
    came_whole(later, later_digest)
    second = pager()
    assert second and second != first and len(second.split()) == 1, "one pager, another one"
    fresh = create()
    assert run(fresh, "echo works").stdout == "works\n"
    for box in (later, fresh):
        box.kill()
    # What the victim and `later` had stored is gone with them.
    after, now = counted()
    assert after.pop("files") < before.pop("files")
    assert after == before
    assert abs(now - files) <= 3
    whole.kill()


def test_a_vm_process_is_killed_with_its_pager(lazy):
    """The kernel may wait for a page in the machine's name, which no signal ends: the process goes all the
    same."""
    ((box, _),) = asleep(lazy, MIB)
    others = vm_pids()
    box = resume(box)
    (mine,) = vm_pids() - others
    error = while_it_waits(box, f"{mine} {pager()}")
    assert isinstance(error, e2b.SandboxException), error
    is_gone(box)
    eventually("its VM process is reaped", 10, lambda: vm_pids() == others)
    assert pager() == "", "it is reaped too"


def test_the_pager_is_killed_under_a_sandbox_that_is_being_resumed(lazy):
    """It stays paused, the client is told why, and the next attempt has it back whole."""
    (other, _), (box, digest) = asleep(lazy, 8, 8)
    other = resume(other)
    before, files = counted()
    others, first = vm_pids(), pager()
    on_host(f"kill -STOP {first}")

    def connect():
        return http_call("POST", f"/sandboxes/{box.sandbox_id}/connect", {"timeout": 300}, timeout=60)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(connect)
        eventually("its VM process waits for memory", 10, lambda: vm_pids() - others)
        on_host(f"kill -9 {first}")
        answer = answer.result()
    assert answer.status == 500 and answer.headers.get("should-retry") == "false", answer
    assert answer.json()["error_code"] == "sandbox_resume_failed"
    assert "The pager gave up: it is gone" in answer.json()["message"], answer
    assert http_call("GET", f"/sandboxes/{box.sandbox_id}").json()["state"] == "paused"
    eventually("its VM process is reaped", 10, lambda: vm_pids() == others)
    after, now = counted()
    # The pager is started when it is needed next.
    assert after == {**before, "children": before["children"] - 1}
    assert abs(now - files) <= 3
    again = resume(box)
    came_whole(again, digest)
    assert pager() not in ("", first)
    for each in (again, other):
        each.kill()
