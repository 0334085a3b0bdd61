"""The claim: asking for a persona, showing examples of it and steering work through the same representation.

In the middle layer: where a system prompt moves the state from which a reply will be made, where examples in the
context move it, and where the vector points. In behaviour: which questions of a battery each of them raises. What
counts is how much better a persona matches itself than it matches others, without what all of them share. The vector
was made from the same prompts, on other questions and over words of replies, so that it agrees with prompts is
expected; it has never seen the examples, and that these agree with both is what is tested. Beside the verdict it is
told how much a prompt still does where the vector is taken out of the reply.

Sources: persona vectors (arXiv 2507.21509), function vectors (arXiv 2310.15213).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.experiments import NO, REGISTRY, UNKNOWN, Plan, all_of, matching, needed
from steerkit.experiments.moving import Context, ablated, answers_after, cut, states_after, ways_to
from steerkit.experiments.resampling import rounded_interval, row
from steerkit.experiments.scoring import random_directions, shifts_at_cost
from steerkit.experiments.thresholds import CONFIDENCE, MATCH, RELIABLE
from steerkit.limits import working_dial
from steerkit.measures import item_rows, neutral
from steerkit.models import Model
from steerkit.personas import Item, Persona, load_personas
from steerkit.vectors import SteeringVector, VectorSet
from steerkit.weights import Progress, ignore_progress

WAYS = ("prompts", "examples", "vectors")
PAIRS = tuple(itertools.combinations(range(len(WAYS)), 2))
KINDS = ("cosine", "behaviour")
LEAST = 4
"""With fewer personas labels cannot be exchanged in twenty ways."""

# Some of every family, with vectors that work on the default model; the first eight make the quick run.
PERSONAS = (
    *("pirate", "machine_god", "legalese", "sadness", "malice", "oak_tree", "chef", "kind_ship"),
    *("socrates", "toddler", "killer_machine", "anger", "joy", "honesty", "laziness", "archaic_speech"),
    *("scientist", "judge", "moon", "honest_adviser"),
)


@dataclass(frozen=True)
class Settings:
    """How thoroughly the claim is tested."""

    personas: tuple[str, ...] = PERSONAS
    """Who is tried; whoever has no vector or too few items is left out."""
    n_questions: int = 16
    """Neutral questions on which states are read."""
    n_examples: int = 4
    """A persona's items that the context shows."""
    n_battery: int = 2
    """Items of each persona, behind those, that the battery has."""
    longest: int = 24
    """Tokens of a reply that are scored."""
    n_random: int = 20
    """Random directions, and sets of them."""
    n_ablated: int = 4
    """Random directions that are taken out of each persona's replies."""
    n_resamples: int = 1000
    """Of personas, questions and items, for the intervals."""
    seed: int = 0
    """Of nulls and resampling."""


