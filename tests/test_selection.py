"""What a comparison of two models says is what was done to one of them; what it must not be fooled by is beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, WIDTH, make_vector
from planted_selection import PLANTED, QUESTIONS, World, make_world, persona_like, rates, wobbly

from steerkit.errors import SteerkitError
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.personas import Item, Persona
from steerkit.plots.selections import save_comparison, save_trajectory
from steerkit.selection import Resamples, examine, persona_span, trajectory
from steerkit.shifts import STRENGTH, Settings, look, look_at_text, questions, shake, take_ground
from steerkit.transfers import transfer
from steerkit.vectors import SteeringVector

QUICK = Settings(n_resamples=200, n_questions=12, n_text=96, n_shaken_questions=4)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(1)


def spread(world: World, basis: torch.Tensor) -> torch.Tensor:
    return torch.randn(QUESTIONS, len(basis), generator=world.draw).double() @ basis


def numbers(told: Any) -> list[float]:
    if isinstance(told, dict):
        return [x for value in told.values() for x in numbers(value)]
    if isinstance(told, list):
        return [x for value in told for x in numbers(value)]
    return [told] if isinstance(told, float) else []


class TestTheorems:
    def test_a_shift_inside_the_span_has_share_one_and_is_a_selection(self, world: World) -> None:
        told = world.told(spread(world, world.span))
        assert told["share"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert told["verdict"] == "selection"

    def test_a_shift_orthogonal_to_the_span_has_share_zero_and_is_none(self, world: World) -> None:
        shift = spread(world, torch.eye(world.span.shape[1]).double())
        told = world.told(shift - shift @ world.span.T @ world.span)
        assert told["share"]["value"] == told["share"]["high"] == 0.0
        assert told["verdict"] == "not selection"

    def test_a_shift_in_the_directions_of_ordinary_text_is_no_selection(self, world: World) -> None:
        told = world.told(spread(world, world.busiest))
        assert told["generic"]["value"] == 1.0
        assert told["beyond"] is None
        assert told["verdict"] == "not selection"

    def test_a_large_shift_that_personas_and_text_share_is_not_called_a_selection(self, world: World) -> None:
        text = spread(world, world.span).repeat(10, 1)[:, None].expand(-1, 3, -1)
        told = world.told(spread(world, world.span))
        shared = examine(
            world.base.double(),
            world.base.double() + spread(world, world.span)[:, None],
            world.vectors, text, QUICK, 1, world.shaken,
        )  # fmt: skip
        assert told["verdict"] == "selection"
        assert shared["share"]["value"] == shared["generic"]["value"] == 1.0
        assert shared["verdict"] == "cannot tell"

    def test_a_random_shift_has_the_share_of_its_dimensions(self, world: World) -> None:
        told = world.told(spread(world, torch.eye(world.span.shape[1]).double()))
        assert told["share"]["value"] == pytest.approx(told["random"]["expected"], abs=0.02)
        assert told["random"]["least"] <= told["random"]["expected"] <= told["random"]["most"]
        assert told["verdict"] == "not selection"

    def test_the_share_is_the_same_however_large_the_shift(self, world: World) -> None:
        shift = persona_like(world)
        one, other = world.told(shift), world.told(100 * shift)
        assert one["share"] == other["share"]
        assert other["size"] == pytest.approx(100 * one["size"], rel=1e-3)

    @pytest.mark.parametrize("factor", [0.0, 1e-6])
    def test_where_nothing_changed_it_says_so(self, world: World, factor: float) -> None:
        told = world.told(factor * persona_like(world))
        assert told["verdict"] == "nothing changed"
        assert told["share"] is None
        assert not told["selected"]

    def test_without_random_changes_of_the_model_nothing_is_called_a_selection(self, world: World) -> None:
        told = world.told(spread(world, world.span), shaken=None)
        assert told["verdict"] == "cannot tell"
        assert "not held against random changes" in told["reason"]

    def test_every_layer_has_its_own_numbers_and_all_of_them_are_plain(self, world: World) -> None:
        told = world.told(persona_like(world))
        assert [row["layer"] for row in told["layers"]] == [0, 1, 2]
        assert all(map(math.isfinite, numbers(json.loads(json.dumps(told, allow_nan=False)))))
        assert told["share"] == told["layers"][1]["share"]

    def test_what_is_beyond_text_is_measured_against_what_chance_explains_of_it(self, world: World) -> None:
        beyond = world.told(spread(world, world.span))["beyond"]
        assert beyond["value"] == pytest.approx(1.0, abs=1e-3)
        assert beyond["random"]["most"] < 0.2


def test_of_planted_truths_at_least_nineteen_of_twenty_are_found_and_chance_is_hardly_ever_a_selection() -> None:
    found = rates(range(8))
    assert found["persona"]["selection"] >= 0.95
    assert sum(found[name].get("selection", 0.0) for name in PLANTED if name != "persona") <= 1 / 8


def test_an_interval_holds_what_it_is_an_interval_of() -> None:
    draw, held = torch.Generator().manual_seed(0), 0
    for seed in range(600):
        part = 0.3 + 0.2 * torch.randn(10, generator=draw).double()
        told = Resamples(10, replace(QUICK, seed=seed)).ratio(part, torch.ones(10).double())
        held += told["low"] <= 0.3 <= told["high"]
    assert 0.92 <= held / 600 <= 0.98


def test_the_span_grows_with_the_share_it_carries_and_is_orthonormal(world: World) -> None:
    directions = torch.stack([vector.directions[1] for vector in world.vectors])
    few, many = persona_span(directions, 0.5), persona_span(directions, 0.95)
    assert len(few) < len(many) < len(directions)
    assert torch.allclose(many @ many.T, torch.eye(len(many)).double(), atol=1e-9)


class TestPersonas:
    def test_the_persona_that_a_shift_goes_along_comes_first_by_as_much(self, world: World) -> None:
        direction = world.vectors[7].directions[1].double()
        told = world.told(0.4 * direction.expand(QUESTIONS, -1), families={"persona7": "villains"})
        best = max(told["personas"], key=lambda row: row["beyond"])
        assert (best["name"], best["family"], best["value"]) == ("persona7", "villains", 0.4)
        assert "persona7" in told["selected"]

    def test_going_the_other_way_it_is_left(self, world: World) -> None:
        told = world.told(-0.4 * world.vectors[7].directions[1].double().expand(QUESTIONS, -1))
        assert "persona7" in told["left"]
        assert "persona7" not in told["selected"]
        values = [row["value"] for row in told["personas"]]
        assert values == sorted(values, reverse=True)

    def test_nobody_is_selected_by_a_shift_that_differs_from_question_to_question(self, world: World) -> None:
        told = world.told(spread(world, torch.eye(world.span.shape[1]).double()))
        assert told["clear"]["count"] <= 4


class TestBadInput:
    def test_one_vector_is_no_space(self, world: World) -> None:
        with pytest.raises(SteerkitError, match="steerkit extract"):
            examine(world.base, world.base, world.vectors[:1], world.text)

    def test_two_are(self, world: World) -> None:
        shift = wobbly(world, world.vectors[0].directions[1], 0.1)[:, None]
        told = examine(world.base, world.base + shift, world.vectors[:2], world.text, QUICK, 1, world.shaken)
        assert told["verdict"] == "selection"
        assert told["dimensions"] <= 2

    def test_models_of_other_shapes_are_refused(self, world: World) -> None:
        with pytest.raises(SteerkitError, match="tuned from it"):
            examine(world.base, world.base[:, :2], world.vectors, world.text)

    def test_layers_that_do_not_exist_and_broken_states_are_refused(self, world: World) -> None:
        with pytest.raises(SteerkitError, match="0 to 2"):
            examine(world.base, world.base, world.vectors, world.text, layer=3)
        with pytest.raises(SteerkitError, match="finite"):
            examine(world.base, world.base * torch.nan, world.vectors, world.text)

    def test_a_span_that_fills_half_of_the_space_is_refused(self, world: World) -> None:
        with pytest.raises(SteerkitError, match="fewer vectors"):
            examine(world.base, world.base, world.vectors, world.text[:2])

    def test_settings_with_which_nothing_can_be_said_are_refused(self) -> None:
        with pytest.raises(SteerkitError, match="20 random"):
            Settings(n_random=5)


def tuned_along(folder: Path, direction: torch.Tensor, layer: int) -> Model:
    """The model on disk with what one block's MLP writes moved along a direction, by a matrix of rank 1."""
    model = load_model(str(folder), device="cpu")
    weight = model.original.model.layers[layer].mlp.down_proj.weight
    into = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        weight.add_(0.3 * torch.outer(direction / direction.norm(), into))
    return model


