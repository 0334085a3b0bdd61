"""Each estimator finds a planted direction, and its control has none to find."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from steerkit.estimators import ESTIMATORS, mean_diff

N, LAYERS, WIDTH = 400, 3, 16


def planted(strength: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sides that differ by `strength` along a known axis, under noise."""
    draw = torch.Generator().manual_seed(seed)
    axis = torch.nn.functional.normalize(torch.randn(LAYERS, WIDTH, generator=draw), dim=-1)
    positive, negative = (torch.randn(N, LAYERS, WIDTH, generator=draw) for _ in range(2))
    return positive + strength * axis, negative, axis


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_planted_direction_is_found_and_none_where_none_was_planted(name: str) -> None:
    positive, negative, axis = planted(8.0)
    assert (cosine_similarity(ESTIMATORS[name](positive, negative), axis, dim=-1) > 0.99).all()
    positive, negative, axis = planted(0.0)
    assert (cosine_similarity(ESTIMATORS[name](positive, negative), axis, dim=-1).abs() < 0.8).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_direction_is_in_persona_units(name: str) -> None:
    positive, negative, _ = planted(4.0)
    d = ESTIMATORS[name](positive, negative)
    scores = [(((side - negative.mean(0)) * d).sum(-1) / d.square().sum(-1)).mean(0) for side in (positive, negative)]
    assert torch.allclose(scores[0], torch.ones(LAYERS), atol=1e-3)
    assert torch.allclose(scores[1], torch.zeros(LAYERS), atol=1e-3)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_exchanging_the_sides_turns_the_direction_round(name: str) -> None:
    positive, negative, _ = planted(4.0)
    there, back = ESTIMATORS[name](positive, negative), ESTIMATORS[name](negative, positive)
    assert torch.allclose(there, -back, atol=1e-3)


def test_whitening_looks_through_noise_that_misleads_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    axis, nuisance = torch.eye(WIDTH)[:2]
    noise = torch.randn(40, 2, 1, generator=draw) * 30 * nuisance
    positive, negative = torch.randn(2, 40, WIDTH, generator=draw) + noise.unbind(1)[0], noise.unbind(1)[1]
    sides = (positive[0][:, None] + 5 * axis, negative[:, None] + torch.randn(40, 1, WIDTH, generator=draw))
    cosines = {name: float(cosine_similarity(ESTIMATORS[name](*sides), axis[None], dim=-1)) for name in ESTIMATORS}
    assert cosines["whitened"] > 0.9 > cosines["mean_diff"]


def test_mean_diff_equals_the_mean_aggregator_of_steering_vectors() -> None:
    steering_vectors = pytest.importorskip("steering_vectors")
    positive, negative, _ = planted(2.0)
    theirs = steering_vectors.mean_aggregator()
    expected = torch.stack([theirs(positive[:, l], negative[:, l]) for l in range(LAYERS)])
    assert torch.allclose(mean_diff(positive, negative), expected, atol=1e-5)