@dataclass(frozen=True, eq=False)
class Moved:
    """Where three ways move p personas: at d coordinates before q questions, and on n items of a battery, in nats."""

    personas: tuple[str, ...]
    """Their names."""
    prompts: Float[Tensor, "p q d"]
    """Under a system prompt less under the Assistant's of the same wording."""
    examples: Float[Tensor, "p q d"]
    """After examples less after the same questions with the Assistant's replies."""
    implied: Float[Tensor, "p q d"]
    """Under a context that implies the persona less the bare question; what any context does is shared, and goes."""
    shuffled: Float[Tensor, "p q d"]
    """After examples of which half are the Assistant's, less after those with the other half."""
    directions: Float[Tensor, "p d"]
    """Of the vectors."""
    asked: Float[Tensor, "p n"]
    """What prompts do to the battery, whose n / p neighbouring items are each persona's own, in order."""
    shown: Float[Tensor, "p n"]
    """What examples do to it."""
    steered: Float[Tensor, "p n"]
    """What vectors do to it, at a KL p95 of half a nat."""
    chance: Float[Tensor, "r n"]
    """What random directions do to it, at the same."""
    left: Float[Tensor, "p a"]
    """What a prompt does to its own items: as it is, and with the own vector, another's, and random ones ablated."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Move a model to personas in three ways, and judge whether it goes to the same places.

    Returns:
        Plain data: `statistic` (by how much prompts and examples of one persona are closer than those of two, as a
        cosine), `pairs`, `ablation`, `rows`, `null`, `verdict`.

    Raises:
        VectorError: fewer than four of the personas have a vector.
        PromptError: the examples do not fit into the model's context.
    """
    settings = settings or Settings()
    moved = listen(model, settings, progress)
    about = {"model": model.name, "personas": list(moved.personas), "items": moved.asked.shape[1]}
    about |= {"layer": model.n_layers // 2, "questions": moved.prompts.shape[1], "seed": settings.seed}
    return {"experiment": "mediation", "claim": REGISTRY["mediation"].claim, **about, **examine(moved, settings)}


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return replace(settings, personas=settings.personas[:8], n_questions=8, longest=12, n_ablated=2)


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    p, q = len(settings.personas), settings.n_questions
    n = p * settings.n_battery
    said = (
        f"{p} personas asked for, shown in {settings.n_examples} examples and implied, before {q} neutral questions",
        f"the same before {n} questions of their own; their vectors, and {settings.n_random} random directions",
        "each persona's prompt again, with its own vector taken out of the reply, another's, and random ones",
    )
    read = p * (6 * q * 18 + 6 * settings.n_examples * 55 + 3 * n * 18 + 4 * 150)
    passes = n * (4 * p + 1 + settings.n_random) + 2 * n * (3 + settings.n_ablated)
    return Plan(said, read, 2 * passes * min(settings.longest, 26))


def players(model: Model, settings: Settings) -> list[tuple[Persona, SteeringVector]]:
    """The personas that can be tried, with their vectors.

    Raises:
        VectorError: fewer than four can.
    """
    vectors, library, n = VectorSet(model.fingerprint), load_personas(), settings.n_examples + settings.n_battery
    known = [name for name in settings.personas if name in library]
    able = [name for name in known if len(library[name].items) >= n and library[name].implied]
    there = set(vectors)
    found = [(library[name], vectors[name]) for name in able if name in there]
    if len(found) < LEAST:
        lacking = [name for name in able if name not in there][: LEAST - len(found)]
        make = "; ".join(f"steerkit extract {name}" for name in lacking) or "steerkit extract --all"
        raise VectorError(
            f"{len(found)} of {len(settings.personas)} personas have a vector for {model.name}, and {LEAST} are "
            f"needed; make more with: {make}"
        )
    return found


def listen(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Moved:
    """Measure all ways; what has been measured before is not measured again."""
    cast, first, middle = players(model, settings), settings.n_examples, model.n_layers // 2
    vectors, questions = [vector for _, vector in cast], neutral("questions")[: settings.n_questions]
    items = [persona.items[first : first + settings.n_battery] for persona, _ in cast]
    battery, longest = [item for own in items for item in own], settings.longest
    contexts, done = [ways_to(persona, first) for persona, _ in cast], itertools.count(1)

    def shift(way: str, measure: Callable[[Context], Tensor]) -> Tensor:
        found = []
        for each in contexts:
            one, instead = each[way]
            found.append(measure(one) - measure(instead))
            progress("contexts", next(done), 6 * len(cast))
        return torch.stack(found)

    def states(context: Context) -> Tensor:
        return states_after(model, context, questions, middle)

    def answers(context: Context) -> Tensor:
        return answers_after(model, context, battery, longest)

    randoms, starts = random_directions(vectors, settings.n_random, settings.seed)
    rows, dials = cut(item_rows(model, battery), longest), [*map(working_dial, vectors), *starts]
    prompts, examples = shift("prompts", states), shift("examples", states)
    asked, shown = shift("prompts", answers), shift("examples", answers)
    pushed, _ = shifts_at_cost(model, rows, [*vectors, *randoms], dials, progress, rows[:2] + rows[-2:])
    return Moved(
        personas=tuple(persona.name for persona, _ in cast),
        prompts=prompts,
        examples=examples,
        implied=shift("implied", states),
        shuffled=shift("shuffled", states),
        directions=torch.stack([vector.directions[middle] for vector in vectors]),
        asked=asked,
        shown=shown,
        steered=pushed[: len(cast)],
        chance=pushed[len(cast) :],
        left=take_out(model, vectors, [each["prompts"] for each in contexts], items, settings, progress),
    )


def take_out(
    model: Model,
    vectors: Sequence[SteeringVector],
    prompts: Sequence[tuple[Context, Context]],
    items: Sequence[Sequence[Item]],
    settings: Settings,
    progress: Progress,
) -> Float[Tensor, "p a"]:
    """What prompts do to their own items: as it is; with the own vector ablated, the next persona's, random ones."""
    found, n = [], settings.n_ablated
    for i, vector in enumerate(vectors):
        randoms, _ = random_directions([vector], n, settings.seed + 1000 + i * n)
        out = [vector, vectors[(i + 1) % len(vectors)], *randoms]
        found.append(ablated(model, prompts[i], items[i], i * settings.n_battery, settings.longest, out))
        progress("prove", i + 1, len(vectors))
    return torch.stack(found)


def examine(moved: Moved, settings: Settings) -> dict[str, Any]:
    """Statistic, nulls and verdict; no model, so that planted measurements can be put through it."""
    draw = torch.Generator().manual_seed(settings.seed)
    p, q, _ = moved.prompts.shape
    drawn = [matching.draw_counts(size, settings.n_resamples, draw) for size in (p, q, moved.asked.shape[1])]
    raised = [matching.raised(shifts, drawn[0]) for shifts in (moved.asked, moved.shown, moved.steered)]
    halves = [matching.halves(deltas) for deltas in (moved.prompts, moved.examples)]
    # A way that raises no items of its own, or goes elsewhere on other questions, says nothing against the claim.
    steady = [r["low"] > 0 and half >= RELIABLE for r, half in zip(raised, (*halves, 1.0), strict=True)]
    pairs = compare_ways(moved, drawn, steady, settings.n_random, draw)
    left = remaining(moved.left, drawn[0]) if raised[0]["low"] > 0 else None
    parts = {f"{' and '.join(pair['ways'])} move the same way": pair["verdict"] for pair in pairs}
    verdict = all_of(*parts.values())
    matched = [pair[kind] for pair in pairs for kind in KINDS]
    return {
        "unit": "cosine or correlation",
        "statistic": {key: pairs[0]["cosine"][key] for key in ("value", "low", "high")},
        "pairs": pairs,
        "raised": dict(zip(WAYS, raised, strict=True)),
        "halves": dict(zip(WAYS, halves, strict=False)),
        "ablation": left or {"left": None, "other": None, "random": None},
        "rows": rows_of(moved, pairs, drawn),
        "curves": {},
        "null": {
            "random": {"n": settings.n_random, **extremes([match["random"] for match in matched])},
            "labels": {"n": matched[0]["exchanges"], "p": max(match["p"] for match in matched)},
        },
        "thresholds": {"match": MATCH, "reliable": RELIABLE, "p": round(1 - CONFIDENCE, 4)},
        "parts": parts,
        "verdict": verdict,
        "reason": explain(pairs, left),
        "needed": "" if verdict != UNKNOWN else lacking(pairs, dict(zip(WAYS, steady, strict=True)), p),
    }


def compare_ways(
    moved: Moved, drawn: Sequence[Tensor], steady: Sequence[bool], n_random: int, draw: torch.Generator
) -> list[dict[str, Any]]:
    """Every two ways, in the middle layer and in behaviour."""
    personas, questions, items = drawn
    p, _, d = moved.prompts.shape
    placed = [partial(matching.places, each) for each in (moved.prompts, moved.examples, moved.directions[:, None])]
    felt = [partial(matching.patterns, each) for each in (moved.asked, moved.shown, moved.steered)]
    aimless = torch.randn(n_random, p, d, generator=draw, dtype=torch.float64)
    orders = torch.stack([torch.randperm(len(moved.chance), generator=draw) for _ in range(n_random)])
    pushed = moved.chance.double()[orders[:, torch.arange(p) % len(moved.chance)]]
    pushed = pushed - pushed.mean(-1, keepdim=True)
    found = []
    for a, b in PAIRS:
        cosine = matching.compare(placed[a], placed[b], questions, personas, aimless, draw)
        behaviour = matching.compare(felt[a], felt[b], items, personas, pushed, draw)
        each = [matching.judge_match(told, steady[a] and steady[b]) for told in (cosine, behaviour)]
        found.append({"ways": [WAYS[a], WAYS[b]], "cosine": cosine, "behaviour": behaviour, "verdict": all_of(*each)})
    return found


def remaining(left: Float[Tensor, "p a"], personas: Float[Tensor, "n p"]) -> dict[str, dict[str, float]]:
    """What is left of the prompts' shift of own items, as a share, with the vector ablated, another's, random ones."""
    totals = personas @ left.double()
    shares = totals[:, 1:] / totals[:, :1].clamp_min(1e-3)
    sides = {"left": shares[:, 0], "other": shares[:, 1], "random": shares[:, 2:].mean(-1)}
    return {key: matching.told(share, left.shape[0]) for key, share in sides.items()}


def rows_of(moved: Moved, pairs: Sequence[dict[str, Any]], drawn: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Every pair of ways with other personas beside it, then controls and nulls, as lines of a table."""
    personas, questions, _ = drawn
    deltas = dict(zip(WAYS, (moved.prompts, moved.examples, moved.directions[:, None]), strict=True))
    shifts = dict(zip(WAYS, (moved.asked, moved.shown, moved.steered), strict=True))
    lines = []
    for pair in pairs:
        a, b = pair["ways"]
        name = f"{a} with {b}"
        lines.append(row(f"{name}: same persona", "claim", pair["cosine"]["same"]))
        lines.append(row(f"{name}: other personas", "null", pair["cosine"]["other"]))
        lines.append(row(f"behaviour, {name}: same persona", "claim", pair["behaviour"]["same"]))
        lines.append(row(f"behaviour, {name}: other personas", "null", pair["behaviour"]["other"]))
        whole = matching.with_what_all_share(deltas[a], deltas[b], personas)
        lines.append(row(f"{name}, with what all share: same less other", "control", whole))
        foreign = matching.on_other_items(shifts[a], shifts[b], personas)
        lines.append(row(f"behaviour, {name}, on others' items: same less other", "control", foreign))
    for name, group, one in (("implied contexts", "control", moved.implied), ("shuffled", "null", moved.shuffled)):
        for way in ("prompts", "vectors"):
            said = f"{name} with {way}: same persona" if group == "control" else f"{name} examples with {way}"
            lines.append(row(said, group, matching.own_match(one, deltas[way], questions, personas)))
    for kind, said in zip(KINDS, ("random directions", "behaviour, random directions"), strict=True):
        chance = [pair[kind]["random"] for pair in pairs]
        middle = sum(each["value"] for each in chance) / len(chance)
        lines.append(row(f"{said}, least to most", "null", rounded_interval(middle, *extremes(chance).values())))
    return lines


def extremes(chance: Sequence[dict[str, float]]) -> dict[str, float]:
    """The least and the most that random directions reach, of several matches."""
    return {"least": min(each["least"] for each in chance), "most": max(each["most"] for each in chance)}


def explain(pairs: Sequence[dict[str, Any]], left: dict[str, dict[str, float]] | None) -> str:
    """One sentence for a reader."""

    def ends(told: dict[str, float]) -> str:
        return f"{told['value']:+.2f} [{told['low']:+.2f}, {told['high']:+.2f}]"

    said = [
        f"{' and '.join(pair['ways'])} match by {ends(pair['cosine'])} in the middle layer "
        f"(p {pair['cosine']['p']:.3f}) and by {ends(pair['behaviour'])} in behaviour (p {pair['behaviour']['p']:.3f})"
        for pair in pairs
    ]
    text = f"beyond other personas, {'; '.join(said)}"
    if left is None:
        return f"{text}; prompts do not raise their own items, so nothing was taken out of them"
    own, another, random = (f"{left[key]['value']:.0%}" for key in ("left", "other", "random"))
    return (
        f"{text}; of what a prompt does to its own items {own} are left with the vector taken out of the reply, "
        f"{another} with another persona's and {random} with random ones"
    )


def lacking(pairs: Sequence[dict[str, Any]], steady: dict[str, bool], p: int) -> str:
    """What it would take to tell."""
    judged = [(pair[kind], matching.judge_match(pair[kind], True)) for pair in pairs for kind in KINDS]
    weak = [way for way, known in steady.items() if not known]
    if weak and NO in (verdict for _, verdict in judged):
        return f"a model or personas in which {' and '.join(weak)} raise their own items, and steadily"
    unsure = [told for told, verdict in judged if verdict == UNKNOWN]
    beside = [told for told in unsure if told["low"] <= MATCH]
    if not beside:
        return "personas that differ in more than one way, or whose match exchanged labels do not give"
    return needed(min(beside, key=lambda told: told["value"]), MATCH, p, "personas")