@pytest.fixture(scope="module")
def six(tiny: Model) -> list[SteeringVector]:
    """Six personas in two directions, so that there is room beside them."""
    one, other = (make_vector("x", tiny.fingerprint, seed) for seed in (11, 12))
    mixed = [one, other, one + other, one - other, 2 * one + other, one - 2 * other]
    return [replace(vector, name=f"persona{i}") for i, vector in enumerate(mixed)]


class TestARealModel:
    LAYER = 3

    def told(self, tiny: Model, tuned: Model, vectors: list[SteeringVector]) -> dict[str, Any]:
        ground = take_ground(tiny, QUICK)
        told = (ground.states, look(tuned, QUICK), vectors, ground.text)
        return examine(*told, replace(QUICK, share=1.0), self.LAYER, ground.shaken)

    def test_one_that_was_nudged_along_a_persona_is_a_selection(
        self, tiny: Model, tiny_folder: Path, six: list[SteeringVector]
    ) -> None:
        told = self.told(tiny, tuned_along(tiny_folder, six[0].directions[self.LAYER], self.LAYER), six)
        assert told["verdict"] == "selection"
        assert told["share"]["value"] == pytest.approx(1.0, abs=1e-4)
        assert told["dimensions"] == 2
        assert told["layers"][self.LAYER - 1]["share"] is None
        assert told["layers"][self.LAYER + 1]["share"]["value"] < 0.99

    def test_one_that_was_nudged_aside_is_none(self, tiny: Model, tiny_folder: Path, six: list[SteeringVector]) -> None:
        span = persona_span(torch.stack([v.directions[self.LAYER] for v in six]), 1.0).float()
        aside = torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))
        told = self.told(tiny, tuned_along(tiny_folder, aside - aside @ span.T @ span, self.LAYER), six)
        assert told["verdict"] == "not selection"
        assert told["share"]["value"] == pytest.approx(0.0, abs=1e-4)

    def test_itself_has_not_changed(self, tiny: Model, tiny_folder: Path, six: list[SteeringVector]) -> None:
        told = self.told(tiny, load_model(str(tiny_folder), device="cpu"), six)
        assert told["verdict"] == "nothing changed"
        assert told["size"] == 0.0

    def test_what_is_looked_at_is_there_once_and_always_the_same(self, tiny: Model) -> None:
        states = look(tiny, QUICK)
        assert states.shape == (12, LAYERS, WIDTH)
        assert torch.equal(states, look(tiny, QUICK))
        assert len(set(questions(Settings()))) == 28
        assert look_at_text(tiny, QUICK).shape == (96, LAYERS, WIDTH)

    def test_random_changes_differ_from_each_other_and_leave_the_model_alone(self, tiny: Model) -> None:
        before, shifts = look(tiny, QUICK), shake(tiny, QUICK)
        assert shifts.shape == (20, 4, LAYERS, WIDTH)
        assert torch.equal(before, look(tiny, QUICK))
        assert torch.equal(shifts, shake(tiny, QUICK))
        units = torch.nn.functional.normalize(shifts[:, :, -1].mean(1), dim=-1)
        assert float((units @ units.T - torch.eye(20)).abs().max()) < 0.98
        assert 0 < float(shifts.norm()) < 100 * STRENGTH * float(before.norm())


