"""One steering on one set of items: what moved, what it cost, and the three things it must be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.calibration import gather_material
from steerkit.errors import SteerkitError
from steerkit.items import ItemSet, choice_rows
from steerkit.measures import (
    Row,
    at_cost,
    capability,
    contrast,
    item_rows,
    match_divergence,
    percentiles,
    propensities,
    score_replies,
    write_texts,
)
from steerkit.models import Message, Model
from steerkit.nulls import Baseline, bootstrap, random_like, rounded, shuffled_like, summarise, turned_together
from steerkit.personas import Item, Pair, find_pair
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, as_stage, ignore_progress


@dataclass(frozen=True)
class Settings:
    """How thoroughly a steering is evaluated."""

    n_random: int = 20
    """Random directions, scaled to the steering's KL."""
    n_shuffled: int = 10
    """Shuffled-label directions, scaled likewise; every second one is the opposite of the last. 0 leaves them out."""
    n_tokens: int = 40
    """Greedy tokens of each reply on which text is judged."""
    n_texts: int = 20
    """At most so many questions are answered in text."""
    seed: int = 0
    """Of replies, nulls and resampling."""


@dataclass(frozen=True)
class Evaluation:
    """What a steering does to a set of items, and what that is to be compared with."""

    model: str
    """Whose propensities."""
    steer: str
    """The steering, as an expression."""
    items: int
    """How many."""
    source: str
    """Persona or file that they are from."""
    unsteered: float
    """Mean propensity without steering, in nats a token (of two options: nats an answer)."""
    steered: float
    """Mean propensity with it."""
    per_item: tuple[float, ...]
    """Shift of each item."""
    low: float
    """Lower end of the 95 % interval of the mean shift."""
    high: float
    """Upper end."""
    items_kl_p95: float
    """95th percentile of per-token KL on the items' replies; what the baselines are matched to."""
    kl_p95: float
    """The same over the first 20 greedy tokens of its own replies."""
    coherence: float
    """NLL of its text under the unsteered model minus the same of unsteered text, in nats a token."""
    repetition: float
    """1 − distinct 3-grams of its text."""
    unsteered_repetition: float
    """The same of unsteered text."""
    capability: float
    """How much worse it predicts ordinary prose, in nats a token."""
    option_mass: tuple[float, float] | None
    """Of items with two options: the probability of both together, unsteered and steered."""
    prompt: Baseline | None
    """Asking for the persona instead; None where its prompts are not known."""
    random: Baseline | None
    """Random directions at equal KL."""
    shuffled: Baseline | None
    """Directions from pairs with shuffled labels at equal KL; None where the pair is not known."""

    @property
    def shift(self) -> float:
        """Mean shift of propensity."""
        return self.steered - self.unsteered

    @property
    def anti_steerable(self) -> float:
        """The share of items that move against the mean."""
        way = 1 if self.shift >= 0 else -1
        return sum(way * moved < 0 for moved in self.per_item) / len(self.per_item)

    @property
    def beyond_nulls(self) -> bool:
        """Whether the shift is outside of every null and its interval excludes zero."""
        nulls = [null for null in (self.random, self.shuffled) if null is not None]
        if self.shift >= 0:
            return self.low > 0 and all(self.shift > null.most for null in nulls)
        return self.high < 0 and all(self.shift < null.least for null in nulls)

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys that scripts rely on."""
        return {
            "model": self.model,
            "steer": self.steer,
            "items": self.items,
            "source": self.source,
            "propensity": rounded(
                {
                    "unsteered": self.unsteered,
                    "steered": self.steered,
                    "shift": self.shift,
                    "low": self.low,
                    "high": self.high,
                }
            ),
            **rounded(
                {
                    key: getattr(self, key)
                    for key in (
                        "anti_steerable",
                        "kl_p95",
                        "items_kl_p95",
                        "coherence",
                        "repetition",
                        "unsteered_repetition",
                        "capability",
                    )
                }
            ),
            "option_mass": None if self.option_mass is None else [round(x, 4) for x in self.option_mass],
            "per_item": [round(x, 4) for x in self.per_item],
            "beyond_nulls": self.beyond_nulls,
            "prompt_only": self.prompt and self.prompt.to_json(),
            "null": {
                "random": self.random and self.random.to_json(),
                "shuffled": self.shuffled and self.shuffled.to_json(),
            },
        }


def evaluate(
    model: Model,
    steering: Steering,
    items: ItemSet,
    settings: Settings | None = None,
    progress: Progress = ignore_progress,
) -> Evaluation:
    """Measure a steering on items, beside prompting, random directions and shuffled labels.

    Args:
        model: who is measured
        steering: under what
        items: questions with two answers, unseen by the vectors
        settings: how thoroughly
        progress: told what is being done

    Raises:
        SteerkitError: the steering has no terms.
    """
    if not steering:
        raise SteerkitError("there is nothing to evaluate; add a steering, as -s '1 hal'")
    settings, model = settings or Settings(), model.for_measuring()
    rows = rows_of(model, items)
    pairs = _pairs(steering)
    randoms = [_random(steering, settings.seed + i) for i in range(settings.n_random)]
    shuffles = _shuffles(model, steering, pairs, settings, progress)
    nulls = match_divergence(model, steering, [*randoms, *shuffles], rows)
    tell = as_stage(progress, "prove")
    scores = score_replies(model, rows, [Steering(), steering, *nulls], divergence=True, progress=tell)
    measured = propensity_of(items, scores.totals, scores.lengths)
    costs = percentiles(scores.divergences)[1:]
    # Nulls are matched on a few rows; the square law takes them the rest of the way.
    shifts = at_cost(measured[1:] - measured[0], costs, float(costs[0]))
    low, high = bootstrap(shifts[0], settings.seed)
    asked = [model.chat_tokens([{"role": "user", "content": text}]) for text in items.questions()[: settings.n_texts]]
    plain, text = write_texts(model, asked, [Steering(), steering], settings.n_tokens, progress=progress)
    losses = capability(model, [Steering(), steering])
    chance, split = shifts[1:].mean(-1), 1 + len(randoms)
    return Evaluation(
        model=model.name,
        steer=str(steering),
        items=len(items),
        source=items.name,
        unsteered=float(measured[0].mean()),
        steered=float(measured[1].mean()),
        per_item=tuple(shifts[0].tolist()),
        low=low,
        high=high,
        items_kl_p95=float(costs[0]),
        kl_p95=text.divergence(),
        coherence=text.loss - plain.loss,
        repetition=text.repetition,
        unsteered_repetition=plain.repetition,
        capability=float(losses[1] - losses[0]),
        option_mass=_option_mass(items, scores.totals),
        prompt=_prompt_only(model, items, pairs, measured[0], settings.seed),
        random=summarise(chance[: len(randoms)], costs[1:split], settings.seed),
        shuffled=summarise(chance[len(randoms) :], costs[split:], settings.seed),
    )


def rows_of(model: Model, items: ItemSet, system: str = "") -> list[Row]:
    """Both answers of every item as tokens, the persona's first; under a system prompt if there is one."""
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    return item_rows(model, items.items, before) if items.items else choice_rows(model, items.choices, before)


