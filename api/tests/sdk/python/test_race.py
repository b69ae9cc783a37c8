"""A process that draws numbers all the time is copied: copies share none that was drawn after they part."""

import json
import os
from itertools import combinations

import e2b
import pytest
from support import create, eventually, http_call, patient, run

pytestmark = pytest.mark.vm

# Children of each fork. HATCHERY_RACERS=100 and HATCHERY_RACES=10 for all that the proof asks.
RACERS = int(os.environ.get("HATCHERY_RACERS", "8"))
RACES = int(os.environ.get("HATCHERY_RACES", "1"))

# Notes the generation, random numbers and clocks, again and again. In a machine with another generation it
# does so for a little longer and tells; where it began, when it is told to.
RACER = r"""
import json, os, time
generation = os.open("/run/hatchery/generation", os.O_RDONLY)
noted, dropped, more = [], 0, None
while more != 0:
    noted.append([os.pread(generation, 32, 0).decode(), os.urandom(8).hex(), os.getrandom(8).hex(),
                  time.time_ns(), time.monotonic_ns()])
    if more is not None:
        more -= 1
    elif noted[-1][0] not in ("", noted[0][0]):
        more = 200
    elif len(noted) % 32 == 0 and os.path.exists("/tmp/stop"):
        more = 0
    if len(noted) == 100:
        os.close(os.open("/tmp/runs", os.O_CREAT, 0o644))
    if len(noted) == 100_000:
        dropped += 50_000
        del noted[:50_000]
last = noted[-(40_000 if os.path.exists("/tmp/stop") else 3_000):]
with open("/tmp/told.new", "w") as file:
    json.dump([dropped + len(noted) - len(last), last], file)
os.rename("/tmp/told.new", "/tmp/told")
"""


class Told:
    """What a racer has noted: from which place on, and the generation that it began with."""

    def __init__(self, box):
        eventually("the racer tells", 60, lambda: run(box, "ls /tmp").stdout.split().count("told"))
        self.first, self.noted = json.loads(run(box, "cat /tmp/told").stdout)

    def length_of(self, generation):
        """Up to which place it had that generation. A look in the middle of a change finds none."""
        return self.first + sum(1 for each in self.noted if each[0] == generation)

    def before(self, place, since):
        return self.noted[since - self.first : place - self.first]

    def numbers(self, place):
        """Those that it drew from this place on."""
        return {number for each in self.noted[place - self.first :] for number in each[1:3]}

    def clocks_go_forward(self):
        for clock in (3, 4):
            times = [each[clock] for each in self.noted]
            assert times == sorted(times), f"clock {clock} went back"


def racing():
    box = create()
    box.files.write("/tmp/racer.py", RACER)
    box.commands.run("exec python3 /tmp/racer.py", background=True, timeout=0)
    eventually("the racer runs", 60, lambda: run(box, "ls /tmp").stdout.split().count("runs"))
    return box


def share_nothing(copies, origin=None):
    """Copies of one moment have the same past, and nothing else in common; nor with where they come from."""
    generation = copies[0].noted[0][0]
    lengths = [copy.length_of(generation) for copy in copies]
    # The one that was being noted may have drawn its first number before they parted.
    parted, every = min(lengths), [*copies, *([origin] if origin else [])]
    assert max(lengths) == parted, f"some went on before they were somebody: {lengths}"
    since = max(each.first for each in every)
    assert since < parted - 1, "they have told too little"
    pasts = [each.before(parted - 1, since) for each in every]
    assert all(past == pasts[0] for past in pasts), "they have not the same past"
    drawn = [each.numbers(parted) for each in every]
    assert all(len(numbers) >= 300 for numbers in drawn[: len(copies)])
    for one, other in combinations(drawn, 2):
        assert not one & other, f"{len(one & other)} numbers are in two machines"
    for each in every:
        each.clocks_go_forward()


def forked(box):
    children = box.fork(count=RACERS, timeout=int(patient(300)), request_timeout=patient(240))
    assert not [child for child in children if isinstance(child, Exception)], children
    return children


@pytest.mark.parametrize("race", range(RACES))
def test_children_of_a_fork(race):
    box = racing()
    children = []
    try:
        children = forked(box)
        run(box, "touch /tmp/stop")
        share_nothing([Told(child) for child in children], Told(box))
    finally:
        for each in [box, *children]:
            each.kill()


def test_sandboxes_of_a_snapshot():
    box = racing()
    boxes, snapshot = [box], None
    try:
        snapshot = box.create_snapshot(request_timeout=patient(120)).snapshot_id
        run(box, "touch /tmp/stop")
        boxes += [create(template=snapshot, request_timeout=patient(60)) for _ in range(2)]
        share_nothing([Told(each) for each in boxes[1:]], Told(box))
    finally:
        for each in boxes:
            each.kill()
        if snapshot:
            e2b.Sandbox.delete_snapshot(snapshot)


def test_resets_to_a_checkpoint():
    box = racing()
    try:
        path = f"/sandboxes/{box.sandbox_id}"
        assert http_call("POST", f"{path}/checkpoints", {"name": "racing"}, timeout=120).status == 201
        told = []
        for _ in range(2):
            assert http_call("POST", f"{path}/reset", {"checkpoint": "racing"}, timeout=120).status == 204
            told.append(Told(box))
        share_nothing(told)
    finally:
        box.kill()


def test_a_resumed_sandbox():
    """It goes on when it is somebody again, with its clock at once where it belongs."""
    box = racing()
    try:
        assert box.pause(request_timeout=patient(60))
        box = e2b.Sandbox.connect(box.sandbox_id, timeout=int(patient(300)), request_timeout=patient(60))
        told = Told(box)
        told.clocks_go_forward()
        generations = [each[0] for each in told.noted if each[0]]
        assert len(set(generations)) == 2, "it has gone on as another"
        before, after = (told.noted[generations.count(generations[0]) + i] for i in (-1, 1))
        assert after[3] - before[3] > after[4] - before[4], "the wall clock has not been set"
    finally:
        box.kill()
