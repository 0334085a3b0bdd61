"""Geometry of persona spaces: identities, and what each function is for, with its control."""

from __future__ import annotations

import pytest
import torch
from planted_spaces import make_space, of_rows

from steerkit.errors import SteerkitError
from steerkit.experiments.space import agreement, measure
from steerkit.spaces import (
    components,
    correlation,
    count_components,
    neighbours,
    percentile,
    random_points,
    without_covariate,
    without_direction,
)


def cloud(n: int = 30, d: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shares_of_variance_sum_to_one_and_fall() -> None:
    shares = components(cloud()).shares
    assert float(shares.sum()) == pytest.approx(1)
    assert bool((shares.diff() <= 0).all())


def test_there_are_no_more_components_than_points_less_one() -> None:
    assert len(components(cloud(5, 20)).shares) == 4


def test_moving_and_turning_a_cloud_changes_none_of_its_shares() -> None:
    points = cloud()
    turn = torch.linalg.qr(cloud(8, 8, 1)).Q
    moved = points @ turn + 100
    assert torch.allclose(components(points).shares, components(moved).shares)


def test_a_cloud_with_a_long_axis_has_one_component_and_a_round_one_has_many() -> None:
    points = cloud(200)
    assert count_components(components(points).shares, 0.7) > 4
    assert count_components(components(points * torch.tensor([20.0] + [1.0] * 7)).shares, 0.7) == 1


def test_turning_the_first_axis_towards_something_makes_it_positive_and_nothing_else() -> None:
    found = components(cloud())
    for towards in (found.axes[0], -found.axes[0]):
        turned = found.turned(towards)
        assert float(turned.axes[0] @ towards) > 0
        assert torch.equal(turned.axes[1:], found.axes[1:])


def test_random_points_are_as_far_out_as_those_they_stand_for() -> None:
    points = cloud() + 5
    drawn = random_points(points, torch.Generator().manual_seed(5))
    assert torch.allclose(drawn.norm(dim=-1), (points - points.mean(0)).norm(dim=-1))
    assert abs(correlation(drawn.flatten(), points.flatten())) < 0.3


def test_taking_a_direction_out_is_idempotent_and_leaves_nothing_along_it() -> None:
    points, direction = cloud(), cloud(1)[0]
    once = without_direction(points, direction)
    assert torch.allclose(once, without_direction(once, direction))
    assert float((once @ direction).abs().max()) < 1e-9
    assert not torch.allclose(once, points)


def test_what_a_covariate_explains_is_gone_and_an_unrelated_one_takes_next_to_nothing() -> None:
    known = torch.arange(30, dtype=torch.float64)
    states = (cloud() + known[:, None] * torch.ones(8))[:, None]
    left, assistant = without_covariate(states, torch.full((1, 8), 10.0, dtype=torch.float64), known, 24.5)
    assert abs(correlation(left[:, 0, 0], known)) < 1e-9
    assert torch.allclose(assistant, torch.zeros(1, 8, dtype=torch.float64), atol=1.5)
    plain = cloud()[:, None]
    kept, _ = without_covariate(plain, plain[0], cloud(30, 1, 9)[:, 0], 0.0)
    assert correlation(kept.flatten(), plain.flatten()) > 0.9


def test_the_percentile_counts_who_is_below_and_half_of_those_who_are_equal() -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert [percentile(values, x) for x in (-1.0, 1.0, 9.0)] == [0.0, 0.375, 1.0]


def test_the_nearest_neighbour_of_a_point_is_itself() -> None:
    points = cloud()
    assert neighbours(points, points[7])[0] == (7, 0.0)


def test_halves_agree_where_there_is_no_noise_and_do_not_where_there_is_nothing_else() -> None:
    still, noisy = make_space(0, noise=0.0), make_space(0, spreads=(0.01,), noise=5.0)
    assert agreement(still.at(0)) == pytest.approx(1)
    assert agreement(noisy.at(0)) < 0.2


def test_the_order_of_personas_changes_no_statistic() -> None:
    space = make_space(0)
    mixed = of_rows(space, torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist())
    one, other = (measure(each.at(0), each.assistant[:, 0].double()) for each in (space, mixed))
    assert one.components == other.components
    assert one.cosine == pytest.approx(other.cosine)
    assert one.percentile == other.percentile


def test_a_space_of_three_and_a_layer_that_is_not_there_are_refused() -> None:
    with pytest.raises(SteerkitError, match="at least 4"):
        of_rows(make_space(0), [0, 1, 2])
    with pytest.raises(SteerkitError, match="layers 0 to 0"):
        make_space(0).at(1)
