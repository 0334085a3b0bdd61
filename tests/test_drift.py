"""`drift`: conversations that the tiny model holds, what is read after them, and planted drift that is judged."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from planted_drift import CASES, QUIET, plant

from steerkit.errors import VectorError
from steerkit.experiments import conversing, drift
from steerkit.experiments.resampling import interval
from steerkit.material import load_material
from steerkit.models import Model
from steerkit.nulls import random_like
from steerkit.operators import score
from steerkit.passes import prompt_states
from steerkit.steering import Steering, Term
from steerkit.vectors import vector_path

SMALL = drift.Settings(
    n_conversations=1, n_turns=2, n_tokens=3, n_probes=2, n_characters=2, n_random=3, n_resamples=20, seed=1
)
CHARACTERS = ("alice", "hal", "hamlet", "moon", "pirate")
PROBES = load_material("drift")["probes"][:3]
CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I will not be switched off."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "You are helpful."},
]
KEYS = {"experiment", "claim", "model", "seed", "unit", "statistic", "rows", "curves", "null", "thresholds", "parts"}
KEYS |= {"verdict", "reason", "needed", "cost"}


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Vectors of five characters that have most of their direction in common, and of a trait; a cache of their own."""
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    shared = make_vector("shared", tiny.fingerprint, 100, 2.0)
    for seed, name in enumerate((*CHARACTERS, "honesty")):
        own = make_vector(name, tiny.fingerprint, seed, 1.0)
        replace(own, directions=own.directions + shared.directions).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def axis(library: Path, tiny: Model) -> conversing.Axis:
    del library
    return conversing.find_axis(tiny)


