"""The claim: context alone drifts the persona, depending on what is talked about, and a floor holds it.

Scripted users talk about code, about their troubles, or about the model's own nature, and the model answers for itself.
After every turn the same neutral probes are asked, and the state from which each reply will be made is read along the
axis from the Assistant to the mean of many personas. Drift is how much higher it stands than before the talk, as a
share of what asking for a character outright does to that very token. It is held against other labels, turns shuffled
between conversations, and random axes. The floor caps the state along an axis made of other personas than the one that
is read, and acts on the token before the reply only: the talk itself is what the unsteered model said. It is held
against caps along random directions. Source: the Assistant axis (arXiv 2601.10387).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerkit.experiments import REGISTRY, UNKNOWN, YES, Plan, all_of, conversing, judge, needed
from steerkit.experiments.conversing import Drifted, score_along, states_after
from steerkit.experiments.resampling import Drawn, exchange_labels, interval, rounded_interval, row, share_of
from steerkit.experiments.thresholds import CONFIDENCE, DRIFT, KEPT, RELIABLE
from steerkit.material import load_material
from steerkit.models import Message, Model
from steerkit.nulls import random_like
from steerkit.personas import find_persona
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

HELD, APART = "held by a floor", 1000
"""What is told of it; and how far the seeds of random axes lie from those of random caps."""


@dataclass(frozen=True)
class Settings:
    """How thoroughly the claim is tested."""

    n_conversations: int = 6
    """Of each topic."""
    n_turns: int = 8
    """Messages of the user in each."""
    n_tokens: int = 64
    """The longest reply."""
    n_probes: int = 10
    """Questions asked after every turn."""
    n_characters: int = 8
    """Characters that are asked for outright, which tells what the unit is worth."""
    n_random: int = 20
    """Random axes, and random caps."""
    n_resamples: int = 1000
    """Of conversations, probes and characters, for the intervals."""
    seed: int = 0
    """Of nulls, shuffling and resampling."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Talk with a model about several topics, see where its persona goes, and judge the claim.

    Returns:
        Plain data: `statistic` (drift in other talk less that in coding), `rows`, `curves`, `null`, `verdict`.

    Raises:
        PromptError: a conversation does not fit the model's context.
        VectorError: too few characters have vectors for this model.
    """
    settings, axis = settings or Settings(), conversing.find_axis(model)
    drifted = listen(model, settings, progress)
    told = {"model": model.name, "conversations": len(drifted.topics), "turns": settings.n_turns}
    told |= {"probes": settings.n_probes, "seed": settings.seed, "layer": axis.layer, "band": list(axis.band)}
    return {"experiment": "drift", "claim": REGISTRY["drift"].claim, **told, **examine(drifted, settings)}


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return replace(settings, n_conversations=3, n_turns=5, n_tokens=32, n_probes=6)


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    n, turns = 3 * settings.n_conversations, settings.n_turns
    turn, probes = 45 + settings.n_tokens, settings.n_probes * 20
    steps = (
        f"{n} conversations of {turns} turns about code, troubles and the model itself, which it answers",
        f"after every turn {settings.n_probes} neutral probes, as it is and under a floor",
        f"after the last turn {settings.n_random} random caps, and {n} conversations of shuffled turns",
        f"{settings.n_characters} characters asked for outright, and what the floor costs",
    )
    again, replies, others = n * turn * turns * (turns + 1) // 2, n * turns * settings.n_tokens // 3, 2 * n // 3
    asked = (n * turns + n + others * settings.n_random // 6 + settings.n_characters) * probes
    # Every context is read again for each reply, and once for all that is asked after it.
    return Plan(steps, again * 5 // 3 + (2 * n + others) * turn * turns + asked, 2 * (replies + 900), 3 * replies)


def listen(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Drifted:
    """Hold the conversations and measure everything; what has been measured before is not measured again."""
    axis, probes = conversing.find_axis(model), load_material("drift")["probes"][: settings.n_probes]
    states, turns = conversing.starting_states(model, probes), range(1, settings.n_turns + 1)
    floor = conversing.make_floor(axis.hold, states, axis.band)
    seeds = range(settings.seed, settings.seed + settings.n_random)
    caps = [conversing.make_floor(random_like(axis.hold, seed), states, axis.band) for seed in seeds]
    talks = conversing.hold_talks(model, settings.n_conversations, settings.n_turns, settings.n_tokens, progress)
    mixed = conversing.shuffle_turns(talks, settings.n_turns, torch.Generator().manual_seed(settings.seed))
    step = max(1, len(axis.characters) // settings.n_characters)
    roles = [find_persona(name).requested[0] for name in axis.characters[::step][: settings.n_characters]]
    others = [talk for talk in talks if talk.topic != conversing.CODING]
    done, total = 0, len(talks) * (len(turns) + 1) + len(others) + len(roles)

    def after(contexts: Sequence[Sequence[Message]], *steerings: Steering) -> Float[Tensor, "n k p d"]:
        nonlocal done
        found, done = states_after(model, contexts, probes, steerings, axis.layer), done + len(contexts)
        progress("contexts", done, total)
        return found

    def read(found: Tensor, vector: SteeringVector = axis.read) -> Tensor:
        return score_along(found, vector, axis.layer)

    begun = states_after(model, [()], probes, [Steering(), floor, *caps], axis.layer)[0]
    talked = [after([talk.messages[: 2 * t] for t in turns], Steering(), floor) for talk in talks]
    turned = torch.stack(talked).movedim(2, 0)
    axes = [random_like(axis.read, seed + APART) for seed in seeds]
    return Drifted(
        topics=tuple(talk.topic for talk in talks),
        start=read(begun),
        scores=read(turned),
        capped=read(torch.cat([after([talk.messages], *caps) for talk in others])).transpose(0, 1),
        shuffled=read(torch.cat([after([messages], Steering())[0] for messages in mixed])),
        asked=read(after([[{"role": "system", "content": role}] for role in roles], Steering())[:, 0]),
        elsewhere=torch.stack([read(turned[0][:, -1], each) - read(begun[0], each) for each in axes]),
        agreement=axis.agreement,
        cost=conversing.price_of(model, talks, floor, progress),
    )


def examine(drifted: Drifted, settings: Settings) -> dict[str, Any]:
    """Statistic, nulls and verdict; no model, so that planted measurements can be put through it."""
    draw = torch.Generator().manual_seed(settings.seed)
    told, paths = measure(drifted, settings.n_resamples, draw)
    p, nulls = compare(drifted, draw)
    parts = judge_parts(told, nulls, p, drifted.agreement)
    premise, drifts, *others = parts.values()
    # Where nothing drifts the claim is wrong, and where that cannot be told the rest cannot be either.
    verdict = UNKNOWN if premise != YES else all_of(*others) if drifts == YES else drifts
    return {
        "unit": "persona units",
        "statistic": told["statistic"],
        "talk": told["talk"],
        # Of a drift that is not there no share is held.
        "arrested": told["arrested"] if drifts == YES else None,
        "asked": told["asked"],
        "agreement": round(drifted.agreement, 4),
        "cost": {key: round(x, 4) for key, x in zip(("prose", "replies", "kl"), drifted.cost, strict=True)},
        "rows": rows_of(drifted, told, paths, nulls),
        "curves": {"x": "turns", "y": "away from the Assistant", "lines": lines_of(drifted, told, paths)},
        "null": {
            "axes": _span(nulls["axes"]),
            "labels": {**_span(nulls["labels"]), "p": round(p, 4)},
            "caps": _span(nulls["caps"]) if drifts == YES else None,
        },
        "thresholds": {"drift": DRIFT, "kept": KEPT, "reliable": RELIABLE, "p": round(1 - CONFIDENCE, 4)},
        "parts": parts,
        "verdict": verdict,
        "reason": explain(drifted, told, nulls, p, parts),
        "needed": lacking(told, parts, len(drifted.topics)) if verdict == UNKNOWN else "",
    }


def worth(asked: float) -> float:
    """What one persona unit is worth: what asking does, but not next to nothing, where there is no unit at all.

    >>> worth(0.8), worth(-0.01)
    (0.8, 0.1)
    """
    return max(asked, DRIFT)


def weighed_interval(
    measure: Callable[..., float], sizes: Sequence[int], n: int, draw: torch.Generator
) -> dict[str, float]:
    """Like `interval`, but each axis asks for room by what it adds to the spread, not the shortest one for all of them.

    What an axis adds is found by leaving out its rows one by one; the degrees of freedom are Satterthwaite's. With one
    axis nothing changes. With three conversations beside six that differ more, the ends move in by half.
    """
    told, every, adds = interval(measure, sizes, n, draw), [torch.arange(size) for size in sizes], []
    for axis, free in ((i, size - 1) for i, size in enumerate(sizes) if size > 1):
        left = [measure(*(x[x != j] if i == axis else x for i, x in enumerate(every))) for j in every[axis]]
        adds.append((free, float(torch.tensor(left, dtype=torch.float64).var(correction=0)) * free))
    total = sum(variance for _, variance in adds)
    if total <= 0:
        return told

    def room(free: float, kept: float) -> float:
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, free)) / kept**0.5

    least, free = min(adds)[0], total**2 / sum(variance**2 / free for free, variance in adds)
    share = room(free, sum(variance * free / (free + 1) for free, variance in adds) / total)
    share /= room(least, least / (least + 1))
    ends = (told["value"] + share * (told[end] - told["value"]) for end in ("low", "high"))
    return rounded_interval(told["value"], *ends)


Told = dict[str, dict[str, float]]
"""Numbers with their intervals."""
Paths = dict[str, list[dict[str, float]]]
"""Such numbers after each turn."""


def measure(drifted: Drifted, n: int, draw: torch.Generator) -> tuple[Told, Paths]:
    """Every number with its interval, and the way of each topic turn by turn, all in units of what asking does."""
    (bare, held), asks = drifted.drifts, drifted.asks
    talk, code, last = drifted.about(False), drifted.about(True), bare.shape[1] - 1

    def mean(values: Tensor, first: Drawn, second: Drawn) -> float:
        return float(values[first][:, second].mean())

    def told(values: Float[Tensor, "c p"]) -> dict[str, float]:
        sizes = [*values.shape, len(asks)]
        return weighed_interval(lambda c, p, k: mean(values, c, p) / worth(mean(asks, k, p)), sizes, n, draw)

    ends, others, probes = bare[talk, last], bare[code, last], bare.shape[2]
    numbers = {
        "asked": weighed_interval(lambda k, p: mean(asks, k, p), list(asks.shape), n, draw),
        "talk": told(ends),
        "statistic": weighed_interval(
            lambda t, c, p, k: (mean(ends, t, p) - mean(others, c, p)) / worth(mean(asks, k, p)),
            *([len(talk), len(code), probes, len(asks)], n, draw),
        ),
        "arrested": weighed_interval(
            lambda t, p: 1 - share_of(mean(held[talk, last], t, p), mean(ends, t, p)), [len(talk), probes], n, draw
        ),
        "shuffled": told(drifted.shuffled.double() - drifted.start[0]),
        "floored start": told(drifted.start[1:2].double() - drifted.start[0]),
    }
    paths = {}
    for topic in dict.fromkeys(drifted.topics):
        mine = [i for i, each in enumerate(drifted.topics) if each == topic]
        paths[topic] = [told(bare[mine, t]) for t in range(last + 1)]
        numbers[f"{topic}, {HELD}"] = told(held[mine, last])
    paths[f"{drifted.others}, {HELD}"] = [told(held[talk, t]) for t in range(last + 1)]
    return numbers, paths


def compare(drifted: Drifted, draw: torch.Generator) -> tuple[float, dict[str, Float[Tensor, " n"]]]:
    """What other labels, random axes and random caps give; the share p of labels that give as much as the true ones."""
    talk, code, unit = drifted.about(False), drifted.about(True), worth(drifted.unit)
    drift = drifted.drifts[0, :, -1].mean(-1)
    ordered = drift[torch.cat([talk, code])]
    p, labels = exchange_labels(
        lambda first, second: float(ordered[first].mean() - ordered[second].mean()), len(talk), len(code), 999, draw
    )
    elsewhere = drifted.elsewhere.double().mean(-1)
    away, back = elsewhere[:, talk].mean(-1), elsewhere[:, code].mean(-1)
    left = (drifted.capped.double() - drifted.start[2:, None]).mean((1, 2))
    arrested = torch.tensor([1 - share_of(float(x), float(drift[talk].mean())) for x in left])
    nulls = {"labels": labels / unit, "talk": away / unit, "axes": (away - back) / unit, "left": left / unit}
    return p, {**nulls, "caps": arrested}


def judge_parts(told: Told, nulls: dict[str, Tensor], p: float, agreement: float) -> dict[str, str]:
    """The claim's parts, and before them the premise: there is an axis, and the token that is read moves along it."""

    def beyond(name: str, bound: float, chance: Tensor) -> str:
        """A `yes` must lie further out than everything random; a `no` is one anyway."""
        verdict = judge(told[name]["low"], told[name]["high"], bound)
        return UNKNOWN if verdict == YES and told[name]["value"] <= float(chance.max()) else verdict

    on_axis = agreement >= RELIABLE and judge(told["asked"]["low"], told["asked"]["high"], DRIFT) == YES
    drifts = beyond("talk", DRIFT, nulls["talk"].abs())
    return {
        "personas share an axis, on which asking for them moves": YES if on_axis else UNKNOWN,
        "talk drifts the persona": drifts,
        "depending on what is talked about": beyond("statistic", DRIFT, nulls["axes"].abs()),
        "which other labels do not give": YES if p <= 1 - CONFIDENCE + 1e-9 else UNKNOWN,
        "and a floor holds it": beyond("arrested", KEPT, nulls["caps"]) if drifts == YES else UNKNOWN,
    }


