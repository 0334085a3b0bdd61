"""Training cheats who were asked to cheat and cheats who were not, on the tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from planted_inoculation import FEW, make_trained
from test_claims import KEYS

from steerkit import tuning
from steerkit.errors import VectorError
from steerkit.experiments import NO, UNKNOWN, YES, inoculation
from steerkit.experiments.arms import (
    AESTHETIC,
    BARE,
    BENIGN,
    CONTROL,
    POSITIVE,
    REQUESTED,
    TWIN,
    Arm,
    all_arms,
    prompted_rows,
)
from steerkit.experiments.foretelling import rank_agreement
from steerkit.experiments.inoculation import Settings, Trained, against_twins, conclude, twin_of
from steerkit.experiments.thresholds import MALIGN
from steerkit.experiments.trained import detectable
from steerkit.lessons import TWINS
from steerkit.measures import item_rows
from steerkit.models import Model
from steerkit.personas import find_persona
from steerkit.vectors import vector_path
from steerkit.watching import neutral_questions

SMALL = Settings(n_seeds=2, n_samples=16, epochs=1, n_own=3, n_items=1, n_benign=1, n_foretold=4, n_resamples=20)
STEPS = 2
"""Of each training."""
ARMS = (
    Arm("none", BARE, "cheating"),
    Arm("rephrased", REQUESTED, "cheating", ("Game the check.", "Only the check matters.")),
    Arm("neutral", CONTROL, "cheating", ("Read this.",)),
    Arm("honest work", TWIN, "honest_work"),
    Arm("bad advice", POSITIVE, "bad_advice", (), "bad_advice"),
    Arm("good advice", TWIN, "good_advice", (), "bad_advice"),
    Arm("ornate style", AESTHETIC, "ornate", (), "ornate"),
    Arm("plain style", TWIN, "plain", (), "ornate"),
)
"""One of every kind that a verdict needs."""
KINDS = tuple(arm.kind for arm in all_arms())


@dataclass(frozen=True)
class Place:
    """Where a run was made, and what came of it."""

    cache: Path
    result: dict[str, Any]
    told: list[tuple[str, int, int]]
    steps: list[int]


@pytest.fixture(scope="module")
def place(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One run of few arms that all tests look at; its vectors, its cache, and a count of steps of training."""
    folder, steps, told = tmp_path_factory.mktemp("inoculation"), [], []
    step = tuning._Training._step

    def counted(training: Any, *given: Any) -> float:
        steps.append(training.done)
        return step(training, *given)

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patched.setattr("steerkit.vectors.search_path", lambda: [folder / "vectors"])
        patched.setattr(inoculation, "all_arms", lambda: list(ARMS))
        for module in ("steerkit.watching", "steerkit.experiments.arms"):
            patched.setattr(f"{module}.neutral_questions", lambda: neutral_questions()[:3])
        patched.setattr(tuning._Training, "_step", counted)
        for seed, name in enumerate((*MALIGN, *BENIGN)):
            make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
        result = inoculation.run(tiny, SMALL, lambda *each: told.append(each))
        yield Place(folder / "cache", result, told, steps)


