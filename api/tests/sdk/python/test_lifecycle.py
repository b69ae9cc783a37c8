"""Create, find, connect to, time out and kill sandboxes."""

import json
import time
from datetime import datetime, timedelta, timezone

import e2b
import pytest
from support import (
    KEY,
    NotRunning,
    SandboxNotFound,
    create,
    eventually,
    http_call,
    patient,
    raw_connection,
    request_bytes,
    run,
    vm_pids,
)


def listed(**query):
    paginator = e2b.Sandbox.list(query=e2b.SandboxQuery(**query)) if query else e2b.Sandbox.list()
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


@pytest.mark.compat
def test_a_sandbox_lives_and_dies():
    box = create(metadata={"who": "lives and dies"}, timeout=600)
    try:
        assert box.sandbox_id.isalnum() and box.sandbox_id == box.sandbox_id.lower()
        assert box.is_running()
        info = box.get_info()
        assert info.sandbox_id == box.sandbox_id
        assert info.metadata == {"who": "lives and dies"}
        assert info.name == "base" or info.template_id == "base"
        life = info.end_at - info.started_at
        assert timedelta(seconds=590) < life < timedelta(seconds=610), life
        assert abs(datetime.now(timezone.utc) - info.started_at) < timedelta(minutes=5)
        assert info.cpu_count >= 1 and info.memory_mb >= 128
        assert box.sandbox_id in [other.sandbox_id for other in listed()]
    finally:
        assert box.kill() is True
    assert box.kill() is False
    assert box.is_running() is False
    assert box.sandbox_id not in [other.sandbox_id for other in listed()]
    with pytest.raises(SandboxNotFound):
        box.get_info()


@pytest.mark.compat
def test_commands_after_the_end_say_so(fresh):
    fresh.kill()
    with pytest.raises(NotRunning, match="was not found"):
        fresh.commands.run("true", timeout=patient(30))
    with pytest.raises(NotRunning):
        fresh.files.read("/etc/hostname")


@pytest.mark.compat
def test_connect_reaches_the_same_sandbox(fresh):
    fresh.files.write("/tmp/mark", "here")
    same = e2b.Sandbox.connect(fresh.sandbox_id, timeout=60)
    assert same.sandbox_id == fresh.sandbox_id
    assert same.files.read("/tmp/mark") == "here"
    assert run(same, "cat /tmp/mark").stdout == "here"


def test_connect_never_shortens_and_set_timeout_does(fresh):
    fresh.set_timeout(1000)
    before = fresh.get_info().end_at
    e2b.Sandbox.connect(fresh.sandbox_id, timeout=10)
    assert abs(fresh.get_info().end_at - before) < timedelta(seconds=1)
    e2b.Sandbox.connect(fresh.sandbox_id, timeout=2000)
    assert fresh.get_info().end_at - before > timedelta(seconds=900)
    fresh.set_timeout(500)
    assert fresh.get_info().end_at < before


def test_connect_to_nothing():
    with pytest.raises(SandboxNotFound):
        e2b.Sandbox.connect("inosuchsandbox00000")


@pytest.mark.compat
def test_the_timeout_kills():
    # Longer than one tick of any timer, short enough to wait for.
    box = create(timeout=max(2, int(patient(0.6))))
    eventually("the sandbox times out", 20, lambda: not box.is_running())
    with pytest.raises(SandboxNotFound):
        box.get_info()
    assert box.kill() is False


def test_a_command_hears_of_the_timeout(fresh):
    handle = fresh.commands.run("sleep 3600", background=True, timeout=0)
    fresh.set_timeout(1)
    start = time.monotonic()
    with pytest.raises(e2b.TimeoutException):
        handle.wait()
    assert time.monotonic() - start < patient(10)


@pytest.mark.compat
def test_a_command_hears_of_the_kill(fresh):
    handle = fresh.commands.run("sleep 3600", background=True, timeout=0)
    fresh.kill()
    start = time.monotonic()
    with pytest.raises(NotRunning) as caught:
        handle.wait()
    assert time.monotonic() - start < patient(6)
    if NotRunning is not e2b.TimeoutException:  # older SDKs do not ask what happened
        assert "killed or reached its end of life" in str(caught.value)


