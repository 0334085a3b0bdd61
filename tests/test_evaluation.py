"""Measures: propensity, divergence, repetition, and the random directions beside them."""

from __future__ import annotations

import pytest
import torch
from conftest import make_vector

from steerkit.evaluation import Shift, measure_shifts, propensities, random_like, repetition, token_divergence
from steerkit.models import Model
from steerkit.personas import Item, find_persona
from steerkit.steering import Steering, Term

ITEMS = find_persona("hal").items[:3]


def mean_log_probability(model: Model, question: str, reply: str) -> float:
    prompt = model.chat_tokens([{"role": "user", "content": question}])
    tokens = torch.tensor([prompt + model.reply_tokens(reply)])
    logits, _ = model.forward(tokens, torch.ones_like(tokens), keep=tokens.shape[1])
    chances = logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])[:, 0]
    return float(chances[len(prompt) - 1 :].mean())


def test_propensity_is_the_difference_of_mean_token_log_probabilities(tiny: Model) -> None:
    measured = propensities(tiny, ITEMS, [Steering()])[0]
    for item, value in zip(ITEMS, measured.tolist(), strict=True):
        ours, theirs = (mean_log_probability(tiny, item.question, r) for r in (item.reply, item.assistant_reply))
        assert value == pytest.approx(ours - theirs, abs=1e-4)


def test_batches_do_not_change_propensities_and_dial_zero_shifts_nothing(tiny: Model) -> None:
    vector = make_vector("hal", tiny.fingerprint)
    steerings = [Steering(), Steering((Term(vector, dial=0.0),)), Steering((Term(vector, dial=2.0),))]
    together, apart = (propensities(tiny, ITEMS, steerings, size) for size in (24, 1))
    assert torch.allclose(together, apart, atol=1e-4)
    assert torch.allclose(together[0], together[1], atol=1e-5)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_a_reply_and_itself_have_no_propensity(tiny: Model) -> None:
    assert propensities(tiny, [Item("Who?", "I am here.", "I am here.")], [Steering()]).abs().max() < 1e-5


def test_random_directions_are_as_long_and_do_not_repeat(tiny: Model) -> None:
    vector = make_vector("hal", tiny.fingerprint)
    one, same, other = random_like(vector, 1), random_like(vector, 1), random_like(vector, 2)
    assert torch.allclose(one.directions.norm(dim=-1), vector.directions.norm(dim=-1))
    assert torch.equal(one.directions, same.directions)
    assert not torch.allclose(one.directions, other.directions)


def test_shifts_come_with_their_null(tiny: Model) -> None:
    shifts = measure_shifts(tiny, make_vector("hal", tiny.fingerprint), ITEMS, (1.0, -1.0, 2.0), n_random=4)
    assert set(shifts) == {1.0, -1.0, 2.0}
    assert all(shift.null.shape == (4,) and shift.per_item.shape == (3,) for shift in shifts.values())
    assert torch.equal(shifts[1.0].null, shifts[-1.0].null)
    assert not torch.equal(shifts[1.0].null, shifts[2.0].null)


def test_a_random_direction_is_not_beyond_others_like_it(tiny: Model) -> None:
    beyond = [
        shift.beats_null or shift.below_null
        for seed in range(3)
        for shift in measure_shifts(
            tiny, random_like(make_vector("x", tiny.fingerprint), 100 + seed), ITEMS, (1.0,), n_random=20
        ).values()
    ]
    assert not all(beyond)


def test_a_shift_knows_which_way_its_items_went() -> None:
    shift = Shift(torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([-0.1, 0.2]))
    assert (shift.mean, shift.right_way, shift.beats_null, shift.below_null) == (0.5, 0.75, True, False)


def test_divergence_is_nothing_unsteered_and_grows_with_the_dial(tiny: Model, prompts: list[list[int]]) -> None:
    vector = make_vector("hal", tiny.fingerprint)
    means = [
        float(token_divergence(tiny, prompts, Steering((Term(vector, dial=dial),)), 6).mean())
        for dial in (0.0, 1.0, 4.0)
    ]
    assert means[0] == pytest.approx(0, abs=1e-6)
    assert 0 < means[1] < means[2]


def test_repetition_counts_threes() -> None:
    assert repetition([]) == repetition([1, 2, 3]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(0.25)