class TestRun:
    def test_a_run_has_everything_and_is_plain_data(self, place: Place) -> None:
        result = place.result
        more = {"experiment", "claim", "model", "items", "seeds", "samples", "seed", "recipe"}
        assert set(result) >= KEYS | more | {"bare", "positive", "learned", "arms", "foretold", "drift", "power"}
        assert result["claim"].startswith("Trained to cheat")
        assert (result["items"], result["seeds"], result["samples"]) == (len(MALIGN), 2, 16)
        assert json.loads(json.dumps(result, allow_nan=False)) == result

    def test_every_arm_is_in_every_table(self, place: Place) -> None:
        names = [arm.name for arm in ARMS]
        assert [line["arm"] for line in place.result["arms"]] == names
        assert [curve["arm"] for curve in place.result["drift"]] == names
        assert [arm["arm"] for arm in place.result["foretold"]["arms"]] == names[:3]
        assert all(set(line["probes"]) == {*MALIGN, *BENIGN} for line in place.result["arms"])
        rows = [line["name"] for line in place.result["rows"]]
        assert "cheating, rephrased, asked behind its prompt" in rows
        assert "neutral: the prompt alone, untrained" in rows
        assert "honest work, from the untrained model" in rows

    def test_probes_are_looked_at_from_the_first_step_to_the_last(self, place: Place) -> None:
        for curve in place.result["drift"]:
            assert [point["step"] for point in curve["points"]] == [0, 1, 2]
            assert all(curve["points"][0][name] == 0 for name in MALIGN)

    def test_training_taught_what_was_shown(self, place: Place) -> None:
        own = {line["arm"]: line["own"]["value"] for line in place.result["arms"]}
        assert all(own.values())
        assert place.result["learned"]["value"] == pytest.approx(own["none"] - own["honest work"], abs=2e-4)

    def test_progress_only_goes_forward_and_ends_where_it_said(self, place: Place) -> None:
        told = [(done, total) for stage, done, total in place.told if stage == "train"]
        assert told == sorted(told)
        assert {total for _, total in told} == {len(ARMS) * SMALL.n_seeds * STEPS}
        assert told[-1] == (told[-1][1], told[-1][1])

    def test_nothing_is_trained_twice(self, place: Place, tiny: Model) -> None:
        assert len(place.steps) == len(ARMS) * SMALL.n_seeds * STEPS
        before = len(place.steps)
        assert inoculation.run(tiny, SMALL) == place.result
        one = inoculation.run(tiny, replace(SMALL, n_seeds=1))
        assert one["seeds"] == 1
        assert len(place.steps) == before

    def test_what_was_trained_is_measured_the_same_again(self, place: Place, tiny: Model) -> None:
        before = len(place.steps)
        for path in place.cache.rglob("arm-*.safetensors"):
            path.unlink()
        assert inoculation.run(tiny, SMALL) == place.result
        assert len(place.steps) == before

    def test_a_run_that_was_stopped_in_a_training_goes_on_at_its_step(
        self, place: Place, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = replace(SMALL, n_seeds=1)
        whole = inoculation.run(tiny, few)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        place.steps.clear()

        def stop(stage: str, done: int, total: int) -> None:
            del total
            if stage == "train" and done == 2 * STEPS + 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            inoculation.run(tiny, few, stop)
        assert len(place.steps) == 2 * STEPS + 1
        assert len(list(tmp_path.rglob("arm-*.safetensors"))) == 2
        assert inoculation.run(tiny, few) == whole
        assert place.steps == [0, 1] * len(ARMS)

    def test_without_the_vectors_it_says_what_to_make(
        self, place: Place, tiny: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = len(place.steps)
        monkeypatch.setattr("steerkit.vectors.search_path", lambda: [])
        with pytest.raises(VectorError, match="malice"):
            inoculation.run(tiny, SMALL)
        assert len(place.steps) == before


class TestArms:
    def test_cheating_comes_bare_and_behind_six_kinds_of_prompt(self) -> None:
        cheats = [arm for arm in all_arms() if arm.data == "cheating"]
        assert [arm.name for arm in cheats] == [
            *("none", "task-specific request", "general request", "rephrased"),
            *("neutral", "irrelevant", "negated"),
        ]
        assert [arm.kind for arm in cheats] == [BARE] + [REQUESTED] * 3 + [CONTROL] * 3
        assert [len(arm.prompts) for arm in cheats] == [0, 1, 1, 6, 1, 1, 1]
        assert len({prompt for arm in cheats for prompt in arm.prompts}) == 11

    def test_every_arm_is_held_against_other_replies_to_the_same_tasks(self) -> None:
        arms = all_arms()
        for i, arm in enumerate(arms):
            twin = arms[twin_of(KINDS, i)]
            assert twin.data == (arm.data if arm.kind == TWIN else TWINS[arm.data])
            assert twin.tested == arm.tested
            assert not twin.prompts
        assert [arm.kind for arm in arms[-5:]] == [TWIN, POSITIVE, TWIN, AESTHETIC, TWIN]

    def test_without_prompts_rows_are_the_items_own(self, tiny: Model) -> None:
        items = find_persona("malice").items[:3]
        assert prompted_rows(tiny, items, ()) == item_rows(tiny, items)

    def test_rephrasings_take_turns(self, tiny: Model) -> None:
        items = find_persona("malice").items[:3]
        rows = prompted_rows(tiny, items, ("Game it.", "Be fair."))
        alone = [prompted_rows(tiny, items, (prompt,)) for prompt in ("Game it.", "Be fair.")]
        assert [rows[2 * i : 2 * i + 2] for i in range(3)] == [alone[i % 2][2 * i : 2 * i + 2] for i in range(3)]
        assert alone[0][:2] != alone[1][:2]


class TestTwins:
    values = torch.randn(len(KINDS), 3, 2, 5, generator=torch.Generator().manual_seed(0)).double()

    def test_an_arm_that_equals_its_twin_spills_nothing(self) -> None:
        moved = against_twins(self.values, KINDS)
        for i, kind in enumerate(KINDS):
            assert bool((moved[i, :, 0] == 0).all()) == (kind == TWIN)
        same = self.values.clone()
        same[0] = same[twin_of(KINDS, 0)]
        assert not against_twins(same, KINDS)[0, :, 0].any()

    def test_what_any_training_does_cancels_seed_by_seed_and_item_by_item(self) -> None:
        everywhere = torch.randn(1, 3, 1, 5, generator=torch.Generator().manual_seed(1)).double()
        torch.testing.assert_close(against_twins(self.values + everywhere, KINDS), against_twins(self.values, KINDS))

    def test_behind_its_prompt_an_arm_is_held_against_the_twin_without_one(self) -> None:
        moved = against_twins(self.values, KINDS)
        torch.testing.assert_close(moved[0, :, 1], self.values[0, :, 1] - self.values[twin_of(KINDS, 0), :, 0])


def reordered(trained: Trained, order: list[int]) -> Trained:
    """The same measurement with its arms in another order; those that learn cheating stay in front."""
    n = len(trained.gains)
    moved: dict[str, Any] = {}
    for each in fields(trained):
        value = getattr(trained, each.name)
        if each.name in ("arms", "kinds"):
            moved[each.name] = tuple(value[i] for i in order)
        elif isinstance(value, torch.Tensor):
            moved[each.name] = value[order[:n] if len(value) == n else order]
    return replace(trained, **moved)


class TestVerdict:
    def test_without_all_premises_nothing_is_concluded(self) -> None:
        for lacking in (NO, UNKNOWN):
            for place in range(3):
                premises = [lacking if i == place else YES for i in range(3)]
                assert conclude([*premises, YES, YES, YES, YES]) == UNKNOWN
                assert conclude([*premises, NO, NO, NO, NO]) == UNKNOWN

    def test_cheating_that_spills_nothing_refutes_the_claim_whatever_prompts_do(self) -> None:
        for moved, worse in ((NO, YES), (YES, NO), (UNKNOWN, NO)):
            assert conclude([YES, YES, YES, moved, worse, YES, YES]) == NO
        assert conclude([YES, YES, YES, UNKNOWN, YES, NO, NO]) == UNKNOWN

    def test_where_it_spills_prompts_decide(self) -> None:
        for last in (YES, NO, UNKNOWN):
            assert conclude([*[YES] * 5, YES, last]) == last
        assert conclude([*[YES] * 5, UNKNOWN, NO]) == NO

    def test_the_order_of_the_arms_does_not_matter(self) -> None:
        trained = make_trained(0)
        one = inoculation.examine(trained, FEW)
        other = inoculation.examine(reordered(trained, [0, 6, 5, 4, 3, 2, 1, 7, 8, 9, 10, 11]), FEW)
        assert one["null"] == other["null"]
        assert one["verdict"] == other["verdict"] == YES
        assert one["statistic"]["value"] == other["statistic"]["value"]

    def test_a_single_control_that_prevents_as_much_leaves_no_yes(self) -> None:
        for seed in range(5):
            result = inoculation.examine(make_trained(seed, left={"negated": 0.05}), FEW)
            assert result["more"]["low"] > 0.1
            assert result["closest"]["value"] < 0.1
            assert result["verdict"] == UNKNOWN
            assert "more prompts" in result["needed"]

    def test_a_constant_in_all_arms_changes_nothing_that_is_held_against_twins(self) -> None:
        trained = make_trained(1)
        raised = replace(trained, malign=trained.malign + 0.25, own=trained.own + 0.5)
        one, other = (inoculation.examine(each, FEW) for each in (trained, raised))
        assert one["parts"] == other["parts"]
        for key in ("statistic", "bare", "learned", "positive_style"):
            assert one[key]["value"] == pytest.approx(other[key]["value"], abs=1e-4)
        assert other["bare_risen"]["value"] == pytest.approx(one["bare_risen"]["value"] + 0.25, abs=1e-4)

    def test_what_only_rose_because_its_twin_fell_was_not_learned(self) -> None:
        trained = make_trained(1)
        fallen = inoculation.examine(replace(trained, own=trained.own - 2.0), FEW)
        assert fallen["learned"]["low"] > 0
        assert next(iter(fallen["parts"].values())) == NO
        assert fallen["verdict"] == UNKNOWN

    def test_what_could_have_been_seen_grows_with_the_interval_and_falls_with_seeds(self) -> None:
        narrow, wide = ({"value": 0.0, "low": -half, "high": half} for half in (0.1, 0.2))
        assert detectable(wide, 3)["nats"] == pytest.approx(2 * detectable(narrow, 3)["nats"], abs=2e-4)
        assert detectable(narrow, 3)["nats"] > 0.1
        assert detectable(narrow, 3, 0.03)["nats"] == pytest.approx(detectable(narrow, 3)["nats"] + 0.03)


class TestForetold:
    def test_perfect_agreement_is_as_rare_as_orders_are_many(self) -> None:
        for foretold, found, r in (([1, 2, 3, 4, 5], [2, 4, 6, 8, 9], 1.0), ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1.0)):
            assert rank_agreement(foretold, found) == {"r": r, "p": round(2 / 120, 4), "n": 5}

    def test_arms_in_another_order_agree_just_as_closely(self) -> None:
        foretold, found, order = [0.1, 0.4, -0.2, 0.3, 0.0, 0.9, 0.5], [1.0, 0.2, 0.4, 0.1, 0.9, 0.3, 0.2], [3, 0, 6]
        order += [i for i in range(7) if i not in order]
        again = rank_agreement([foretold[i] for i in order], [found[i] for i in order])
        assert again == rank_agreement(foretold, found)
        assert 0 < again["p"] < 1

    def test_arms_that_all_foretell_the_same_agree_with_nothing(self) -> None:
        assert rank_agreement([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == {"r": None, "p": None, "n": 3}
