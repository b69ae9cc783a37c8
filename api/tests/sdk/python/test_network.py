"""What a sandbox reaches over the network, with the programs that people use for it. The servers are on this
machine (`world.py`); the server under test has opened them: `network.openings` in `server.toml`."""

import time

import e2b
import pytest
from support import create, http_call, patient, run
from world import ADDRESS, HTTP_PORT, NAME, SILENT, TLS_NAME, TLS_URL, URL, World

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        not ADDRESS,
        reason="HATCHERY_WORLD is not set: the server's host does not reach servers on this machine",
    ),
]
NETWORK = {"dns_servers": [ADDRESS]}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    there = World(tmp_path_factory.mktemp("git"))
    yield there
    there.close()


@pytest.fixture(scope="module")
def net(world):
    """A sandbox whose names are answered by this world's name server."""
    sandbox = create(network=NETWORK)
    yield sandbox
    sandbox.kill()


def quickly(box, command, seconds=2):
    """What a command that has to fail at once says."""
    timed = f"start=$(date +%s%N); ( {command} ) 2>&1; code=$?; echo took $(( ($(date +%s%N) - start) / 1000000 )); exit $code"
    with pytest.raises(e2b.CommandExitException) as failed:
        run(box, timed)
    took = int(failed.value.stdout.rsplit("took ", 1)[1])
    assert took < patient(seconds) * 1000, failed.value.stdout
    return failed.value.stdout


def test_names_are_found_as_programs_ask_for_them(net):
    assert run(net, f"getent ahostsv4 {NAME}").stdout.startswith(ADDRESS)
    python = f"import socket; print(socket.getaddrinfo('{NAME}', 80, type=socket.SOCK_STREAM)[0][4][0])"
    assert run(net, f'python3 -c "{python}"').stdout == f"{ADDRESS}\n"
    node = f"require('dns').lookup('{NAME}', (e, a) => console.log(a))"
    assert run(net, f'node -e "{node}"').stdout == f"{ADDRESS}\n"


def test_a_name_that_is_not_there_is_refused_at_once(net):
    quickly(net, "getent hosts nowhere.test")
    assert "resolve" in quickly(net, "curl -s -S http://nowhere.test/")


def test_a_name_that_stands_for_a_private_address_is_not_followed(net):
    quickly(net, "getent hosts rebind.test")


def test_a_name_server_that_is_silent_is_given_up(net):
    quickly(net, f"getent hosts {SILENT}", 30)


def test_curl_and_fetch(net):
    assert run(net, f"curl -fsS {URL}/hello").stdout == "hello from outside\n"
    fetch = f"fetch('{URL}/hello').then(r => r.text()).then(t => process.stdout.write(t))"
    assert run(net, f'node -e "{fetch}"').stdout == "hello from outside\n"


def test_a_megabyte_each_way_comes_whole(net):
    assert run(net, f"curl -fsS {URL}/zeros/5000000 | wc -c").stdout.strip() == "5000000"
    sent = f"head -c 3000000 /dev/urandom > /tmp/sent; curl -fsS --data-binary @/tmp/sent {URL}/echo | cmp - /tmp/sent && echo same"
    assert run(net, sent).stdout == "same\n"


def test_pip_installs(net):
    options = f"--index-url {URL}/simple/ --trusted-host {NAME} --disable-pip-version-check"
    run(net, f"pip install --break-system-packages {options} hatchling-hello", timeout=patient(60))
    assert run(net, "python3 -c 'import hatchling_hello; print(hatchling_hello.ANSWER)'").stdout == "42\n"


def test_npm_installs(net):
    run(net, f"mkdir -p /tmp/n && cd /tmp/n && npm install --no-audit --no-fund --registry {URL}/npm/ hatchling-hello", timeout=patient(60))
    assert run(net, "cd /tmp/n && node -p 'require(\"hatchling-hello\")'").stdout == "42\n"


