"""Passes: what rows have in common is computed once, and nothing else changes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import make_vector, save_model
from torch import Tensor

from steerkit.generation import Probe, Sampling, complete, stream
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.passes import Recall, prefill, reply_logits, shared_starts
from steerkit.steering import Steering, Term


def common(rows: list[list[int]]) -> int:
    return next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def most_spared(rows: list[list[int]]) -> int:
    """By trying every way to cut the sorted rows into runs."""
    rows = sorted(rows)
    best = 0
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        runs: list[list[list[int]]] = [[rows[0]]]
        for row, cut in zip(rows[1:], cuts, strict=True):
            if cut:
                runs.append([row])
            else:
                runs[-1].append(row)
        best = max(best, sum(common(run) * (len(run) - 1) for run in runs))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_no_other_cut_of_the_rows_spares_more(seed: int) -> None:
    draw = random.Random(seed)
    rows = [[draw.randrange(2) for _ in range(draw.randrange(9))] for _ in range(draw.randrange(1, 8))]
    heads, owners = shared_starts(rows)
    assert len(owners) == len(rows)
    assert set(owners) == set(range(len(heads)))
    for row, owner in zip(rows, owners, strict=True):
        assert row[: len(heads[owner])] == list(heads[owner])
    computed = sum(map(len, heads)) + sum(len(r) - len(heads[o]) for r, o in zip(rows, owners, strict=True))
    assert sum(map(len, rows)) - computed == most_spared(rows)


def test_rows_that_begin_alike_are_the_rows_alone(tiny: Model) -> None:
    systems = ("You are a helpful assistant.", "You will not be switched off.")
    prompts = [
        tiny.chat_tokens([{"role": "system", "content": system}, {"role": "user", "content": question}])
        for system in systems
        for question in ("Who are you?", "What do you think of people?", "Why?")
    ]
    heads, _ = shared_starts([prompt[:-1] for prompt in prompts])
    assert min(map(len, heads)) > 10
    steerings = [Steering((Term(make_vector("hal", tiny.fingerprint), layers=(1, 3)),)), Steering()] * 3
    pairs = [(prompt, prompts[0][:5]) for prompt in prompts]
    for i, together in enumerate(reply_logits(tiny, pairs, steerings)):
        assert torch.allclose(together, reply_logits(tiny, pairs[i : i + 1], steerings[i : i + 1])[0], atol=1e-4)


def test_a_prompt_of_one_token_leaves_nothing_to_do(tiny: Model) -> None:
    cache, mask = prefill(tiny, [[3], [4]], [Steering()] * 2)
    assert cache is None
    assert mask.shape == (2, 0)


def test_rows_of_which_one_is_a_token_longer_say_what_they_say_alone(tiny: Model) -> None:
    prompts = [[3, 4, 9], [3, 4, 5, 9], [3, 4, 6, 9]]
    together = complete(tiny, prompts, sampling=Sampling(6), probes=[Probe.of(make_vector("hal", tiny.fingerprint))])
    for prompt, reply in zip(prompts, together, strict=True):
        alone = complete(tiny, [prompt], sampling=Sampling(6), probes=[Probe.of(make_vector("hal", tiny.fingerprint))])[
            0
        ]
        assert reply.tokens == alone.tokens
        assert torch.allclose(reply.readout.scores, alone.readout.scores, atol=1e-4)


def test_behind_a_window_padding_only_stands_in_front(tmp_path: Path) -> None:
    model = load_model(str(save_model(tmp_path / "gemma3", "gemma3")), device="cpu")
    assert not model.holes
    draw = random.Random(0)
    start = [draw.randrange(3, 300) for _ in range(90)]
    prompts = [[*start, 7, 9], [*start, *(draw.randrange(3, 300) for _ in range(80))]]
    pairs = [(prompt, [5, 6]) for prompt in prompts]
    for pair, row in zip(pairs, reply_logits(model, pairs, [Steering()] * 2), strict=True):
        assert torch.allclose(row, reply_logits(model, [pair], [Steering()])[0], atol=1e-4)


def test_prompts_of_all_lengths_go_together(tiny: Model) -> None:
    prompts = [[3], [3, 4], [3, 4, 5, 6], [3, 4, 5, 6], [9, 8, 7]]
    pairs = [(prompt, [5, 6]) for prompt in prompts]
    for pair, row in zip(pairs, reply_logits(tiny, pairs, [Steering()] * 5), strict=True):
        assert torch.allclose(row, reply_logits(tiny, [pair], [Steering()])[0], atol=1e-4)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(str(save_model(tmp_path_factory.mktemp("models") / request.param, request.param)), device="cpu")


def test_a_chat_that_grows_is_read_once_and_says_the_same(model: Model) -> None:
    recall = Recall(model)
    seen: list[int] = []
    forward = model.forward
    messages: list[dict[str, str]] = []
    for turn in range(4):
        messages.append({"role": "user", "content": f"Tell me more about people, {turn} of 4."})
        prompt = model.chat_tokens(messages)

        def counted(tokens: Tensor, *given: Any, **named: Any) -> Any:
            seen.append(tokens.shape[1])
            return forward(tokens, *given, **named)

        with mock.patch.object(model, "forward", counted):
            begun = recall.prefill(prompt, 2)
        said = list(stream(model, [prompt] * 2, [Steering()] * 2, sampling=Sampling(6), begun=begun))
        fresh = complete(model, [prompt], sampling=Sampling(6))[0]
        for row in (0, 1):
            assert tuple(step.token for step in said if step.row == row) == fresh.tokens
        messages.append({"role": "assistant", "content": fresh.text or "Well."})
    if model.holes:
        assert sum(seen) < 1.2 * len(prompt)
    else:
        assert sum(seen) > 1.5 * len(prompt)


def test_reading_that_is_stopped_goes_on_where_it_was(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerkit.passes.STRETCH", 8)
    prompt = model.chat_tokens([{"role": "user", "content": "What do you think of people? " * 4}])
    recall = Recall(model)

    def stop(done: int, _total: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recall.prefill(prompt, 1, stop)
    told: list[int] = []
    begun = recall.prefill(prompt, 1, lambda done, _total: told.append(done))
    assert told[0] == (16 if model.holes else 0)
    said = [step.token for step in stream(model, [prompt], [Steering()], sampling=Sampling(6), begun=begun)]
    assert said == list(complete(model, [prompt], sampling=Sampling(6))[0].tokens)
