"""Copies of one machine share nothing that must be their own: randomness, clock, names, ids."""

import base64
import http.client
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from support import ENVD_PORT, SCALE, create, envelope, frames, http_call, patient, run

pytestmark = pytest.mark.vm

# One wave: in the lab each takes minutes. HATCHERY_CLONES=200 for all that the proof asks.
CLONES = int(os.environ.get("HATCHERY_CLONES", "40"))
# A clock is less wrong than this, seconds, also in the lab.
CLOCK = 0.05
# So many live at one time.
WAVE = 40
# The lab's emulated processor ends 3 to 6 of 1,000 nested machines, whatever runs in them.
MOST_LOST = 4 if SCALE > 1 else 0
OWN = (
    "random",
    "uuid",
    "secrets",
    "openssl",
    "urandom",
    "getrandom",
    "boot_id",
    "machine_id",
    "hostname",
    "generation",
    "token",
)


def server_time(box):
    """The server's clock, as its word on when the sandbox would end: the suite's own clock may be another."""
    box.set_timeout(600)
    return box.get_info().end_at.timestamp() - 600


class Clone:
    """A sandbox by plain HTTP, which is much faster than an SDK's."""

    def __init__(self, template):
        body = {"templateID": template, "timeout": int(patient(300)), "secure": True}
        answer = http_call("POST", "/v2/sandboxes", body, timeout=60)
        assert answer.status == 201, answer
        made = answer.json()
        self.id, self.token = made["sandboxID"], made["envdAccessToken"]

    def server_time(self):
        """As above."""
        assert http_call("POST", f"/sandboxes/{self.id}/timeout", {"timeout": 600}).status == 204
        end = http_call("GET", f"/sandboxes/{self.id}").json()["endAt"]
        return datetime.fromisoformat(end.replace("Z", "+00:00")).timestamp() - 600

    def envd(self, method, kind, body):
        headers = {
            "E2b-Sandbox-Id": self.id,
            "E2b-Sandbox-Port": str(ENVD_PORT),
            "X-Access-Token": self.token,
            "Content-Type": f"application/{kind}",
            "Connect-Protocol-Version": "1",
        }
        answer = http_call("POST", f"/{method}", body, headers, key=None, timeout=60)
        assert answer.status == 200, answer
        return answer

    def at_most_wrong(self):
        """How wrong its clock is at most: the least that the times of some new folders allow. No process has
        to start for one, so little time passes between the looks at the server's clock. To be called for one
        at a time."""

        def once(number):
            before = self.server_time()
            made = self.envd("filesystem.Filesystem/MakeDir", "json", {"path": f"/tmp/clock-{number}"}).json()
            after = self.server_time()
            inside = datetime.fromisoformat(made["entry"]["modifiedTime"].replace("Z", "+00:00")).timestamp()
            return max(inside - before, after - inside)

        least = float("inf")
        for number in range(20):  # a lab is slow now and then
            least = min(least, once(number))
            if least < CLOCK:
                break
        return least

    def run(self, command):
        """What a command prints."""
        process = {"process": {"cmd": "/bin/bash", "args": ["-c", command]}, "stdin": False}
        answer = self.envd("process.Process/Start", "connect+json", envelope(process))
        data = [message.get("event", {}).get("data", {}) for _, message in frames(answer.body)]
        return b"".join(base64.b64decode(each.get("stdout", "")) for each in data)

    def kill(self):
        return http_call("DELETE", f"/sandboxes/{self.id}").status


def ask(clone):
    """One copy's words: what its warmed Python and its kernel give."""
    told = json.loads(clone.run("read -r told < /dev/tcp/127.0.0.1/7000; echo $told"))
    told["id"], told["token"] = clone.id, clone.token
    return told


def wave(count, lost):
    """So many at once, each asked once. Those that were lost are told of in `lost`."""

    def unless_lost(clone, work):
        try:
            return work()
        except (AssertionError, http.client.HTTPException, ValueError):
            if http_call("GET", f"/sandboxes/{clone.id}").status != 404:
                raise
            lost.append(clone.id)

    with ThreadPoolExecutor(4) as pool:
        clones = list(pool.map(lambda _: Clone("warm-python"), range(count)))
        try:
            told = list(pool.map(lambda clone: unless_lost(clone, lambda: ask(clone)), clones))
            for clone, words in zip(clones, told):
                if words:
                    words["wrong"] = unless_lost(clone, clone.at_most_wrong)
        finally:
            killed = list(pool.map(lambda clone: clone.kill(), clones))
    assert set(killed) <= {204, 404}, killed
    return [each for each in told if each and each["wrong"] is not None]


def is_somebody(told):
    """What is so for each by itself."""
    assert told["hostname"] == told["id"]
    assert told["wrong"] < CLOCK, f"the clock of {told['id']} is wrong by {told['wrong']:.3f} s"
    waited = told["monotonic"][1] - told["monotonic"][0]
    assert 0.02 <= waited < patient(1), f"0.02 s took {waited} s of the monotonic clock"
    assert told["monotonic"][0] > told["warmed_at"], "it goes on from where the golden machine stood"


def test_clones_are_somebody_else():
    all_told, lost = [], []
    while len(all_told) < CLONES:
        all_told += wave(min(WAVE, CLONES - len(all_told)), lost)
        assert len(lost) <= MOST_LOST, f"machines ended by themselves: {lost}"
    if lost:
        print(f"the lab lost {len(lost)} of {CLONES + len(lost)} machines: {lost}")
    for name in OWN:
        values = {told[name] for told in all_told}
        assert len(values) == CLONES, f"two of {CLONES} clones have the same {name}"
    # It is the same process in each, and what it does not renew is the same: the hook makes the difference.
    for name in ("pid", "not_renewed"):
        assert len({told[name] for told in all_told}) == 1, name
    for told in all_told:
        is_somebody(told)
    print(f"the clocks of {CLONES} clones: at most {max(told['wrong'] for told in all_told) * 1000:.0f} ms wrong")


def test_clones_by_the_sdk_are_somebody_else():
    """The same with the SDK's own create and run."""

    def tell(_):
        box = create(template="warm-python")
        try:
            before = server_time(box)
            told = json.loads(run(box, "exec cat < /dev/tcp/127.0.0.1/7000").stdout)
            told["wrong"] = max(before - told["time"], told["time"] - server_time(box), 0)
            told["id"] = box.sandbox_id
            return told
        finally:
            box.kill()

    with ThreadPoolExecutor(4) as pool:
        all_told = list(pool.map(tell, range(8)))
    for name in OWN:
        assert name == "token" or len({told[name] for told in all_told}) == len(all_told), name
    for told in all_told:
        is_somebody(told)


def test_ids_of_the_machine():
    """Each sandbox has a machine-id, in the form that systemd's readers expect."""
    box = create()
    try:
        text = run(box, "cat /etc/machine-id /run/hatchery/generation").stdout.split()
        assert len(text) == 2 and len(text[0]) == 32 and int(text[0], 16)
        assert int(text[1]) > 0
    finally:
        box.kill()
