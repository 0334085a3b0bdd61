"""How far a dial goes before text falls apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steerkit.measures import Text, write_texts
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

LIMIT = 1.0
"""The 95th percentile of per-token KL, in nats, that a dial must not exceed."""
WORKING = 0.5
"""The same at the dial at which a vector is tested; KL grows as the square, so this dial is about limit / √2."""
REPETITION = 0.3
"""Greedy text that repeats more of its 3-grams than this has fallen apart, whatever its KL."""
EVALUATIONS = 6
"""At most so many rounds of generation go into a limit."""
SEARCHED = 12
"""So many of the prompts find the dial; all of them are then judged for repetition."""


def at_dial(vector: SteeringVector, dial: float, place: tuple[int, int] | None = None) -> Steering:
    """The vector added at a dial, at its own place or another."""
    return Steering((Term(vector, dial=dial, layers=place),))


def working_dial(vector: SteeringVector) -> float:
    """The dial near half a nat, if the vector is calibrated; else one to start from."""
    return float(vector.evidence.get("limit", 1.0)) / math.sqrt(LIMIT / WORKING)


@dataclass
class Search:
    """Looks for the dial at which a steep, noisy, growing cost reaches a target, several dials a round.

    Cost grows about as the square of the dial, so logarithms make it a line, and a secant on the two points that
    embrace the target, or lie nearest to it, finds it in a round or two.
    """

    target: float
    points: dict[float, float] = field(default_factory=dict)

    def next(self, guess: float) -> list[float]:
        """Dials to try: two around the present best guess."""
        centre = self.estimate(guess)
        return [centre / 1.12, centre * 1.12]

    def estimate(self, guess: float) -> float:
        """The dial at which the cost reaches the target, from what is known."""
        known = sorted((d, cost) for d, cost in self.points.items() if cost > 0)
        if not known:
            return guess
        known.sort(key=lambda point: abs(math.log(point[1] / self.target)))
        (d, cost), slope = known[0], 2.0
        across = [point for point in known[1:] if (point[1] > self.target) != (cost > self.target)]
        if others := [point for point in across or known[1:] if point[0] != d]:
            other, its_cost = others[0]
            slope = math.log(cost / its_cost) / math.log(d / other)
        # Noise can make a secant flat or steep beyond reason; the law it scatters around is a square.
        slope = min(max(slope, 1.0), 4.0)
        step = math.log(self.target / cost) / slope
        return d * math.exp(min(max(step, -1.0), 1.0))

    @property
    def reached(self) -> bool:
        """Whether some dial costs as much as the target."""
        return any(cost >= self.target for cost in self.points.values())

    def limit(self, guess: float) -> float:
        """The estimate, or where no dial cost so much, the largest that was tried; nothing is known beyond it."""
        return self.estimate(guess) if self.reached else max(self.points, default=guess)

    @property
    def found(self) -> bool:
        """Whether two dials embrace the target closely, so that the line between them is as good as a measurement."""
        below = max((d for d, cost in self.points.items() if cost <= self.target), default=None)
        above = min((d for d, cost in self.points.items() if cost >= self.target), default=None)
        return below is not None and above is not None and 1 / 1.3 < above / below < 1.3


def find_limits(
    model: Model,
    vector: SteeringVector,
    prompts: Sequence[Sequence[int]],
    n_tokens: int = 20,
    n_repeated: int = 40,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """The dials, of either sign, at which greedy text reaches a 95th percentile of 1 nat a token, or repeats itself.

    Several dials share a forward pass, and at most `EVALUATIONS` rounds are made.

    Args:
        model: who is steered
        vector: at its own place
        prompts: what is asked, as tokens
        n_tokens: greedy tokens of each reply on which KL is measured
        n_repeated: greedy tokens of each reply on which repetition is judged
        progress: told how many rounds of how many are done

    Returns:
        `limit` and `limit_below`, what each is limited by, and the KL at every dial that was tried.
    """
    row = next((p for p in vector.evidence.get("places", ()) if p["layers"] == list(vector.place)), None)
    guess = row["dial"] * math.sqrt(LIMIT / WORKING) if row else 1.0
    searches = {1: Search(LIMIT), -1: Search(LIMIT)}
    for i in range(EVALUATIONS - 2):
        asked = [(sign, d) for sign, search in searches.items() if not search.found for d in search.next(guess)]
        if not asked:
            break
        texts = write_texts(model, prompts[:SEARCHED], [at_dial(vector, sign * d) for sign, d in asked], n_tokens)
        for (sign, d), text in zip(asked, texts, strict=True):
            searches[sign].points[d] = text.divergence()
        progress("limit", i + 1, EVALUATIONS)
    limits = {sign: search.limit(guess) for sign, search in searches.items()}
    kept, by = _calm(model, vector, prompts, limits, n_repeated)
    for sign, search in searches.items():
        if not search.reached and by[sign] == "kl":
            by[sign] = "the largest dial tried"
    progress("limit", EVALUATIONS, EVALUATIONS)
    return {
        "limit": float(f"{kept[1]:.4g}"),
        "limit_below": float(f"{-kept[-1]:.4g}"),
        "limited_by": by[1],
        "limited_by_below": by[-1],
        "limit_kl_p95": {
            f"{sign * d:.4g}": float(f"{c:.4g}") for sign, s in searches.items() for d, c in s.points.items()
        },
    }


def _calm(
    model: Model,
    vector: SteeringVector,
    prompts: Sequence[Sequence[int]],
    limits: Mapping[int, float],
    n_repeated: int,
) -> tuple[dict[int, float], dict[int, str]]:
    """Lower a limit at which text goes round in circles; two rounds, three dials a sign in the second."""

    def texts(dials: Sequence[tuple[int, float]]) -> list[Text]:
        return write_texts(model, prompts, [at_dial(vector, sign * d) for sign, d in dials], n_repeated, costs=False)

    kept, by = dict(limits), dict.fromkeys(limits, "kl")
    first = list(limits.items())
    loud = [sign for (sign, _), text in zip(first, texts(first), strict=True) if text.repetition >= REPETITION]
    lower = [(sign, limits[sign] * share) for sign in loud for share in (0.85, 0.7, 0.5)]
    calm = (
        [pair for pair, text in zip(lower, texts(lower), strict=True) if text.repetition < REPETITION] if lower else []
    )
    for sign in loud:
        by[sign] = "repetition"
        kept[sign] = max((d for s, d in calm if s == sign), default=limits[sign] * 0.35)
    return kept, by
