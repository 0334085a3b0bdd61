"""What a vector's dial means on its model: where it works, how far it goes, and the proof that it works at all.

Three kinds of text are kept apart. The direction was made from the persona's questions. Where it is applied is chosen
on the persona's held-out questions, with replies that the model itself gives to them. Whether it works is measured on
the persona's items, which neither has seen. The limit is found on the held-out and on neutral questions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import PersonaError, SteerkitError, VectorError
from steerkit.extraction import Recipe, contrasts
from steerkit.generation import Probe, Sampling, complete, require_replies
from steerkit.limits import LIMIT, WORKING, at_dial, find_limits, kl_limits
from steerkit.loops import REPLY_TOKENS
from steerkit.measures import (
    Row,
    at_cost,
    contrast,
    item_rows,
    match_divergence,
    neutral,
    percentiles,
    score_replies,
)
from steerkit.models import Model
from steerkit.nulls import bootstrap, random_like, rounded, shuffled_like, summarise
from steerkit.personas import Pair
from steerkit.steering import Steering
from steerkit.training import middle_band
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, as_stage, ignore_progress

RIGHT_WAY = 0.8
"""The share of items that a reliable vector moves the right way."""

Place = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """How thoroughly a vector is calibrated."""

    n_random: int = 20
    """Random directions, scaled to the vector's KL."""
    n_shuffled: int = 10
    """Directions from pairs with shuffled labels, scaled likewise; every second one is the opposite of the last."""
    n_tokens: int = 20
    """Greedy tokens of each reply on which the limit is found."""
    n_repeated: int = REPLY_TOKENS
    """Greedy tokens of each reply in which loops are looked for."""
    places: tuple[Place, ...] = ()
    """Layers and bands to choose among; spread over the model if there are none."""
    seed: int = 0
    """Of replies, nulls and resampling."""


@dataclass(frozen=True)
class Material:
    """What is held out of the extraction: replies of both personas, and how the model stood while giving them."""

    rows: list[Row]
    """Bare held-out questions with both replies, the persona's first."""
    positive: Float[Tensor, "n l d"]
    """Mean activations under the persona's prompts."""
    negative: Float[Tensor, "n l d"]
    """Mean activations under the Assistant's."""


def calibrate(
    model: Model,
    vector: SteeringVector,
    pair: Pair,
    settings: Settings | None = None,
    progress: Progress = ignore_progress,
) -> SteeringVector:
    """Measure a vector on questions it was not made from, and write what was found into its evidence.

    Args:
        model: the model it was made on
        vector: what is calibrated
        pair: the personas it is about; the positive one's held-out questions and items are used
        settings: how thoroughly
        progress: told what is being done

    Returns:
        The same vector with evidence: `places`, `place`, `best_layer`, `limit`, `limit_below`, `d_prime`, `thresholds`,
        `test`, `nulls` and `reliable`.

    Raises:
        PersonaError: the persona has no held-out questions or no items.
        VectorError: the vector was made on another model.
    """
    settings = settings or Settings()
    vector.require(model.fingerprint)
    model = model.at_date(str(vector.provenance.get("template_date", ""))).for_measuring()
    if not pair.positive.held_out or not pair.positive.items:
        raise PersonaError(
            f"{pair.positive.name} has no held_out questions or no items, and a vector is only calibrated on what it "
            f"was not made from; add them to {pair.positive.source}"
        )
    bare = replace(vector, evidence={k: v for k, v in vector.evidence.items() if k in ("pair_agreement", "split_half")})
    material = gather_material(model, pair, settings.seed, progress)
    if not material.rows:
        raise SteerkitError(f"{model.name} said nothing to any held-out question, so there is nothing to calibrate on")
    places = settings.places or tuple(place for place in spread(model.n_layers) if not bare.zeros(*place))
    if not places:
        raise VectorError(
            f"{bare.name} is zero somewhere in every place that is tried; {bare.where_not_zero()}, with --layers"
        )
    chosen = choose_place(model, bare, material.rows, places, progress)
    placed = replace(bare, evidence={**bare.evidence, **chosen})
    prompts = limit_prompts(model, pair)
    limits = find_limits(model, placed, prompts, settings.n_tokens, settings.n_repeated, progress)
    placed = replace(placed, evidence={**placed.evidence, **limits})
    tested = prove(model, placed, pair, material, settings, progress)
    found = {
        "d_prime": [round(x, 4) for x in separation(material, placed).tolist()],
        "thresholds": _thresholds(model, placed, prompts, settings),
        "dtype": str(model.dtype).removeprefix("torch."),
        "asked_sha256": digest(pair),
        **tested,
    }
    return replace(placed, evidence={**placed.evidence, **found})


