"""Tuning takes what is surely quicker, in bounded time, and else what the repository does by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from resrank.stack.tuning.choice import ROUNDS, Choice, Sample, Setting, choose

DEFAULT = Setting(1, 2, 8)
SPLIT = Setting(2, 1, 8)
SINGLE = Setting(1, 2, 1)


class Bench:
    """Stands in for the engines: tells speeds and counts the seconds that measuring them would take."""

    def __init__(self, speed: Callable[[Setting, int], float], lone_ms: dict[Setting, float] | None = None) -> None:
        self.speed = speed
        self.lone_ms = lone_ms or {}
        self.seconds = 0.0
        self.measured: list[Setting] = []

    def __call__(self, setting: Setting) -> Sample:
        self.seconds += 5.0
        self.measured.append(setting)
        return Sample(self.speed(setting, self.measured.count(setting)), self.lone_ms.get(setting, 100.0))

    def choose(self, *others: Setting, budget_s: float = 90.0) -> Choice:
        return choose(DEFAULT, others, self, budget_s=budget_s, clock=lambda: self.seconds)


def test_the_quickest_is_taken() -> None:
    speeds = {DEFAULT: 10.0, SPLIT: 12.0, SINGLE: 9.0}
    bench = Bench(lambda setting, _: speeds[setting])
    choice = bench.choose(SINGLE, SPLIT)
    assert choice.chosen == choice.finalist == SPLIT
    assert choice.rows_per_s == 12.0
    assert choice.gains == pytest.approx([1.2] * ROUNDS)
    assert {setting: sample.rows_per_s for setting, sample in choice.samples.items()} == speeds


def test_a_lucky_first_measurement_does_not_win() -> None:
    bench = Bench(lambda setting, time: 15.0 if (setting, time) == (SPLIT, 1) else 10.0)
    choice = bench.choose(SPLIT)
    assert choice.finalist == SPLIT
    assert choice.chosen == DEFAULT
    assert choice.rows_per_s == 10.0


def test_one_lost_round_keeps_the_default() -> None:
    bench = Bench(lambda setting, time: 10.0 if setting == DEFAULT else (9.0 if time == 3 else 20.0))
    assert bench.choose(SPLIT).chosen == DEFAULT


def test_a_small_gain_keeps_the_default() -> None:
    bench = Bench(lambda setting, _: 10.0 if setting == DEFAULT else 10.4)
    assert bench.choose(SPLIT).chosen == DEFAULT


def test_what_makes_a_lone_caller_wait_is_not_taken() -> None:
    bench = Bench(lambda setting, _: 10.0 if setting == DEFAULT else 14.0, {SPLIT: 150.0})
    choice = bench.choose(SPLIT)
    assert (choice.chosen, choice.finalist) == (DEFAULT, None)
    assert choice.samples[SPLIT].rows_per_s == 14.0  # measured and shown all the same


def test_the_final_alternates_and_begins_with_either() -> None:
    bench = Bench(lambda setting, _: 10.0 if setting == DEFAULT else 12.0)
    bench.choose(SPLIT)
    assert bench.measured[2:] == [SPLIT, DEFAULT, DEFAULT, SPLIT] * (ROUNDS // 2)


def test_measuring_ends_in_time() -> None:
    others = [Setting(1, 2, rows) for rows in range(1, 8)]
    bench = Bench(lambda setting, _: 10.0 + setting.rows % 8)
    choice = bench.choose(*others, budget_s=20.0)
    assert len(choice.samples) == 3  # 15 s: half of the budget was over
    assert bench.seconds <= 20.0 + 2 * 5.0
    assert choice.chosen == DEFAULT  # its final was cut short
