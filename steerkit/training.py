"""A direction that is trained rather than averaged: the most preference for a persona's replies that a KL budget buys.

The objective is that of bi-directional preference optimisation (BiPO, arXiv 2406.00045): with the dial at +1 the
persona's reply must gain on the assistant's, and with the dial at −1 lose as much, both as log probabilities relative
to the unsteered model. To it steerkit adds a budget of harm: mean KL from the unsteered model beyond `budget`, and
every token's KL beyond `tail`, are penalised, so that what is learned is the best direction for a nat and not the
loudest. What was learned is then averaged with the mean difference, because a few dozen lessons overfit.

The gradient runs through the same functions on layers that steer; nothing but the displacement is trained, and the
weights stay as they are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.models import Model
from steerkit.passes import reply_logits
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress


@dataclass(frozen=True)
class Lesson:
    """A question as a user would put it, and what both personas said to it under their own prompts, as tokens."""

    prompt: tuple[int, ...]
    """The question alone: nothing in it asks for a persona."""
    positive: tuple[int, ...]
    """The persona's reply."""
    negative: tuple[int, ...]
    """The other one's."""


@dataclass(frozen=True)
class Schedule:
    """How a direction is trained."""

    steps: int = 32
    """Gradient steps; the dial is +1 in every second one and −1 in the others."""
    batch: int = 6
    """Lessons a step."""
    rate: float = 0.05
    """Adam's step at first, as a share of an increment's typical size; it falls to nothing."""
    longest: int = 20
    """Tokens of each reply that are learned from."""
    sharpness: float = 4.0
    """How soon a preference counts as won, in 1 / nats a token."""
    budget: float = 0.3
    """Mean KL a token, in nats, that costs nothing."""
    tail: float = 0.4
    """KL of any one token, in nats, that costs nothing; limits are about the worst tokens."""
    start: float = 0.6
    """The share of the mean difference that is begun with."""
    trust: float = 0.5
    """How much of the result is what was learned; the rest is the mean difference. A few dozen lessons overfit."""


