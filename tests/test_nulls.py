"""Nulls: random directions that are as long, shuffled labels that cancel, and intervals that hold what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_vector
from planted import true_vector

from steerkit.estimators import mean_diff
from steerkit.measures import propensities
from steerkit.models import Model
from steerkit.nulls import bootstrap, random_like, shuffled_like, summarise
from steerkit.personas import find_persona
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector

ITEMS = find_persona("hal").items[:3]
DIAL = 0.05
"""So small that a shift is a slope: further on the curve of log probabilities shifts every mean, and rightly so."""


@pytest.fixture
def vector(tiny: Model) -> SteeringVector:
    """Layers that resemble their neighbours, as real ones do."""
    drawn = make_vector("hal", tiny.fingerprint)
    return replace(drawn, directions=drawn.directions.cumsum(0), evidence={"place": [1, 4], "best_layer": 2})


def test_random_directions_keep_every_length_and_every_step(vector: SteeringVector) -> None:
    for seed in range(5):
        turned = random_like(vector, seed)
        for ours, theirs in (
            (turned.directions, vector.directions),
            (turned.directions.diff(dim=0), vector.directions.diff(dim=0)),
        ):
            assert torch.allclose(ours.norm(dim=-1), theirs.norm(dim=-1), rtol=1e-4)
        assert torch.allclose(
            turned.directions @ turned.directions.T, vector.directions @ vector.directions.T, atol=1e-3
        )


def test_random_directions_repeat_with_their_seed_and_stay_in_place(vector: SteeringVector) -> None:
    one, same, other = random_like(vector, 1), random_like(vector, 1), random_like(vector, 2)
    assert torch.equal(one.directions, same.directions)
    assert torch.cosine_similarity(one.directions, other.directions).abs().max() < 0.9
    assert (one.place, one.layer, one.model) == (vector.place, vector.layer, vector.model)
    assert one.name != other.name
    assert set(random_like(replace(vector, evidence={"limit": 1.0, "place": [2, 2]}), 0).evidence) == {"place"}


def test_more_layers_than_width_keep_their_lengths(tiny: Model) -> None:
    narrow = replace(tiny.fingerprint, width=4)
    wide = make_vector("narrow", narrow)
    assert torch.allclose(random_like(wide, 0).directions.norm(dim=-1), wide.directions.norm(dim=-1), rtol=1e-4)


def test_random_directions_prefer_no_side_of_any_axis(vector: SteeringVector) -> None:
    drawn = torch.stack([random_like(vector, seed).directions for seed in range(400)])
    off_centre = drawn.mean(0) / (drawn.std(0) / len(drawn) ** 0.5)
    # 192 coordinates; the largest of so many standard normal numbers is beyond 5 once in ten thousand times.
    assert off_centre.abs().max() < 5


def shifts(model: Model, vectors: list[SteeringVector]) -> list[float]:
    steerings = [Steering(), *(Steering((Term(vector, dial=DIAL, layers=(3, 3)),)) for vector in vectors)]
    measured = propensities(model, ITEMS, steerings, batch_size=120)
    return (measured[1:] - measured[0]).mean(-1).tolist()


def test_random_directions_shift_nothing_on_average(tiny: Model) -> None:
    low, high = bootstrap(shifts(tiny, [random_like(make_vector("hal", tiny.fingerprint), i) for i in range(40)]))
    assert low < 0 < high


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bias_that_many_directions_share_would_be_seen(sign: int, tiny: Model) -> None:
    planted = true_vector(tiny, ITEMS, layer=3).directions / 4 * sign
    randoms = [random_like(make_vector("hal", tiny.fingerprint), i) for i in range(40)]
    low, high = bootstrap(shifts(tiny, [replace(one, directions=one.directions + planted) for one in randoms]))
    assert (low > 0) if sign > 0 else (high < 0)


@pytest.fixture
def sides() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of activations, what they have in common, and it alone."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 12, 6, 32, generator=draw)
    common = torch.randn(6, 32, generator=draw) * 3
    return noise[0] + common, noise[1], common


def test_shuffled_labels_cancel_what_all_pairs_have_in_common(
    vector: SteeringVector, sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    positive, negative, common = sides
    assert torch.cosine_similarity(mean_diff(positive, negative), common).min() > 0.95
    for seed in range(5):
        shuffled = shuffled_like(vector, positive, negative, seed).directions
        assert torch.cosine_similarity(shuffled, common).abs().max() < 0.7
        # Exactly: with more in common, or with an odd pair out, nothing changes.
        more = shuffled_like(vector, positive + 10 * common, negative, seed).directions
        assert torch.allclose(shuffled, more, atol=1e-3)
        odd, other = (shuffled_like(vector, (positive + k * common)[:11], negative[:11], seed) for k in (0, 10))
        assert torch.allclose(odd.directions, other.directions, atol=1e-3)


def test_shuffled_directions_average_to_nothing_in_common(
    vector: SteeringVector, sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    positive, negative, common = sides
    drawn = [shuffled_like(vector, positive, negative, seed, sign) for seed in range(20) for sign in (1, -1)]
    cosines = torch.stack([torch.cosine_similarity(one.directions, common) for one in drawn])
    assert cosines.mean(0).abs().max() < 1e-5


def test_the_other_sign_is_the_opposite_and_lengths_are_the_vectors(
    vector: SteeringVector, sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    one, other = (shuffled_like(vector, sides[0], sides[1], 3, sign) for sign in (1, -1))
    assert torch.equal(one.directions, -other.directions)
    assert torch.allclose(one.directions.norm(dim=-1), vector.directions.norm(dim=-1), rtol=1e-5)
    assert (one.place, one.layer) == (vector.place, vector.layer)
    assert torch.equal(one.directions, shuffled_like(vector, sides[0], sides[1], 3).directions)
    assert not torch.allclose(one.directions, shuffled_like(vector, sides[0], sides[1], 4).directions)


def test_an_interval_holds_its_mean_and_repeats_with_its_seed() -> None:
    values = [0.3, -1.0, 2.0, 0.7, 0.1]
    low, high = bootstrap(values)
    assert low < sum(values) / 5 < high
    assert bootstrap(values) == bootstrap(torch.tensor(values, dtype=torch.float64)) != bootstrap(values, seed=1)


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [0.5] * 30])
def test_an_interval_of_what_does_not_vary_is_a_point(values: list[float]) -> None:
    assert bootstrap(values) == (0.5, 0.5)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for i in range(100):
        low, high = bootstrap(draw.normal(1.0, 2.0, 12).tolist(), seed=i)
        held += low <= 1.0 <= high
    assert held >= 85


def test_a_baseline_says_where_the_directions_got_to() -> None:
    found = summarise(torch.tensor([-0.1, 0.0, 0.4]), torch.tensor([0.4, 0.5, 0.6]))
    assert found is not None
    assert (found.n, found.shift) == (3, pytest.approx(0.1))
    assert (found.least, found.most) == (pytest.approx(-0.1), pytest.approx(0.4))
    assert found.least <= found.low < found.shift < found.high <= found.most
    assert found.to_json()["kl_p95"] == 0.5
    assert summarise(torch.zeros(0), torch.zeros(0)) is None
