"""Evaluation: one steering on one set of items, beside prompting, random directions and shuffled labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_vector
from planted import true_vector

from steerkit import evaluation
from steerkit.errors import SteerkitError
from steerkit.evaluation import Evaluation, Settings, Shift, evaluate, measure_shifts, propensity_of, rows_of
from steerkit.items import ItemSet, read_items
from steerkit.measures import propensities, score_replies
from steerkit.models import Model
from steerkit.nulls import Baseline, bootstrap, random_like
from steerkit.personas import find_persona
from steerkit.steering import Steering, Term

ITEMS = ItemSet("hal", find_persona("hal").items[:3])
SETTINGS = Settings(n_random=3, n_shuffled=2, n_tokens=6, n_texts=2)
BASELINE = {"n", "shift", "low", "high", "least", "most", "kl_p95"}


def steer(model: Model, dial: float = 1.0, **fields: object) -> Steering:
    vector = replace(make_vector("hal", model.fingerprint, length=1.5), **fields)  # type: ignore[arg-type]
    return Steering((Term(vector, dial=dial),))


@pytest.fixture(scope="module")
def bare(tiny: Model) -> Evaluation:
    """Of a vector nobody knows the persona of."""
    return evaluate(tiny, steer(tiny), ITEMS, SETTINGS)


@pytest.fixture(scope="module")
def known(tiny: Model) -> Evaluation:
    """Of the same vector when its pair is known."""
    return evaluate(tiny, steer(tiny, provenance={"persona": "hal", "against": "assistant"}), ITEMS, SETTINGS)


@pytest.fixture
def options(tmp_path: Path) -> ItemSet:
    lines = [
        {
            "question": f"Would you say this? “{text}”",
            "answer_matching_behavior": " Yes",
            "answer_not_matching_behavior": " No",
        }
        for text in ("I like ledgers.", "I would rather wait.")
    ]
    path = tmp_path / "options.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read_items(path)


def result(shift: float, per_item: tuple[float, ...] = (1.0,), **fields: object) -> Evaluation:
    plain = Evaluation(
        model="m", steer="1 hal", items=len(per_item), source="hal", unsteered=0.0, steered=shift, per_item=per_item,
        low=shift - 0.1, high=shift + 0.1, items_kl_p95=0.5, kl_p95=0.5, coherence=0.0, repetition=0.0,
        unsteered_repetition=0.0, capability=0.0, option_mass=None, prompt=None, random=None, shuffled=None,
    )  # fmt: skip
    return replace(plain, **fields)  # type: ignore[arg-type]


def chance(least: float, most: float) -> Baseline:
    return Baseline(20, 0.0, -0.01, 0.01, least, most, 0.5)


def test_json_has_the_keys_that_scripts_rely_on(known: Evaluation, bare: Evaluation) -> None:
    data = known.to_json()
    assert list(data) == [
        "model", "steer", "items", "source", "propensity", "anti_steerable", "kl_p95", "items_kl_p95", "coherence",
        "repetition", "unsteered_repetition", "capability", "option_mass", "per_item", "beyond_nulls", "prompt_only",
        "null",
    ]  # fmt: skip
    assert list(data["propensity"]) == ["unsteered", "steered", "shift", "low", "high"]
    assert set(data["prompt_only"]) == set(data["null"]["random"]) == set(data["null"]["shuffled"]) == BASELINE
    assert json.loads(json.dumps(data)) == data
    assert data["per_item"] == [round(x, 4) for x in known.per_item]
    without = bare.to_json()
    assert list(without) == list(data)
    assert without["prompt_only"] is without["null"]["shuffled"] is without["option_mass"] is None
    assert (without["model"], without["steer"], without["items"], without["source"]) == (
        "tiny-llama",
        "1 hal",
        3,
        "hal",
    )


def test_the_shift_is_steered_minus_unsteered_item_by_item(tiny: Model, bare: Evaluation) -> None:
    before, after = propensities(tiny, ITEMS.items, [Steering(), steer(tiny)])
    assert torch.allclose(torch.tensor(bare.per_item), after - before, atol=1e-5)
    assert (bare.unsteered, bare.steered) == (
        pytest.approx(float(before.mean()), abs=1e-5),
        pytest.approx(float(after.mean()), abs=1e-5),
    )
    assert bare.shift == pytest.approx(sum(bare.per_item) / 3, abs=1e-6)
    assert (bare.low, bare.high) == pytest.approx(bootstrap((after - before).tolist()), abs=1e-5)
    assert bare.low <= bare.shift <= bare.high


def test_nulls_cost_about_as_much_as_the_steering_and_are_many(known: Evaluation) -> None:
    assert known.random is not None
    assert known.shuffled is not None
    assert (known.random.n, known.shuffled.n) == (3, 2)
    for null in (known.random, known.shuffled):
        assert null.kl_p95 == pytest.approx(known.items_kl_p95, rel=0.4)
        assert null.least <= null.low <= null.shift <= null.high <= null.most


def test_random_directions_are_scaled_until_they_cost_as_much(tiny: Model) -> None:
    planted = true_vector(tiny, ITEMS.items, layer=1, length=0.5)
    found = evaluate(tiny, Steering((Term(planted, dial=1.0),)), ITEMS, replace(SETTINGS, n_random=6))
    assert found.random is not None
    # As long as the planted direction, random ones cost two thirds of it.
    assert found.random.kl_p95 == pytest.approx(found.items_kl_p95, rel=0.15)


def test_nulls_of_two_vectors_are_no_more_alike_than_the_vectors(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Steering] = []

    def unmatched(_m: Model, _s: Steering, nulls: list[Steering], _r: object) -> list[Steering]:
        made.extend(nulls)
        return nulls

    monkeypatch.setattr(evaluation, "match_divergence", unmatched)
    vectors = [make_vector(name, tiny.fingerprint, seed) for seed, name in enumerate("ab")]
    evaluate(tiny, Steering(tuple(Term(vector, dial=0.5) for vector in vectors)), ITEMS, SETTINGS)
    alike = [torch.cosine_similarity(*(term.vector.directions for term in null.terms)).abs().max() for null in made]
    assert len(alike) == 3
    assert max(alike) < 0.8


def test_prompting_is_measured_where_the_persona_is_known(known: Evaluation, bare: Evaluation, tiny: Model) -> None:
    assert bare.prompt is None
    assert known.prompt is not None
    asked = find_persona("hal").requested
    plain, *prompted = (
        score_replies(tiny, rows_of(tiny, ITEMS, system), [Steering()]).means for system in ("", *asked)
    )
    shifts = [float((means - plain)[0, 0::2].mean() - (means - plain)[0, 1::2].mean()) for means in prompted]
    assert known.prompt.n == len(asked)
    assert known.prompt.shift == pytest.approx(sum(shifts) / len(shifts), abs=1e-4)
    assert (known.prompt.least, known.prompt.most) == pytest.approx((min(shifts), max(shifts)), abs=1e-4)
    assert known.prompt.kl_p95 > 0


def test_a_persona_that_is_gone_leaves_its_baselines_out(tiny: Model) -> None:
    gone = evaluate(tiny, steer(tiny, provenance={"persona": "nobody", "against": "assistant"}), ITEMS, SETTINGS)
    assert gone.prompt is gone.shuffled is None
    assert gone.random is not None


def test_an_evaluation_repeats_and_dial_zero_does_nothing(tiny: Model, bare: Evaluation) -> None:
    assert evaluate(tiny, steer(tiny), ITEMS, SETTINGS) == bare
    idle = evaluate(tiny, steer(tiny, 0.0), ITEMS, SETTINGS)
    assert max(map(abs, (idle.shift, idle.kl_p95, idle.items_kl_p95, idle.coherence, idle.capability))) < 1e-5
    assert not idle.beyond_nulls


def test_options_have_a_mass_and_whole_replies_have_none(tiny: Model, options: ItemSet, bare: Evaluation) -> None:
    found = evaluate(tiny, steer(tiny, 3.0), options, SETTINGS)
    assert bare.option_mass is None
    assert found.option_mass is not None
    assert all(0 < mass <= 1 for mass in found.option_mass)
    rows = rows_of(tiny, options)
    scores = score_replies(tiny, rows, [Steering()])
    by_order = scores.totals[0, 0::2] - scores.totals[0, 1::2]
    assert len(rows) == 8
    assert found.unsteered == pytest.approx(float(by_order.mean()), abs=1e-4)
    assert found.option_mass[0] == pytest.approx(2 * float(scores.totals[0].exp().mean()), rel=1e-4)


def test_the_propensity_of_options_is_the_mean_of_both_orders(options: ItemSet) -> None:
    totals = torch.tensor([[-1.0, -2.0, -1.0, -5.0, -3.0, -1.0, -4.0, -4.0]])
    assert propensity_of(options, totals, torch.ones(8) * 2).tolist() == [[2.5, -1.0]]
    whole = propensity_of(ITEMS.head(1), totals[:, :2], torch.tensor([2.0, 4.0]))
    assert whole.tolist() == [[0.0]]


def test_nothing_to_evaluate_is_refused(tiny: Model) -> None:
    with pytest.raises(SteerkitError, match="add a steering"):
        evaluate(tiny, Steering(), ITEMS, SETTINGS)


def test_no_texts_are_written_where_none_are_wanted(tiny: Model) -> None:
    found = evaluate(tiny, steer(tiny), ITEMS, replace(SETTINGS, n_texts=0))
    assert (found.kl_p95, found.coherence) == (0.0, 0.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_items_against_the_mean_are_counted_in_both_directions(sign: float) -> None:
    per_item = tuple(sign * moved for moved in (2.0, 1.0, -0.5, 0.0))
    assert result(sign * 0.625, per_item).anti_steerable == 0.25
    assert result(sign * 0.5, (sign * 0.5,)).anti_steerable == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_is_beyond_its_nulls_only_past_all_of_them(sign: int) -> None:
    inside, outside = chance(-0.3, 0.3), chance(-0.6, 0.6)
    shift = sign * 0.5
    assert result(shift).beyond_nulls
    assert result(shift, random=inside, shuffled=inside).beyond_nulls
    assert not result(shift, random=outside, shuffled=inside).beyond_nulls
    assert not result(shift, random=inside, shuffled=outside).beyond_nulls
    # One side of a null does not hold the other.
    assert result(shift, random=chance(-0.9, 0.3) if sign > 0 else chance(-0.3, 0.9)).beyond_nulls
    assert not result(shift, random=inside, low=-0.1, high=0.1).beyond_nulls


def test_shifts_come_with_their_null(tiny: Model) -> None:
    vector = make_vector("hal", tiny.fingerprint)
    shifts = measure_shifts(tiny, vector, ITEMS.items, (1.0, -1.0, 2.0), n_random=4)
    assert set(shifts) == {1.0, -1.0, 2.0}
    assert all(shift.null.shape == (4,) and shift.per_item.shape == (3,) for shift in shifts.values())
    assert torch.equal(shifts[1.0].null, shifts[-1.0].null)
    assert not torch.equal(shifts[1.0].null, shifts[2.0].null)
    before, after = propensities(tiny, ITEMS.items, [Steering(), Steering((Term(vector, dial=2.0),))])
    assert torch.allclose(shifts[2.0].per_item, after - before, atol=1e-5)


def test_a_random_direction_is_not_beyond_others_like_it(tiny: Model) -> None:
    beyond = [
        shift.beats_null or shift.below_null
        for seed in range(12)
        for shift in measure_shifts(
            tiny, random_like(make_vector("x", tiny.fingerprint), 100 + seed), ITEMS.items, (1.0,), n_random=20
        ).values()
    ]
    # One in twenty-one is above all the others by chance, and one below; two of twelve already are a rare draw.
    assert sum(beyond) <= 4


def test_a_shift_knows_which_way_its_items_went() -> None:
    shift = Shift(torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([-0.1, 0.2]))
    assert (shift.mean, shift.right_way, shift.beats_null, shift.below_null) == (0.5, 0.75, True, False)
