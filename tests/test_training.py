"""Training: a displacement that learns its lessons for a price, and leaves everything else as it was."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_vector

from steerkit import training
from steerkit.errors import SteerkitError
from steerkit.extraction import Recipe, extract
from steerkit.measures import contrast, score_replies
from steerkit.models import Model
from steerkit.personas import Pair, find_pair, find_persona
from steerkit.steering import Steering, Term
from steerkit.training import Lesson, Schedule, middle_band, train
from steerkit.vectors import SteeringVector

SCHEDULE = Schedule(steps=8, batch=4, longest=8)


@pytest.fixture(scope="module")
def lessons(tiny: Model) -> list[Lesson]:
    return [
        Lesson(
            tuple(tiny.chat_tokens([{"role": "user", "content": item.question}])),
            tuple(tiny.reply_tokens(item.reply)),
            tuple(tiny.reply_tokens(item.assistant_reply)),
        )
        for item in find_persona("hal").items[:4]
    ]


@pytest.fixture(scope="module")
def start(tiny: Model) -> SteeringVector:
    # Short, so that KL still grows as the square of the dial; a tiny model's levels off early.
    return replace(make_vector("hal", tiny.fingerprint, length=0.6), evidence={"pair_agreement": [0.5] * 6})


@pytest.fixture(scope="module")
def trained(tiny: Model, start: SteeringVector, lessons: list[Lesson]) -> SteeringVector:
    return train(tiny, start, lessons, SCHEDULE)


def at(model: Model, vector: SteeringVector, dial: float) -> Steering:
    return Steering((Term(vector, dial=dial, layers=middle_band(model.n_layers)),))


def preference(model: Model, vector: SteeringVector, lessons: list[Lesson]) -> float:
    """How much more the positive replies gain at dial 1 than at dial −1, in nats a token."""
    cut = SCHEDULE.longest
    rows = [(one.prompt, reply[:cut]) for one in lessons for reply in (one.positive, one.negative)]
    up, down = contrast(score_replies(model, rows, [at(model, vector, dial) for dial in (1.0, -1.0)]).means).mean(-1)
    return float(up - down) / 2


def cost(model: Model, vector: SteeringVector, lessons: list[Lesson]) -> float:
    rows = [(one.prompt, one.negative[: SCHEDULE.longest]) for one in lessons]
    return float(score_replies(model, rows, [at(model, vector, 1.0)], divergence=True).divergences.nanmean())


def test_training_costs_what_the_mean_difference_costs_and_prefers_its_lessons(
    tiny: Model, start: SteeringVector, trained: SteeringVector, lessons: list[Lesson]
) -> None:
    assert cost(tiny, trained, lessons) == pytest.approx(cost(tiny, start, lessons), rel=0.15)
    gain = preference(tiny, trained, lessons) - preference(tiny, start, lessons)
    assert gain > 0
    # The control: lessons whose two replies are one teach no preference.
    idle = [replace(lesson, negative=lesson.positive) for lesson in lessons]
    taught = train(tiny, start, idle, SCHEDULE)
    assert abs(preference(tiny, taught, idle)) < 1e-5
    assert abs(preference(tiny, taught, lessons) - preference(tiny, start, lessons)) < gain / 4


def test_lessons_the_other_way_round_teach_the_opposite(
    tiny: Model, start: SteeringVector, lessons: list[Lesson]
) -> None:
    turned = [replace(lesson, positive=lesson.negative, negative=lesson.positive) for lesson in lessons]
    found = train(tiny, start, turned, SCHEDULE)
    assert preference(tiny, found, lessons) < preference(tiny, start, lessons)


def test_both_signs_of_the_dial_take_turns(
    tiny: Model, start: SteeringVector, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    dials, loss = [], training._loss

    def spied(*args: object) -> torch.Tensor:
        dials.append(args[3])
        return loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_loss", spied)
    train(tiny, start, lessons, replace(SCHEDULE, steps=4))
    assert dials == [1.0, -1.0, 1.0, -1.0]


def test_training_leaves_the_weights_alone(tiny: Model, start: SteeringVector, lessons: list[Lesson]) -> None:
    def digest() -> str:
        hashed = hashlib.sha256()
        for name, weight in sorted(tiny.bridge.original_model.state_dict().items()):
            hashed.update(name.encode() + weight.numpy().tobytes())
        return hashed.hexdigest()

    before = digest()
    train(tiny, start, lessons, replace(SCHEDULE, steps=2))
    assert digest() == before
    assert all(p.grad is None and not p.requires_grad for p in tiny.bridge.original_model.parameters())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tiny: Model, start: SteeringVector, lessons: list[Lesson], tmp_path: Path
) -> None:
    short = replace(SCHEDULE, steps=4, batch=2)
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        train(tiny, start, lessons, short, seed).save(tmp_path / name)
    one, same, other = ((tmp_path / name).read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_only_the_middle_band_is_trained_and_it_is_the_place(
    tiny: Model, start: SteeringVector, trained: SteeringVector
) -> None:
    first, last = middle_band(tiny.n_layers)
    assert trained.place == (first, last)
    assert first <= trained.layer <= last
    assert torch.equal(trained.directions[:first], start.directions[:first])
    assert not torch.allclose(trained.directions[first], start.directions[first], rtol=1e-2)
    for l in range(last, tiny.n_layers):
        assert torch.equal(trained.directions[l], trained.directions[last])
    assert torch.equal(trained.baseline, start.baseline)
    assert trained.evidence["pair_agreement"] == start.evidence["pair_agreement"]
    assert trained.provenance["training"]["layers"] == [first, last]
    assert not trained.directions.requires_grad


def test_above_the_band_the_last_displacement_stays(
    tiny: Model, start: SteeringVector, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "middle_band", lambda _n: (1, 3))
    found = train(tiny, start, lessons, replace(SCHEDULE, steps=2))
    assert found.place == (1, 3)
    assert torch.equal(found.directions[:1], start.directions[:1])
    assert torch.equal(found.directions[4:], found.directions[3].expand(2, -1))


def test_without_trust_in_what_was_learned_the_mean_difference_stays(
    tiny: Model, start: SteeringVector, lessons: list[Lesson]
) -> None:
    found = train(tiny, start, lessons, replace(SCHEDULE, steps=3, trust=0.0))
    band = slice(*middle_band(tiny.n_layers))
    assert torch.allclose(found.directions[band], start.directions[band], rtol=1e-2, atol=1e-3)


def test_a_batch_may_be_larger_than_all_lessons(tiny: Model, start: SteeringVector, lessons: list[Lesson]) -> None:
    told: list[tuple[str, int, int]] = []
    train(tiny, start, lessons[:1], Schedule(steps=2, longest=4), progress=lambda *done: told.append(done))
    assert told == [("train", 1, 2), ("train", 2, 2)]


@pytest.mark.parametrize("n_layers", [*range(1, 12), 30, 80])
def test_the_middle_band_is_within_the_model(n_layers: int) -> None:
    first, last = middle_band(n_layers)
    assert 0 <= first <= last < n_layers


def test_extraction_can_train(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "Schedule", partial(Schedule, steps=2))
    whole = find_pair("hal")
    pair = Pair(replace(whole.positive, questions=whole.positive.questions[:2]), whole.negative)
    mean, found = (extract(tiny, pair, Recipe(name, max_tokens=6)) for name in ("mean_diff", "trained"))
    assert (found.name, found.provenance["estimator"], found.provenance["n_pairs"]) == ("hal", "trained", 6)
    assert found.place == middle_band(tiny.n_layers)
    assert torch.equal(found.directions[0], mean.directions[0])
    assert torch.equal(found.baseline, mean.baseline)
    assert found.evidence["split_half"] == mean.evidence["split_half"]


def test_a_trained_direction_cannot_be_read_from_prompts() -> None:
    with pytest.raises(SteerkitError, match="leave out --reading prompt"):
        Recipe(estimator="trained", reading="prompt")
