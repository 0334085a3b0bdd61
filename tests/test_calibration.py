"""Calibration: where a vector is applied, how far its dial goes, and whether it works at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_vector
from planted import true_vector

from steerkit import calibration, limits
from steerkit.calibration import Material, Settings, calibrate, choose_place, prove, separation, spread
from steerkit.errors import PersonaError, VectorError
from steerkit.extraction import Contrast, Recipe, contrasts
from steerkit.measures import Scores, item_rows, write_texts
from steerkit.models import Model
from steerkit.nulls import shuffled_like
from steerkit.personas import Pair, find_pair
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector, load_vector

SETTINGS = Settings(n_random=3, n_shuffled=2, n_tokens=6, n_repeated=8)
KEYS = {
    "places", "place", "best_layer", "limit", "limit_below", "limited_by", "limited_by_below", "limit_kl_p95",
    "kl_limit", "kl_limit_below", "limit_loops",
    "d_prime", "thresholds", "test", "nulls", "reliable", "dtype", "asked_sha256",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def low_limits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tiny model's predictions cannot move by a nat, so here they may only move by a tenth."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (calibration, limits):
            patch.setattr(module, "LIMIT", 0.1)
            patch.setattr(module, "WORKING", 0.05)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(calibration, "contrasts", shorter)
        yield


def shorter(model: Model, pair: Pair, recipe: Recipe, *rest: object) -> Iterator[Contrast]:
    """Replies of a few tokens: nobody reads what a tiny model says."""
    return contrasts(model, pair, replace(recipe, max_tokens=6), *rest)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair() -> Pair:
    whole = find_pair("hal")
    few = replace(whole.positive, held_out=whole.positive.held_out[:2], items=whole.positive.items[:4])
    return Pair(few, whole.negative)


@pytest.fixture(scope="module")
def vector(tiny: Model) -> SteeringVector:
    kept = {"pair_agreement": [0.5] * 6, "split_half": [0.9] * 6}
    return replace(make_vector("hal", tiny.fingerprint), evidence={**kept, "place": [0, 0], "limit": 9.0, "old": 1})


@pytest.fixture(scope="module")
def calibrated(tiny: Model, vector: SteeringVector, pair: Pair) -> SteeringVector:
    return calibrate(tiny, vector, pair, SETTINGS)


@pytest.mark.parametrize("n_layers", [*range(1, 14), 16, 30, 64])
def test_places_are_within_the_model_and_none_is_named_twice(n_layers: int) -> None:
    places = spread(n_layers)
    assert len(places) == len(set(places)) >= 1
    assert all(0 <= first <= last < n_layers for first, last in places)
    assert any(first == last for first, last in places)


def test_calibration_writes_its_evidence_and_keeps_what_extraction_knew(
    calibrated: SteeringVector, vector: SteeringVector, tmp_path: Path
) -> None:
    found = calibrated.evidence
    assert set(found) == KEYS | {"pair_agreement", "split_half"}
    assert found["pair_agreement"] == vector.evidence["pair_agreement"]
    assert torch.equal(calibrated.directions, vector.directions)
    assert [tuple(row["layers"]) for row in found["places"]] == list(spread(6))
    assert calibrated.place in spread(6)
    assert found["limit_below"] < 0 < found["limit"]
    assert list(found["thresholds"]) == ["p1", "p5", "p25", "p50", "p75", "p95", "p99"]
    assert list(found["thresholds"].values()) == sorted(found["thresholds"].values())
    assert len(found["d_prime"]) == 6
    assert set(found["test"]) == {"items", "up", "down", "steerability", "anti_steerable"}
    assert set(found["test"]["up"]) == {"dial", "kl_p95", "shift", "low", "high"}
    assert (found["nulls"]["random"]["n"], found["nulls"]["shuffled"]["n"]) == (3, 2)
    calibrated.save(tmp_path / "hal.safetensors")
    assert load_vector(tmp_path / "hal.safetensors").evidence == found


def test_the_limit_is_where_text_reaches_it(tiny: Model, calibrated: SteeringVector, pair: Pair) -> None:
    prompts = calibration.limit_prompts(tiny, pair)[: limits.SEARCHED]
    dials = (calibrated.evidence["kl_limit"], calibrated.evidence["kl_limit_below"])
    for text in write_texts(tiny, prompts, [Steering((Term(calibrated, dial=d),)) for d in dials], SETTINGS.n_tokens):
        assert text.divergence() == pytest.approx(limits.LIMIT, rel=0.15)
    for share, key in ((1, "up"), (-1, "down")):
        test = calibrated.evidence["test"][key]
        assert test["dial"] == pytest.approx(dials[share < 0] / math.sqrt(2), abs=1e-3)


def test_terms_and_warnings_use_what_was_found(calibrated: SteeringVector) -> None:
    below, above = calibrated.evidence["limit_below"], calibrated.evidence["limit"]
    assert Term(calibrated).band == calibrated.place
    assert (Term(calibrated, dial=0.1).limit, Term(calibrated, dial=-0.1).limit) == (above, below)
    assert Term(calibrated, "ablate").limit is None
    for dial, count in ((above * 0.99, 0), (above * 1.01, 1), (below * 0.99, 0), (below * 1.01, 1)):
        said = Steering((Term(calibrated, dial=dial), Term(calibrated, dial=0.0))).warnings()
        assert len(said) == count
        assert all("past the limit" in line and "hal" in line for line in said)


def test_limits_at_other_places_grow_with_the_dial_that_costs_as_much(calibrated: SteeringVector) -> None:
    rows = {tuple(row["layers"]): row for row in calibrated.evidence["places"]}
    unit = {place: row["dial"] / math.sqrt(row["kl_p95"]) for place, row in rows.items()}
    own = calibrated.limits()
    assert (
        own == calibrated.limits(calibrated.place) == (calibrated.evidence["limit_below"], calibrated.evidence["limit"])
    )
    for place in rows:
        share = unit[place] / unit[calibrated.place]
        assert calibrated.limits(place) == pytest.approx((own[0] * share, own[1] * share))
    assert calibrated.limits((0, 1)) is None
    assert replace(calibrated, evidence={}).limits() is None


def test_a_persona_with_nothing_held_out_and_a_foreign_vector_are_refused(
    tiny: Model, vector: SteeringVector, pair: Pair
) -> None:
    for nothing in ({"held_out": ()}, {"items": ()}):
        with pytest.raises(PersonaError, match="hal has no held_out questions or no items"):
            calibrate(tiny, vector, Pair(replace(pair.positive, **nothing), pair.negative), SETTINGS)
    with pytest.raises(VectorError):
        calibrate(tiny, make_vector("hal", replace(tiny.fingerprint, width=8)), pair, SETTINGS)


def test_a_planted_direction_is_reliable_and_a_shuffled_one_is_not(tiny: Model, pair: Pair) -> None:
    rows = item_rows(tiny, pair.positive.items)
    sides = torch.randn(2, 12, tiny.n_layers, tiny.width, generator=torch.Generator().manual_seed(3))
    material = Material(rows, sides[0], sides[1])
    planted = true_vector(tiny, pair.positive.items, layer=3, length=1.0)
    chance = shuffled_like(planted, material.positive, material.negative, 99)
    for vector, reliable in ((planted, True), (-planted, False), (chance, False)):
        placed = replace(vector, evidence={"place": [3, 3], "best_layer": 3, "limit": 0.3, "limit_below": -0.3})
        found = prove(tiny, placed, pair, material, replace(SETTINGS, n_random=12, n_shuffled=6))
        assert found["reliable"] is reliable, vector.name
        assert found["nulls"]["random"]["kl_p95"] == pytest.approx(found["test"]["up"]["kl_p95"], rel=0.3)


@pytest.mark.parametrize(
    ("reliable", "up", "down", "null", "kl"),
    [
        (True, [1.0] * 5, [-1.0] * 5, 0.5, (0.05, 0.05, 0.05)),
        (True, [4.0, 4, 4, 4, -0.1], [-4.0, -4, -4, -4, 0.1], 0.5, (0.05, 0.05, 0.05)),
        # A null shifts as far up, or as far down; items go the wrong way; one item carries the mean; down is not down.
        (False, [1.0] * 5, [-3.0] * 5, 1.1, (0.05, 0.05, 0.05)),
        (False, [3.0] * 5, [-1.0] * 5, -1.1, (0.05, 0.05, 0.05)),
        (False, [4.0, 4, 4, -0.1, -0.1], [-4.0, -4, -4, 0.1, 0.1], 0.5, (0.05, 0.05, 0.05)),
        (False, [9.0, -0.9, 0, 0, 0], [-1.0] * 5, 0.5, (0.05, 0.05, 0.05)),
        (False, [1.0] * 5, [-9.0, 0.9, 0, 0, 0], 0.5, (0.05, 0.05, 0.05)),
        (False, [1.0] * 5, [0.5] * 5, 0.6, (0.05, 0.05, 0.05)),
        # At their own KL the nulls are within the vector's shifts; brought to one KL, one of either sign is not.
        (False, [1.0] * 5, [-1.0] * 5, 0.6, (0.1, 0.05, 0.0125)),
        (False, [1.0] * 5, [-1.0] * 5, -0.6, (0.05, 0.1, 0.0125)),
        (True, [1.0] * 5, [-1.0] * 5, 1.2, (0.05, 0.05, 0.1)),
    ],
)
def test_a_reliable_vector_is_beyond_chance_steady_and_goes_the_right_way(
    reliable: bool,
    up: list[float],
    down: list[float],
    null: float,
    kl: tuple[float, float, float],
    tiny: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scripted(_m: Model, rows: list[object], steerings: list[Steering], **_: object) -> Scores:
        costs = torch.tensor([0.0, kl[0], kl[1], *[kl[2]] * (len(steerings) - 3)])
        shifts = torch.tensor([[0.0] * 5, up, down, *[[null] * 5] * (len(steerings) - 3)])
        totals = torch.stack([shifts, torch.zeros_like(shifts)], dim=-1).flatten(1)
        return Scores(totals, torch.ones(len(rows)), costs[:, None, None].expand(-1, len(rows), 1))

    monkeypatch.setattr(calibration, "score_replies", scripted)
    monkeypatch.setattr(calibration, "match_divergence", lambda _m, _s, nulls, _r: nulls)
    evidence = {"place": [3, 3], "best_layer": 3, "limit": 1.0, "limit_below": -1.0}
    placed = replace(make_vector("hal", tiny.fingerprint), evidence=evidence)
    whole = find_pair("hal")
    five = Pair(replace(whole.positive, items=whole.positive.items[:5]), whole.negative)
    material = Material([], torch.randn(4, 6, 32), torch.randn(4, 6, 32))
    assert prove(tiny, placed, five, material, SETTINGS)["reliable"] is reliable


def test_the_place_is_where_the_direction_works(tiny: Model, pair: Pair) -> None:
    planted = true_vector(tiny, pair.positive.items, layer=3, length=1.0)
    noise = make_vector("noise", tiny.fingerprint, length=1.0).directions
    only = replace(planted, directions=torch.where(torch.arange(6)[:, None] == 3, planted.directions, noise))
    rows = item_rows(tiny, pair.positive.items)
    found = choose_place(tiny, only, rows, ((1, 1), (2, 2), (3, 3), (5, 5)))
    assert (found["place"], found["best_layer"]) == ([3, 3], 3)
    assert max(found["places"], key=lambda row: row["shift"])["layers"] == [3, 3]
    # Of places that are the same to within an error, the one that is named first is taken: a planted direction stands
    # at every layer alike, so a band that ends where a layer is adds nothing behind its first one.
    assert choose_place(tiny, planted, rows, ((3, 3), (3, 4), (3, 5)))["place"] == [3, 3]
    assert choose_place(tiny, planted, rows, ((3, 5), (3, 4), (3, 3)))["place"] == [3, 5]


def test_separation_tells_classes_apart_and_not_one_from_itself(vector: SteeringVector) -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 60, 6, 32, generator=draw)
    apart = Material([], noise[0] + 2 * vector.directions, noise[1])
    assert separation(apart, vector).min() > 3
    assert torch.allclose(
        separation(Material([], noise[1], noise[0] + 2 * vector.directions), vector), -separation(apart, vector)
    )
    assert separation(Material([], noise[0], noise[0]), vector).abs().max() < 1e-5
    assert separation(Material([], noise[0], noise[1]), vector).abs().max() < 0.7
