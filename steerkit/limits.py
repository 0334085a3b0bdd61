"""How far a dial goes before text falls apart: its KL reaches a nat, or greedy replies loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from steerkit.loops import REPLY_TOKENS, TOO_OFTEN, LoopSearch, longest_reply, settle, unsteered_rate
from steerkit.measures import write_texts
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

LIMIT = 1.0
"""The 95th percentile of per-token KL, in nats, that a dial must not exceed."""
WORKING = 0.5
"""The same at the dial at which a vector is tested; KL grows as the square, so this dial is about limit / √2."""
EVALUATIONS = 4
"""At most so many rounds of generation go into the dial at which KL reaches its limit."""
SEARCHED = 12
"""So many of the prompts find that dial."""
LOOPED = 8
"""So many, spread over all of them, are what loops are looked for in the replies to."""


def at_dial(vector: SteeringVector, dial: float, place: tuple[int, int] | None = None) -> Steering:
    """The vector added at a dial, at its own place or another."""
    return Steering((Term(vector, dial=dial, layers=place),))


def kl_limits(vector: SteeringVector) -> tuple[float, float] | None:
    """The lowest and highest dial by KL alone, whatever greedy replies do; None where the vector is not calibrated.

    Files that do not tell them apart are from before limits were about loops of long replies.
    """
    known = vector.evidence
    for name in ("kl_limit", "limit"):
        if name in known:
            return float(known[f"{name}_below"]), float(known[name])
    return None


def working_dial(vector: SteeringVector) -> float:
    """The dial near half a nat, if the vector is calibrated; else one to start from."""
    return (kl_limits(vector) or (-1.0, 1.0))[1] / math.sqrt(LIMIT / WORKING)


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
    n_repeated: int = REPLY_TOKENS,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """The dials, of either sign, at which greedy text reaches a 95th percentile of 1 nat a token, or loops.

    Several dials share a forward pass, and at most `EVALUATIONS` rounds are made for KL.

    Args:
        model: the model that is steered
        vector: at its own place
        prompts: what is asked, as tokens
        n_tokens: greedy tokens of each reply on which KL is measured
        n_repeated: greedy tokens of each reply in which a loop is looked for
        progress: told how many rounds of how many are done

    Returns:
        `limit` and `limit_below`, what each is limited by, the dials of both signs by KL alone, the KL at every dial
        that was tried, and whether replies looped at others.
    """
    row = next((p for p in vector.evidence.get("places", ()) if p["layers"] == list(vector.place)), None)
    guess = row["dial"] * math.sqrt(LIMIT / WORKING) if row else 1.0
    searches = {1: Search(LIMIT), -1: Search(LIMIT)}
    for i in range(EVALUATIONS):
        asked = [(sign, d) for sign, search in searches.items() if not search.found for d in search.next(guess)]
        if not asked:
            break
        texts = write_texts(model, prompts[:SEARCHED], [at_dial(vector, sign * d) for sign, d in asked], n_tokens)
        for (sign, d), text in zip(asked, texts, strict=True):
            searches[sign].points[d] = text.divergence()
        progress("limit", i + 1, EVALUATIONS)
    by_kl = {
        **_named({sign: sign * search.limit(guess) for sign, search in searches.items()}),
        "limited_by": "kl" if searches[1].reached else UNREACHED,
        "limited_by_below": "kl" if searches[-1].reached else UNREACHED,
        "limit_kl_p95": {
            f"{sign * d:.4g}": float(f"{c:.4g}") for sign, s in searches.items() for d, c in s.points.items()
        },
    }
    placed = replace(vector, evidence={**vector.evidence, **by_kl})
    ((_, found),) = lower_limits(model, [(vector.name, placed, prompts)], n_repeated, progress)
    return found


UNREACHED = "the largest dial tried"
"""What limits a dial whose KL did not reach the limit."""


def _named(dials: Mapping[int, float]) -> dict[str, float]:
    """Limits by KL alone, as evidence has them."""
    return {"kl_limit": float(f"{dials[1]:.4g}"), "kl_limit_below": float(f"{dials[-1]:.4g}")}


def lower_limits(
    model: Model,
    vectors: Iterable[tuple[str, SteeringVector, Sequence[Sequence[int]]]],
    n_tokens: int = REPLY_TOKENS,
    progress: Progress = ignore_progress,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Take limits by KL back to where greedy replies do not loop clearly more often than unsteered ones.

    Replies of many vectors share a batch, so vectors are done in about the order in which they come.

    Args:
        model: the model that is steered
        vectors: names, vectors whose limits by KL are known, and for each what is asked, as tokens
        n_tokens: the longest reply
        progress: told how many searches of those begun are done

    Yields:
        A name, and the part of its vector's evidence that is about limits.
    """
    n_tokens = longest_reply(model, n_tokens)
    rate = unsteered_rate(model, n_tokens)
    if rate > TOO_OFTEN:
        model.note(
            f"{rate:.0%} of {model.name}'s unsteered greedy replies of {n_tokens} tokens loop, so loops cannot tell "
            "where a dial ends: limits are KL's alone"
        )
        for name, vector, _ in vectors:
            yield name, _evidence(vector, {}, rate, n_tokens)
        return
    waiting: dict[str, tuple[SteeringVector, dict[int, LoopSearch]]] = {}

    def searches() -> Iterator[LoopSearch]:
        for name, vector, prompts in vectors:
            few = [prompts[i * len(prompts) // LOOPED] for i in range(LOOPED)] if len(prompts) > LOOPED else prompts
            below, above = kl_alone(vector)
            pair = {sign: LoopSearch(vector, dial, few, rate) for sign, dial in ((1, above), (-1, below))}
            waiting[name] = vector, pair
            yield from pair.values()

    for _ in settle(model, searches(), n_tokens, progress):
        for name, (vector, pair) in [*waiting.items()]:
            if all(search.found for search in pair.values()):
                del waiting[name]
                yield name, _evidence(vector, pair, rate, n_tokens)


def _evidence(vector: SteeringVector, pair: Mapping[int, LoopSearch], rate: float, n_tokens: int) -> dict[str, Any]:
    """What the evidence of a vector says of its limits; without searches they are KL's alone."""
    known, (below, above) = vector.evidence, kl_alone(vector)
    found: dict[str, Any] = _named({1: above, -1: below})
    loops: dict[str, Any] = {"tokens": n_tokens, "unsteered": round(rate, 4)}
    for sign, end, way in ((1, "", "above"), (-1, "_below", "below")):
        share = pair[sign].share if pair else 1.0
        by_kl = known[f"limited_by{end}"] if known[f"limited_by{end}"] != "repetition" else "kl"
        found[f"limit{end}"] = float(f"{found[f'kl_limit{end}'] * share:.4g}")
        found[f"limited_by{end}"] = "repetition" if share < 1 else by_kl
        loops |= {way: pair[sign].to_json()} if pair else {}
    return {**found, "limit_kl_p95": known["limit_kl_p95"], "limit_loops": loops}


def kl_alone(vector: SteeringVector) -> tuple[float, float]:
    """The limits by KL, also where an older file keeps only those that repetition set: from the KL that it keeps."""
    known, limits = vector.evidence, kl_limits(vector) or (-1.0, 1.0)
    costs = {float(dial): float(cost) for dial, cost in known.get("limit_kl_p95", {}).items()}

    def alone(sign: int, dial: float) -> float:
        end = "" if sign > 0 else "_below"
        if f"kl_limit{end}" in known or known.get(f"limited_by{end}") != "repetition":
            return dial
        return sign * Search(LIMIT, {sign * d: cost for d, cost in costs.items() if d * sign > 0}).limit(abs(dial))

    return alone(-1, limits[0]), alone(1, limits[1])