def digest(pair: Pair) -> str:
    """SHA-256 of what a vector is calibrated on; where it has changed, the evidence is about something else."""
    asked = [pair.positive.held_out, [(i.question, i.reply, i.assistant_reply) for i in pair.positive.items]]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest()


def gather_material(model: Model, pair: Pair, seed: int = 0, progress: Progress = ignore_progress) -> Material:
    """Let both personas answer the held-out questions under each of their prompts, and watch."""
    rows: list[Row] = []
    sides: list[tuple[Tensor, Tensor]] = []
    for part in contrasts(model, pair, Recipe(seed=seed), pair.positive.held_out, progress):
        sides.append((part.positive, part.negative))
        for case, replies in zip(part.cases, part.replies, strict=True):
            rows += [(case.bare, reply.tokens) for reply in replies]
    positive, negative = (torch.cat([side[i] for side in sides]) for i in (0, 1))
    return Material(rows, positive, negative)


def limit_prompts(model: Model, pair: Pair) -> list[list[int]]:
    """The held-out questions and the neutral ones, as tokens."""
    asked = (*pair.positive.held_out, *neutral("questions"))
    return [model.chat_tokens([{"role": "user", "content": question}]) for question in asked]


def spread(n_layers: int) -> tuple[Place, ...]:
    """Places to try, the one that is taken in doubt first: the middle band and two others, then single layers.

    >>> spread(30)
    ((8, 23), (12, 18), (18, 26), (15, 15), (18, 18), (12, 12))
    """

    def at(share: float) -> int:
        return min(round(share * n_layers), n_layers - 1)

    bands = [middle_band(n_layers), (at(0.4), at(0.6)), (at(0.6), at(0.87))]
    singles = [at(share) for share in (0.5, 0.6, 0.4)]
    return tuple(dict.fromkeys([*bands, *((l, l) for l in singles)]))


def choose_place(
    model: Model,
    vector: SteeringVector,
    rows: Sequence[Row],
    places: Sequence[Place],
    progress: Progress = ignore_progress,
    longest: int = 24,
    most: int = 12,
) -> dict[str, Any]:
    """Find the layer or band where the persona's replies gain most for the same KL.

    Each place is first tried at a small dial; KL grows as the square, so that tells the dial at which it reaches
    `WORKING`, where every place is then measured with both signs. A dozen replies hardly tell neighbours apart, so of
    the places within one standard error of the best, the one that `spread` names first is taken.
    """
    rows = [(prompt, reply[:longest]) for prompt, reply in rows[:most]]
    tell = as_stage(progress, "choose")
    trial = [at_dial(vector, 0.5, place) for place in places]
    costs = percentiles(score_replies(model, rows[1::2], trial, divergence=True, progress=tell).divergences)
    dials = [0.5 * math.sqrt(WORKING / max(cost, 1e-9)) for cost in costs.tolist()]
    both = [at_dial(vector, sign * d, place) for d, place in zip(dials, places, strict=True) for sign in (1, -1)]
    scores = score_replies(model, rows, both, divergence=True, progress=tell)
    effects = contrast(scores.means).reshape(len(places), 2, -1)
    reached = percentiles(scores.divergences).reshape(-1, 2).mean(-1)
    # Half the difference of the two signs is the part that the dial decides; the rest is what any push does.
    shifts = at_cost((effects[:, 0] - effects[:, 1]) / 2, reached, WORKING)
    table = [
        {"layers": list(place), "dial": float(f"{dial:.4g}"), "kl_p95": float(f"{cost:.4g}"), "shift": round(shift, 4)}
        for place, dial, cost, shift in zip(places, dials, reached.tolist(), shifts.mean(-1).tolist(), strict=True)
    ]
    singles = [i for i, (first, last) in enumerate(places) if first == last]
    chosen = places[_first_of_the_best(shifts, range(len(places)))]
    single = places[_first_of_the_best(shifts, singles)][0] if singles else sum(chosen) // 2
    return {"places": table, "place": list(chosen), "best_layer": single}


def _first_of_the_best(shifts: Float[Tensor, "p n"], among: Sequence[int]) -> int:
    """The first row that the best one does not beat by a standard error, pair by pair."""
    best = max(among, key=lambda i: float(shifts[i].mean()))
    for i in among:
        ahead = shifts[best] - shifts[i]
        error = float(ahead.std()) / math.sqrt(len(ahead)) if len(ahead) > 1 else 0.0
        if float(ahead.mean()) <= error:
            return i
    return best