def test_metadata_filters_the_list():
    odd = {"u": "x y&z=1", "é": "ü/%41"}
    one, two = create(metadata={**odd, "n": "1"}), create(metadata={**odd, "n": "2"})
    try:
        ids = {one.sandbox_id, two.sandbox_id}
        assert {found.sandbox_id for found in listed(metadata=odd)} == ids
        only = listed(metadata={**odd, "n": "2"})
        assert [found.sandbox_id for found in only] == [two.sandbox_id]
        assert only[0].metadata == {**odd, "n": "2"}
        assert listed(metadata={"u": "x y&z=2"}) == []

        pages = e2b.Sandbox.list(query=e2b.SandboxQuery(metadata=odd), limit=1)
        first = pages.next_items()
        assert pages.has_next
        second = pages.next_items()
        assert [len(first), len(second)] == [1, 1]
        # Newest first.
        assert [first[0].sandbox_id, second[0].sandbox_id] == [two.sandbox_id, one.sandbox_id]
    finally:
        one.kill()
        two.kill()


@pytest.mark.vm
def test_sandboxes_do_not_see_each_other(box, fresh):
    fresh.files.write("/tmp/secret-of-one", "1")
    assert not box.files.exists("/tmp/secret-of-one")
    fresh.files.write("/etc/hosts.mine", "1", user="root")
    assert not box.files.exists("/etc/hosts.mine")
    ids = [run(each, "cat /proc/sys/kernel/random/boot_id").stdout for each in (box, fresh)]
    assert ids[0] != ids[1]
    names = [run(each, "hostname").stdout for each in (box, fresh)]
    assert names[0] != names[1], "each sandbox has a name of its own"


@pytest.mark.vm
def test_a_sandbox_finds_itself_by_name(box):
    ask = "python3 -c 'import socket; print(socket.gethostbyname(socket.gethostname()))'"
    assert run(box, ask).stdout.strip() in ("127.0.0.2", "169.254.0.21"), "its own address"
    assert run(box, "sudo true 2>&1").stdout == "", "sudo warns of names that it does not find"
    told = run(box, "cat /etc/hosts").stdout
    assert box.sandbox_id not in told, "a sandbox does not write to its disk to be found"


def test_an_unknown_template_is_refused():
    with pytest.raises(e2b.SandboxException, match="404"):
        create(template="no-such-template")


@pytest.mark.compat
def test_a_wrong_key_is_refused():
    with pytest.raises(e2b.AuthenticationException):
        create(api_key="e2b_" + "f" * 40)
    with pytest.raises(e2b.AuthenticationException):
        e2b.Sandbox.list(api_key="e2b_" + "f" * 40).next_items()


@pytest.mark.parametrize("timeout", [0, -1, 10**9])
def test_an_impossible_timeout_is_refused(timeout):
    with pytest.raises(e2b.SandboxException, match="400"):
        create(timeout=timeout)


def test_create_by_the_first_api():
    """`POST /sandboxes`, which SDKs before 2.51 and the CLI use, with its literal body."""
    answer = http_call(
        "POST",
        "/sandboxes",
        {
            "templateID": "base",
            "timeout": 120,
            "secure": True,
            "allow_internet_access": True,
            "metadata": {},
            "envVars": {"FROM": "v1"},
        },
        timeout=60,
    )
    assert answer.status == 201, answer
    made = answer.json()
    assert {"templateID", "sandboxID", "clientID", "envdVersion", "envdAccessToken"} <= made.keys()
    box = e2b.Sandbox.connect(made["sandboxID"])
    try:
        assert run(box, "echo $FROM").stdout == "v1\n"
        old_list = http_call("GET", "/sandboxes").json()
        assert made["sandboxID"] in [each["sandboxID"] for each in old_list]
    finally:
        assert http_call("DELETE", f"/sandboxes/{made['sandboxID']}").status == 204


def test_a_legacy_id_with_its_client_suffix_works(fresh):
    answer = http_call("GET", f"/sandboxes/{fresh.sandbox_id}-6532622b")
    assert answer.status == 200 and answer.json()["sandboxID"] == fresh.sandbox_id


@pytest.mark.leaks
def test_a_client_that_gives_up_on_create_leaves_nothing():
    """The connection is cut while the sandbox is being made: it must not live on unowned for ever."""
    before = vm_pids()
    body = json.dumps({"templateID": "base", "timeout": max(3, int(patient(3)))}).encode()
    connection = raw_connection()
    headers = {"X-API-KEY": KEY, "Content-Type": "application/json", "Content-Length": len(body)}
    connection.sendall(request_bytes("POST", "/v2/sandboxes", headers, body))
    connection.close()
    time.sleep(patient(1))
    eventually("its VM process ends", 30, lambda: vm_pids() <= before)
