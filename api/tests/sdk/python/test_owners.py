"""Two API keys, by the published SDK: neither sees, connects to, forks, pauses or ends what the
other has, and is told what it would be told if there were no such thing."""

import os

import e2b
import pytest
from support import SandboxNotFound, create, http_call

OTHER = os.environ.get("HATCHERY_OTHER_KEY", "")
NOBODYS = "inosuchsandbox000000"

pytestmark = pytest.mark.skipif(not OTHER, reason="HATCHERY_OTHER_KEY is not set: there is one key")


@pytest.fixture
def theirs():
    """A sandbox of the other key's, killed afterwards."""
    sandbox = create(api_key=OTHER, metadata={"of": "the-other"})
    yield sandbox
    sandbox.kill()


def listed(**options):
    """The ids of all sandboxes that a key sees."""
    pages, ids = e2b.Sandbox.list(**options), set()
    while pages.has_next:
        ids.update(info.sandbox_id for info in pages.next_items())
    return ids


def test_lists_are_of_ones_own(theirs, fresh):
    assert fresh.sandbox_id in listed() and theirs.sandbox_id not in listed()
    assert theirs.sandbox_id in listed(api_key=OTHER)
    assert fresh.sandbox_id not in listed(api_key=OTHER)


def test_what_is_anothers_is_not_there(theirs):
    for sandbox_id in [theirs.sandbox_id, NOBODYS]:
        with pytest.raises(SandboxNotFound):
            e2b.Sandbox.connect(sandbox_id)
        with pytest.raises(SandboxNotFound):
            e2b.Sandbox.get_info(sandbox_id)
        with pytest.raises(SandboxNotFound):
            e2b.Sandbox.set_timeout(sandbox_id, 60)
        assert not e2b.Sandbox.kill(sandbox_id)
    for what in ["pause", "fork", "reset", "checkpoints", "snapshots"]:
        answers = []
        for sandbox_id in [theirs.sandbox_id, NOBODYS]:
            answer = http_call("POST", f"/sandboxes/{sandbox_id}/{what}", {"timeout": 60})
            answers.append((answer.status, answer.body.replace(sandbox_id.encode(), b"ID")))
        assert answers[0] == answers[1] and answers[0][0] == 404, what
    # It has noticed nothing of all this, and its owner is told everything.
    assert theirs.is_running()
    assert theirs.commands.run("echo here").stdout == "here\n"
    assert theirs.get_info().metadata == {"of": "the-other"}


def test_an_idempotency_key_gives_nobody_anothers_sandbox():
    body = {"templateID": "base", "timeout": 60}
    made = []
    for key in [OTHER, os.environ["E2B_API_KEY"]]:
        headers = {"Idempotency-Key": "one-of-two"}
        answer = http_call("POST", "/v2/sandboxes", body, headers=headers, key=key)
        assert answer.status == 201
        made.append((answer.json()["sandboxID"], key))
    assert made[0][0] != made[1][0]
    for sandbox_id, key in made:
        assert e2b.Sandbox.kill(sandbox_id, api_key=key)
