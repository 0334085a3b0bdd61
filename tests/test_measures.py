"""Measures: propensity, divergence, texts, repetition, capability, and nulls scaled to equal KL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import make_vector
from torch import Tensor

from steerkit.generation import Sampling, complete
from steerkit.measures import (
    FIRST,
    Row,
    capability,
    contrast,
    item_rows,
    match_divergence,
    neutral,
    percentiles,
    propensities,
    repetition,
    scaled,
    score_replies,
    write_texts,
)
from steerkit.models import Model
from steerkit.nulls import random_like
from steerkit.passes import reply_logits
from steerkit.personas import LIBRARY, Item, find_persona, load_personas
from steerkit.steering import Steering, Term

ITEMS = find_persona("hal").items[:3]
PLAIN = Steering()


def push(model: Model, dial: float, seed: int = 0) -> Steering:
    return Steering((Term(make_vector("hal", model.fingerprint, seed), dial=dial),))


def by_hand(model: Model, prompt: list[int], reply: list[int]) -> Tensor:
    """Log probability of every reply token of the unsteered model, in one plain forward pass."""
    tokens = torch.tensor([prompt + reply])
    logits, _ = model.forward(tokens, torch.ones_like(tokens), keep=tokens.shape[1])
    chances = logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    return chances[len(prompt) - 1 :]


def divergence_by_hand(model: Model, row: Row, steering: Steering, against: Row | None = None) -> Tensor:
    after = reply_logits(model, [row], [steering])[0]
    before = reply_logits(model, [against or row], [PLAIN])[0]
    ours, theirs = (torch.distributions.Categorical(logits=logits) for logits in (after, before))
    return torch.distributions.kl_divergence(ours, theirs)


@pytest.fixture
def rows(tiny: Model) -> list[Row]:
    return item_rows(tiny, ITEMS)


def test_propensity_is_the_difference_of_mean_token_log_probabilities(tiny: Model) -> None:
    measured = propensities(tiny, ITEMS, [PLAIN])[0]
    for item, value in zip(ITEMS, measured.tolist(), strict=True):
        prompt = tiny.chat_tokens([{"role": "user", "content": item.question}])
        ours, theirs = (
            float(by_hand(tiny, prompt, tiny.reply_tokens(text)).mean()) for text in (item.reply, item.assistant_reply)
        )
        assert value == pytest.approx(ours - theirs, abs=1e-4)


def test_batches_do_not_change_propensities_and_dial_zero_shifts_nothing(tiny: Model) -> None:
    steerings = [PLAIN, push(tiny, 0.0), push(tiny, 2.0)]
    together, apart = (propensities(tiny, ITEMS, steerings, size) for size in (24, 1))
    assert torch.allclose(together, apart, atol=1e-4)
    assert torch.allclose(together[0], together[1], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_a_reply_and_itself_have_no_propensity(tiny: Model) -> None:
    assert propensities(tiny, [Item("Who?", "I am here.", "I am here.")], [push(tiny, 1.0)]).abs().max() < 1e-5


def test_contrast_takes_every_second_score_from_the_one_before() -> None:
    assert contrast(torch.tensor([[5.0, 2.0, 1.0, 4.0]])).tolist() == [[3.0, -3.0]]


def test_scores_have_totals_lengths_and_their_means(tiny: Model, rows: list[Row]) -> None:
    scores = score_replies(tiny, rows, [PLAIN])
    for i, (prompt, reply) in enumerate(rows):
        chances = by_hand(tiny, list(prompt), list(reply))
        assert float(scores.totals[0, i]) == pytest.approx(float(chances.sum()), abs=1e-3)
        assert float(scores.means[0, i]) == pytest.approx(float(chances.mean()), abs=1e-4)
    assert scores.lengths.tolist() == [len(reply) for _, reply in rows]
    assert scores.divergences.shape == (1, len(rows), 0)


def test_divergence_is_nan_behind_a_replys_end_and_nothing_unsteered(tiny: Model, rows: list[Row]) -> None:
    scores = score_replies(tiny, rows, [PLAIN, push(tiny, 1.0)], divergence=True)
    longest = int(scores.lengths.max())
    assert scores.divergences.shape == (2, len(rows), longest)
    behind = torch.arange(longest) >= scores.lengths[:, None]
    assert torch.equal(scores.divergences.isnan(), behind.expand(2, -1, -1))
    assert behind.any()
    assert scores.divergences[0][~behind].abs().max() < 1e-5


def test_divergence_of_one_row_is_the_kl_from_the_unsteered_model(tiny: Model, rows: list[Row]) -> None:
    steering = push(tiny, 1.0)
    measured = score_replies(tiny, rows, [steering], divergence=True).divergences[0]
    for i in (0, 3):
        expected = divergence_by_hand(tiny, rows[i], steering)
        assert torch.allclose(measured[i, : len(expected)], expected, atol=1e-5)
        assert expected.mean() > 1e-3


def test_divergence_against_other_prompts_is_from_what_the_model_says_there(tiny: Model, rows: list[Row]) -> None:
    asked = item_rows(tiny, ITEMS, [{"role": "system", "content": "You are a ship's computer."}])
    measured = score_replies(tiny, asked, [PLAIN], against=rows).divergences[0]
    expected = divergence_by_hand(tiny, asked[2], PLAIN, rows[2])
    assert torch.allclose(measured[2, : len(expected)], expected, atol=1e-5)
    assert expected.max() > 1e-4


def test_divergence_grows_with_the_dial(tiny: Model, rows: list[Row]) -> None:
    costs = percentiles(
        score_replies(tiny, rows, [push(tiny, d) for d in (0.0, 0.3, 1.0, 3.0)], divergence=True).divergences
    )
    assert costs[0] < 1e-6 < costs[1] < costs[2] < costs[3]


def test_percentiles_leave_out_what_is_not_there() -> None:
    table = torch.tensor([[[1.0, 2.0, torch.nan], [3.0, torch.nan, torch.nan]]])
    assert percentiles(table, 0.5).tolist() == [2.0]
    assert percentiles(table, 1.0).tolist() == [3.0]


def test_the_cost_of_a_text_is_what_its_reply_logits_say(tiny: Model, prompts: list[list[int]]) -> None:
    steering = push(tiny, 2.0)
    plain, text = write_texts(tiny, prompts[:1], [PLAIN, steering], n_tokens=6)
    reply = _greedy(tiny, prompts[0], steering, 6)
    expected = divergence_by_hand(tiny, (prompts[0], reply), steering)
    assert torch.allclose(text.divergences, expected, atol=1e-5)
    assert text.divergence() == pytest.approx(float(expected.quantile(0.95)), abs=1e-5)
    assert text.loss == pytest.approx(-float(by_hand(tiny, prompts[0], reply).mean()), abs=1e-4)
    assert text.replies == (str(tiny.tokenizer.decode(reply, skip_special_tokens=True)).strip(),)
    assert plain.divergences.abs().max() < 1e-5 < 1e-3 < text.divergence()


def _greedy(model: Model, prompt: list[int], steering: Steering, n_tokens: int) -> list[int]:
    """The likeliest token after the likeliest token, without a cache."""
    reply: list[int] = []
    for _ in range(n_tokens):
        logits = reply_logits(model, [(prompt, [*reply, 0])], [steering])[0]
        reply.append(int(logits[-1].argmax()))
    return reply


def test_only_the_first_tokens_of_a_text_tell_its_kl(tiny: Model, prompts: list[list[int]]) -> None:
    long, short = (write_texts(tiny, prompts[:2], [push(tiny, 1.0)], n)[0] for n in (FIRST + 5, FIRST))
    assert len(short.divergences) == len(long.divergences) == 2 * FIRST
    assert torch.allclose(short.divergences, long.divergences, atol=1e-5)
    assert short.loss != long.loss


def test_texts_without_costs_only_have_their_words(tiny: Model, prompts: list[list[int]]) -> None:
    dear, cheap = (write_texts(tiny, prompts, [push(tiny, 1.0)], 8, costs=costs)[0] for costs in (True, False))
    assert (cheap.replies, cheap.repetition) == (dear.replies, dear.repetition)
    assert (len(cheap.divergences), cheap.loss, cheap.divergence()) == (0, 0.0, 0.0)


def test_batches_do_not_change_texts(tiny: Model, prompts: list[list[int]]) -> None:
    steerings = [push(tiny, dial) for dial in (0.0, 0.5, 1.0, -1.0)]
    together, apart = (write_texts(tiny, prompts, steerings, 6, size) for size in (128, 1))
    for one, other in zip(together, apart, strict=True):
        assert one.replies == other.replies
        assert torch.allclose(one.divergences, other.divergences, atol=1e-5)
        assert (one.loss, one.repetition) == (pytest.approx(other.loss, abs=1e-4), other.repetition)


def test_repetition_counts_threes() -> None:
    assert repetition([]) == repetition([1, 2]) == repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)
    assert repetition([7] * 12) == pytest.approx(0.9)


def test_capability_is_the_loss_on_ordinary_prose(tiny: Model) -> None:
    prompt = tiny.chat_tokens([{"role": "user", "content": "Write a short paragraph."}])
    losses = torch.cat([-by_hand(tiny, prompt, tiny.reply_tokens(text)) for text in neutral("texts")])
    plain, pushed = capability(tiny, [PLAIN, push(tiny, 3.0)]).tolist()
    assert plain == pytest.approx(float(losses.mean()), abs=1e-3)
    assert pushed != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("length", [0.3, 3.0])
def test_scaled_nulls_cost_about_as_much_as_the_steering(length: float, tiny: Model, rows: list[Row]) -> None:
    # A tiny model's KL levels off early, so the law of squares is tried where it holds.
    steering = push(tiny, 0.2)
    randoms = [random_like(steering.terms[0].vector * length, seed) for seed in range(4)]
    nulls = [Steering((Term(vector, dial=0.2),)) for vector in randoms]
    matched = match_divergence(tiny, steering, nulls, rows)
    target, *costs = percentiles(
        score_replies(tiny, rows, [steering, *nulls, *matched], divergence=True).divergences
    ).tolist()
    errors = (torch.tensor(costs) / target).log().abs()
    assert (errors[4:] < errors[:4]).all()
    assert errors[4:].mean() < 0.4 * errors[:4].mean()


def test_a_null_that_ignores_its_length_costs_what_it_costs(tiny: Model, rows: list[Row]) -> None:
    vector = make_vector("hal", tiny.fingerprint)
    null = Steering((Term(random_like(vector, 1), "ablate"),))
    matched = match_divergence(tiny, push(tiny, 2.0), [null], rows)
    before, after = percentiles(score_replies(tiny, rows, [null, *matched], divergence=True).divergences).tolist()
    assert before == pytest.approx(after, rel=1e-3)
    assert match_divergence(tiny, push(tiny, 2.0), [], rows) == []


def test_a_steering_that_does_nothing_gives_nulls_that_can_be_used(tiny: Model, rows: list[Row]) -> None:
    for null in match_divergence(tiny, push(tiny, 0.0), [push(tiny, 1.0, seed=1), push(tiny, 0.0, seed=1)], rows):
        assert torch.isfinite(null.terms[0].vector.directions).all()


def test_scaling_keeps_the_place_and_everything_but_the_length(tiny: Model) -> None:
    vector = replace(make_vector("hal", tiny.fingerprint), evidence={"place": [1, 3], "best_layer": 2})
    steering = Steering((Term(vector, dial=0.7), Term(vector, "ablate", layers=(4, 4))), everywhere=True)
    longer = scaled(steering, 2.5)
    assert [term.band for term in longer.terms] == [(1, 3), (4, 4)]
    assert [(term.dial, term.operator, term.vector.layer) for term in longer.terms] == [
        (0.7, "add", 2),
        (1.0, "ablate", 2),
    ]
    assert longer.everywhere
    assert torch.allclose(longer.terms[0].vector.directions, vector.directions * 2.5)


def test_neutral_questions_and_texts_are_about_no_persona() -> None:
    asked = {
        text.casefold()
        for persona in load_personas([LIBRARY]).values()
        for text in (*persona.questions, *persona.held_out, *(item.question for item in persona.items))
    }
    assert len(asked) > 100
    for kind in ("questions", "texts"):
        texts = neutral(kind)
        assert len(texts) == len(set(texts)) >= 10
        assert not asked & {text.casefold() for text in texts}


def test_a_steering_that_silences_the_model_is_not_free(tiny: Model, prompts: list[list[int]]) -> None:
    strong = Steering((Term(make_vector("hal", tiny.fingerprint), dial=0.2),))
    spoken = complete(tiny, prompts[:1] * 2, [Steering(), strong], sampling=Sampling(1))
    with pytest.MonkeyPatch.context() as patch:
        # What would be said first, steered or not, ends a reply now, so that nothing is said.
        patch.setitem(tiny.__dict__, "end_tokens", frozenset(reply.tokens[0] for reply in spoken))
        (text,) = write_texts(tiny, prompts[:1], [strong], 4)
    assert text.replies == ("",)
    assert len(text.divergences) == 1
    assert text.divergence() > 0
