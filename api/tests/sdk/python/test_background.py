"""What goes on without its command, what a kill ends, and who may hold whom up."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest
from support import (
    envd_headers,
    eventually,
    http_call,
    patient,
    raw_connection,
    run,
    start_stream_bytes,
)


def processes(box, words):
    """Pids of what has `words` at the begin of its command line."""
    return run(box, f"pgrep -f '^{words}' || true").stdout.split()


def test_a_server_in_the_background_outlives_its_command_and_logs(box):
    """Its first log line goes to a pipe that nobody reads any more."""
    server = run(box, "nohup python3 -u -m http.server 8123 --bind 127.0.0.1 & echo $!").stdout
    ask = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8123/\").status)'"
    try:
        eventually("it answers", 20, lambda: run(box, f"{ask} 2>/dev/null || true").stdout == "200\n")
        for _ in range(3):
            assert run(box, ask).stdout == "200\n"
    finally:
        run(box, f"kill {server}")


def test_what_nobody_reads_is_thrown_away(box):
    """More than any pipe holds, after the command's end, without an error."""
    run(box, "rm -f /tmp/wrote; (sleep 0.3; head -c 3000000 /dev/zero && echo yes > /tmp/wrote) & true")
    eventually("it has written all", 20, lambda: run(box, "cat /tmp/wrote 2>/dev/null || true").stdout == "yes\n")


MANY = """sleep 6111 & sleep 6111 & (while :; do :; done) &
python3 -c 'import time; time.sleep(6111)' & DETACHED
wait"""


# What leaves its session on purpose ends too where commands have a cgroup, which a native agent has not.
@pytest.mark.parametrize("detached", ["", pytest.param("setsid sleep 6112 &", marks=pytest.mark.vm)])
def test_a_kill_ends_all_that_a_command_began(fresh, detached):
    handle = fresh.commands.run(MANY.replace("DETACHED", detached), background=True, timeout=0)
    wanted = 3 if detached else 2
    eventually("they run", 20, lambda: len(processes(fresh, "sleep 611")) == wanted)
    assert handle.kill()
    left = lambda: processes(fresh, "sleep 611") + processes(fresh, "python3 -c import time")  # noqa: E731
    eventually("none is left", 5, lambda: not left())


def test_a_timeout_ends_all_that_a_command_began(box):
    with pytest.raises(e2b.TimeoutException):
        box.commands.run("echo partial; sleep 6221 & sleep 6221", timeout=max(3, patient(0.5)))
    eventually("none is left", 5, lambda: not processes(box, "sleep 6221"))


@pytest.mark.vm  # a terminal's shell gives each job a process group of its own
def test_a_terminal_is_killed_with_its_programs(box):
    terminal = box.pty.create(e2b.PtySize(rows=24, cols=80), timeout=0)
    box.pty.send_stdin(terminal.pid, b"sleep 6331 & sleep 6331\n")
    eventually("they run", 20, lambda: len(processes(box, "sleep 6331")) == 2)
    assert terminal.kill()
    eventually("none is left", 5, lambda: not processes(box, "sleep 6331"))


def test_a_listener_that_does_not_read_is_cut_off(box):
    """The process and who listens besides go on; the slow one is told why it hears no more."""
    line = "y" * 60_000
    box.files.write("/tmp/loud.py", f"import time\nfor n in range(150):\n    print(n, '{line}', flush=True)\n")
    connection = raw_connection(receive_buffer=16 << 10)
    connection.sendall(start_stream_bytes(box, "exec python3 /tmp/loud.py; true"))
    received = bytearray(connection.recv(600))
    begun = time.monotonic()
    eventually("it stands still", 20, lambda: processes(box, "python3 /tmp/loud.py"))
    pid = int(processes(box, "python3 /tmp/loud.py")[0])
    heard = []
    box.commands.connect(pid, timeout=0).wait(on_stdout=heard.append)
    assert time.monotonic() - begun < 60 + patient(10), "it went on after the slow one was cut off"
    last = [int(part.split(" ")[0]) for part in "".join(heard).split("\n") if part[:1].isdigit()][-1]
    assert last == 149
    while b"cut off" not in received[-4000:]:
        more = connection.recv(1 << 20)
        assert more, "it ended without a word"
        received += more
    connection.close()
    assert f"connect to pid {pid}".encode() in received[-4000:]


def test_a_working_folder_that_is_not_there_is_named(box):
    with pytest.raises(e2b.SandboxException, match="/nope/nowhere: No such file"):
        run(box, "pwd", cwd="/nope/nowhere")


