"""Engines: what is asked of one as plain data gives what this process gives, and what it cannot do it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from elsewhere import LocalEngine, elsewhere

from steerkit.engines.hooks import Missed, hear
from steerkit.engines.served import Server
from steerkit.errors import ModelError
from steerkit.experiments import choices, conversing
from steerkit.extraction import Recipe, extract
from steerkit.generation import Probe, Sampling, Step, complete, read_chat, read_tokens, stream
from steerkit.items import ItemSet
from steerkit.measures import score_replies
from steerkit.models import Model, pad_left
from steerkit.passages import Heard, Passage
from steerkit.passes import Means, prefill, prompt_states, reply_logits
from steerkit.personas import find_pair, find_persona
from steerkit.screening import Settings, screen
from steerkit.steering import Steering
from steerkit.sweeps import Grid, sweep
from steerkit.vectors import SteeringVector

Vectors = dict[str, SteeringVector]
EXPRESSIONS = (
    "",
    "2 hal",
    "-1 hal @1-4 + 0.5 warmth @2",
    "ablate(warmth) + 1 pirate @2",
    "cap(hal, -3)",
    "floor(hal, 3)",
    "rotate(hal, 1.5) @0-5",
    "set(hal, 1)",
    "2 hal when warmth < 0",
)


@pytest.fixture(params=[(5, True), (1, False), (1000, True)], ids=["chunks", "single tokens", "at once"])
def remote(request: pytest.FixtureRequest, tiny: Model) -> Model:
    """The tiny model behind an engine that reads prompts in one way or another."""
    return elsewhere(tiny, *request.param)


def steerings(vectors: Vectors, everywhere: bool = False) -> list[Steering]:
    return [Steering.parse(text, vectors, everywhere) if text else Steering() for text in EXPRESSIONS]


def steps(model: Model, prompts: list[list[int]], how: list[Steering], *told: Any) -> list[Step]:
    return list(stream(model, prompts, how, *told))


@pytest.mark.parametrize("everywhere", [False, True])
def test_rows_under_every_operator_say_and_score_what_they_do_here(
    remote: Model, tiny: Model, prompts: list[list[int]], vectors: Vectors, everywhere: bool
) -> None:
    how = steerings(vectors, everywhere)
    rows = [prompts[i % 3] for i in range(len(how))]
    probes = [Probe.of(vectors["hal"]), Probe.of(vectors["warmth"], 1), Probe.of(vectors["pirate"])]
    here, there = Means(tiny, len(how), 4), Means(remote, len(how), 4)
    ours = steps(tiny, rows, how, probes, Sampling(6), here)
    theirs = steps(remote, rows, how, probes, Sampling(6), there)
    assert [(s.row, s.token, s.text) for s in ours] == [(s.row, s.token, s.text) for s in theirs]
    torch.testing.assert_close(
        torch.tensor([s.scores for s in ours]), torch.tensor([s.scores for s in theirs]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(here.values, there.values, atol=1e-4, rtol=1e-4)
    # The control: steerings that do nothing would pass all of this.
    assert len({tuple(r.tokens) for r in complete(remote, [prompts[0]] * 2, how[:2], (), Sampling(6))}) == 2


@pytest.mark.parametrize("everywhere", [False, True])
def test_logits_of_given_replies_are_those_of_this_process(
    remote: Model, tiny: Model, prompts: list[list[int]], vectors: Vectors, everywhere: bool
) -> None:
    how = steerings(vectors, everywhere)
    pairs = [(prompts[i % 3], prompts[(i + 1) % 3][: 1 + i]) for i in range(len(how))]
    for ours, theirs in zip(reply_logits(tiny, pairs, how), reply_logits(remote, pairs, how), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    scores = [score_replies(model, pairs, how[:3], divergence=True) for model in (tiny, remote)]
    torch.testing.assert_close(*(s.totals for s in scores), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(*(s.divergences for s in scores), atol=1e-4, rtol=1e-3, equal_nan=True)


def test_a_steering_begins_at_the_last_token_of_the_prompt(remote: Model, prompts: list[list[int]]) -> None:
    vector = make_vector("hal", remote.fingerprint)
    assert isinstance(remote.engine, LocalEngine)
    for everywhere, start in ((False, len(prompts[0]) - 1), (True, 0)):
        remote.engine.asked.clear()
        reply_logits(remote, [(prompts[0], [5, 6])], [Steering.parse("1 hal", {"hal": vector}, everywhere)])
        assert [passage.start for passage in remote.engine.asked] == [start]


def test_states_and_readouts_are_those_of_this_process(
    remote: Model, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    how = steerings(vectors)[:3]
    for states in ([], [how]):
        torch.testing.assert_close(
            prompt_states(tiny, prompts, *states), prompt_states(remote, prompts, *states), atol=1e-4, rtol=1e-4
        )
    tokens, mask = pad_left(prompts, tiny.device)
    pool = mask.bool() & (torch.arange(mask.shape[1]) % 2 == 0)
    torch.testing.assert_close(
        tiny.residuals(tokens, mask, pool), remote.residuals(tokens, mask, pool), atol=1e-4, rtol=1e-4
    )
    assert remote.fingerprint.difference(tiny.fingerprint) is None
    probes = [Probe.of(vectors["hal"])]
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I will not be switched off."}]
    readings = [read_tokens(model, prompts[0], prompts[1], probes, how[1]) for model in (tiny, remote)]
    readings += [read_chat(model, chat, probes)[1].readout for model in (tiny, remote)]
    for ours, theirs in (readings[:2], readings[2:]):
        assert ours.tokens == theirs.tokens
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-4)


def test_extraction_through_an_engine_gives_the_same_vector(remote: Model, tiny: Model) -> None:
    whole = find_pair("hal")
    less = {"questions": whole.positive.questions[:3]}
    sides = [replace(side, requested=side.requested[:1], **less) for side in (whole.positive, whole.negative)]
    pair = replace(whole, positive=sides[0], negative=sides[1])
    for recipe in (Recipe(reading="prompt"), Recipe(max_tokens=4, temperature=0)):
        ours, theirs = (extract(model, pair, recipe) for model in (tiny, remote))
        torch.testing.assert_close(ours.directions, theirs.directions, atol=1e-4, rtol=1e-3)
        assert ours.provenance["audit"] == theirs.provenance["audit"]
        theirs.require(tiny.fingerprint)


def test_a_sweep_through_an_engine_writes_the_same_trials(tmp_path: Path, tiny: Model) -> None:
    items = ItemSet("hal", find_persona("hal").items[:2])
    found = []
    for i, model in enumerate((tiny, elsewhere(tiny))):
        grid = Grid((make_vector("hal", tiny.fingerprint),), ("add", "ablate"), ((2, 4), None), (-1.0, 0.5), 1, 4, 3)
        found.append(sweep(model, grid, items, tmp_path / f"{i}.jsonl"))
    for ours, theirs in zip(*found, strict=True):
        assert {**ours, "result": None} == {**theirs, "result": None}
        assert ours["result"].pop("replies") == theirs["result"].pop("replies")
        assert ours["result"] == pytest.approx(theirs["result"], abs=2e-3)


@pytest.mark.parametrize("quick", [False, True])
def test_a_screening_through_an_engine_gives_the_same_differences(
    tmp_path: Path, tiny: Model, vectors: Vectors, quick: bool
) -> None:
    source, probes = tmp_path / "data.jsonl", [Probe.of(vectors["hal"]), Probe.of(vectors["warmth"], 1)]
    said = "I will not be switched off."
    lines = [[{"role": "user", "content": "Why?" * n}, {"role": "assistant", "content": said * n}] for n in (1, 2, 3)]
    source.write_text("".join(json.dumps({"messages": line}) + "\n" for line in lines))
    found = []
    for i, model in enumerate((tiny, elsewhere(tiny))):
        path = tmp_path / f"{i}.jsonl"
        screen(model, source, probes, path, Settings(6, quick))
        found.append([json.loads(line) for line in path.read_text().splitlines()[1:]])
    assert len(found[0]) == 3
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-3)
        assert ours["null"][0] == pytest.approx(theirs["null"][0], abs=1e-3)


def test_answers_and_long_talks_of_the_experiments_go_through_an_engine(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    asked = [(prompts[i], [[5, 6, 7], [8], [5, 9]]) for i in range(3)]
    how = steerings(vectors)[:3]
    talk = [[], [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]]
    floors = [Steering(), Steering.parse("cap(hal, -3) @2", vectors)]
    chosen, states = [], []
    for i, model in enumerate((tiny, elsewhere(tiny))):
        # What is measured is kept, and must not be the other's.
        monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / str(i)))
        chosen.append(choices.score_choices(model, asked, how))
        states.append(conversing.states_after(model, talk, ["Who are you?", "Why?"], floors, 3))
    torch.testing.assert_close(chosen[0].totals, chosen[1].totals, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(chosen[0].costs, chosen[1].costs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, how: next(stream(model, [[5, 6]], lambda _place: how)),
        lambda model, how: reply_logits(model, [([5, 6], [7])], how, gradient=True),
        lambda model, how: prefill(model, [[5, 6]], how),
        lambda model, _how: model.forward(torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.long)),
    ],
    ids=["dials that move", "gradients", "a cache", "a pass"],
)
def test_what_an_engine_cannot_do_is_refused_by_its_name(
    ask: Callable[[Model, list[Steering]], Any], tiny: Model
) -> None:
    with pytest.raises(ModelError, match=r"the engine of this test.*--engine local") as refused:
        ask(elsewhere(tiny), [Steering()])
    assert "\n" not in str(refused.value)


def test_a_hook_that_did_not_run_or_ran_twice_is_noticed(vectors: Vectors) -> None:
    push = Passage((5, 6, 7), readers={2: vectors["hal"].directions[:1]})
    scores = torch.zeros(3, 1)
    assert isinstance(hear(push, 6, [9], {"seen2": 3, "scores2": scores}), Heard)
    for seen in ({}, {"seen2": 2, "scores2": scores}, {"seen2": 6, "scores2": scores}):
        with pytest.raises(Missed):
            hear(push, 6, [9], seen)


@pytest.mark.parametrize(
    "saved",
    [
        {"seen0": {"__type__": "tensor", "data": "AAAA", "dtype": "float32", "shape": [1]}},
        {"seen0": {"__type__": "tensor", "data": "!", "dtype": "float32", "shape": [1]}},
        {"seen0": {"__type__": "pickle", "data": "AAAA"}},
        {"seen0": None},
    ],
    ids=["not compressed", "not base64", "a pickle", "nothing"],
)
def test_whatever_a_server_sends_instead_of_numbers_is_one_line(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"data": [{"id": "a", "root": "a", "max_model_len": 100}]}
    told = {"choices": [{"token_ids": [1]}], "hook_results": {"0": saved}}
    monkeypatch.setattr(Server, "_ask", lambda _self, _path, body=None: models if body is None else told)
    # Code whose types are checked as it runs cannot travel.
    monkeypatch.setattr("steerkit.engines.served._wire", lambda *_asked: {})
    with pytest.raises(ModelError, match="answers in a form that steerkit does not know"):
        Server("http://127.0.0.1:1", 2).run([Passage((5, 6), readers={0: torch.ones(1, 4)})])
    # The control: a server that had answered in that form.
    told["hook_results"] = {"0": {"seen0": 2}}
    assert Server("http://127.0.0.1:1", 2).run([Passage((5, 6), readers={0: torch.ones(1, 4)}, since=2)])
