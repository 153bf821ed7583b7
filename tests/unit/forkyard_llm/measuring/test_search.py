from __future__ import annotations

import itertools
import math
import random

import pytest
from forkyard_llm.measuring.search import HARM, Dimension, Space, search

ENGINES = ("llama.cpp", "ik_llama.cpp")
THREADS = ("1", "2", "4", "6", "8", "12")
UBATCHES = ("128", "256", "512", "1024")
SPACE = Space(
    (
        Dimension("engine", ENGINES),
        Dimension("threads", THREADS, ordered=True),
        Dimension("ubatch", UBATCHES, ordered=True),
        Dimension("flash", ("0", "1")),
    ),
    ("llama.cpp", "4", "512", "0"),
)
GRID = list(itertools.product(*(one.values for one in SPACE.dimensions)))
GRID_ROUNDS = 5
"""What an exhaustive measurement runs of each point to tell them apart."""


class Machine:
    """Speeds of all points, and what a machine makes of them while it is measured."""

    def __init__(self, seed, kind="calm", noise=0.02, space=SPACE):
        self.space, self.kind, self.noise = space, kind, noise
        self.random = random.Random(seed)
        draw = self.random.uniform
        self.cores = self.random.choice([4, 6, 8, 12])
        self.hybrid = kind == "hybrid"
        self.ik = {"pp": draw(0.7, 1.5), "tg": draw(0.8, 1.2)}
        self.knee = draw(2, 8)
        self.flash = {"pp": draw(0.85, 1.15), "tg": draw(0.95, 1.08)}
        self.ubatch_best = self.random.choice([256, 512, 1024])
        self.ubatch_loss = draw(0.0, 0.08)
        self.level, self.heat, self.burst, self.runs = 1.0, 0.0, 0, 0

    def true(self, point):
        engine, threads, ubatch, flash = point
        count = int(threads)
        used = min(count, self.cores)
        over = 1.0 if count <= self.cores else 0.75
        pp = 100 * used**0.9 * over
        tg = 20 * used / (1 + used / self.knee) * (over if over == 1 else 0.6)
        if self.hybrid and count == 4:
            pp, tg = pp * 0.7, tg * 0.6
        pp *= 1 - self.ubatch_loss * abs(math.log2(int(ubatch) / self.ubatch_best))
        if engine != "llama.cpp":
            pp, tg = pp * self.ik["pp"], tg * self.ik["tg"]
        if flash == "1":
            pp, tg = pp * self.flash["pp"], tg * self.flash["tg"]
        return {"pp": pp, "tg": tg}

    def ratios(self, point):
        own, default = self.true(point), self.true(self.space.default)
        return {test: own[test] / default[test] for test in own}

    def run(self, point):
        self.runs += 1
        if self.kind == "drifting":
            self.level *= math.exp(self.random.gauss(0, 0.015))
            self.level = min(1.2, max(0.7, self.level))
        if self.kind == "bursty":
            self.burst = self.burst - 1 if self.burst else (3 if self.random.random() < 0.05 else 0)
        if self.kind == "throttling":
            self.heat = min(1.0, self.heat + 0.02) if self.random.random() < 0.9 else 0.0
        clock = self.level * (0.6 if self.burst else 1) * (1 - 0.25 * self.heat)
        return {
            test: speed * clock * math.exp(self.random.gauss(0, self.noise)) for test, speed in self.true(point).items()
        }

    def evaluate(self, points, fresh=False):
        """As the room does: groups of four between two runs of the default."""
        before, out = self.run(self.space.default), []
        for start in range(0, len(points), 4):
            speeds = [self.run(one) for one in points[start : start + 4]]
            after = self.run(self.space.default)
            out += [{test: 2 * own[test] / (before[test] + after[test]) for test in own} for own in speeds]
            before = after
        return out

    @property
    def shares(self):
        default = self.true(self.space.default)
        seconds = {"pp": 512 / default["pp"], "tg": 128 / default["tg"]}
        return {test: one / sum(seconds.values()) for test, one in seconds.items()}

    def speedup(self, point):
        ratios = self.ratios(point)
        return 1 / sum(share / ratios[test] for test, share in self.shares.items())

    def harmless(self, point):
        return all(ratio >= 1 - HARM for ratio in self.ratios(point).values())


@pytest.mark.parametrize("seed", range(10))
def test_it_is_within_three_percent_of_the_best_at_a_quarter_of_the_grid(seed):
    machine = Machine(seed)
    recorded = {point: [machine.evaluate([point])[0] for _ in range(40)] for point in GRID}
    draw = random.Random(seed)
    budget = len(GRID) * GRID_ROUNDS // 4

    found = search(
        SPACE, machine.shares, lambda points, _: [draw.choice(recorded[one]) for one in points], budget=budget
    )

    best = max(machine.speedup(one) for one in GRID if min(machine.ratios(one).values()) >= 0.99)
    assert found.measurements <= budget
    assert machine.speedup(found.best) >= 0.97 * best


