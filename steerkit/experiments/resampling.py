"""Intervals and nulls that every experiment draws in the same way: resampled prompts, and exchanged labels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.experiments.thresholds import CONFIDENCE
from steerkit.nulls import widen_ends

Drawn = Int[Tensor, " n"]
"""Which rows of an axis are drawn, some of them several times."""


def interval(measure: Callable[..., float], sizes: Sequence[int], n: int, draw: torch.Generator) -> dict[str, float]:
    """A statistic with its 95 % interval, by a bootstrap over several axes at once.

    The percentile ends of few draws lie too close; they are moved out by what Student's t and the lost degree of
    freedom ask for at the shortest axis that has more than one row.

    Args:
        measure: the statistic, given for each axis which rows are drawn
        sizes: how many rows each axis has
        n: resamples
        draw: where they come from

    Returns:
        `value`, `low` and `high`, to four places.

    >>> interval(lambda rows: 1.0, [3], 20, torch.Generator().manual_seed(0))
    {'value': 1.0, 'low': 1.0, 'high': 1.0}
    """
    value = float(measure(*(torch.arange(size) for size in sizes)))
    found = [float(measure(*(torch.randint(size, (size,), generator=draw) for size in sizes))) for _ in range(n)]
    tail = (1 - CONFIDENCE) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.tensor(found, dtype=torch.float64).quantile(ends).tolist()
    shortest = min((size for size in sizes if size > 1), default=2)
    return rounded_interval(value, *widen_ends(value, low, high, shortest, tail))


def share_of(part: float, whole: float) -> float:
    """A part as a share of a whole that is measured and may be next to nothing; then the share is large, not undefined.

    >>> share_of(0.1, 0.4)
    0.25
    """
    return part / max(whole, 1e-3)


def rounded_interval(value: float, low: float, high: float) -> dict[str, float]:
    """As results have it."""
    return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def exchange_labels(
    statistic: Callable[[Drawn, Drawn], float], n_first: int, n_second: int, n: int, draw: torch.Generator
) -> tuple[float, Float[Tensor, " m"]]:
    """How often exchanged labels give a statistic as large as the true ones, which are counted among them.

    Args:
        statistic: of the rows with the first label and those with the second, the true first ones standing first
        n_first: rows with the first label
        n_second: rows with the second
        n: random exchanges; all there are, if those are no more
        draw: where they come from

    Returns:
        The share p, and the statistic under all labels that were tried.
    """
    rows = range(n_first + n_second)
    if math.comb(len(rows), n_first) <= n:
        firsts = [list(each) for each in itertools.combinations(rows, n_first)]
    else:
        firsts = [torch.randperm(len(rows), generator=draw)[:n_first].tolist() for _ in range(n)]
        firsts = [list(range(n_first)), *firsts]

    def under(first: list[int]) -> float:
        second = [row for row in rows if row not in set(first)]
        return statistic(torch.tensor(first), torch.tensor(second))

    chance = torch.tensor([under(first) for first in firsts], dtype=torch.float64)
    true = under(list(range(n_first)))
    return float((chance >= true - 1e-12).double().mean()), chance


def row(name: str, group: str, told: dict[str, float], kl: float | None = None, **more: Any) -> dict[str, Any]:
    """One line of a result's table and picture: `group` is claim, control or null."""
    return {"name": name, "group": group, **told, "kl": None if kl is None else round(kl, 4), **more}