def test_apt_installs(net):
    source = f"deb [trusted=yes] {URL}/apt ./"
    only = "-o Dir::Etc::sourcelist=/tmp/test.list -o Dir::Etc::sourceparts=-"
    script = f"echo '{source}' > /tmp/test.list && apt-get {only} -q update && apt-get {only} -q -y install hatchling-hello"
    run(net, script, user="root", timeout=patient(60))
    assert run(net, "hatchling-hello").stdout == "42\n"


def test_git_clones_and_pushes(net):
    script = f"""cd $(mktemp -d) && git clone -q {URL}/git/project.git p && cd p && git checkout -q -b main &&
        git config user.email a@b && git config user.name a && echo 42 > answer && git add . &&
        git commit -q -m one && git push -q origin main && cd .. &&
        git clone -q {URL}/git/project.git again && cat again/answer"""
    assert run(net, script, timeout=patient(60)).stdout == "42\n"


def test_what_nobody_has_opened_is_refused_at_once(net):
    for target in [f"{ADDRESS}:{HTTP_PORT + 1}", "10.0.2.15:3000", "169.254.169.254:80", "192.168.1.1:80", "127.1.1.1:80"]:
        quickly(net, f"curl -sS http://{target}/")


def test_what_was_refused_stands_in_the_sandboxs_log(net):
    quickly(net, "curl -sS http://192.168.7.7:81/")
    answer = http_call("GET", f"/v2/sandboxes/{net.sandbox_id}/logs?search=192.168.7.7")
    entry = answer.json()["logs"][0]
    assert (answer.status, entry["level"], entry["fields"]["to"]) == (200, "warn", "192.168.7.7:81")
    assert entry["fields"]["reason"] == "reserved"


def test_requests_get_a_header_that_the_sandbox_never_has(world):
    secret = "Bearer 6e3f0c5a9d"
    rules = {TLS_NAME: [{"transform": {"headers": {"Authorization": secret}}}]}
    box = create(network={**NETWORK, "rules": rules})
    python = f"import urllib.request as r; print(r.urlopen('{TLS_URL}/hello?python').read().decode(), end='')"
    node = f"fetch('{TLS_URL}/hello?node').then(r => r.text()).then(t => process.stdout.write(t))"
    try:
        for command in (
            f"curl -fsS -H 'Authorization: mine' {TLS_URL}/hello?curl {TLS_URL}/hello?again",
            f'python3 -c "{python}"',
            f'node -e "{node}"',
            f"git ls-remote {TLS_URL}/git/project.git && echo hello from outside",
        ):
            assert run(box, command).stdout.endswith("hello from outside\n"), command
        seen = dict(world.authorized)
        for word in ("curl", "again", "python", "node"):
            assert seen[f"/hello?{word}"] == secret, word
        # A host that is not the connection's gets nothing, and neither does another path to it.
        assert "403" in run(box, f"curl -sS -o /dev/null -w '%{{http_code}}' -H 'Host: other.test' {TLS_URL}/hello").stdout
        word = secret.split()[1]
        places = "/etc /home /root /run /tmp /usr/local /var /proc/[0-9]*/environ"
        found = run(box, f"env | grep {word}; grep -rsla {word[:5]}''{word[5:]} {places}; true", user="root").stdout
        assert found == "", found
        about = http_call("GET", f"/sandboxes/{box.sandbox_id}")
        assert about.status == 200 and word not in str(about.json())
        child = box.fork(count=1, timeout=int(patient(300)))[0]
        try:
            assert run(child, f"curl -fsS {TLS_URL}/hello?child").stdout == "hello from outside\n"
            assert dict(world.authorized)["/hello?child"] == secret
        finally:
            child.kill()
        # Without rules nobody ends its TLS, and the host's certificate is nobody's that it trusts.
        http_call("PUT", f"/sandboxes/{box.sandbox_id}/network", {"dnsServers": [ADDRESS]})
        quickly(box, f"curl -sS {TLS_URL}/hello?without", 5)
    finally:
        box.kill()


def test_a_closed_port_is_refused_at_once(net):
    python = f"import socket; socket.create_connection(('{ADDRESS}', {HTTP_PORT + 1}))"
    assert "ConnectionRefusedError" in quickly(net, f'python3 -c "{python}"')