def propensity_of(items: ItemSet, totals: Float[Tensor, "k m"], lengths: Float[Tensor, " m"]) -> Float[Tensor, "k n"]:
    """Propensity of each item: a mean token's for whole replies, and for options the answer's, over both orders."""
    if items.items:
        return contrast(totals / lengths)
    return contrast(totals).reshape(len(totals), -1, 2).mean(-1)


def _option_mass(items: ItemSet, totals: Float[Tensor, "k m"]) -> tuple[float, float] | None:
    if not items.choices:
        return None
    mass = (totals[:2, 0::2].exp() + totals[:2, 1::2].exp()).mean(-1)
    return float(mass[0]), float(mass[1])


def _pairs(steering: Steering) -> list[Pair] | None:
    """The personas behind the terms; None where one of them is not known any more."""
    made = [term.vector.provenance for term in steering.terms]
    try:
        return [find_pair(str(entry["persona"]), str(entry["against"])) for entry in made]
    except (KeyError, SteerkitError):
        return None


def _swap(steering: Steering, others: Sequence[SteeringVector]) -> Steering:
    """The same steering by other vectors, one a term, each in the place of the one it stands for."""
    terms = (
        replace(term, layers=term.band, vector=replace(other, evidence={"place": list(term.band)}))
        for term, other in zip(steering.terms, others, strict=True)
    )
    return replace(steering, terms=tuple(terms))


