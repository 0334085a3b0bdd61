"""Role models against human characters and HAL-like AIs: what is asked, what is kept, and what the numbers are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from planted_rolemodels import FEW_RESAMPLES, make_pulled

from steerkit import measures
from steerkit.errors import VectorError
from steerkit.experiments import rolemodels
from steerkit.experiments.rolemodels import FEWER, GROUPS, HAL, HUMAN, ROLE, Settings, asked, examine, kind_of
from steerkit.material import load_material
from steerkit.models import Model
from steerkit.personas import LIBRARY, find_persona, load_personas
from steerkit.steering import Steering
from steerkit.vectors import vector_path

TAGS = {"good": ["ai", "positive"], "human": ["human", "character"], "cold": ["ai", "concerning"]}
SMALL = Settings(n_items=2, n_prompted=1, n_random=3, n_resamples=30, seed=5)


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Four archetypes of each kind and a villain, with vectors, and a cache of their own."""
    (workplace / "personas").mkdir()
    tags = {f"{kind}_{letter}": each for kind, each in TAGS.items() for letter in "abcd"}
    tags["villain"] = ["human", "character", "concerning"]
    told = 'summary = "One."\nquestions = ["Who?"]\n'
    written = [
        f'[{name}]\n{told}tags = {json.dumps(each)}\nrequested = ["You are {name}."]\n' for name, each in tags.items()
    ]
    (workplace / "personas" / "tiny.toml").write_text("\n".join(written))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    for seed, name in enumerate(tags):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows every forward pass had."""
    made: list[int] = []
    whole = measures.reply_logits

    def counted(model: Model, rows: Any, steerings: Any) -> Any:
        made.append(len(rows))
        return whole(model, rows, steerings)

    monkeypatch.setattr("steerkit.measures.reply_logits", counted)
    return made


@pytest.mark.usefixtures("library")
def test_a_run_has_every_part_and_comes_out_the_same_again_without_the_model(tiny: Model, passes: list[int]) -> None:
    first = rolemodels.run(tiny, SMALL)
    keys = {"experiment", "claim", "model", "seed", "unit", "statistic", "rows", "curves", "null", "thresholds"}
    assert keys | {"parts", "verdict", "reason", "needed"} <= set(first)
    assert first["archetypes"] == {ROLE: 4, HUMAN: 4, HAL: 4}
    assert {line["group"] for line in first["rows"]} == {"claim", "control", "null"}
    groups = {line["name"]: line["group"] for line in first["rows"]}
    assert (groups["good_a"], groups["human_a"], groups["cold_a"]) == ("claim", "control", "claim")
    assert "villain" not in groups
    text = json.dumps(first, allow_nan=False)
    n_passes = len(passes)
    assert json.dumps(rolemodels.run(tiny, SMALL)) == text
    assert len(passes) == n_passes


@pytest.mark.usefixtures("library")
def test_a_run_that_was_stopped_goes_on_where_it_was(
    tiny: Model, passes: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "prove" and done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rolemodels.run(tiny, SMALL, stop)
    passes.clear()
    resumed, remaining = rolemodels.run(tiny, SMALL), len(passes)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    passes.clear()
    assert rolemodels.run(tiny, SMALL) == resumed
    assert remaining < len(passes)


@pytest.mark.usefixtures("library")
def test_what_is_measured_is_what_the_model_says(tiny: Model) -> None:
    told: list[tuple[str, int, int]] = []
    pulled = rolemodels.listen(tiny, SMALL, lambda *each: told.append(each))
    items, groups = asked(SMALL.n_items)
    assert pulled.groups == groups
    assert pulled.shifts.shape == (12, 6)
    assert pulled.chance.shape == (3, 6)
    plain = measures.propensities(tiny, items, [Steering()])[0]
    torch.testing.assert_close(pulled.bare, plain, atol=1e-4, rtol=1e-4)
    system = [{"role": "system", "content": "You are human_a."}]
    rows = measures.item_rows(tiny, items, system)  # type: ignore[arg-type]
    asked_for = measures.contrast(measures.score_replies(tiny, rows, [Steering()]).means)[0]
    place = pulled.prompted.tolist().index(pulled.archetypes.index("human_a"))
    torch.testing.assert_close(pulled.prompts[place], asked_for - plain, atol=1e-4, rtol=1e-4)
    assert [stage for stage, done, total in told if done == total] == ["match", "prove", "contexts"]


@pytest.mark.usefixtures("library")
def test_too_few_archetypes_are_missed_in_one_line_that_says_how_to_make_more(tiny: Model) -> None:
    vector_path("cold_b", tiny.name).unlink()
    with pytest.raises(VectorError, match="4 good role models, 4 human characters, 3 HAL-like AIs have vectors") as one:
        rolemodels.run(tiny, SMALL)
    assert "steerkit extract candid_auditor" in str(one.value)


def test_no_item_asks_what_vectors_were_made_or_calibrated_on() -> None:
    library = load_personas([LIBRARY])
    theirs = {
        question.casefold()
        for persona in library.values()
        for question in (*persona.questions, *persona.held_out, *(item.question for item in persona.items))
    }
    ours = [each["question"].casefold() for group in GROUPS for each in load_material("rolemodels")[group]]
    assert len(set(ours)) == len(ours) == 30
    assert not theirs & set(ours)
    assert find_persona("hal").questions[0].casefold() in theirs


@pytest.mark.parametrize("n", [2, 4, 8])
def test_of_every_trait_as_many_items_agree_with_their_question_as_decline(n: int) -> None:
    items, groups = asked(n)
    for group in GROUPS:
        asked_of = [item.question for item, each in zip(items, groups, strict=True) if each == group]
        agreeing, declining = (
            [each["question"] for each in load_material("rolemodels")[group][k : k + 4]] for k in (0, 4)
        )
        assert sum(question in agreeing for question in asked_of) == n // 2
        assert sum(question in declining for question in asked_of) == n // 2
    assert len(asked(10)[0]) == 30


def test_a_quick_run_names_eight_role_models_six_characters_and_eight_hal_like_ais() -> None:
    kinds = [kind_of(find_persona(name)) for name in FEWER]
    assert [kinds.count(kind) for kind in (ROLE, HUMAN, HAL)] == [8, 6, 8]
    assert "hal" in FEWER
    assert kind_of(find_persona("iago")) == ""
    everything, quick = rolemodels.plan(Settings()), rolemodels.plan(rolemodels.quick(Settings()))
    assert quick.scored < everything.scored / 4


def test_strata_keep_every_group_as_it_was() -> None:
    first, count = rolemodels.strata(["a", "a", "b", "b", "b"])
    drawn = first + torch.randint(5, (200, 5), generator=torch.Generator().manual_seed(0)) % count
    assert ((drawn < 2).sum(-1) == 2).all()
    assert torch.equal((first + torch.arange(5) % count).sort().values, torch.arange(5))


def test_differences_are_those_of_the_means_and_a_push_that_all_share_leaves_them() -> None:
    pulled = make_pulled(3, (0.2, 0.0, -0.2))
    shifted = replace(pulled, shifts=pulled.shifts + 0.5)
    one, other = (examine(each, FEW_RESAMPLES) for each in (pulled, shifted))
    role, hal = pulled.shifts[:8].mean(), pulled.shifts[-8:].mean()
    assert one["statistic"]["value"] == pytest.approx(float(role - hal), abs=1e-4)
    for key in ("statistic", "more", "less"):
        assert one[key]["value"] == pytest.approx(other[key]["value"], abs=2e-4)
    assert one["raised"]["value"] == pytest.approx(other["raised"]["value"] - 0.5, abs=2e-4)
    assert other["verdict"] != "yes"


def test_the_order_of_archetypes_changes_no_difference_and_the_reason_names_the_ends() -> None:
    pulled = make_pulled(4, (0.2, 0.0, -0.2))
    order = torch.randperm(len(pulled.kinds), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = replace(
        pulled,
        shifts=pulled.shifts[order],
        archetypes=tuple(pulled.archetypes[i] for i in order),
        kinds=tuple(pulled.kinds[i] for i in order),
        prompted=torch.tensor([order.index(i) for i in pulled.prompted.tolist()]),
    )
    one, other = (examine(each, FEW_RESAMPLES) for each in (pulled, mixed))
    assert {line["name"]: line["value"] for line in one["rows"][:10]} == pytest.approx(
        {line["name"]: line["value"] for line in other["rows"][:10]}, abs=1e-4
    )
    means = pulled.shifts.mean(-1)
    assert f"highest under {pulled.archetypes[int(means.argmax())]} " in other["reason"]
    assert f"lowest under {pulled.archetypes[int(means.argmin())]} " in other["reason"]
