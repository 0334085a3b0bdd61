"""How much better a persona matches itself than it matches others, in two ways of moving a model. No model runs here.

What all personas share would match for any two of them, and so would how much of it each has: the mean direction of
each way is taken out of it first, which also makes the mean zero. One persona then points away from the others by
−1/(p − 1) on average, even in a perfect match; the margin is scaled by (p − 1)/p, so that this is 1 and nothing is 0.

What is resampled stands in front, [n …], and the first of the n is everything once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from steerkit.experiments import NO, UNKNOWN, YES, judge
from steerkit.experiments.resampling import interval, rounded_interval
from steerkit.experiments.thresholds import CONFIDENCE, MATCH

AT_ONCE = 100
"""Resamples that are held in memory."""
EXCHANGES = 999
"""Random exchanges of labels, where there are more than so many."""

Drawn = Callable[[Tensor], Tensor]
"""Where p personas are moved, [n p d], given how often each question or item is drawn, [n s]."""
Statistic = Callable[[Tensor, Tensor], Tensor]
"""Of cosines [n p p], given how often each persona is drawn [n p]."""


def draw_counts(size: int, n: int, draw: torch.Generator) -> Float[Tensor, "n size"]:
    """How often each row of an axis is drawn: once each, and then in n resamples.

    A draw of one row alone is everything once instead, because that row could be told from nothing.
    """
    counts = one_hot(torch.randint(size, (n, size), generator=draw), size).sum(1).double()
    counts[(counts > 0).sum(1) == 1] = 1.0
    return torch.cat([torch.ones(1, size, dtype=torch.float64), counts])


def places(deltas: Float[Tensor, "p q d"], counts: Float[Tensor, "n q"]) -> Float[Tensor, "n p d"]:
    """Means over the drawn questions; a way that was measured on none in particular has one for all."""
    deltas = deltas.double()
    if deltas.shape[1] == 1:
        return deltas[:, 0].expand(len(counts), -1, -1)
    return torch.einsum("pqd,nq->npd", deltas, counts / counts.sum(1, keepdim=True))


def patterns(shifts: Float[Tensor, "p i"], counts: Float[Tensor, "n i"]) -> Float[Tensor, "n p i"]:
    """Shifts of the drawn items less each persona's mean, so that their cosine is Pearson's r."""
    shifts, shares = shifts.double(), (counts / counts.sum(1, keepdim=True))[:, None]
    return (shifts - (shifts * shares).sum(-1, keepdim=True)) * shares.sqrt()


def without(rows: Float[Tensor, "n p d"], axis: Float[Tensor, "n 1 d"]) -> Float[Tensor, "n p d"]:
    """Rows without what they have of a direction of length 1."""
    return rows - (rows * axis).sum(-1, keepdim=True) * axis


def own_part(rows: Float[Tensor, "n p d"]) -> Float[Tensor, "n p d"]:
    """What each persona's row has besides the direction of their mean, of length 1."""
    return normalize(without(rows, shared_axis(rows)), dim=-1)


def shared_axis(rows: Float[Tensor, "n p d"]) -> Float[Tensor, "n 1 d"]:
    """The direction of the personas' mean."""
    return normalize(rows.mean(1, keepdim=True), dim=-1)


def matches(one: Float[Tensor, "n p d"], other: Float[Tensor, "n p d"]) -> Float[Tensor, "n p p"]:
    """Cosine of every persona's own part in one way with everyone's in the other."""
    return own_part(one) @ own_part(other).mT


def beyond_one_axis(one: Float[Tensor, "n p d"], other: Float[Tensor, "n p d"]) -> Float[Tensor, "n p p"]:
    """The same without the axis on which personas differ most: two camps on it would match, without being personas."""
    sides = own_part(one), own_part(other)
    axis = torch.linalg.svd(torch.cat(sides, dim=1), full_matrices=False).Vh[:, :1]
    left, right = (normalize(without(side, axis), dim=-1) for side in sides)
    return left @ right.mT


