"""Run commands: output, status, input, signals, users, environment, limits."""

import base64
import hashlib
import threading
import time

import e2b
import pytest
from conftest import SHARED_ENV
from support import (
    SCALE,
    eventually,
    frames,
    patient,
    raw_connection,
    run,
    start_stream_bytes,
)


@pytest.mark.compat
def test_output_and_status(box):
    done = run(box, "echo out; echo err >&2")
    assert (done.stdout, done.stderr, done.exit_code, done.error) == ("out\n", "err\n", 0, None)


@pytest.mark.compat
def test_a_failing_command_raises(box):
    with pytest.raises(e2b.CommandExitException) as caught:
        run(box, "echo before; echo why >&2; exit 3")
    failed = caught.value
    assert (failed.exit_code, failed.stdout, failed.stderr) == (3, "before\n", "why\n")
    assert failed.error == "exit status 3"


def test_death_by_signal(box):
    with pytest.raises(e2b.CommandExitException) as caught:
        run(box, "kill -TERM $$")
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: terminated")


def test_no_such_program(box):
    with pytest.raises(e2b.CommandExitException) as caught:
        run(box, "no-such-program")
    assert caught.value.exit_code == 127
    assert "not found" in caught.value.stderr


@pytest.mark.compat
def test_output_streams_in_order(box):
    heard = []
    script = "for i in 1 2 3; do echo out$i; sleep 0.3; echo err$i >&2; sleep 0.3; done"
    run(
        box,
        script,
        on_stdout=lambda text: heard.append((time.monotonic(), text)),
        on_stderr=lambda text: heard.append((time.monotonic(), text)),
    )
    end = time.monotonic()
    assert "".join(text for _, text in heard) == "out1\nerr1\nout2\nerr2\nout3\nerr3\n"
    assert len(heard) == 6, "each line arrived by itself"
    assert end - heard[0][0] > 1.2, "the first line arrived while the command ran"


@pytest.mark.compat
def test_background_connect_and_wait(box):
    first = box.commands.run("read line; echo got $line; exit 4", background=True, stdin=True)
    second = box.commands.connect(first.pid)
    assert second.pid == first.pid
    box.commands.send_stdin(first.pid, "this\n")
    for handle in (first, second):
        with pytest.raises(e2b.CommandExitException) as caught:
            handle.wait()
        assert (caught.value.exit_code, caught.value.stdout) == (4, "got this\n")


def test_the_end_is_served_to_late_comers(box):
    handle = box.commands.run("exit 0", background=True)
    handle.wait()
    assert box.commands.connect(handle.pid).wait().exit_code == 0


def test_a_command_outlives_its_client(box):
    handle = box.commands.run("read line; echo still $line", background=True, stdin=True, timeout=0)
    handle.disconnect()
    assert handle.pid in [each.pid for each in box.commands.list()]
    again = box.commands.connect(handle.pid)
    box.commands.send_stdin(handle.pid, "here\n")
    assert again.wait().stdout == "still here\n"


def test_nothing_to_connect_to(box):
    with pytest.raises(e2b.NotFoundException):
        box.commands.connect(4_000_000)
    with pytest.raises(e2b.NotFoundException):
        box.commands.send_stdin(4_000_000, "x")


@pytest.mark.compat
def test_stdin_and_its_end(box):
    handle = box.commands.run("cat; echo end", background=True, stdin=True)
    for line in ("one\n", "zwei\n", "três\n"):
        box.commands.send_stdin(handle.pid, line)
    if not hasattr(box.commands, "close_stdin"):
        box.commands.kill(handle.pid)
        pytest.skip("this SDK cannot close stdin")
    box.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "one\nzwei\ntrês\nend\n"


def test_a_megabyte_of_stdin(box):
    sent = b"".join(b"%d\n" % number for number in range(150_000))
    handle = box.commands.run("sha256sum", background=True, stdin=True)
    box.commands.send_stdin(handle.pid, sent)
    box.commands.close_stdin(handle.pid)
    assert handle.wait().stdout.split()[0] == hashlib.sha256(sent).hexdigest()


def test_stdin_that_nobody_reads_does_not_hurt_others(box):
    """More than a pipe holds, to a process that never reads: it may wait or fail, alone."""
    handle = box.commands.run("sleep 3600", background=True, stdin=True, timeout=0)
    sender = threading.Thread(target=_send_and_ignore, args=(box, handle.pid), daemon=True)
    sender.start()
    assert run(box, "echo alive").stdout == "alive\n"
    assert box.commands.kill(handle.pid)
    sender.join(patient(20))
    assert not sender.is_alive(), "the sender was released by the death of the process"


