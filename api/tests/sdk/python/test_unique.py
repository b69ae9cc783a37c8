"""Copies of one machine share nothing that must be their own: randomness, clock, names, ids."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import create, run

pytestmark = pytest.mark.vm

CLONES = int(os.environ.get("HATCHERY_CLONES", "60"))
OWN = ("random", "uuid", "secrets", "urandom", "getrandom", "machine_id", "hostname", "generation")


def server_time(box):
    """The server's clock, as its word on when the sandbox would end: the suite's own clock may be another."""
    box.set_timeout(600)
    return box.get_info().end_at.timestamp() - 600


def tell(_):
    """One copy's words: what its warmed Python and its kernel give, and how wrong its clock is."""
    box = create(template="warm-python")
    try:
        before = server_time(box)
        told = json.loads(run(box, "exec cat < /dev/tcp/127.0.0.1/7000").stdout)
        after = server_time(box)
    finally:
        box.kill()
    # How far outside of the time of asking its clock is.
    told["wrong"] = max(before - told["time"], told["time"] - after, 0)
    told["id"] = box.sandbox_id
    return told


def test_clones_are_somebody_else():
    with ThreadPoolExecutor(4) as pool:
        all_told = list(pool.map(tell, range(CLONES)))
    assert len(all_told) == CLONES
    for name in OWN:
        assert len({told[name] for told in all_told}) == CLONES, f"two of {CLONES} clones have the same {name}"
    assert len({told["pid"] for told in all_told}) == 1, "it is the same process in each"
    for told in all_told:
        assert told["hostname"] == told["id"]
        assert told["wrong"] < 0.05, f"the clock of {told['id']} is wrong by {told['wrong']:.3f} s"


def test_ids_of_the_machine():
    """Each sandbox has a machine-id, in the form that systemd's readers expect."""
    box = create()
    try:
        text = run(box, "cat /etc/machine-id /run/hatchery/generation").stdout.split()
        assert len(text) == 2 and len(text[0]) == 32 and int(text[0], 16)
        assert int(text[1]) > 0
    finally:
        box.kill()