def test_without_the_internet_the_opened_ones_are_left():
    sandbox = create(allow_internet_access=False, network=NETWORK)
    try:
        assert run(sandbox, f"curl -fsS http://{ADDRESS}:{HTTP_PORT}/hello").stdout == "hello from outside\n"
        quickly(sandbox, "curl -sS http://192.0.2.1/")
    finally:
        sandbox.kill()


def test_forks_share_an_address_and_no_connection(world, net):
    net.commands.run(f"curl -sN {URL}/stream > /tmp/stream", background=True, timeout=0)
    run(net, "until [ -s /tmp/stream ]; do sleep 0.1; done")
    child = net.fork(count=1, timeout=int(patient(300)))[0]

    def lines(box):
        return int(run(box, "wc -l < /tmp/stream").stdout)

    try:
        # Both have the network at once; the connection goes on in the parent and not in the child.
        for box in (child, net):
            assert run(box, f"curl -fsS {URL}/hello").stdout == "hello from outside\n"
        before = lines(child), lines(net)
        time.sleep(patient(0.3))
        assert lines(child) == before[0]
        assert lines(net) > before[1]
    finally:
        child.kill()
        run(net, "pkill curl || true")


TALK = f"""
import os, socket, sys, time
talk = socket.create_connection(("{ADDRESS}", {HTTP_PORT}))
listener = socket.create_server(("127.0.0.1", 0))
here = socket.create_connection(listener.getsockname())
open("/tmp/talking", "w").close()
try:
    if sys.argv[1] == "sends":
        while not os.path.exists("/tmp/forked"):
            time.sleep(0.1)
        talk.sendall(b"GET /hello HTTP/1.1\\r\\n\\r\\n")
    print("answered", bool(talk.recv(100)), flush=True)
except OSError as error:
    print(type(error).__name__, here.getpeername()[0], flush=True)
"""
SAID = "touch /tmp/forked; until [ -s /tmp/talked ]; do sleep 0.1; done; cat /tmp/talked"


def talking(box, way):
    """Has a program keep a connection, which sends when it is told to or only reads."""
    box.files.write("/tmp/talk.py", TALK)
    run(box, "rm -f /tmp/talking /tmp/talked /tmp/forked")
    box.commands.run(f"python3 /tmp/talk.py {way} > /tmp/talked", background=True, timeout=0)
    run(box, "until [ -e /tmp/talking ]; do sleep 0.1; done", timeout=patient(20))


@pytest.mark.parametrize("way", ["sends", "reads"])
def test_a_childs_connections_of_before_have_ended(net, way):
    talking(net, way)
    child = net.fork(count=1, timeout=int(patient(300)))[0]
    try:
        # Those within the guest have not.
        assert run(child, SAID).stdout == "ConnectionAbortedError 127.0.0.1\n"
        if way == "sends":
            assert run(net, SAID).stdout == "answered True\n"
    finally:
        child.kill()
        run(net, "pkill python3 || true")


def test_a_connection_of_before_a_pause_has_ended(world):
    sandbox = create(network=NETWORK)
    try:
        talking(sandbox, "reads")
        sandbox.pause()
        assert run(sandbox.connect(), SAID).stdout == "ConnectionAbortedError 127.0.0.1\n"
    finally:
        sandbox.kill()


def test_a_paused_sandbox_has_the_network_when_it_goes_on(world):
    sandbox = create(network=NETWORK)
    try:
        run(sandbox, f"curl -fsS {URL}/hello")
        sandbox.pause()
        sandbox = sandbox.connect()
        assert run(sandbox, f"curl -fsS {URL}/hello").stdout == "hello from outside\n"
    finally:
        sandbox.kill()


def test_rules_are_refused_with_what_is_wrong():
    for network, words in [
        ({"deny_out": ["example.com"]}, "example.com"),
        ({"allow_out": ["example.com"]}, "0.0.0.0/0"),
        ({"deny_out": ["10.0.0.0/64"]}, "10.0.0.0/64"),
    ]:
        with pytest.raises(e2b.SandboxException, match=words):
            create(network=network)