@pytest.mark.parametrize("kind", ["drifting", "bursty", "throttling", "hybrid"])
def test_it_never_recommends_what_is_slower_on_a_noisy_machine(kind):
    won = 0
    for seed in range(25):
        machine = Machine(seed, kind, noise=0.03)
        found = search(SPACE, machine.shares, machine.evaluate, budget=120)
        assert machine.speedup(found.best) >= 0.99, (seed, found.best)
        assert machine.harmless(found.best), (seed, found.best, machine.ratios(found.best))
        won += machine.speedup(found.best) > 1.05
    assert won, "it recommends the default alone"


def test_a_bad_default_on_hybrid_cores_is_left():
    for seed in range(5):
        machine = Machine(seed, "hybrid")
        found = search(SPACE, machine.shares, machine.evaluate, budget=120)
        assert "threads" in SPACE.changes(found.best)


@pytest.mark.parametrize("seed", range(20))
def test_of_points_that_are_all_alike_the_default_wins(seed):
    draw = random.Random(seed)

    def evaluate(points, fresh):
        return [{test: math.exp(draw.gauss(0, 0.05)) for test in ("pp", "tg")} for _ in points]

    assert search(SPACE, {"pp": 0.5, "tg": 0.5}, evaluate, budget=200).best == SPACE.default


def test_what_fails_is_out_with_its_reason_and_asked_once():
    asked = []

    def evaluate(points, fresh):
        asked.extend(points)
        return ["it crashed" if one[0] == "ik_llama.cpp" else {"pp": 1.0, "tg": 1.0} for one in points]

    found = search(SPACE, {"pp": 0.5, "tg": 0.5}, evaluate, budget=120)
    assert set(found.failed.values()) == {"it crashed"}
    assert found.best == SPACE.default
    assert all(asked.count(one) == 1 for one in found.failed)


def test_a_gain_that_costs_another_test_is_not_recommended():
    def evaluate(points, fresh):
        return [{"pp": 2.0, "tg": 0.9} if one[3] == "1" else {"pp": 1.0, "tg": 1.0} for one in points]

    assert search(SPACE, {"pp": 0.9, "tg": 0.1}, evaluate, budget=200).best == SPACE.default


def test_the_same_outcomes_lead_to_the_same_questions():
    def questions():
        asked, machine = [], Machine(3)

        def evaluate(points, fresh):
            asked.append(tuple(points))
            return machine.evaluate(points)

        return search(SPACE, machine.shares, evaluate, budget=120).best, asked

    assert questions() == questions()


def test_a_rival_is_measured_to_the_end():
    machine, rival = Machine(1), ("llama.cpp", "1", "128", "0")
    found = search(SPACE, machine.shares, machine.evaluate, budget=150, rivals=[rival])
    standing = next(one for one in found.standings if one.point == rival)
    assert standing.rounds >= 10
    assert standing.interval[1] < 1


def test_without_time_the_default_is_the_answer():
    found = search(SPACE, {"pp": 1.0}, lambda _: pytest.fail("measured"), budget=50, go_on=lambda _: False)
    assert (found.best, found.measurements) == (SPACE.default, 0)


def test_points_that_are_not_allowed_are_not_measured():
    space = Space(SPACE.dimensions, SPACE.default, lambda one: one[1] != "12")

    def evaluate(points, fresh):
        assert all(one[1] != "12" for one in points)
        return [{"pp": float(one[1]) / 4, "tg": float(one[1]) / 4} for one in points]

    assert search(space, {"pp": 0.5, "tg": 0.5}, evaluate, budget=120).best[1] == "8"


def test_little_time_is_spent_on_the_leader():
    """With a tenth of the time that all finalists would take, one of them is known."""
    machine = Machine(1)
    machine.ik = {"pp": 1.6, "tg": 1.4}
    found = search(SPACE, machine.shares, machine.evaluate, budget=400, go_on=lambda share: machine.runs < 85 * share)
    rounds = sorted(one.rounds for one in found.standings)
    assert len(rounds) > 1
    assert rounds[-1] >= 10 > rounds[-2]
    assert found.best[0] == "ik_llama.cpp"


def test_what_there_was_no_time_for_is_named():
    machine = Machine(1)
    found = search(SPACE, machine.shares, machine.evaluate, budget=400, go_on=lambda share: machine.runs < 14 * share)
    assert found.unseen[-1] == "flash"
    assert "engine" not in found.unseen
    assert not search(SPACE, machine.shares, machine.evaluate, budget=400).unseen