def _send_and_ignore(box, pid):
    try:
        box.commands.send_stdin(pid, b"x" * (1 << 20))
    except e2b.SandboxException:
        pass


def test_stdin_is_off_unless_asked_for(box):
    assert run(box, "cat; echo end").stdout == "end\n"
    handle = box.commands.run("sleep 30", background=True)
    with pytest.raises(e2b.SandboxException):
        box.commands.send_stdin(handle.pid, "x")
    handle.kill()


@pytest.mark.compat
def test_kill(box):
    handle = box.commands.run("sleep 3600", background=True, timeout=0)
    assert handle.kill() is True
    with pytest.raises(e2b.CommandExitException) as caught:
        handle.wait()
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    eventually("it is gone", 10, lambda: box.commands.kill(handle.pid) is False)


@pytest.mark.compat
def test_list(box):
    handle = box.commands.run("sleep 3601", background=True, envs={"SEEN": "1"}, cwd="/tmp", timeout=0)
    mine = [each for each in box.commands.list() if each.pid == handle.pid]
    assert len(mine) == 1
    assert (mine[0].cmd, list(mine[0].args)) == ("/bin/bash", ["-l", "-c", "sleep 3601"])
    assert mine[0].cwd == "/tmp"
    handle.kill()
    eventually(
        "it leaves the list", 10, lambda: handle.pid not in [each.pid for each in box.commands.list()]
    )


@pytest.mark.compat
def test_a_timeout_raises_and_kills(box):
    handle = box.commands.run("exec sleep 3602", background=True, timeout=max(1, patient(0.5)))
    start = time.monotonic()
    with pytest.raises(e2b.TimeoutException):
        handle.wait()
    assert time.monotonic() - start < patient(10)
    eventually(
        "the process dies too",
        10,
        lambda: run(box, f"test -e /proc/{handle.pid} && echo yes || echo no").stdout == "no\n",
    )
    assert box.is_running()


@pytest.mark.compat
def test_users(box):
    assert run(box, "id -un; pwd").stdout == "user\n/home/user\n"
    assert run(box, "id -un; echo $HOME $USER $LOGNAME", user="root").stdout == "root\n/root root root\n"
    assert run(box, "echo $HOME $USER $LOGNAME").stdout == "/home/user user user\n"
    with pytest.raises(e2b.AuthenticationException, match="invalid username"):
        run(box, "true", user="nobody-of-that-name")


@pytest.mark.vm
def test_the_user_may_become_root(box):
    assert run(box, "sudo -n id -un").stdout == "root\n"


def test_the_user_is_not_root(box):
    assert run(box, "id -u").stdout != "0\n"
    assert run(box, "cat /etc/shadow 2>/dev/null || echo denied").stdout == "denied\n"


def test_working_folder(box):
    assert run(box, "pwd", cwd="/usr/lib").stdout == "/usr/lib\n"
    assert run(box, "mkdir -p sub && cd sub && pwd").stdout == "/home/user/sub\n"
    assert run(box, "pwd", cwd="sub").stdout == "/home/user/sub\n"
    assert run(box, "pwd", cwd="~").stdout == "/home/user\n"
    with pytest.raises(e2b.InvalidArgumentException):
        run(box, "pwd", cwd="/no/such/folder")


@pytest.mark.compat
def test_environment(box):
    echo = 'echo "$LAYER|$ONLY_SANDBOX|$MINE|$E2B_SANDBOX|$E2B_SANDBOX_ID"'
    assert run(box, echo).stdout == f"sandbox|yes||true|{box.sandbox_id}\n"
    mine = run(box, echo, envs={"LAYER": "call", "MINE": "a b=c"}).stdout
    assert mine == f"call|yes|a b=c|true|{box.sandbox_id}\n"
    assert SHARED_ENV["LAYER"] == "sandbox"


def test_the_servers_environment_stays_out(box):
    names = {line.split("=")[0] for line in run(box, "env").stdout.splitlines()}
    assert "E2B_API_KEY" not in names
    assert not [name for name in names if name.startswith(("HATCHERY", "CARGO", "RUST"))]


def test_text_cut_between_bytes(box):
    script = r"printf '\xf0\x9f'; sleep 0.3; printf '\x90\xa3 h\xc3'; sleep 0.3; printf '\xa9'"
    assert run(box, script).stdout == "🐣 hé"


def test_a_long_command_line(box):
    text = "x" * 100_000
    assert run(box, f"v={text}; echo ${{#v}}").stdout == "100000\n"


def test_a_command_line_beyond_the_kernels_limit(box):
    for size in (200_000, 1_000_000):  # the kernel's limit of one argument, and that of a request
        with pytest.raises(e2b.SandboxException, match="write what is long to a file"):
            run(box, "v=" + "x" * size + "; true")
    assert run(box, "echo alive").stdout == "alive\n"


