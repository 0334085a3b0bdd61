"""Every trait steered, every trait measured: the numbers that `spillover` is about, before anybody judges them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerkit.kept import keep, kept_path, load_kept
from steerkit.limits import LIMIT, WORKING, at_dial
from steerkit.measures import Row, at_cost, contrast, item_rows, percentiles, score_replies
from steerkit.models import Model
from steerkit.nulls import random_like
from steerkit.personas import Persona
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector, cosines
from steerkit.weights import Progress, as_stage, ignore_progress

BLOCK = 8
"""So many steerings are measured at a time: what they share is shared, and little is lost when somebody stops."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """What every steering does to every trait."""

    shifts: Float[Tensor, "k m i"]
    """Shift of each of i items of m measured traits under k steered ones, in nats a token."""
    chance: Float[Tensor, "r m i"]
    """The same under r random directions."""
    cosines: Float[Tensor, "k k"]
    """Of the directions with each other, in the middle of the model, where all are read alike."""
    reached: tuple[float, float] = (math.nan, math.nan)
    """Least and most KL p95 at which anything was measured, before it was brought to `WORKING`."""


def cross(
    model: Model,
    traits: Sequence[Persona],
    vectors: Sequence[SteeringVector],
    n_items: int,
    n_random: int,
    seed: int,
    progress: Progress = ignore_progress,
) -> Crossed:
    """Measure every trait's items under every trait's direction and under random ones, all brought to the same KL.

    Args:
        model: who is measured
        traits: k traits with items
        vectors: their directions
        n_items: so many items of each, or as many as the one with fewest has
        n_random: random directions, each as long as one of the vectors and in its place
        seed: of the random directions
        progress: told what is being done

    Returns:
        Shifts at a 95th percentile of half a nat of KL a token on all of the items.
    """
    fewest = min(n_items, *(len(trait.items) for trait in traits))
    rows = [item_rows(model, trait.items[:fewest]) for trait in traits]
    randoms = [random_like(vectors[i % len(vectors)], seed + i) for i in range(n_random)]
    pushed = [*vectors, *randoms]
    dials = [working_dial(vectors[i % len(vectors)]) for i in (*range(len(vectors)), *range(n_random))]
    trial = [at_dial(vector, dial) for vector, dial in zip(pushed, dials, strict=True)]
    # One item of every trait tells what each dial costs; the square law takes it to the same KL from there.
    few = [row for each in rows for row in each[:2]]
    costs = percentiles(score_replies(model, few, trial, True, progress=as_stage(progress, "match")).divergences)
    factors = (WORKING / costs.clamp_min(1e-9)).sqrt().clamp(0.1, 10).tolist()
    matched = [at_dial(v, dial * factor) for v, dial, factor in zip(pushed, dials, factors, strict=True)]
    asked = [row for each in rows for row in each]
    scores = score_in_blocks(model, asked, [Steering(), *matched], as_stage(progress, "prove"))
    measured, reached = contrast(scores[0] / scores[1]), scores[2][1:]
    shifts = at_cost(measured[1:] - measured[0], reached, WORKING).reshape(len(pushed), len(traits), fewest)
    ends, alike = (float(reached.min()), float(reached.max())), cosines(vectors, model.n_layers // 2)
    return Crossed(shifts[: len(vectors)], shifts[len(vectors) :], alike, ends)


def score_in_blocks(
    model: Model, rows: Sequence[Row], steerings: Sequence[Steering], progress: Progress
) -> tuple[Float[Tensor, "k n"], Float[Tensor, " n"], Float[Tensor, " k"]]:
    """What `score_replies` gives (totals, lengths, and the KL p95 of each steering), a few steerings at a time.

    Every block is kept on disk as soon as it is measured, so a run that was stopped goes on where it was.
    """
    totals, costs = [], []
    for start in range(0, len(steerings), BLOCK):
        block = steerings[start : start + BLOCK]
        path = kept_path("crossings", model, "block", _depends(rows, block))
        kept = load_kept(path, model)
        if kept is None or {"totals", "costs"} - set(kept[0]):
            scores = score_replies(model, rows, block, divergence=True)
            kept = {"totals": scores.totals.cpu(), "costs": percentiles(scores.divergences).cpu()}, {}
            keep(path, model, kept[0])
        totals.append(kept[0]["totals"])
        costs.append(kept[0]["costs"])
        progress("prove", start + len(block), len(steerings))
    return torch.cat(totals), torch.tensor([float(len(reply)) for _, reply in rows]), torch.cat(costs)


def _depends(rows: Sequence[Row], block: Sequence[Steering]) -> list[Any]:
    """All that the numbers of a block depend on, as plain data; vectors by their digests."""
    terms = [
        [[term.dial, term.band, term.operator, _digest(term.vector)] for term in steering.terms] for steering in block
    ]
    return [[[list(prompt), list(reply)] for prompt, reply in rows], terms]


def _digest(vector: SteeringVector) -> str:
    return hashlib.sha256(vector.directions.float().contiguous().numpy().tobytes()).hexdigest()


def working_dial(vector: SteeringVector) -> float:
    """The dial near half a nat, if the vector is calibrated; else one to start from."""
    return float(vector.evidence.get("limit", 1.0)) / math.sqrt(LIMIT / WORKING)


def standard_scores(crossed: Crossed) -> Float[Tensor, "k m"]:
    """How many standard deviations of the random directions each shift lies from their mean, trait by trait."""
    random = crossed.chance.mean(-1)
    spread = random.std(0).clamp_min(1e-9)
    return (crossed.shifts.mean(-1) - random.mean(0)) / spread


def beyond_random(crossed: Crossed) -> Bool[Tensor, "k m"]:
    """Where a shift lies further out, in standard deviations, than any random direction takes any trait.

    That is a bound on all cells of a row at once: of many cells some lie outside of what twenty directions do to one.
    """
    random = crossed.chance.mean(-1)
    spread = random.std(0).clamp_min(1e-9)
    furthest = ((random - random.mean(0)) / spread).abs().max()
    return standard_scores(crossed).abs() > furthest


def cluster(cosines: Float[Tensor, "k k"]) -> list[int]:
    """An order of the traits in which those that point alike are neighbours: leaves of average-linkage clustering."""
    import numpy as np
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    apart = 1 - cosines.double().numpy()
    np.fill_diagonal(apart, 0)
    tree = hierarchy.linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]
