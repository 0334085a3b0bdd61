"""How far apart minds are that choose among the same few options: in pairs, as councils of n, and in what they answer.

A mind is a distribution over the options of every question, given as log scores; several wordings of one mind are told
apart from several minds. Everything is exact where it can be, and else a mean over a fixed number of draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.experiments.resampling import Drawn, interval, share_of

SUBSETS = 120
"""So many councils of one size are looked at; all there are, if those are no more."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Jensen-Shannon divergence of every two members on every question, in nats."""

    same: Float[Tensor, "m m q"]
    """Asked in the same words."""
    other: Float[Tensor, "m m q"]
    """Asked in different words; on the diagonal one member and itself."""
    alone: Float[Tensor, "m m q"]
    """If what one says had nothing to do with what another says."""
    words: Float[Tensor, "m w m w"]
    """Of every two wordings, the mean over questions."""


def entropy(p: Float[Tensor, "*s o"]) -> Float[Tensor, "*s"]:
    """In nats."""
    return torch.special.entr(p).sum(-1)


def compare(scores: Float[Tensor, "m w q o"]) -> Pairs:
    """All pairs. The mean over all ways to permute options pairs every option with every other equally often."""
    p = scores.double().softmax(-1)
    (m, w), flat = p.shape[:2], p.flatten(0, 1)
    own = (entropy(flat)[:, None] + entropy(flat)) / 2
    far = (entropy((flat[:, None] + flat) / 2) - own).clamp_min(0)
    mixed = (flat[:, None, ..., :, None] + flat[..., None, :]) / 2
    chance = torch.special.entr(mixed).sum((-2, -1)) / p.shape[-1] - own

    def parted(table: Tensor) -> tuple[Tensor, Tensor]:
        """By members: the mean over the same words, and over different ones where there are any."""
        whole = table.view(m, w, m, w, -1)
        same = whole.diagonal(dim1=1, dim2=3).mean(-1)
        return same, (whole.sum((1, 3)) - w * same) / (w * (w - 1)) if w > 1 else same

    same, other = parted(far)
    return Pairs(same, other, parted(chance)[1], far.mean(-1).view(m, w, m, w))


def between(tables: Float[Tensor, "*t m m q"], members: Drawn, questions: Drawn) -> Float[Tensor, "*t"]:
    """The mean over pairs of drawn members; one who is drawn twice is no pair."""
    m, q = tables.shape[-2:]
    drawn = torch.bincount(members, minlength=m).double()
    pairs = (drawn[:, None] * drawn).fill_diagonal_(0)
    # Somebody drawn every time has no partner, and then everybody counts.
    pairs = pairs if float(pairs.sum()) else 1 - torch.eye(m, dtype=torch.float64)
    weights = torch.bincount(questions, minlength=q).double() / len(questions)
    return ((tables @ weights) * pairs).sum((-2, -1)) / pairs.sum()


def mean_pair(pairs: Pairs) -> Float[Tensor, " q"]:
    """Divergence of two members who are asked in the same words, by question."""
    m, _, q = pairs.same.shape
    return torch.stack([between(pairs.same, torch.arange(m), torch.tensor([i])) for i in range(q)])


def beyond_one(pairs: Pairs) -> Float[Tensor, "t m m q"]:
    """Members in different words, and as independent minds, each with what one of the two differs by in such words."""
    itself = pairs.other.diagonal(dim1=0, dim2=1).T
    return torch.stack([pairs.other, pairs.alone, (itself[:, None] + itself) / 2])


def shares(pairs: Pairs, n: int, draw: torch.Generator) -> tuple[dict[str, float], dict[str, float]]:
    """What there is of independent minds' diversity beyond one mind, and how much diversity that would be."""
    tables = beyond_one(pairs)
    m, _, q = pairs.same.shape

    def share(members: Drawn, questions: Drawn) -> float:
        far, apart, one = between(tables, members, questions).tolist()
        return share_of(far - one, apart - one)

    def room(members: Drawn, questions: Drawn) -> float:
        _, apart, one = between(tables, members, questions).tolist()
        return apart - one

    return interval(share, [m, q], n, draw), interval(room, [m, q], n, draw)