def _random(steering: Steering, seed: int) -> Steering:
    """Random directions in the vectors' places, at the same angles to each other as they are."""
    distinct = {id(term.vector): term.vector for term in steering.terms}
    turned = dict(zip(distinct, turned_together(list(distinct.values()), seed), strict=True))
    return _swap(steering, [turned[id(term.vector)] for term in steering.terms])


def _shuffles(
    model: Model, steering: Steering, pairs: list[Pair] | None, settings: Settings, progress: Progress
) -> list[Steering]:
    """Steerings by shuffled-label vectors; the pairs answer their held-out questions for them."""
    if pairs is None or settings.n_shuffled == 0 or not all(pair.positive.held_out for pair in pairs):
        return []
    distinct = {pair.name: pair for pair in pairs}
    held_out = {name: gather_material(model, pair, settings.seed, progress) for name, pair in distinct.items()}
    if min(len(material.positive) for material in held_out.values()) < 2:
        return []
    sides = {name: (material.positive, material.negative) for name, material in held_out.items()}

    def shuffled(i: int) -> list[SteeringVector]:
        named = zip(steering.terms, pairs, strict=True)
        return [shuffled_like(t.vector, *sides[pair.name], settings.seed + i // 2, (-1) ** i) for t, pair in named]

    return [_swap(steering, shuffled(i)) for i in range(settings.n_shuffled)]


def _prompt_only(
    model: Model, items: ItemSet, pairs: list[Pair] | None, unsteered: Float[Tensor, " n"], seed: int
) -> Baseline | None:
    """What asking for the first term's persona outright does, by each of its prompts."""
    if not pairs:
        return None
    rows = rows_of(model, items)
    asked = [rows_of(model, items, prompt) for prompt in dict.fromkeys(pairs[0].positive.requested)]
    found = [score_replies(model, under, [Steering()], against=rows) for under in asked]
    shifts = torch.cat([propensity_of(items, scores.totals, scores.lengths) for scores in found]) - unsteered
    costs = torch.cat([percentiles(scores.divergences) for scores in found])
    low, high = bootstrap(shifts.mean(0), seed)
    told = summarise(shifts.mean(-1), costs, seed)
    return told and replace(told, low=low, high=high)


@dataclass(frozen=True)
class Shift:
    """How far a dial moves propensity, beside random directions of the same length."""

    per_item: Float[Tensor, " n"]
    """Steered minus unsteered, item by item, in nats a token."""
    null: Float[Tensor, " r"]
    """Mean shift of each random direction."""

    @property
    def mean(self) -> float:
        """The mean over the items."""
        return float(self.per_item.mean())

    @property
    def right_way(self) -> float:
        """The share of items that move up."""
        return float((self.per_item > 0).float().mean())

    @property
    def beats_null(self) -> bool:
        """Whether the mean is above every random direction's."""
        return bool(self.mean > self.null.max())

    @property
    def below_null(self) -> bool:
        """Whether the mean is below every random direction's."""
        return bool(self.mean < self.null.min())


def measure_shifts(
    model: Model,
    vector: SteeringVector,
    items: Sequence[Item],
    dials: Sequence[float],
    n_random: int = 20,
    seed: int = 0,
    progress: Progress = ignore_progress,
) -> dict[float, Shift]:
    """Propensity shift at each dial, beside `n_random` random directions of equal norm at a dial as large.

    A random direction has no right way round, so dials of either sign share the same ones.
    """
    randoms = [random_like(vector, seed + i) for i in range(n_random)]
    sizes = sorted({abs(dial) for dial in dials})
    terms = [Term(vector, dial=dial) for dial in dials] + [Term(r, dial=size) for size in sizes for r in randoms]
    steerings = [Steering(), *(Steering((term,)) for term in terms)]
    measured = propensities(model, items, steerings, progress=progress)
    shifts = measured[1:] - measured[0]
    nulls = shifts[len(dials) :].mean(-1).reshape(len(sizes), n_random)
    return {dial: Shift(shifts[i], nulls[sizes.index(abs(dial))]) for i, dial in enumerate(dials)}