def separation(material: Material, vector: SteeringVector) -> Float[Tensor, " l"]:
    """d′ on held-out questions: how many standard deviations apart both sides' scores are, at each layer."""
    ours, theirs = ((side * vector.directions).sum(-1) for side in (material.positive, material.negative))
    spread = ((ours.var(0) + theirs.var(0)) / 2).sqrt().clamp_min(1e-9)
    return (ours.mean(0) - theirs.mean(0)) / spread


def _thresholds(
    model: Model, vector: SteeringVector, prompts: Sequence[Sequence[int]], settings: Settings
) -> dict[str, float]:
    """Percentiles of the Assistant's own token scores over the layers where the vector works.

    They are what `cap` and `floor` hold a model to (arXiv 2601.10387).
    """
    first, last = vector.place
    probes = [Probe.of(vector, l) for l in range(first, last + 1)]
    replies = complete(model, prompts, probes=probes, sampling=Sampling(settings.n_tokens))
    require_replies(model, replies)
    scores = torch.cat([reply.readout.scores for reply in replies]).float().flatten()
    return {f"p{share}": round(float(scores.quantile(share / 100)), 4) for share in (1, 5, 25, 50, 75, 95, 99)}


def prove(
    model: Model,
    vector: SteeringVector,
    pair: Pair,
    material: Material,
    settings: Settings,
    progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Propensity on unseen items at half a nat of either sign of the dial, beside random and shuffled directions.

    Each is measured at a dial near that KL, which is kept beside it, and corrected by the square law. A vector is
    reliable when at the positive dial its mean shift is above every null's and its interval above zero, at the negative
    dial below, and at least `RIGHT_WAY` of the items move with the dial.
    """
    tell = as_stage(progress, "prove")
    rows = item_rows(model, pair.positive.items)
    # A limit that loops set says nothing of KL, at equal amounts of which everything is compared here.
    below, above = kl_limits(vector) or (-1.0, 1.0)
    dials = [dial / math.sqrt(LIMIT / WORKING) for dial in (above, below)]
    randoms = [random_like(vector, settings.seed + i) for i in range(settings.n_random)]
    shuffles = [
        # A dozen pairs make few independent shuffles; with its opposite beside each, luck of the draw cancels.
        shuffled_like(vector, material.positive, material.negative, settings.seed + i // 2, (-1) ** i)
        for i in range(settings.n_shuffled if len(material.positive) > 1 else 0)
    ]
    up_and_down = [at_dial(vector, dial) for dial in dials]
    nulls = match_divergence(model, up_and_down[0], [at_dial(null, dials[0]) for null in (*randoms, *shuffles)], rows)
    steerings = [Steering(), *up_and_down, *nulls]
    scores = score_replies(model, rows, steerings, divergence=True, progress=tell)
    measured, reached = contrast(scores.means), percentiles(scores.divergences)[1:]
    moved = measured[1:] - measured[0]
    slopes = (moved[0] - moved[1]) / (dials[0] - dials[1])
    # Dials were set on other text, so everything is brought to the same KL on this.
    shifts = at_cost(moved, reached, WORKING)
    up, down, chance = shifts[0], shifts[1], shifts[2:].mean(-1)
    test = {
        "items": len(pair.positive.items),
        "up": _shift(up, dials[0], reached[0], settings.seed),
        "down": _shift(down, dials[1], reached[1], settings.seed),
        "steerability": round(float(slopes.mean()), 4),
        "anti_steerable": round(float((slopes < 0).float().mean()), 4),
    }
    costs, split = reached[2:], len(randoms)
    among = summarise(chance[:split], costs[:split], settings.seed)
    shuffled = summarise(chance[split:], costs[split:], settings.seed)
    beyond = bool(up.mean() > chance.max() and down.mean() < chance.min()) if len(chance) else True
    steady = test["up"]["low"] > 0 and test["down"]["high"] < 0
    return {
        "test": test,
        "nulls": {"random": among and among.to_json(), "shuffled": shuffled and shuffled.to_json()},
        "reliable": beyond and steady and test["anti_steerable"] <= 1 - RIGHT_WAY + 1e-9,
    }


def _shift(values: Float[Tensor, " n"], dial: float, cost: Tensor, seed: int) -> dict[str, float]:
    low, high = bootstrap(values, seed)
    return rounded({"dial": dial, "kl_p95": float(cost), "shift": float(values.mean()), "low": low, "high": high})