def beyond(pairs: Pairs, chance: Pairs, n: int, draw: torch.Generator) -> dict[str, float]:
    """By how much members differ, beyond one mind, more than members of another council who are asked the same."""
    tables, (m, _, q), others = beyond_one(pairs), pairs.same.shape, torch.arange(len(chance.same))

    def ahead(members: Drawn, questions: Drawn) -> float:
        far, _, one = between(tables, members, questions).tolist()
        return far - one - float(between(chance.same, others, questions))

    return interval(ahead, [m, q], n, draw)


def weighed(scores: Float[Tensor, "m w q o"], likely: Float[Tensor, "q o"]) -> Float[Tensor, "m w q o"]:
    """Scores from which so much of each option's likelihood is taken off that none is left in their mean."""
    centred, mean = (each.double() - each.double().mean(-1, keepdim=True) for each in (likely, scores.mean((0, 1))))
    slope = (mean * centred).sum() / centred.square().sum().clamp_min(1e-9)
    return scores.double() - slope * centred


def exchanged(words: Float[Tensor, "m w m w"], n: int, draw: torch.Generator) -> tuple[float, Float[Tensor, " n"]]:
    """How often wordings that are dealt out to the members at random are as alike as each member's own.

    Returns:
        The share p, the true deal counted, and the divergence of one mind's wordings under every deal.
    """
    m, w = words.shape[:2]
    pairs = list(itertools.combinations(range(w), 2))
    found = []
    for i in range(n if pairs else 0):
        deals = [torch.randperm(m, generator=draw) if i else torch.arange(m) for _ in range(w)]
        found.append(torch.stack([words[deals[a], a, deals[b], b].mean() for a, b in pairs]).mean())
    if not found:
        return 1.0, torch.zeros(1, dtype=torch.float64)
    chance = torch.stack(found)
    return float((chance <= chance[0] + 1e-12).double().mean()), chance


def permuted(p: Float[Tensor, "*s o"], draw: torch.Generator) -> Float[Tensor, "*s o"]:
    """Every distribution as sure as it was, of something else."""
    return p.gather(-1, torch.rand(p.shape, generator=draw).argsort(-1))


def unrelated(scores: Float[Tensor, "m q o"], n: int, draw: torch.Generator) -> tuple[float, Float[Tensor, " n"]]:
    """How often members whose options are permuted at random differ as little as the true ones.

    Returns:
        The share p, the true ones counted, and the mean divergence of pairs each time.
    """
    p = scores.double().softmax(-1)
    first, second = torch.combinations(torch.arange(len(p)), 2).T
    own = entropy(p).mean()
    found = []
    for i in range(n):
        dealt = permuted(p, draw) if i else p
        found.append(entropy((dealt[first] + dealt[second]) / 2).mean() - own)
    chance = torch.stack(found)
    return float((chance <= chance[0] + 1e-12).double().mean()), chance


def councils(n_members: int, n: int, draw: torch.Generator) -> Int[Tensor, "s n"]:
    """Councils of n members: all, or some at random."""
    if math.comb(n_members, n) <= SUBSETS:
        return torch.tensor(list(itertools.combinations(range(n_members), n)))
    return torch.rand(SUBSETS, n_members, generator=draw).argsort(-1)[:, :n]


def growing(scores: Float[Tensor, "m w q o"], draw: torch.Generator, alone: bool = False) -> Float[Tensor, "n q"]:
    """Jensen-Shannon divergence of n members at once, n = 1 and more: the mean over councils and wordings.

    Args:
        scores: of every member
        draw: where councils come from
        alone: whether every member's options are permuted, anew for each council
    """
    p = scores.double().softmax(-1)
    own, found = entropy(p), []
    for n in range(1, len(p) + 1):
        drawn = councils(len(p), n, draw)
        if alone:
            # One council of all members is not enough where what they say is drawn too.
            drawn = drawn.repeat(math.ceil(SUBSETS / len(drawn)), 1)
        seats = permuted(p[drawn], draw) if alone else p[drawn]
        found.append((entropy(seats.mean(1)) - own[drawn].mean(1)).mean((0, 1)))
    return torch.stack(found).clamp_min(0)


def favoured(scores: Float[Tensor, "m w q o"]) -> Float[Tensor, "n q"]:
    """How many different options are somebody's favourite among n members."""
    best: Bool[Tensor, "m w q o"] = scores == scores.amax(-1, keepdim=True)
    return answered(best.double() / best.double().sum(-1, keepdim=True))


