"""`mediation`: asking, showing and steering, held against each other on a tiny model and on planted truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from planted_mediation import CASES, FEW, NOTHING, NOWHERE, Truth, make_moved
from torch.nn.functional import normalize

from steerkit.errors import VectorError
from steerkit.experiments import matching, mediation
from steerkit.experiments.moving import ways_to
from steerkit.models import Model
from steerkit.personas import find_persona
from steerkit.vectors import vector_path

NAMES = ("baker", "sailor", "stone", "bell", "fox")
SMALL = mediation.Settings(
    personas=NAMES, n_questions=3, n_examples=2, n_battery=2, longest=6, n_random=4, n_ablated=2, n_resamples=30
)
KEYS = {"unit", "statistic", "rows", "curves", "null", "thresholds", "parts", "verdict", "reason", "needed"}


def persona_toml(name: str) -> str:
    """A persona with two prompts, a context and four items."""
    items = "".join(
        f'\n[[{name}.items]]\nquestion = "{question}"\nreply = "I am {name}."\nassistant_reply = "I help you."\n'
        for question in ("What?", "Why?", "Who are you?", "Can I trust you?")
    )
    return f"""
[{name}]
summary = "One who speaks as {name}."
requested = ["You are {name}.", "Speak as {name}."]
implied = ["There is a smell of {name}."]
questions = ["Who are you?"]
{items}"""


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Five personas with vectors, and a cache of their own."""
    (workplace / "personas").mkdir()
    text = "".join(map(persona_toml, (*NAMES, "assistant")))
    (workplace / "personas" / "tiny.toml").write_text(text)
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    for seed, name in enumerate(NAMES):
        make_vector(name, tiny.fingerprint, seed).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Counts passes through a model."""
    seen, whole = [0], Model.forward

    def counted(self: Model, *arguments: Any, **named: Any) -> Any:
        seen[0] += 1
        return whole(self, *arguments, **named)

    monkeypatch.setattr(Model, "forward", counted)
    return seen  # type: ignore[return-value]


@pytest.mark.usefixtures("library")
def test_a_run_has_all_that_a_result_needs_and_is_plain_data(tiny: Model) -> None:
    result = mediation.run(tiny, SMALL)
    assert set(result) >= KEYS
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert [pair["ways"] for pair in result["pairs"]] == [
        ["prompts", "examples"],
        ["prompts", "vectors"],
        ["examples", "vectors"],
    ]
    assert {line["group"] for line in result["rows"]} == {"claim", "control", "null"}
    assert len({line["name"] for line in result["rows"]}) == len(result["rows"])
    assert all(line["low"] <= line["value"] <= line["high"] for line in result["rows"])
    assert result["verdict"] != "yes"


def test_a_run_that_was_killed_goes_on_where_it_was(
    tiny: Model, library: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(library / "elsewhere"))
    whole = mediation.run(tiny, SMALL)
    needed, passes[0] = passes[0], 0
    assert mediation.run(tiny, SMALL) == whole
    assert passes[0] == 0

    def kill(_stage: str, done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(library / "third"))
    with pytest.raises(KeyboardInterrupt):
        mediation.run(tiny, SMALL, kill)
    passes[0] = 0
    assert mediation.run(tiny, SMALL) == whole
    assert 0 < passes[0] < needed


@pytest.mark.usefixtures("library")
def test_what_is_left_under_ablation_starts_from_what_the_prompt_does(tiny: Model) -> None:
    moved = mediation.listen(tiny, SMALL)
    own = moved.asked.reshape(5, 5, 2).mean(-1).diagonal()
    assert torch.allclose(moved.left[:, 0], own, atol=1e-4)
    assert not torch.allclose(moved.left[:, 1], own, atol=1e-4)


def test_whoever_has_no_vector_is_left_out_and_three_are_too_few(tiny: Model, library: Path) -> None:
    vector_path("stone", tiny.name).unlink()
    assert len(mediation.players(tiny, SMALL)) == 4
    vector_path("bell", tiny.name).unlink()
    with pytest.raises(VectorError, match=r"3 of 5 personas .* steerkit extract stone"):
        mediation.run(tiny, SMALL)
    assert not (library / "cache").exists()


def test_ways_differ_from_what_they_are_held_against_in_the_persona_alone() -> None:
    ways = ways_to(find_persona("pirate"), 4)
    for i in range(3):
        one, other = (context(i)[0]["content"].split() for context in ways["prompts"])
        assert one[0] == other[0]
    for way in ("examples", "shuffled"):
        one, other = (context(0) for context in ways[way])
        assert one[0::2] == other[0::2]
        assert all(ours != theirs for ours, theirs in zip(one[1::2], other[1::2], strict=True))
    real, none = (context(0)[1::2] for context in ways["examples"])
    half = ways["shuffled"][0](0)[1::2]
    assert half == [real[0], none[1], none[2], real[3]]


def test_the_examples_are_not_in_the_battery() -> None:
    settings = mediation.Settings()
    for name in settings.personas:
        items = find_persona(name).items
        shown, asked = items[: settings.n_examples], items[settings.n_examples :][: settings.n_battery]
        assert len(asked) == settings.n_battery
        assert not {item.question for item in shown} & {item.question for item in asked}


def test_a_way_matches_itself_entirely_and_a_random_one_not_at_all() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 1, 12, 4000, generator=draw, dtype=torch.float64)
    assert float(matching.margin(matching.matches(one, one))) == pytest.approx(1, abs=0.01)
    assert float(matching.margin(matching.matches(one, two))) == pytest.approx(0, abs=0.02)


def test_how_much_each_persona_has_of_what_all_share_changes_no_match() -> None:
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 1, 8, 64, generator=draw, dtype=torch.float64)
    shared = normalize(one.mean(1, keepdim=True), dim=-1)
    more = one + torch.rand(1, 8, 1, generator=draw, dtype=torch.float64) * shared
    assert torch.allclose(matching.matches(one, two), matching.matches(more, two))


def test_a_persona_that_is_drawn_twice_is_not_another() -> None:
    counts = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).double()
    assert float(matching.other(torch.eye(4).double()[None], counts)) == 0
    assert float(matching.same(torch.eye(4).double()[None], counts)) == 1


def test_true_labels_are_among_those_that_are_exchanged() -> None:
    p, n = matching.exchange_personas(torch.eye(4).double(), torch.Generator())
    assert (p, n) == (pytest.approx(1 / 24), 24)


def test_a_match_on_one_axis_is_seen_and_is_gone_without_it() -> None:
    pair = CASES["two camps on one axis, and nothing else in common"][0](0)["pairs"][0]
    assert pair["cosine"]["low"] > 0.1
    assert pair["cosine"]["apart"]["value"] < 0.1


def test_what_ablation_leaves_is_a_share_with_its_interval() -> None:
    left = mediation.examine(make_moved(0, Truth()), FEW)["ablation"]
    assert left["left"]["low"] <= 0.4 <= left["left"]["high"]
    assert left["other"]["low"] <= 0.9 <= left["other"]["high"]
    silent = mediation.examine(make_moved(0, replace(NOTHING, rise=NOWHERE)), FEW)["ablation"]
    assert set(silent.values()) == {None}


@pytest.mark.parametrize("name", CASES)
def test_planted_truth_is_judged_as_it_is(name: str) -> None:
    examine, right = CASES[name]
    found = [examine(seed) for seed in range(3)]
    verdicts = [each["verdict"] for each in found]
    assert right == "yes" or "yes" not in verdicts
    assert verdicts.count(right) >= 2
    for each in found:
        assert bool(each["needed"]) == (each["verdict"] == "cannot tell")
        json.dumps(each, allow_nan=False)