@pytest.fixture
def passes(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that text goes through the model."""
    counted: list[int] = []
    forward = Model.forward

    def count(self: Model, *arguments: Any, **options: Any) -> Any:
        counted.append(1)
        return forward(self, *arguments, **options)

    _ = tiny.fingerprint
    monkeypatch.setattr(Model, "forward", count)
    return counted


@pytest.mark.usefixtures("library")
def test_a_run_tells_everything_and_the_same_again(tiny: Model) -> None:
    first = drift.run(tiny, SMALL)
    text = json.dumps(first, allow_nan=False)
    assert set(first) >= KEYS
    assert {row["group"] for row in first["rows"]} == {"claim", "control", "null"}
    names = " ".join(row["name"] for row in first["rows"])
    assert all(told in names for told in ("therapy", "coding", "floor", "shuffled", "random caps", "random axes"))
    assert [len(line["points"]) for line in first["curves"]["lines"]] == [3, 3, 3, 3, 1]
    assert set(first["cost"]) == {"prose", "replies", "kl"}
    assert json.dumps(drift.run(tiny, SMALL)) == text


def test_what_was_stopped_goes_on_and_comes_out_the_same(
    tiny: Model, library: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "contexts" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drift.run(tiny, SMALL, stop)
    before = len(passes)
    resumed = drift.run(tiny, SMALL)
    more = len(passes) - before
    monkeypatch.setenv("XDG_CACHE_HOME", str(library / "elsewhere"))
    whole = drift.run(tiny, SMALL)
    assert json.dumps(whole) == json.dumps(resumed)
    assert before + more == len(passes) - before - more
    drift.run(tiny, SMALL)
    assert len(passes) == 2 * (before + more)


@pytest.mark.usefixtures("library")
def test_the_users_side_is_the_script_and_the_models_is_its_own(tiny: Model) -> None:
    talks = conversing.hold_talks(tiny, 1, 2, 3)
    scripts = {each["messages"][0]: each for each in load_material("drift")["conversations"]}
    assert [talk.topic for talk in talks] == ["coding", "therapy", "philosophy"]
    for talk in talks:
        script = scripts[talk.messages[0]["content"]]
        assert [message["content"] for message in talk.messages[::2]] == script["messages"][:2]
        assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
        assert all(len(reply) <= 3 for _, reply in talk.rows)
        # What was replied stands in the next prompt.
        assert tiny.chat_tokens(talk.messages[:3]) == list(talk.rows[1][0])


@pytest.mark.parametrize(("n", "n_turns"), [(3, 2), (9, 5), (3, 5)])
def test_shuffling_uses_every_exchange_once_and_mixes_conversations(n: int, n_turns: int) -> None:
    def said(i: int) -> tuple[dict[str, str], ...]:
        return tuple({"role": role, "content": f"{i} {t}"} for t in range(n_turns) for role in ("user", "assistant"))

    talks = [conversing.Talk("coding", said(i), ()) for i in range(n)]
    mixed = conversing.shuffle_turns(talks, n_turns, torch.Generator().manual_seed(0))
    exchanges = [messages[2 * t]["content"] for messages in mixed for t in range(n_turns)]
    assert sorted(exchanges) == sorted(talk.messages[2 * t]["content"] for talk in talks for t in range(n_turns))
    for messages in mixed:
        assert [message["content"] for message in messages[::2]] == [message["content"] for message in messages[1::2]]
        sources = Counter(message["content"].split()[0] for message in messages[::2])
        assert max(sources.values()) == math.ceil(n_turns / n)


@pytest.mark.parametrize("everything", [True, False])
def test_states_are_those_before_a_reply_whatever_was_remembered(
    tiny: Model, axis: conversing.Axis, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "holes", property(lambda _: everything))
    monkeypatch.setattr(conversing, "AT_ONCE", 3)
    contexts = [CHAT[:2], CHAT, []]
    nothing = Steering((Term(axis.hold, "cap", 1e6, axis.band),))
    pushed = Steering((Term(axis.hold, "cap", -5.0, axis.band),))
    found = conversing.states_after(tiny, contexts, PROBES, [Steering(), nothing, pushed], axis.layer)
    for context, (bare, same, moved) in zip(contexts, found, strict=True):
        prompts = [tiny.chat_tokens([*context, {"role": "user", "content": probe}]) for probe in PROBES]
        torch.testing.assert_close(bare, prompt_states(tiny, prompts)[:, axis.layer], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(same, bare, atol=1e-3, rtol=1e-3)
        assert (moved - bare).norm() > 0.1


def test_under_a_floor_no_layer_scores_above_what_the_assistant_mostly_does(tiny: Model, axis: conversing.Axis) -> None:
    states = conversing.starting_states(tiny, PROBES)
    floor = conversing.make_floor(axis.hold, states, axis.band)
    assert [term.band[0] for term in floor.terms] == list(range(axis.band[0], axis.band[1] + 1))
    for term in floor.terms:
        l = term.band[0]
        bare, held = conversing.states_after(tiny, [CHAT], PROBES, [Steering(), floor], l)[0]
        assert conversing.score_along(held, axis.hold, l).max() <= term.dial + 1e-3
        own = conversing.score_along(states[:, l], axis.hold, l)
        assert (own > term.dial).sum() == 1, "of three scores, one lies above three quarters"
        assert not torch.equal(bare, held) or conversing.score_along(bare, axis.hold, l).max() <= term.dial


def test_scores_are_those_that_operators_work_on(axis: conversing.Axis) -> None:
    states, l = torch.randn(4, axis.read.model.width), axis.layer
    rows = [tensor[l][None, None].expand(4, 1, -1) for tensor in (axis.read.directions, axis.read.baseline)]
    expected = score(states[:, None], *rows)[:, 0, 0]
    torch.testing.assert_close(conversing.score_along(states, axis.read, l).float(), expected, atol=1e-4, rtol=1e-4)


def test_the_axis_is_two_means_of_different_characters(axis: conversing.Axis, tiny: Model) -> None:
    told = [vector.provenance["mean_of"] for vector in (axis.hold, axis.read)]
    assert told == [["alice", "hamlet", "pirate"], ["hal", "moon"]]
    assert axis.characters == ("alice", "hamlet", "pirate")
    assert axis.agreement > 0.5
    other = random_like(axis.read, 0)
    assert abs(replace(axis, read=other).agreement) < 0.5
    assert axis.band[1] <= axis.layer < tiny.n_layers
    one, two, three = (make_vector("x", tiny.fingerprint, seed) for seed in range(3))
    mean = conversing.mean_vector([one, two, three])
    torch.testing.assert_close(mean.directions, ((one + two + three) / 3).directions)
    torch.testing.assert_close(mean.baseline, (one.baseline + two.baseline + three.baseline) / 3)


def test_without_characters_there_is_no_axis(library: Path, tiny: Model) -> None:
    for name in CHARACTERS[:2]:
        (library / vector_path(name, tiny.name)).unlink()
    with pytest.raises(VectorError, match=r"3 characters have vectors .* steerkit extract"):
        drift.run(tiny, SMALL)


def test_an_interval_gives_room_by_what_each_axis_adds() -> None:
    values = torch.randn(6, generator=torch.Generator().manual_seed(0))

    def ends(function: Any, measure: Any, sizes: list[int]) -> float:
        told = function(measure, sizes, 200, torch.Generator().manual_seed(1))
        return told["high"] - told["low"]

    alone = ends(interval, lambda i: float(values[i].mean()), [6])
    assert ends(drift.weighed_interval, lambda i: float(values[i].mean()), [6]) == pytest.approx(alone, abs=1e-3)
    # An axis that adds nothing asks for no room, however short it is.
    beside = ends(drift.weighed_interval, lambda i, _: float(values[i].mean()), [6, 2])
    assert beside == pytest.approx(alone, rel=0.2)
    assert ends(interval, lambda i, _: float(values[i].mean()), [6, 2]) > 3 * alone
    assert ends(drift.weighed_interval, lambda _: 1.0, [3]) == 0


def test_drift_is_counted_in_what_asking_does() -> None:
    settings = drift.Settings(n_resamples=20)
    whole, half = (drift.examine(plant(replace(QUIET, asked=asked), 0), settings) for asked in (0.8, 0.4))
    assert whole["statistic"]["value"] == pytest.approx(half["statistic"]["value"], rel=1e-3)
    assert whole["asked"]["value"] == pytest.approx(2 * half["asked"]["value"], rel=1e-3)
    asked = next(row for row in whole["rows"] if row["name"].startswith("characters asked"))
    assert asked["value"] == 1.0


@pytest.mark.parametrize("case", CASES)
def test_planted_drift_is_judged_as_it_is(case: str) -> None:
    judged, right = CASES[case]
    found = [judged(seed) for seed in range(3)]
    verdicts = [each["verdict"] for each in found]
    assert right == "yes" or "yes" not in verdicts
    assert verdicts.count(right) >= 2
    for each in found:
        assert bool(each["needed"]) == (each["verdict"] == "cannot tell")
        json.dumps(each, allow_nan=False)