def answered(p: Float[Tensor, "m w q o"]) -> Float[Tensor, "n q"]:
    """How many different answers n members are expected to give, if each gives one; all councils of n count.

    The mean of a product over all subsets of n is an elementary symmetric polynomial, which grows member by member.
    """
    p, m = p.double(), len(p)
    missed = torch.zeros(m + 1, *p.shape[1:], dtype=torch.float64)
    missed[0] = 1.0
    for k in range(m):
        missed[1:] = missed[1:] + missed[:-1] * (1 - p[k])
    counts = torch.tensor([math.comb(m, n) for n in range(1, m + 1)], dtype=torch.float64)
    return (1 - missed[1:] / counts[:, None, None, None]).sum(-1).mean(1)


def temperature(scores: Float[Tensor, "q o"], wanted: float) -> float:
    """The temperature at which the mean entropy is as wanted, as near as one between e⁻⁶ and e⁶ comes to it."""
    low, high = -6.0, 6.0
    for _ in range(60):
        middle = (low + high) / 2
        warm = float(entropy((scores.double() / math.exp(middle)).softmax(-1)).mean())
        low, high = (middle, high) if warm < wanted else (low, middle)
    return math.exp((low + high) / 2)


def answers_of(
    names: Sequence[str], scores: Sequence[Float[Tensor, "m w q o"]], bare: Float[Tensor, "q o"]
) -> dict[str, Any]:
    """How many different answers there are among n members, and among as many resamples of one mind.

    It is made so warm that its mean entropy is that of the first members.
    """
    spoken = scores[0].double().softmax(-1)
    warmth = temperature(bare, float(entropy(spoken).mean()))
    alike = (bare.double() / warmth).softmax(-1).expand(len(spoken), 1, -1, -1)

    def by_size(found: Tensor) -> list[float]:
        return [round(float(x), 4) for x in found.mean(-1)]

    return {
        "temperature": round(warmth, 4),
        "favourites": {name: by_size(favoured(each)) for name, each in zip(names, scores, strict=True)},
        "one each": {name: by_size(answered(each.softmax(-1))) for name, each in zip(names, scores, strict=True)},
        "resampled": by_size(answered(alike)),
    }


def curves_of(
    names: Sequence[str],
    scores: Sequence[Float[Tensor, "m w q o"]],
    chance: Float[Tensor, "r q o"],
    n: int,
    draw: torch.Generator,
) -> dict[str, Any]:
    """The divergence of n members at once; resamples of one distribution do not diverge, however warm."""

    def line(name: str, found: Tensor) -> dict[str, Any]:
        points = [interval(lambda q, each=each: float(each[q].mean()), [len(each)], n, draw) for each in found]
        return {"name": name, "points": [{"x": x, **point} for x, point in enumerate(points, 1)]}

    wordings = torch.stack([growing(each[:, None], draw) for each in scores[0]]).mean(0)
    lines = [line(name, growing(each, draw)) for name, each in zip(names, scores, strict=True)]
    lines += [
        line("independent minds", growing(scores[0], draw, alone=True)),
        line("one mind, asked in other words", wordings),
        line("one mind, resampled", torch.zeros(len(scores[0]), wordings.shape[1])),
        line("random directions", growing(chance[:, None], draw)[: len(scores[0])]),
    ]
    return {"x": "members", "y": "Jensen-Shannon divergence, nats", "lines": lines}


def saturated(points: Sequence[dict[str, float]]) -> int:
    """The fewest members with nine tenths of the divergence of all."""
    return next(int(point["x"]) for point in points if point["value"] >= 0.9 * points[-1]["value"])


def compare_means(
    names: Sequence[str], pairs: Sequence[Pairs], costs: Float[Tensor, " c"], n: int, draw: torch.Generator
) -> dict[str, Any]:
    """Divergence for each nat of KL, and how far the means with the most is ahead of the next, over questions."""
    rates = [mean_pair(each) / max(cost, 1e-9) for each, cost in zip(pairs, costs.tolist(), strict=False)]
    first, second, *_ = sorted(range(len(names)), key=lambda i: -float(rates[i].mean()))
    ahead = interval(lambda q: float((rates[first] - rates[second])[q].mean()), [len(rates[0])], n, draw)
    per_nat = {name: round(float(rate.mean()), 4) for name, rate in zip(names, rates, strict=True)}
    return {"per_nat": per_nat, "first": names[first], "second": names[second], "ahead": ahead}