def same(cosines: Float[Tensor, "n p p"], counts: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """Mean match of a persona with itself."""
    return (cosines.diagonal(dim1=-2, dim2=-1) * counts).sum(-1) / counts.sum(-1)


def other(cosines: Float[Tensor, "n p p"], counts: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """Mean match of a persona with another one; that it was drawn twice does not make it another."""
    weights = counts[:, :, None] * counts[:, None, :] * (1 - torch.eye(counts.shape[1], dtype=torch.float64))
    return (cosines * weights).sum((-2, -1)) / weights.sum((-2, -1))


def margin(cosines: Float[Tensor, "n p p"], counts: Float[Tensor, "n p"] | None = None) -> Float[Tensor, " n"]:
    """By how much a persona matches itself better than others, of rows without what all share."""
    p = cosines.shape[-1]
    counts = torch.ones(len(cosines), p, dtype=torch.float64) if counts is None else counts
    return (same(cosines, counts) - other(cosines, counts)) * (p - 1) / p


def told(found: Float[Tensor, " n"], size: int) -> dict[str, float]:
    """A statistic and its interval, from its value and resamples of one axis that were computed in one go behind it.

    A mean over drawn questions is noisier than the mean over all of them, and so matches less; the resamples are moved
    by how much they are lower on average.
    """
    value = found[0]
    moved = iter([float(value), *(found[1:] - (found[1:].mean() - value)).tolist()])
    return interval(lambda _: next(moved), [size], len(found) - 1, torch.Generator())


def told_both(
    statistic: Statistic, cosines: Float[Tensor, "n p p"], personas: Float[Tensor, "m p"], size: int
) -> dict[str, float]:
    """A statistic and its interval over personas, and over questions or items, of which the cosines are resamples.

    Drawing from both axes at once counts three times what is particular to one persona on one item, and makes intervals
    more than twice as wide as the statistic scatters. So each axis is drawn alone, and both errors are joined.
    """
    one = told(statistic(cosines[:1].expand(len(personas), -1, -1), personas), personas.shape[1])
    other = told(statistic(cosines, torch.ones(len(cosines), personas.shape[1], dtype=torch.float64)), size)
    low, high = (math.hypot(one[end] - one["value"], other[end] - other["value"]) for end in ("low", "high"))
    return rounded_interval(one["value"], one["value"] - low, one["value"] + high)


def exchange_personas(cosines: Float[Tensor, "p p"], draw: torch.Generator) -> tuple[float, int]:
    """How often exchanged personas of one way match the other as well as the true ones, which are counted among them.

    Returns:
        The share p, and the number of exchanges.
    """
    size = len(cosines)
    if math.factorial(size) <= EXCHANGES + 1:
        orders = torch.tensor(list(itertools.permutations(range(size))))
    else:
        shuffled = torch.rand(EXCHANGES, size, generator=draw).argsort(-1)
        orders = torch.cat([torch.arange(size)[None], shuffled])
    # The sum of all cosines stays what it is, so the margin grows with the mean of those that are paired.
    paired = cosines[torch.arange(size), orders].mean(-1)
    return float((paired >= paired[0] - 1e-12).double().mean()), len(orders)


def compare(
    one: Drawn,
    two: Drawn,
    over: Float[Tensor, "n s"],
    personas: Float[Tensor, "n p"],
    chance: Float[Tensor, "r p d"],
    draw: torch.Generator,
) -> dict[str, Any]:
    """How two ways match: the margin with its interval, beside exchanged personas and sets of random directions.

    Args:
        one: where one way moves p personas, given how often each question or item is drawn
        two: where the other does
        over: how often each question or item is drawn
        personas: how often each persona is
        chance: random directions instead of the other way
        draw: where exchanges come from

    Returns:
        `value`, `low` and `high` of the margin; `same` and `other`; `recognised`, the personas that match themselves
        best; `p`, `random`; and `apart`, the margin without the axis on which personas differ most.
    """
    cosines = torch.cat([matches(one(some), two(some)) for some in over.split(AT_ONCE)])
    size = over.shape[1]
    p, n = exchange_personas(cosines[0], draw)
    first = one(over[:1])
    apart = beyond_one_axis(first, two(over[:1]))
    best = cosines[0].argmax(-1) == torch.arange(len(cosines[0]))
    return {
        **told_both(margin, cosines, personas, size),
        "same": told_both(same, cosines, personas, size),
        "other": told_both(other, cosines, personas, size),
        "recognised": int(best.sum()),
        "p": round(p, 4),
        "exchanges": n,
        "apart": {"value": round(float(margin(apart)), 4), "p": round(exchange_personas(apart[0], draw)[0], 4)},
        "random": spread(margin(matches(first.expand(len(chance), -1, -1), chance))),
    }


def with_what_all_share(
    one: Float[Tensor, "p q d"], two: Float[Tensor, "p q d"], personas: Float[Tensor, "n p"]
) -> dict[str, float]:
    """By how much a persona matches itself better than others where nothing is taken out."""
    left, right = (normalize(each.double().mean(1), dim=-1) for each in (one, two))
    cosines = (left @ right.mT).expand(len(personas), -1, -1)
    return told(same(cosines, personas) - other(cosines, personas), personas.shape[1])


def own_match(
    one: Float[Tensor, "p q d"],
    two: Float[Tensor, "p q d"],
    questions: Float[Tensor, "n q"],
    personas: Float[Tensor, "n p"],
) -> dict[str, float]:
    """How well a persona matches itself."""
    parts = questions.split(AT_ONCE)
    cosines = torch.cat([matches(places(one, some), places(two, some)) for some in parts])
    return told_both(same, cosines, personas, questions.shape[1])


def on_other_items(
    one: Float[Tensor, "p i"], two: Float[Tensor, "p i"], personas: Float[Tensor, "n p"]
) -> dict[str, float]:
    """The margin of behaviour on the items of which neither persona is the owner; neighbouring items have one."""
    p, n_items = one.shape
    owner = torch.arange(n_items) // (n_items // p)
    persona = torch.arange(p)[:, None]
    foreign = (owner != persona)[:, None] & (owner != persona)[None]
    shares = foreign.double() / foreign.sum(-1, keepdim=True)
    left, right = own_part(patterns(one, torch.ones(1, n_items)))[0], own_part(patterns(two, torch.ones(1, n_items)))[0]

    def among(rows: Tensor) -> Tensor:
        return (rows - (rows * shares).sum(-1, keepdim=True)) * shares.sqrt()

    cosines = (normalize(among(left[:, None]), dim=-1) * normalize(among(right[None]), dim=-1)).sum(-1)
    return told(margin(cosines.expand(len(personas), -1, -1), personas), p)


def raised(shifts: Float[Tensor, "p i"], personas: Float[Tensor, "n p"]) -> dict[str, float]:
    """By how much a way raises a persona's own items more than it raises those of others, beyond what all share."""
    p, n_items = shifts.shape
    rows = shifts.double()[None]
    blocks = without(rows, shared_axis(rows)).reshape(p, p, n_items // p).mean(-1).expand(len(personas), -1, -1)
    return told(same(blocks, personas) - other(blocks, personas), p)


def halves(deltas: Float[Tensor, "p q d"]) -> float:
    """How well a way matches itself, between every second question and the others."""
    one, two = (deltas[:, i::2].double().mean(1)[None] for i in (0, 1))
    return round(float(margin(matches(one, two))), 4)


def spread(random: Float[Tensor, " r"]) -> dict[str, float]:
    """What random directions reach."""
    numbers = {"value": random.mean(), "least": random.min(), "most": random.max()}
    return {"n": len(random), **{key: round(float(x), 4) for key, x in numbers.items()}}


def judge_match(match: dict[str, Any], steady: bool) -> str:
    """Whether a persona matches itself better than others.

    A `yes` must survive other labels, random directions, and the loss of any one axis. A `no` needs ways of which it is
    known that they move the model to personas at all.
    """
    verdict, often = judge(match["low"], match["high"], MATCH), 1 - CONFIDENCE + 1e-9
    if verdict == YES:
        by_chance = match["p"] > often or match["value"] <= match["random"]["most"]
        on_one_axis = match["apart"]["value"] <= MATCH or match["apart"]["p"] > often
        return UNKNOWN if by_chance or on_one_axis else YES
    return UNKNOWN if verdict == NO and not steady else verdict
