"""Limits: the dial at which text costs a nat, found in a few noisy looks; loops are in test_loops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from steerkit import limits
from steerkit.limits import Search


def rounds(law: Callable[[float], float], guess: float, target: float = 1.0) -> float:
    """What `find_limits` does with one sign."""
    search = Search(target)
    for _ in range(limits.EVALUATIONS):
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
