"""Each operator is its formula, does nothing at its identity dial, and keeps what it promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerkit.operators import OPERATORS, increments, score

IDENTITIES = [("add", 0.0), ("ablate", 0.0), ("rotate", 0.0), ("cap", math.inf), ("floor", -math.inf)]
seeds = st.integers(0, 10_000)
dials = st.floats(-3, 3)


def states(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    h = torch.randn(2, 5, 16, generator=draw, dtype=torch.float64)
    d = torch.randn(2, 1, 16, generator=draw, dtype=torch.float64)
    return h, d, torch.randn(2, 1, 16, generator=draw, dtype=torch.float64)


def apply(name: str, seed: int, dial: float) -> tuple[torch.Tensor, ...]:
    h, d, b = states(seed)
    return h, d, b, OPERATORS[name].apply(h, d, b, torch.full((2, 1, 1), dial, dtype=torch.float64))


@pytest.mark.parametrize(("name", "dial"), IDENTITIES)
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_identity_dial_changes_no_bit(name: str, dial: float, seed: int) -> None:
    h, _, _, moved = apply(name, seed, dial)
    assert torch.equal(moved, h)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dial=dials)
def test_set_gives_every_token_the_dial_as_its_score(seed: int, dial: float) -> None:
    _, d, b, moved = apply("set", seed, dial)
    assert torch.allclose(score(moved, d, b), torch.tensor(dial, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_ablation_is_idempotent_and_leaves_no_score(seed: int) -> None:
    _, d, b, once = apply("ablate", seed, 1.0)
    twice = OPERATORS["ablate"].apply(once, d, b, torch.ones(2, 1, 1, dtype=torch.float64))
    assert torch.allclose(once, twice)
    assert torch.allclose(score(once, d, b), torch.zeros(1, dtype=torch.float64), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dial=dials)
def test_cap_and_floor_bound_the_score_and_leave_the_others_alone(seed: int, dial: float) -> None:
    for name, beyond in (("cap", torch.gt), ("floor", torch.lt)):
        h, d, b, moved = apply(name, seed, dial)
        before, after = score(h, d, b), score(moved, d, b)
        assert not beyond(after, dial + (1e-9 if name == "cap" else -1e-9)).any()
        untouched = ~beyond(before, dial)[..., 0]
        assert torch.equal(moved[untouched], h[untouched])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dial=dials)
def test_rotation_keeps_the_length_and_addition_does_not(seed: int, dial: float) -> None:
    h, _, _, turned = apply("rotate", seed, dial)
    assert torch.allclose(turned.norm(dim=-1), h.norm(dim=-1))
    _, _, _, added = apply("add", seed, 1.0)
    assert not torch.allclose(added.norm(dim=-1), h.norm(dim=-1))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, dial=dials)
def test_adding_moves_the_score_by_the_dial(seed: int, dial: float) -> None:
    h, d, b, moved = apply("add", seed, dial)
    assert torch.allclose(score(moved, d, b) - score(h, d, b), torch.tensor(dial, dtype=torch.float64))


def test_the_increments_of_a_band_sum_to_each_layers_own_displacement() -> None:
    directions = torch.randn(8, 16, dtype=torch.float64)
    assert torch.allclose(increments(directions, 2, 6).cumsum(0), directions[2:7])
    assert torch.equal(increments(directions, 3, 3), directions[3:4])
