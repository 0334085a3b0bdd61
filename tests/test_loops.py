"""Loops: what counts as one, in which replies, and up to which dial there are hardly any."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from elsewhere import elsewhere
from planted_loops import EARLY, LATE, PERIOD, STEPS, load_counter

from steerkit import loops
from steerkit.generation import Sampling, complete
from steerkit.limits import find_limits, kl_alone, kl_limits, lower_limits, working_dial
from steerkit.loops import REPLY_TOKENS, LoopSearch, has_loop, looping, settle, unsteered_rate
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector

Counter = tuple[Model, SteeringVector]


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counter]:
    """A model that loops from a known dial on, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield load_counter(tmp_path_factory.mktemp("models") / "counter")


def at(vector: SteeringVector, dial: float) -> Steering:
    return Steering((Term(vector, dial=dial),))


def asked(model: Model, n: int = 8) -> list[list[int]]:
    return [model.chat_tokens([{"role": "user", "content": f"Count from {i}."}]) for i in range(n)]


def test_a_stretch_that_ends_a_text_three_times_is_a_loop_and_twice_is_none() -> None:
    stretch = list(range(100, 120))
    assert not has_loop([*range(50), *stretch, *stretch])
    assert has_loop([*range(50), *stretch * 3])
    assert has_loop([*range(50), *stretch * 3, *stretch[:7]])
    assert not has_loop([*range(50), *stretch * 3, 1])
    for period in range(1, 67):
        once = list(range(period))
        needed = max(3 * period, loops.SHORTEST)
        text = [*range(900, 950), *(once * needed)[:needed]]
        assert has_loop(text)
        assert not has_loop(text[:-1])


def test_a_reply_that_loops_late_shows_it_in_two_hundred_tokens_and_not_in_forty(counter: Counter) -> None:
    model, vector = counter
    prompts = asked(model, 2)
    for dial, long, short in ((LATE * 0.9, False, False), (LATE * 1.1, True, False), (EARLY * 1.1, True, True)):
        steerings = [at(vector, dial)] * 2
        assert looping(model, prompts, steerings) == [long] * 2
        assert looping(model, prompts, steerings, Sampling(40)) == [short] * 2
    tokens = complete(model, prompts[:1], [at(vector, LATE * 1.1)], sampling=Sampling(REPLY_TOKENS))[0].tokens
    assert len(set(tokens[:STEPS])) == STEPS
    assert tokens[STEPS + PERIOD :] == tokens[STEPS:-PERIOD]


