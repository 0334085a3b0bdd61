"""What dials say and when it is drawn, without a screen."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import make_vector
from hypothesis import given
from hypothesis import strategies as st
from stage import LIMITS

from steerkit.errors import ExpressionError
from steerkit.fingerprints import Fingerprint
from steerkit.steering import Steering
from steerkit.tui.desk import OPERATORS, Desk, Dial, next_operator, turned
from steerkit.tui.frames import FASTEST, SHARE, SLOWEST, Frames

MODEL = Fingerprint("tiny", layers=6, width=16, behaviour=((0.0,),) * 3)
HAL = replace(make_vector("hal", MODEL, 0), evidence=LIMITS)
WARMTH = make_vector("warmth", MODEL, 1)
VECTORS = {"hal": HAL, "warmth": WARMTH}


def parse(text: str) -> Steering:
    return Steering.parse(text, VECTORS)


@pytest.mark.parametrize(
    "text",
    ["0.5 hal", "0.5 hal - 0.2 warmth@2-3", "rotate(hal, 0.4) + cap(warmth, 0.1)", "ablate(hal)@2 + set(warmth, -1)"],
)
def test_an_expression_becomes_dials_that_say_the_same(text: str) -> None:
    assert str(Desk.of(parse(text)).steering) == str(parse(text))


def test_a_vector_that_stands_twice_is_refused() -> None:
    with pytest.raises(ExpressionError, match="hal stands twice"):
        Desk.of(parse("0.5 hal@1 + 0.5 hal@3"))


def test_a_dial_at_rest_is_not_said() -> None:
    desk = Desk.of(parse("0 hal + 0.3 warmth"))
    assert str(desk.steering) == "0.3 warmth"
    assert desk.names == ["hal", "warmth"]
    assert Desk((Dial("hal", HAL, 0.0, "set"),)).steering.terms


def test_solo_and_mute_leave_out_and_give_back() -> None:
    desk = Desk.of(parse("0.5 hal + 0.3 warmth"))
    assert str(replace(desk, solo="warmth").steering) == "0.3 warmth"
    assert str(desk.with_dial(replace(desk["hal"], muted=True)).steering) == "0.3 warmth"
    assert replace(desk, solo="warmth").without("warmth") == Desk.of(parse("0.5 hal"))


def test_the_floor_holds_every_dial_at_the_assistants_own_percentile_and_a_default_without_one() -> None:
    desk = replace(Desk.of(parse("0 hal + 0.3 warmth")), floor=True)
    assert str(desk.steering) == "0.3 warmth + cap(hal, 0.3) + cap(warmth, 0.25)"


@given(st.floats(-5, 5), st.lists(st.sampled_from([-0.1, 0.1, 0.02, -0.02]), max_size=40))
def test_a_turned_dial_stays_within_its_reach_and_comes_back_to_rest(value: float, steps: list[float]) -> None:
    dial = Dial("hal", HAL, value)
    for step in steps:
        moved = turned(dial, step)
        assert abs(moved.value) <= dial.reach + 0.001
        assert moved.reach <= dial.reach + 0.001  # Values are kept to three places.
        dial = moved
    there = turned(Dial("hal", HAL, 0.0), 0.1)
    assert turned(there, -0.1).value == 0.0
    assert str(turned(there, -0.1).value) == "0.0"


def test_past_a_limit_is_marked_and_only_where_limits_mean_something() -> None:
    assert not Dial("hal", HAL, 1.2).past_limit
    assert Dial("hal", HAL, 1.21).past_limit
    assert Dial("hal", HAL, -0.81).past_limit
    assert not Dial("hal", HAL, 5.0, "set").past_limit
    assert not Dial("warmth", WARMTH, 5.0).past_limit


def test_operators_come_round_and_each_begins_where_it_means_something() -> None:
    dial = Dial("hal", HAL, 0.5)
    seen = []
    for _ in OPERATORS:
        seen.append((dial.operator, dial.value))
        dial = next_operator(dial)
        _ = dial.term
    assert dial.operator == "add"
    assert seen == [("add", 0.5), ("rotate", 0.5), ("set", 0.5), ("ablate", 1.0), ("cap", 0.3), ("floor", -0.3)]


def test_frames_pay_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, used = [10.0], [5.0]
    monkeypatch.setattr("steerkit.tui.frames.time.perf_counter", lambda: wall[0])
    monkeypatch.setattr("steerkit.tui.frames.time.thread_time", lambda: used[0])
    frames, drawn = Frames(), []
    for _ in range(1200):
        wall[0] += 1 / FASTEST
        if frames.due(streaming=True):
            used[0] += 0.006
            drawn.append(wall[0])
    spent = 0.006 * len(drawn) / 100
    assert SHARE / 2 < spent <= SHARE
    assert not frames.due(streaming=True)
    assert frames.due(streaming=False)
    used[0] += 5.0
    wall[0] += 1 / SLOWEST
    assert frames.due(streaming=True)