def test_users_are_numbers_too(box):
    assert run(box, "id -u; id -g; echo $HOME", user="4321").stdout == "4321\n0\n/\n"
    assert run(box, "id -u; id -g", user="4321:4322").stdout == "4321\n4322\n"
    uid = run(box, "id -u").stdout.strip()
    assert run(box, "id -un; echo $HOME", user=uid).stdout == "user\n/home/user\n"
    box.files.write("/tmp/of-4321", "mine", user="4321")
    assert run(box, "stat -c %u /tmp/of-4321", user="4321").stdout == "4321\n"
    for nobody in ("4294967295", "-1", "user:nobodys-group"):
        with pytest.raises(e2b.AuthenticationException):
            run(box, "id", user=nobody)


@pytest.mark.vm
def test_out_of_memory_is_told(fresh):
    """Also of a program that the command's shell began; a command after it is not blamed."""
    hungry = "python3 -c 'b = []\nwhile True: b.append(bytearray(1 << 20))'"
    assert run(fresh, f"{hungry}; echo on", timeout=patient(60)).stdout == "on\n", "it ended well all the same"
    with pytest.raises(e2b.CommandExitException) as caught:
        run(fresh, "exit 3")
    assert caught.value.error == "exit status 3", "that was the command before"
    with pytest.raises(e2b.CommandExitException) as caught:
        run(fresh, f"{hungry}; exit $?", timeout=patient(60))
    assert caught.value.error.startswith("exit status 137: out of memory"), caught.value
    with pytest.raises(e2b.CommandExitException) as caught:
        run(fresh, "kill -9 $$")
    assert caught.value.error == "signal: killed"
    with pytest.raises(e2b.CommandExitException) as caught:
        run(fresh, "exit 137")
    assert caught.value.error == "exit status 137"


@pytest.mark.vm
def test_a_fork_bomb_leaves_the_next_command_its_share(fresh):
    bomb = fresh.commands.run("bomb() { bomb | bomb & }; bomb; sleep 1000", background=True, timeout=0)
    eventually("it is at its limit", 20, lambda: len(run(fresh, "ls /proc").stdout.split()) > 300)
    for n in range(5):
        assert run(fresh, f"echo alive {n}", timeout=patient(20)).stdout == f"alive {n}\n"
    try:
        bomb.kill()
    except e2b.NotFoundException:
        pass  # the bomb's own shell may be over
    eventually("it is over", 30, lambda: len(run(fresh, "ls /proc").stdout.split()) < 300)


def test_a_link_in_a_shared_folder_is_read(box):
    run(box, "echo content > /home/user/target; ln -sf /home/user/target /tmp/link-to-target")
    assert box.files.read("/tmp/link-to-target") == "content\n"
    box.files.write("/tmp/link-to-target", "changed")
    assert run(box, "cat /home/user/target").stdout == "changed"
    assert box.files.get_info("/tmp/link-to-target").symlink_target == "/home/user/target"


def test_a_move_to_another_file_system_is_refused_with_what_helps(box):
    box.files.write("/home/user/moved", "here")
    with pytest.raises(e2b.SandboxException) as caught:
        box.files.rename("/home/user/moved", "/dev/shm/moved")
    for word in ("/home/user/moved", "/dev/shm/moved", "copy it"):
        assert word in str(caught.value), caught.value
    assert box.files.read("/home/user/moved") == "here"


def many(box, count, path, body):
    """The statuses of so many equal calls at once."""
    headers = {"Content-Type": "application/json", **envd_headers(box)}
    call = lambda _: http_call("POST", path, body, headers, key=None, timeout=60).status  # noqa: E731
    with ThreadPoolExecutor(40) as pool:
        return list(pool.map(call, range(count)))


def test_two_hundred_lists_at_once_are_all_answered(box):
    body = json.dumps({"path": "/etc", "depth": 2})
    assert set(many(box, 200, "/filesystem.Filesystem/ListDir", body)) == {200}


def test_more_reads_than_streams_are_all_answered(box):
    """Behind as many processes as may run."""
    box.files.write("/tmp/read", "x" * 100_000)
    sleeping = [box.commands.run("exec sleep 6441", background=True, timeout=0) for _ in range(60)]
    try:
        with ThreadPoolExecutor(40) as pool:
            texts = list(pool.map(lambda _: len(box.files.read("/tmp/read")), range(400)))
        assert set(texts) == {100_000}
    finally:
        for handle in sleeping:
            handle.kill()