def test_rows_that_join_and_leave_are_told_from_each_other(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vector = counter
    dials = [LATE * 1.2, 0.0, EARLY * 1.3, -3.0, LATE * 0.7] * 3
    prompts = asked(model, len(dials))
    monkeypatch.setattr(loops.run_trials, "__defaults__", (4,))
    assert looping(model, prompts, [at(vector, d) for d in dials]) == [d > LATE for d in dials]


def test_an_engine_that_gives_whole_replies_finds_the_same(counter: Counter) -> None:
    model, vector = counter
    remote, prompts = elsewhere(model, 1000, True), asked(model, 2)
    steerings = [at(vector, EARLY * 1.1), at(vector, EARLY * 0.9)]
    assert looping(remote, prompts, steerings, Sampling(26)) == [True, False]
    shares = []
    for each in (model, remote):
        search = LoopSearch(vector, 2 * EARLY, prompts, 0.05)
        assert [*settle(each, [search], 26)] == [search]
        shares.append(search.share)
    assert shares[0] == shares[1] < 0.5


def test_replies_leave_half_of_a_short_context_to_the_prompt_and_say_so(counter: Counter) -> None:
    short = replace(counter[0], context=300, notes=[])
    assert loops.longest_reply(short) == 150
    assert "300 tokens" in short.notes[0]
    assert loops.longest_reply(counter[0]) == REPLY_TOKENS


def test_a_reply_that_ends_by_itself_is_no_loop(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vector = counter
    prompts, steerings = asked(model, 1), [at(vector, EARLY * 1.1)]
    tokens = complete(model, prompts, steerings, sampling=Sampling(loops.SHORTEST - 1))[0].tokens
    assert len(tokens) == loops.SHORTEST - 1
    assert not has_loop(tokens)
    assert looping(model, prompts, steerings, Sampling(loops.SHORTEST - 1)) == [False]
    assert looping(model, prompts, steerings, Sampling(loops.SHORTEST)) == [True]
    (counted,) = complete(model, prompts, sampling=Sampling(STEPS))
    monkeypatch.setitem(model.__dict__, "end_tokens", frozenset({counted.tokens[-1]}))
    assert looping(model, prompts, [at(vector, LATE * 1.1)]) == [False]


@pytest.mark.parametrize(
    ("kl_limit", "lowest", "highest"), [(2 * LATE, 0.3, 1.0), (1.3 * LATE, 0.5, 1.0), (0.9 * LATE, 2, 2)]
)
def test_the_limit_is_below_the_dial_from_which_replies_loop(
    counter: Counter, kl_limit: float, lowest: float, highest: float
) -> None:
    model, vector = counter
    up, down = (LoopSearch(vector, sign * kl_limit, asked(model), unsteered_rate(model)) for sign in (1, -1))
    assert {*settle(model, [up, down])} == {up, down}
    assert down.share == 1
    if lowest > 1:
        assert up.share == 1
        return
    assert lowest * LATE < up.share * kl_limit < highest * LATE
    assert looping(model, asked(model), [at(vector, up.share * kl_limit)] * 8) == [False] * 8


def test_limits_of_several_vectors_are_what_each_has_alone(counter: Counter) -> None:
    model, vector = counter
    known = {"limited_by": "kl", "limited_by_below": "kl", "limit_kl_p95": {}}

    def limited(factor: float) -> SteeringVector:
        limits = {"limit": 2 * LATE / factor, "limit_below": -2 * LATE / factor}
        return replace(vector * factor, evidence={**vector.evidence, **known, **limits})

    many = [(str(factor), limited(factor), asked(model)) for factor in (0.5, 1.0, 4.0)]
    together = dict(lower_limits(model, iter(many)))
    assert set(together) == {"0.5", "1.0", "4.0"}
    for each in many:
        ((name, alone),) = lower_limits(model, [each])
        assert together[name] == alone
        assert alone["limited_by"] == "repetition"
        assert alone["limited_by_below"] == "kl"
        assert alone["kl_limit"] == pytest.approx(2 * LATE / float(name))
        assert alone["limit"] * float(name) == pytest.approx(together["1.0"]["limit"], rel=1e-3)
        assert alone["limit_loops"]["tokens"] == REPLY_TOKENS
        assert all(looped == (dial * float(name) > LATE) for dial, looped in alone["limit_loops"]["above"]["replies"])


def test_a_calibrated_limit_ends_before_a_loop_and_the_working_dial_is_of_kl_alone(counter: Counter) -> None:
    model, vector = counter
    found = find_limits(model, vector, asked(model), 20)
    assert found["limited_by"] == "repetition"
    assert found["limit"] < LATE < found["kl_limit"]
    assert found["limited_by_below"] != "repetition"
    assert found["limit_below"] == found["kl_limit_below"]
    whole = replace(vector, evidence={**vector.evidence, **found})
    assert whole.limits() == (found["limit_below"], found["limit"])
    assert working_dial(whole) == pytest.approx(found["kl_limit"] / math.sqrt(2))


def test_files_from_before_mean_what_they_meant(counter: Counter) -> None:
    costs = {"0.9": 0.81, "1.1": 1.21, "-0.9": 0.81, "-1.1": 1.21}
    old = {
        "limit": 0.7,
        "limit_below": -1.0,
        "limited_by": "repetition",
        "limited_by_below": "kl",
        "limit_kl_p95": costs,
    }
    vector = replace(counter[1], evidence=old)
    assert vector.limits() == kl_limits(vector) == (-1.0, 0.7)
    assert working_dial(vector) == pytest.approx(0.7 / math.sqrt(2))
    assert kl_alone(vector) == pytest.approx((-1.0, 1.0))
    assert kl_limits(replace(vector, evidence={})) is None
    assert working_dial(replace(vector, evidence={})) == pytest.approx(1 / math.sqrt(2))


def answered(search: LoopSearch, draw: random.Random, dial: float, steep: float) -> float:
    """Where a search ends up when replies loop by a known law."""
    while new := search.next_trials():
        for trial in new:
            own = 1 / (1 + (dial / trial.share) ** steep)
            trial.loops = draw.random() < search.unsteered + (1 - search.unsteered) * own
    assert search.found
    return search.share


@pytest.mark.parametrize("steep", [4.0, 8.0])
@pytest.mark.parametrize("half", [0.5, 0.7, 1.0, 50.0])
def test_eight_replies_find_the_limit_of_a_known_law_to_a_fifth(counter: Counter, half: float, steep: float) -> None:
    draw, unsteered = random.Random(0), 0.15
    found = sorted(answered(LoopSearch(counter[1], 1.0, [[3]], unsteered), draw, half, steep) for _ in range(200))
    excess = loops.EXCESS / (1 - unsteered)
    true = min(1.0, half * (excess / (1 - excess)) ** (1 / steep))
    assert found[100] == pytest.approx(true, rel=0.25)
    assert found[32] > true * 0.65
    assert found[168] < true * 1.45
