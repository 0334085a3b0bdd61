"""Limits: the dial at which text costs a nat, found in a few noisy looks, or at which it goes round in circles."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import make_vector
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from steerkit import limits
from steerkit.limits import Search, find_limits
from steerkit.measures import Text, write_texts
from steerkit.models import Model
from steerkit.steering import Steering


def rounds(law: Callable[[float], float], guess: float, target: float = 1.0) -> float:
    """What `find_limits` does with one sign."""
    search = Search(target)
    for _ in range(limits.EVALUATIONS - 2):
        if search.found:
            break
        for dial in search.next(guess):
            search.points[dial] = law(dial)
    return search.limit(guess)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@examples(max_examples=150, deadline=None, derandomize=True)
@given(dial=st.floats(0.05, 50), off=st.floats(-2.5, 2.5), loud=st.floats(0, 0.05), seed=st.integers(0, 10**6))
def test_a_search_finds_the_dial_of_a_noisy_law(power: float, dial: float, off: float, loud: float, seed: int) -> None:
    draw = random.Random(seed)
    found = rounds(lambda d: (d / dial) ** power * math.exp(draw.uniform(-loud, loud)), dial * math.exp(off))
    assert found == pytest.approx(dial, rel=0.1)


def test_a_search_that_knows_nothing_tries_its_guess_and_stops_when_it_is_embraced() -> None:
    search = Search(1.0)
    assert search.estimate(0.7) == 0.7
    low, high = search.next(0.7)
    assert low < 0.7 < high
    search.points.update({0.9: 0.8, 1.3: 1.7})
    assert not search.found
    search.points[1.1] = 1.2
    assert search.found
    assert 0.9 < search.estimate(0.7) < 1.1
    assert Search(1.0, {0.5: 0.0}).estimate(0.7) == 0.7


def test_text_that_goes_round_in_circles_lowers_the_limit(
    tiny: Model, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector, texts = make_vector("hal", tiny.fingerprint), write_texts(tiny, prompts, [Steering()], 8)

    def circling(_m: Model, _p: object, steerings: list[Steering], *_: object, **__: object) -> list[Text]:
        """Upwards past dial 1 text repeats itself, downwards it always does; KL is that of dial²."""
        dials = [steering.terms[0].dial for steering in steerings]
        costs = [torch.full((20,), 0.25 * d * d) for d in dials]
        loud = [d > 1.5 or d < 0 for d in dials]
        return [replace(texts[0], divergences=c, repetition=2.0 * l) for c, l in zip(costs, loud, strict=True)]

    monkeypatch.setattr(limits, "write_texts", circling)
    found = find_limits(tiny, vector, prompts, 6, 8)
    # A nat is reached at ±2; 2 × 0.7 is calm, and of −2 nothing is.
    assert (found["limit"], found["limited_by"]) == (pytest.approx(1.4, rel=0.02), "repetition")
    assert (found["limit_below"], found["limited_by_below"]) == (pytest.approx(-0.7, rel=0.02), "repetition")
    monkeypatch.setattr(limits, "REPETITION", 3.0)
    assert find_limits(tiny, vector, prompts, 6, 8)["limited_by"] == "kl"