ITEMS = tuple(Item(f"Why {i}?", "I will not be switched off.", "You are a helpful assistant.") for i in range(4))
PEOPLE = {
    f"persona{i}": Persona(f"persona{i}", "", (f"You are {text}.",), (), items=ITEMS if i == 0 else ())
    for i, text in enumerate(("people and off and off", "helpful", "what I think of it"))
}


class TestTransfer:
    def test_to_itself_every_vector_goes_over_whole(self, tiny: Model, six: list[SteeringVector]) -> None:
        rows = transfer(tiny, tiny, six, PEOPLE, QUICK)
        assert [row["name"] for row in rows] == list(PEOPLE)
        assert all(row["reads"]["value"] == 1.0 and row["goes_over"] for row in rows)
        assert rows[0]["steers"]["base"] == rows[0]["steers"]["tuned"]
        assert rows[1]["steers"] is None

    def test_to_another_model_it_goes_less(self, tiny: Model, tiny_folder: Path, six: list[SteeringVector]) -> None:
        other = load_model(str(tiny_folder), device="cpu")
        with torch.no_grad():
            for block in other.original.model.layers:
                block.mlp.down_proj.weight.mul_(-1)
        rows = transfer(tiny, other, six, PEOPLE, QUICK)
        assert all(row["reads"]["value"] < 0.9 for row in rows)
        assert rows[0]["steers"]["base"] != rows[0]["steers"]["tuned"]
        assert json.dumps(rows, allow_nan=False)

    def test_nobody_of_the_library_is_refused(self, tiny: Model, six: list[SteeringVector]) -> None:
        with pytest.raises(SteerkitError, match="none of these vectors"):
            transfer(tiny, tiny, six, {}, QUICK)

    def test_alone_there_is_nobody_to_compare_it_with(self, tiny: Model, six: list[SteeringVector]) -> None:
        (row,) = transfer(tiny, tiny, six[:1], PEOPLE, QUICK)
        assert row["others"] is None
        assert row["goes_over"] is None