@pytest.mark.compat
def test_ten_megabytes_of_output(box):
    wanted = hashlib.sha256(b"".join(b"%d\n" % number for number in range(1, 1_500_001)))
    got = run(box, "seq 1 1500000", timeout=max(60, patient(60))).stdout
    assert len(got) > 10 << 20
    assert hashlib.sha256(got.encode()).hexdigest() == wanted.hexdigest()


def test_a_slow_reader_holds_back_only_its_own_command(box):
    """A client that stops reading: the child must block, others must not, and nothing is lost."""
    size = 16_000_000
    box.files.remove("/tmp/slow-reader-done")
    connection = raw_connection(receive_buffer=16 << 10)
    connection.sendall(
        start_stream_bytes(box, f"head -c {size} /dev/zero | tr '\\0' y; echo > /tmp/slow-reader-done")
    )
    received = bytearray(connection.recv(1024))
    time.sleep(max(1, patient(0.5)))
    start = time.monotonic()
    assert run(box, "echo quick").stdout == "quick\n"
    assert time.monotonic() - start < patient(5)
    assert not box.files.exists("/tmp/slow-reader-done"), "the child ran ahead of its reader"
    while b'"end"' not in received[-2000:]:
        more = connection.recv(1 << 20)
        assert more, "the stream ended early"
        received += more
    connection.close()
    body = _dechunked(bytes(received).split(b"\r\n\r\n", 1)[1])
    texts = [
        message["event"]["data"]["stdout"]
        for _, message in frames(body)
        if "stdout" in message.get("event", {}).get("data", {})
    ]
    assert sum(len(base64.b64decode(text)) for text in texts) == size


def _dechunked(raw):
    """The whole frames within a chunked body that may be cut at its end."""
    body, at = bytearray(), 0
    while True:
        end = raw.find(b"\r\n", at)
        if end < 0:
            return bytes(body)
        size = int(raw[at:end], 16)
        if size == 0 or end + 2 + size > len(raw):
            return bytes(body)
        body += raw[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def test_many_commands_at_once(box):
    # QEMU's user network, through which the lab is reached, resets connections of a larger burst.
    count, results = 16 if SCALE == 1 else 6, {}

    def one(number):
        results[number] = run(box, f"sleep 0.2; echo {number}", timeout=max(60, patient(60))).stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: f"{number}\n" for number in range(count)}


@pytest.mark.vm
def test_orphans_are_reaped(box):
    run(box, "for i in 1 2 3 4 5; do (sleep 0.2 &) ; done")
    time.sleep(max(1, 0.5 * SCALE))
    states = run(box, "cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' | cut -c1", user="root").stdout
    assert "Z" not in states


@pytest.mark.vm
def test_a_fork_bomb_stays_in_its_sandbox(box, fresh):
    """While it goes on, its own sandbox still serves files and lists, and the others everything."""
    fresh.files.write("/tmp/before", "the bomb")
    bomb = fresh.commands.run("bomb() { bomb | bomb & }; bomb; sleep 3600", background=True, timeout=0)
    time.sleep(max(2, patient(0.3)))
    assert fresh.files.read("/tmp/before", request_timeout=patient(20)) == "the bomb"
    assert bomb.pid in [each.pid for each in fresh.commands.list(request_timeout=patient(20))]
    assert run(box, "echo unharmed").stdout == "unharmed\n"
    assert fresh.kill()


@pytest.mark.vm
def test_out_of_memory_ends_the_command_only(fresh):
    with pytest.raises(e2b.CommandExitException):
        run(fresh, "python3 -c 'x = bytearray(64 << 30)'", timeout=max(60, patient(60)))
    # In large steps: small ones spend minutes in the emulator on reclaiming the interpreter's pages.
    hog = "python3 -c 'x = []\nwhile True: x.append(bytearray(128 << 20))'"
    with pytest.raises(e2b.CommandExitException):
        run(fresh, hog, timeout=max(60, patient(60)))
    assert run(fresh, "echo alive").stdout == "alive\n"


@pytest.mark.vm
def test_a_real_time_process_leaves_time_for_others(box):
    """The guest kernel's server for this begins only where a real-time process wants to run."""
    spin = "chrt -f 50 sh -c 'echo spins; while :; do :; done'"
    hog = box.commands.run(spin, background=True, user="root", timeout=0)
    try:
        eventually("a real-time process", 20, lambda: "FF" in run(box, "ps -eo cls,args | grep [s]pins").stdout)
        assert run(box, "echo on").stdout == "on\n"
    finally:
        hog.kill()
