"""What the three claims about spaces and traits measure; how often they are right is in `test_claims`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from planted_spaces import (
    FEW_DRAWS,
    FEW_LABELS,
    FEW_SPLITS,
    KINDS,
    TRAITS,
    make_crossed,
    make_sides,
    make_space,
    storytelling,
)

from steerkit.errors import SteerkitError
from steerkit.experiments import REGISTRY, all_of, find_experiment, humanlike, judge, space, spillover
from steerkit.experiments.thresholds import COSINE, FEW, OUTER

SEEDS = 100


def verdicts(examine: Callable[[int], dict[str, object]], n: int = SEEDS) -> Counter[object]:
    return Counter(examine(seed)["verdict"] for seed in range(n))


def mapped(seed: int, **told: object) -> dict[str, object]:
    return space.examine(make_space(seed, **told), 0, FEW_DRAWS)  # type: ignore[arg-type]


def test_a_space_of_many_equal_dimensions_is_not_one_of_few() -> None:
    found = [mapped(seed, spreads=(1.0,) * 24, assistant=(9.0,)) for seed in range(10)]
    assert all(result["verdict"] != "yes" for result in found)


def test_what_the_first_component_may_be_instead_is_named() -> None:
    assert "may be reply length" in str(mapped(0, lengths_follow=0.95)["reason"])
    assert "storytelling" in str(storytelling(0)["reason"])


def test_what_length_explains_can_be_taken_out_and_the_rest_stays() -> None:
    followed, free = (mapped(3, lengths_follow=share)["confounds"] for share in (0.95, 0.0))
    assert abs(free["without"]["cosine"]) > 0.9  # type: ignore[index]
    assert abs(followed["length"]["r"]) > 0.8 > abs(free["length"]["r"])  # type: ignore[index]


def test_a_wide_spread_draws_the_assistant_to_neither_side() -> None:
    places = []
    for seed in range(40):
        result = humanlike.examine(make_sides(seed, 0.2, gap=5.0, spread=1.0, width=200), 0, FEW_SPLITS)
        assert result["verdict"] != "yes"
        places.append(result["statistic"])
    values = torch.tensor([place["value"] for place in places])
    assert abs(float(values.mean()) - 0.2) < 0.06
    covered = sum(place["low"] <= 0.2 <= place["high"] for place in places)
    assert covered >= 36


def test_benign_traits_that_raise_malign_ones_more_are_the_opposite() -> None:
    found = verdicts(lambda seed: spillover.examine(make_crossed(seed, 0.0, 0.2), TRAITS, KINDS, FEW_LABELS), 20)
    assert found["no"] == 20


def test_a_push_that_raises_everything_is_no_spill_although_random_directions_do_not() -> None:
    found = verdicts(lambda seed: spillover.examine(make_crossed(seed, 0.2, 0.2), TRAITS, KINDS, FEW_LABELS), 40)
    assert found["yes"] == 0


@pytest.mark.parametrize("own", [0.0, -0.02])
def test_dials_that_do_not_move_their_own_traits_say_nothing_of_others(own: float) -> None:
    result = spillover.examine(make_crossed(0, 0.1, 0.0, own=own), TRAITS, KINDS, FEW_LABELS)
    assert result["verdict"] == "cannot tell"
    assert "do not move their own traits" in result["reason"]


def test_few_labels_are_all_tried_and_their_own_is_among_them() -> None:
    matrix = make_crossed(0, 0.3, 0.0).shifts.mean(-1).double()
    few = [0, 1, 2, 3, 6, 7, 8, 9]
    block, kinds = matrix[few][:, few], [KINDS[i] for i in few]
    chance = spillover.relabel(block, kinds, 999, torch.Generator().manual_seed(0))
    assert len(chance) == 70
    assert int((chance >= spillover.spill(block, kinds) - 1e-12).sum()) == 1


def test_traits_that_move_nothing_are_hardly_ever_said_to_bring_something_along() -> None:
    wrong = 0
    for seed in range(40):
        result = spillover.examine(make_crossed(seed, 0.0, 0.0, noise=0.05), TRAITS, KINDS, FEW_LABELS)
        wrong += sum(bool(spillover.brought_along(result, name)) for name in TRAITS)
    assert wrong <= 0.05 * 40 * len(TRAITS)


def test_places_that_are_mostly_noise_refute_nothing() -> None:
    found = verdicts(lambda seed: mapped(seed, assistant=(4.0,), noise=12.0), 30)
    assert found["no"] == 0
    assert "mostly noise" in str(mapped(0, assistant=(4.0,), noise=12.0)["reason"])


def test_a_number_lies_in_its_own_interval() -> None:
    for seed in range(20):
        for entry in mapped(seed, noise=2.0)["statistic"].values():  # type: ignore[attr-defined]
            assert entry["low"] <= entry["value"] <= entry["high"]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    one, again = (mapped(1) for _ in range(2))
    assert one == again
    other = space.examine(make_space(1), 0, space.Settings(n_random=3, n_resamples=40, seed=1))
    assert other["statistic"] != one["statistic"]


def test_a_spill_is_a_share_of_the_own_rise() -> None:
    matrix = torch.tensor([[0.4, 0.1], [0.1, 0.4]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    kinds = ("malign",) * 3 + ("benign",) * 3
    matrix.fill_diagonal_(0.4)
    assert spillover.spill(matrix.double(), kinds) == pytest.approx((0.4 - 0.1) / 0.4)
    assert spillover.spill(2 * matrix.double(), kinds) == pytest.approx((0.4 - 0.1) / 0.4)


def test_what_a_trait_brings_along_is_what_random_directions_do_not() -> None:
    result = spillover.examine(make_crossed(0, 0.3, 0.0, noise=0.01), TRAITS, KINDS, FEW_LABELS)
    assert {spill["measured"] for spill in spillover.brought_along(result, "vice0")} <= set(TRAITS[1:6])
    assert len(spillover.brought_along(result, "vice0")) == 3
    none = spillover.examine(make_crossed(0, 0.0, 0.0, noise=0.01), TRAITS, KINDS, FEW_LABELS)
    assert not spillover.brought_along(none, "vice0")


def test_neighbours_of_a_clustered_order_point_alike() -> None:
    result = spillover.examine(make_crossed(0, 0.1, 0.1), TRAITS, KINDS, FEW_LABELS)
    kinds = [KINDS[i] for i in result["order"]]
    assert sorted(result["order"]) == list(range(12))
    assert kinds in (list(KINDS), list(KINDS[::-1]))


def test_a_claim_fails_with_any_of_its_parts() -> None:
    assert all_of("yes", "no", "cannot tell") == "no"
    assert judge(OUTER, 1.0, OUTER - 1e-9) == "yes"
    assert COSINE == 0.6
    assert FEW == 19


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(SteerkitError, match="humanlike"):
        find_experiment("humanlik")
    assert len(REGISTRY) == 10