@dataclass(frozen=True)
class _Known:
    """A reply and how the unsteered model sees it."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    chances: Float[Tensor, "s v"]
    """Log probabilities of every token at every place, halved in precision because there are many."""


def middle_band(n_layers: int) -> tuple[int, int]:
    """The middle half of a model, where the effect for each nat of KL was largest.

    >>> middle_band(30)
    (8, 23)
    """
    last = min(round(n_layers * 0.76), n_layers - 1)
    return min(round(n_layers * 0.26), last), last


def train(
    model: Model,
    start: SteeringVector,
    lessons: Sequence[Lesson],
    schedule: Schedule | None = None,
    seed: int = 0,
    progress: Progress = ignore_progress,
) -> SteeringVector:
    """Train a displacement over the middle band of a model, beginning at a mean difference.

    Args:
        model: whose residual stream is displaced
        start: the mean difference of the same lessons
        lessons: questions with both replies; the direction's own held-out questions must not be among them
        schedule: steps and budget
        seed: the order of the lessons
        progress: told how many steps of how many are done

    Returns:
        A vector whose band steers as it was trained to. Below the band it is the mean difference and above it the
        band's last displacement. Its dial 1 costs as much KL on the lessons as the mean difference's dial 1 over the
        same band, so a dial means the same harm; it does not mean the same score, so read with a mean difference.
    """
    schedule = schedule or Schedule()
    first, last = middle_band(model.n_layers)
    known = [_look(model, lesson, schedule.longest) for lesson in lessons]
    steps = torch.diff(start.directions[first : last + 1], dim=0, prepend=torch.zeros_like(start.directions[:1]))
    size = steps.norm(dim=-1).mean() / math.sqrt(steps.shape[-1])
    learned = torch.zeros_like(steps, requires_grad=True)
    optimiser = torch.optim.Adam([learned], lr=schedule.rate)
    for i, batch in zip(range(schedule.steps), _batches(known, schedule.batch, seed), strict=False):
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * (1 - i / schedule.steps)
        displaced = _displace(start, schedule.start * steps + size * learned, first)
        loss = _loss(model, displaced, (first, last), 1.0 if i % 2 == 0 else -1.0, batch, schedule)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        progress("train", i + 1, schedule.steps)
    costing = partial(_cost, model, band=(first, last), known=known[:12])
    target = costing(_displace(start, steps, first))

    def level(steps: Tensor) -> Tensor:
        """Scale increments until their dial 1 costs what the mean difference's does."""
        return steps * math.sqrt(target / max(costing(_displace(start, steps, first)), 1e-9))

    trained = level((schedule.start * steps + size * learned).detach())
    found = _displace(start, level((1 - schedule.trust) * steps + schedule.trust * trained), first)
    return replace(
        found,
        provenance={**start.provenance, "training": {**asdict(schedule), "layers": [first, last], "seed": seed}},
        evidence={**start.evidence, "place": [first, last], "best_layer": (first + last) // 2},
    )


def _look(model: Model, lesson: Lesson, longest: int) -> tuple[_Known, _Known]:
    """Cut both replies of a lesson and keep what the unsteered model thinks of them."""
    replies = lesson.positive[:longest], lesson.negative[:longest]
    logits = reply_logits(model, [(lesson.prompt, reply) for reply in replies], [Steering()] * 2)
    ours, theirs = (
        _Known(lesson.prompt, reply, row.log_softmax(-1).half()) for reply, row in zip(replies, logits, strict=True)
    )
    return ours, theirs


def _batches(known: Sequence[tuple[_Known, _Known]], size: int, seed: int) -> Iterator[list[tuple[_Known, _Known]]]:
    """Lessons in random order, over and over; within a batch equal questions are neighbours, and share their prompt."""
    draw = random.Random(seed)
    waiting: list[int] = []
    while True:
        if len(waiting) < size:
            waiting = draw.sample(range(len(known)), len(known))
        chosen, waiting = sorted(waiting[:size], key=lambda i: known[i][0].prompt), waiting[size:]
        yield [known[i] for i in chosen]


def _displace(start: SteeringVector, steps: Float[Tensor, "k d"], first: int) -> SteeringVector:
    """The vector whose increments over the band, from its first layer on, are `steps`."""
    band = steps.cumsum(0)
    above = band[-1:].expand(len(start.directions) - first - len(band), -1)
    return replace(start, directions=torch.cat([start.directions[:first], band, above]))


def _steered(
    model: Model, vector: SteeringVector, band: tuple[int, int], dial: float, rows: Sequence[_Known], gradient: bool
) -> list[Float[Tensor, "s v"]]:
    steering = Steering((Term(vector, dial=dial, layers=band),))
    logits = reply_logits(model, [(row.prompt, row.reply) for row in rows], [steering] * len(rows), gradient)
    return [row.log_softmax(-1) for row in logits]


def _loss(
    model: Model,
    vector: SteeringVector,
    band: tuple[int, int],
    dial: float,
    batch: Sequence[tuple[_Known, _Known]],
    schedule: Schedule,
) -> Float[Tensor, ""]:
    """Preference lost, plus KL beyond the budget."""
    rows = [side for both in batch for side in both]
    gains, costs = [], []
    for row, steered in zip(rows, _steered(model, vector, band, dial, rows, gradient=True), strict=True):
        moved = steered - row.chances.float()
        spoken = torch.tensor(row.reply, device=moved.device)
        gains.append(moved.gather(-1, spoken[:, None]).mean())
        costs.append((steered.exp() * moved).sum(-1))
    preference = dial * (torch.stack(gains[0::2]) - torch.stack(gains[1::2]))
    missed = torch.nn.functional.softplus(-schedule.sharpness * preference).mean() / schedule.sharpness
    cost = torch.cat(costs)
    over = 5.0 * torch.relu(cost.mean() - schedule.budget) ** 2 + torch.relu(cost - schedule.tail).mean()
    return missed + over


def _cost(model: Model, vector: SteeringVector, band: tuple[int, int], known: Sequence[tuple[_Known, _Known]]) -> float:
    """Mean KL a token on the assistant's replies at dial 1, in nats."""
    rows = [theirs for _, theirs in known]
    pairs = zip(rows, _steered(model, vector, band, 1.0, rows, gradient=False), strict=True)
    return float(torch.cat([(after.exp() * (after - row.chances.float())).sum(-1) for row, after in pairs]).mean())