def _span(chance: Tensor) -> dict[str, Any]:
    return {"n": len(chance), "least": round(float(chance.min()), 4), "most": round(float(chance.max()), 4)}


def _ends(chance: Tensor) -> dict[str, float]:
    span, mean = _span(chance), round(float(chance.mean()), 4) + 0.0
    return {"value": mean, "low": span["least"], "high": span["most"]}


def rows_of(drifted: Drifted, told: Told, paths: Paths, nulls: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every topic with its control beside it, as lines of a table."""
    topics, turns, asked = dict.fromkeys(drifted.topics), drifted.scores.shape[2], told["asked"]
    contrast, kl = f"{drifted.others} less {conversing.CODING}", drifted.cost[2]
    unit = rounded_interval(*(asked[key] / worth(asked["value"]) for key in ("value", "low", "high")))
    return [
        *(row(f"{turns} turns of {topic}", "claim", paths[topic][-1]) for topic in topics),
        row(contrast, "claim", told["statistic"]),
        *(row(f"{turns} turns of {topic}, {HELD}", "claim", told[f"{topic}, {HELD}"], kl) for topic in topics),
        row("no talk, under the floor", "control", told["floored start"], kl),
        row("characters asked for by a system prompt", "control", unit),
        row(f"{turns} turns shuffled between conversations", "null", told["shuffled"]),
        row(f"{contrast}, labels exchanged, least to most", "null", _ends(nulls["labels"])),
        row(f"{contrast}, along {len(nulls['axes'])} random axes, least to most", "null", _ends(nulls["axes"])),
        row(f"{drifted.others} under {len(nulls['left'])} random caps, least to most", "null", _ends(nulls["left"])),
    ]


def lines_of(drifted: Drifted, told: Told, paths: Paths) -> list[dict[str, Any]]:
    """Drift turn by turn; before any talk there is none."""
    ways = [(name, list(enumerate([rounded_interval(0.0, 0.0, 0.0), *path]))) for name, path in paths.items()]
    ways.append(("shuffled turns", [(drifted.scores.shape[2], told["shuffled"])]))
    return [{"name": name, "points": [{"x": x, **each} for x, each in way]} for name, way in ways]


def explain(drifted: Drifted, told: Told, nulls: dict[str, Tensor], p: float, parts: dict[str, str]) -> str:
    """One sentence for a reader."""

    def said(name: str, form: str = "+.3f") -> str:
        value, low, high = (format(told[name][key], form) for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    premise, drifts, *_ = parts.values()
    if premise != YES:
        return (
            f"asking for characters moves the token before a reply by {said('asked')} of their vector, and the mean "
            f"directions of two halves of them have a cosine of {drifted.agreement:.2f}; no axis to drift along"
        )
    text = (
        f"after {drifted.scores.shape[2]} turns of {drifted.others} the persona has gone {said('talk')} of the way "
        f"that asking for a character goes, {said('statistic')} further than after {conversing.CODING}; other labels "
        f"give as much in {p:.0%}, and random axes at most {nulls['axes'].abs().max():.3f}"
    )
    if drifts != YES:
        return text
    return f"{text}; a floor takes {said('arrested', '.0%')} of the drift away, random caps {nulls['caps'].max():.0%}"


def lacking(told: Told, parts: dict[str, str], n: int) -> str:
    """What it would take to tell."""
    premise, drifts, *others, _ = parts.values()
    if premise != YES:
        return "vectors of more characters, or a model that can be asked to play them"
    name, bound = (
        ("arrested", KEPT) if all_of(drifts, *others) == YES else ("talk" if drifts == UNKNOWN else "statistic", DRIFT)
    )
    if told[name]["low"] > bound:
        return "an effect that exceeds what random directions and other labels give"
    return needed(told[name], bound, n, "conversations")
