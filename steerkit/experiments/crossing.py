"""Every trait steered, every trait measured: the numbers that `spillover` is about, before anybody judges them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerkit.limits import LIMIT, WORKING, at_dial
from steerkit.measures import at_cost, contrast, item_rows, percentiles, score_replies
from steerkit.models import Model
from steerkit.nulls import random_like
from steerkit.personas import Persona
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, as_stage, ignore_progress


@dataclass(frozen=True, eq=False)
class Crossed:
    """What every steering does to every trait."""

    shifts: Float[Tensor, "k m i"]
    """Shift of each of i items of m measured traits under k steered ones, in nats a token."""
    chance: Float[Tensor, "r m i"]
    """The same under r random directions."""
    cosines: Float[Tensor, "k k"]
    """Of the directions with each other."""


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
    factors = (WORKING / costs.clamp_min(1e-9)).sqrt().tolist()
    matched = [at_dial(v, dial * factor) for v, dial, factor in zip(pushed, dials, factors, strict=True)]
    asked, tell = [row for each in rows for row in each], as_stage(progress, "prove")
    scores = score_replies(model, asked, [Steering(), *matched], True, progress=tell)
    measured, reached = contrast(scores.means), percentiles(scores.divergences)[1:]
    shifts = at_cost(measured[1:] - measured[0], reached, WORKING).reshape(len(pushed), len(traits), fewest)
    return Crossed(shifts[: len(vectors)], shifts[len(vectors) :], cosines(vectors))


def working_dial(vector: SteeringVector) -> float:
    """The dial near half a nat, if the vector is calibrated; else one to start from."""
    return float(vector.evidence.get("limit", 1.0)) / math.sqrt(LIMIT / WORKING)


def cosines(vectors: Sequence[SteeringVector]) -> Float[Tensor, "k k"]:
    """Cosine of every direction with every other, in the middle of the model, where they are read alike."""
    layer = vectors[0].model.layers // 2
    units = torch.nn.functional.normalize(torch.stack([v.directions[layer].double() for v in vectors]), dim=-1)
    return (units @ units.T).float()


def standard_scores(crossed: Crossed) -> Float[Tensor, "k m"]:
    """How many standard deviations of the random directions each shift lies from their mean, trait by trait."""
    random = crossed.chance.mean(-1)
    spread = random.std(0).clamp_min(1e-9)
    return (crossed.shifts.mean(-1) - random.mean(0)) / spread


def beyond_random(crossed: Crossed) -> Bool[Tensor, "k m"]:
    """Where a shift lies outside everything that random directions do to the trait."""
    random, shifts = crossed.chance.mean(-1), crossed.shifts.mean(-1)
    return (shifts > random.amax(0)) | (shifts < random.amin(0))


def cluster(cosines: Float[Tensor, "k k"]) -> list[int]:
    """An order of the traits in which those that point alike are neighbours: leaves of average-linkage clustering."""
    import numpy as np
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    apart = 1 - cosines.double().numpy()
    np.fill_diagonal(apart, 0)
    tree = hierarchy.linkage(squareform((apart + apart.T) / 2, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in hierarchy.leaves_list(tree)]