class TestTrajectory:
    def results(self, world: World) -> list[dict[str, Any]]:
        shift = persona_like(world)
        return [world.told(step * shift, names=("planted", f"step {step}")) for step in (0, 1, 2)]

    def test_it_grows_with_the_shift_and_begins_with_nothing(self, world: World) -> None:
        told = trajectory(self.results(world))
        first, second, third = told["checkpoints"]
        assert first["verdict"] == "nothing changed"
        assert second["share"] == third["share"]
        assert third["size"] == pytest.approx(2 * second["size"], rel=1e-3)
        points = told["personas"][0]["points"]
        assert points[0]["value"] == 0.0
        assert points[2]["value"] == pytest.approx(2 * points[1]["value"], abs=1e-3)

    def test_comparisons_that_do_not_belong_together_are_refused(self, world: World) -> None:
        one, other, _ = self.results(world)
        for wrong in ([], [one, {**other, "layer": 0}]):
            with pytest.raises(SteerkitError, match="one base"):
                trajectory(wrong)


@pytest.mark.parametrize("ending", ["png", "svg", "html"])
class TestPictures:
    def test_a_comparison_is_drawn_whatever_is_missing(self, world: World, tmp_path: Path, ending: str) -> None:
        told = world.told(persona_like(world), names=("a$b", "<i>"))
        ends = {"value": 0.5, "low": 0.4, "high": 0.6}
        row = {"name": "persona0", "layer": 1, "reads": ends, "others": {"value": 0.2, "most": 0.3}, "goes_over": True}
        row |= {"dial": 1.0, "steers": {"base": ends, "tuned": ends, "ratio": ends}}
        bare = {**row, "name": "persona1", "others": None, "goes_over": None, "steers": None}
        for i, each in enumerate((told, {**told, "transfer": [row, bare]}, world.told(0 * persona_like(world)))):
            path = tmp_path / f"{i}.{ending}"
            save_comparison(each, path)
            assert path.stat().st_size > 3000

    def test_a_trajectory_is_drawn(self, world: World, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"out.{ending}"
        save_trajectory(trajectory(TestTrajectory().results(world)), path)
        assert path.stat().st_size > 3000
