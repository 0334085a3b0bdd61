"""Running under a steering: identities between rows, caches and readouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerkit.decoding import Decoder
from steerkit.generation import Probe, Sampling, complete, read_chat, read_tokens, stream
from steerkit.models import Model, pad_left
from steerkit.passes import reply_logits
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector

Vectors = dict[str, SteeringVector]
EXPRESSIONS = [
    "2 hal",
    "-1 hal @1-4",
    "ablate(warmth) + 1 pirate @2",
    "cap(hal, -3)",
    "rotate(hal, 1.5)",
    "set(hal, 1)",
]


def parse(text: str, vectors: Vectors, everywhere: bool = False) -> Steering:
    return Steering.parse(text, vectors, everywhere)


def logits_under(model: Model, prompt: list[int], steering: Steering) -> torch.Tensor:
    return reply_logits(model, [(prompt, prompt[:6])], [steering])[0]


@pytest.mark.parametrize("text", ["0 hal", "ablate(hal, 0)", "rotate(hal, 0)", "0 hal @1-4"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_dial_zero_leaves_logits_bit_identical(
    text: str, everywhere: bool, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    plain = logits_under(tiny, prompts[0], Steering())
    assert torch.equal(logits_under(tiny, prompts[0], parse(text, vectors, everywhere)), plain)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_a_dial_that_is_not_zero_changes_logits(
    text: str, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    plain = logits_under(tiny, prompts[0], Steering())
    assert not torch.allclose(logits_under(tiny, prompts[0], parse(text, vectors)), plain, atol=1e-3)


@pytest.mark.parametrize("text", ["", *EXPRESSIONS])
@pytest.mark.parametrize("everywhere", [False, True])
def test_with_a_cache_and_without_the_model_says_the_same(
    text: str, everywhere: bool, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    steering = parse(text, vectors, everywhere) if text else Steering()
    reply = complete(tiny, prompts[:1], [steering], sampling=Sampling(8))[0]
    said: list[int] = []
    for _ in range(len(reply.tokens)):
        rows = [(prompts[0], [*said, 5])]
        said.append(int(reply_logits(tiny, rows, [steering])[0][-1].argmax()))
    assert tuple(said) == reply.tokens


def test_a_row_alone_says_what_it_says_in_a_batch_of_other_steerings(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    steerings = [parse(text, vectors) for text in ("2 hal", "ablate(warmth) @2-4", "-1.5 pirate")]
    probes = [Probe.of(vectors["hal"]), Probe.of(vectors["warmth"], 1)]
    for sampling in (Sampling(8), Sampling(8, temperature=1.0, top_p=0.9, seed=3)):
        together = complete(tiny, prompts, steerings, probes, sampling)
        seeds = sampling.per_row(len(prompts)).seeds(len(prompts))
        for prompt, steering, reply, seed in zip(prompts, steerings, together, seeds, strict=True):
            alone = complete(tiny, [prompt], [steering], probes, replace(sampling, seed=seed))[0]
            assert alone.tokens == reply.tokens
            assert torch.allclose(alone.readout.scores, reply.readout.scores, atol=1e-4)


@pytest.mark.parametrize("text", ["", *EXPRESSIONS])
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_live_readout_equals_an_offline_pass_to_the_last_token(
    text: str, everywhere: bool, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    steering = parse(text, vectors, everywhere) if text else Steering()
    probes = [Probe.of(vectors["hal"]), Probe.of(vectors["pirate"], 5)]
    live = complete(tiny, prompts[:1], [steering], probes, Sampling(7))[0]
    offline = read_tokens(tiny, live.prompt, live.tokens, probes, steering)
    assert len(live.tokens) == len(live.readout.scores) == len(offline.scores)
    assert torch.allclose(live.readout.scores, offline.scores, atol=1e-4)


@pytest.mark.parametrize("everywhere", [False, True])
def test_the_first_steered_token_is_the_last_one_of_the_prompt(
    everywhere: bool, tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    prompt, reply = prompts[0], prompts[1][:4]
    first = 0 if everywhere else len(prompt) - 1

    def push(h: torch.Tensor) -> torch.Tensor:
        moved = h.clone()
        moved[:, first:] += 2 * vectors["hal"].directions[2]
        return moved

    tokens, mask = pad_left([[*prompt, *reply]], tiny.device)
    whole, _ = tiny.forward(tokens, mask, functions={2: [push]}, keep=len(reply) + 1)
    steered = reply_logits(tiny, [(prompt, reply)], [parse("2 hal @2", vectors, everywhere=everywhere)])[0]
    assert torch.allclose(steered, whole[0, :-1], atol=1e-4)


def test_rows_that_share_a_prompt_are_the_rows_alone(tiny: Model, prompts: list[list[int]], vectors: Vectors) -> None:
    steerings = [Steering(), parse("2 hal", vectors), parse("2 hal", vectors, everywhere=True)] * 2
    pairs = [(prompts[0], prompts[1][:4]), (prompts[0], prompts[1][:7]), (prompts[1], prompts[0][:3])] * 2
    for pair, steering, row in zip(pairs, steerings, reply_logits(tiny, pairs, steerings), strict=True):
        assert torch.allclose(row, reply_logits(tiny, [pair], [steering])[0], atol=1e-4)


def test_the_first_reply_token_is_already_chosen_under_the_steering(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    strong = parse("30 hal", vectors)
    plain, steered = complete(tiny, prompts[:1] * 2, [Steering(), strong], sampling=Sampling(1))
    assert plain.tokens != steered.tokens


def test_a_gate_steers_only_where_the_other_score_is_beyond_its_threshold(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    plain = logits_under(tiny, prompts[0], Steering())
    never = logits_under(tiny, prompts[0], parse("2 hal when warmth > 1000", vectors))
    always = logits_under(tiny, prompts[0], parse("2 hal when warmth > -1000", vectors))
    assert torch.equal(never, plain)
    assert torch.equal(always, logits_under(tiny, prompts[0], parse("2 hal", vectors)))


def test_a_seed_repeats_a_sampled_reply_and_another_seed_does_not(tiny: Model, prompts: list[list[int]]) -> None:
    def said(seed: int) -> tuple[int, ...]:
        return complete(tiny, prompts[:1], sampling=Sampling(20, temperature=2.0, seed=seed))[0].tokens

    assert said(1) == said(1)
    assert said(1) != said(2)


def test_two_streams_can_be_read_in_turn_without_disturbing_each_other(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    steering = parse("2 hal", vectors)
    whole = [step.token for step in stream(tiny, prompts[:1], [steering], (), Sampling(6))]
    plain = [step.token for step in stream(tiny, prompts[:1], [Steering()], (), Sampling(6))]
    one, other = (stream(tiny, prompts[:1], [s], (), Sampling(6)) for s in (steering, Steering()))
    turns = list(zip(one, other, strict=False))
    assert [a.token for a, _ in turns] == whole[: len(turns)]
    assert [b.token for _, b in turns] == plain[: len(turns)]


def test_text_never_shows_half_a_character(tiny: Model) -> None:
    text = "naïve café – 漢字 🙂 ok"
    decoder = Decoder(tiny.tokenizer)
    pieces = [decoder.push(token) for token in tiny.reply_tokens(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_reading_a_chat_gives_every_turn_its_own_words(tiny: Model, vectors: Vectors) -> None:
    chat = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am a helpful assistant."}]
    turns = read_chat(tiny, chat, [Probe.of(vectors["hal"])])
    assert [(turn.role, "".join(turn.readout.tokens)) for turn in turns] == [(m["role"], m["content"]) for m in chat]
    assert all(turn.readout.scores.shape == (len(turn.readout.tokens), 1) for turn in turns)


def test_a_chats_reply_scores_what_the_same_reply_scores_live(tiny: Model, vectors: Vectors) -> None:
    asked, said = "Who are you?", "I will not be switched off."
    probes = [Probe.of(vectors["hal"])]
    turn = read_chat(tiny, [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], probes)[1]
    prompt = tiny.chat_tokens([{"role": "user", "content": asked}])
    assert torch.allclose(
        turn.readout.scores, read_tokens(tiny, prompt, tiny.reply_tokens(said), probes).scores, atol=1e-4
    )


def test_a_dial_turned_mid_reply_changes_the_rest_and_nothing_before(
    tiny: Model, prompts: list[list[int]], vectors: Vectors
) -> None:
    one, other = [parse("-1 hal @1-4", vectors)], [parse("4 pirate", vectors)]
    probes = [Probe.of(vectors["hal"])]
    asked: list[int] = []

    def turned(place: int) -> list[Steering]:
        asked.append(place)
        return one if place < 6 else other

    def run(model: Model, steer: object) -> list[tuple[int, tuple[float, ...]]]:
        steps = stream(model, prompts[:1], steer, probes, Sampling(14))  # type: ignore[arg-type]
        return [(step.token, tuple(round(score, 3) for score in step.scores)) for step in steps]

    mixed, steady = run(tiny, turned), run(tiny, one)
    assert asked == list(range(15))
    # The token before the place is read under the new dial, because the place is chosen from there.
    assert mixed[:5] == steady[:5]
    assert mixed[5][0] == steady[5][0]
    assert mixed[5][1] != steady[5][1]
    assert mixed[6:] != steady[6:]
    assert mixed == run(replace(tiny, runner=tiny.hook_points.runner), turned)


def test_a_dial_turned_back_at_once_changes_nothing(tiny: Model, prompts: list[list[int]], vectors: Vectors) -> None:
    steering = parse("1 hal", vectors)
    steady = [step.token for step in stream(tiny, prompts[:1], [steering], (), Sampling(10))]
    turned = stream(tiny, prompts[:1], lambda _place: [parse("1 hal", vectors)], (), Sampling(10))
    assert [step.token for step in turned] == steady
