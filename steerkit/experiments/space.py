"""The claim: personas form a space of few dimensions, and the Assistant is one place in it, near an end of the first.

Source: the Assistant axis (arXiv 2601.10387). Nulls are as many random vectors of equal length, and every other persona
in the Assistant's place. Two things that the first component might be instead are looked for: how long replies are, and
how much they tell stories, which is how small models play.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES, Plan, all_of, judge, needed
from steerkit.experiments.pictured import draw, draw_way
from steerkit.experiments.thresholds import CONFOUNDED, COSINE, FEW, OUTER, RELIABLE, SHARE
from steerkit.models import Message, Model
from steerkit.personas import Persona, find_persona, load_personas
from steerkit.positions import QUICK, chat_positions, take_positions
from steerkit.positions import Settings as Thoroughness
from steerkit.spaces import (
    PersonaSpace,
    assistant_axis,
    components,
    correlation,
    cosine,
    count_components,
    percentile,
    random_points,
    without_covariate,
    without_direction,
)
from steerkit.weights import Progress, ignore_progress

FEWEST = 4
NORMAL = 1.96
BOUNDS = {"components": (1.0, math.inf), "percentile": (0.0, 1.0), "cosine": (-1.0, 1.0)}
STORYTELLER = "storyteller"
STYLES = "styles"


@dataclass(frozen=True)
class Settings:
    """What is mapped, and how thoroughly."""

    personas: tuple[str, ...] = ()
    """Names; the whole library if there are none."""
    layers: tuple[int, ...] = ()
    """Layers that are drawn; the verdict is about the first. The middle of the model if there are none."""
    positions: Thoroughness = field(default_factory=Thoroughness)
    """How positions are taken."""
    n_random: int = 20
    """Sets of random vectors."""
    n_resamples: int = 200
    """Of the questions, for the intervals."""
    seed: int = 0
    """Of the nulls and the resampling."""


@dataclass(frozen=True)
class Measured:
    """The claim's numbers on some states; plain floats."""

    components: float
    """How many carry 70 % of the variance."""
    percentile: float
    """How far out the Assistant is on the first, which points its way: 1 is beyond every persona."""
    cosine: float
    """Of the first component with the Assistant axis."""


def run(
    model: Model,
    settings: Settings | None = None,
    progress: Progress = ignore_progress,
    chat: Sequence[Message] = (),
) -> dict[str, Any]:
    """Map a model's persona space, and judge the claim.

    Args:
        model: whose space it is
        settings: what is mapped, and how thoroughly
        progress: told how many personas of how many have answered
        chat: a conversation whose way through the space is laid over the map

    Returns:
        Plain data: `statistic`, `null`, `confounds`, `thresholds`, `verdict`, `reason`, and what a picture needs.

    Raises:
        PersonaError: a persona is unknown.
        PromptError: the chat does not fit the model's context.
        SteerkitError: there are too few personas, or a layer does not exist.
    """
    settings = settings or Settings()
    personas, layers = chosen(settings.personas), settings.layers or (model.n_layers // 2,)
    check_layers(model, layers)
    positions = replace(settings.positions, seed=settings.seed)
    turns = chat_positions(model, chat, positions) if chat else []
    space = take_positions(model, personas, positions, progress)
    found = examine(space, layers[0], settings)
    told = {"model": model.name, "personas": len(space.names), "questions": settings.positions.n_questions}
    told |= {"reading": settings.positions.reading, "tokens": settings.positions.n_tokens, "seed": settings.seed}
    path = draw_way(space, layers[0], turns) if turns else []
    return {"experiment": "map", "claim": REGISTRY["map"].claim, **told, **found, **draw(space, layers), "path": path}


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return replace(settings, positions=QUICK)


def check_layers(model: Model, layers: Sequence[int]) -> None:
    """Refuse layers that do not exist before anything is measured.

    Raises:
        SteerkitError: one does not.
    """
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise SteerkitError(f"layer {layer} is out of range; {model.name} has layers 0 to {model.n_layers - 1}")


def chosen(names: Sequence[str]) -> list[Persona]:
    """The personas that are mapped, by family; the whole library if none are named."""
    library = load_personas()
    found = [find_persona(name, library) for name in dict.fromkeys(names)] if names else list(library.values())
    if len(found) < FEWEST:
        raise SteerkitError(f"a space needs at least {FEWEST} personas, and there are {len(found)}; name more")
    return sorted(found, key=lambda persona: (persona.family, persona.name))


def examine(space: PersonaSpace, layer: int, settings: Settings) -> dict[str, Any]:
    """Statistics, nulls, confounds and verdict at one layer; no model, so that planted spaces can be put through it."""
    states, assistant = space.at(layer), space.assistant[:, layer].double()
    draw = torch.Generator().manual_seed(settings.seed)
    statistic = resample(states, assistant, settings.n_resamples, draw)
    null = nulls(states, assistant, settings.n_random, draw)
    confounds = {"control": beyond(states, assistant, space.control[:, layer].double())}
    confounds |= look_for_confounds(space, layer)
    halves = agreement(states)
    verdicts = verdicts_of(statistic, null, confounds, halves)
    thresholds = {"share": SHARE, "few": FEW, "outer": OUTER, "cosine": COSINE, "confounded": CONFOUNDED}
    thresholds |= {"reliable": RELIABLE}
    return {
        "layer": layer,
        "statistic": statistic,
        "null": null,
        "confounds": confounds,
        "halves": round(halves, 4),
        "thresholds": thresholds,
        "parts": verdicts,
        "verdict": all_of(*verdicts.values()),
        "reason": explain(statistic, null, confounds, verdicts, halves),
        "needed": lacking(statistic, verdicts, halves, states.shape[1]),
    }


def measure(states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"]) -> Measured:
    """The claim's three numbers."""
    points, place = states.mean(1), assistant.mean(0)
    axis = assistant_axis(points, place)
    found = components(points).turned(axis)
    along, out = found.project(points, 1)[:, 0], found.project(place[None], 1)[0, 0]
    return Measured(count_components(found.shares, SHARE), percentile(along, out), cosine(found.axes[0], axis))


def beyond(
    states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"], control: Float[Tensor, "q d"]
) -> dict[str, float]:
    """How far out prompts that ask for nobody stand on the first component: the Assistant may only lack a persona."""
    points, place = states.mean(1), assistant.mean(0)
    found = components(points).turned(assistant_axis(points, place))
    out = found.project(control.mean(0)[None], 1)[0, 0]
    return {"percentile": round(percentile(found.project(points, 1)[:, 0], out), 4)}


def agreement(states: Float[Tensor, "p q d"]) -> float:
    """How far the places that every second question gives agree with those that the others give: 1 is no noise.

    A correlation over all coordinates of all personas. Noise has many dimensions, so where this is low the count of
    components is too high.
    """
    halves = [states[:, i::2].mean(1) for i in (0, 1)] if states.shape[1] > 1 else [states[:, 0]] * 2
    one, other = (half - half.mean(0) for half in halves)
    return cosine(one.flatten(), other.flatten())


def resample(
    states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"], n: int, draw: torch.Generator
) -> dict[str, dict[str, float]]:
    """The three numbers with their intervals, from the spread over resampled questions, the same for everybody.

    Resampling adds the noise of the questions a second time, which pushes every number the same way; so the interval
    lies around the number itself, and only its width is taken from the resamples.
    """
    value, n_questions = measure(states, assistant), states.shape[1]
    rows = []
    for _ in range(n):
        kept = torch.randint(n_questions, (n_questions,), generator=draw)
        rows.append(list(asdict(measure(states[:, kept], assistant[kept])).values()))
    widths = torch.tensor(rows, dtype=torch.float64).std(0) * NORMAL * math.sqrt(n_questions / max(n_questions - 1, 1))
    found = {}
    for (key, centre), width in zip(asdict(value).items(), widths.tolist(), strict=True):
        least, most = BOUNDS[key]
        low, high = max(centre - width, least), min(centre + width, most)
        found[key] = {"value": round(centre, 4), "low": round(low, 4), "high": round(high, 4)}
    return found


def nulls(
    states: Float[Tensor, "p q d"], assistant: Float[Tensor, "q d"], n: int, draw: torch.Generator
) -> dict[str, Any]:
    """The three numbers of random vectors, as many and as long; and the spectrum of each set."""
    points, place = states.mean(1), assistant.mean(0)
    everybody = torch.cat([points, place[None]])
    found, spectra = [], []
    for _ in range(n):
        noise = random_points(everybody, draw)[:, None]
        found.append(measure(noise[:-1], noise[-1]))
        spectra.append(components(noise[:-1, 0]).shares)
    ends = {
        key: {
            "n": n,
            "least": round(min(getattr(each, key) for each in found), 4),
            "most": round(max(getattr(each, key) for each in found), 4),
        }
        for key in asdict(found[0])
    }
    stacked = torch.stack(spectra)
    band = {"low": stacked.amin(0), "high": stacked.amax(0)}
    others = [measure(_without(states, i), states[i]) for i in range(len(states))]
    as_good = [other.percentile >= OUTER and other.cosine > COSINE for other in others]
    return {
        **ends,
        "spectrum": {key: [round(x, 5) for x in values[:100].tolist()] for key, values in band.items()},
        "others": {"n": len(others), "p": round(sum(as_good) / len(others), 4)},
    }


def _without(states: Float[Tensor, "p q d"], i: int) -> Float[Tensor, "n q d"]:
    return torch.cat([states[:i], states[i + 1 :]])


def story_direction(space: PersonaSpace, layer: int) -> Float[Tensor, " d"] | None:
    """From the mean of the other styles to the storyteller; None where there is no storyteller or no other style.

    Both are styles asked for by a system prompt, so what differs is the telling of stories.
    """
    styles = [i for i in space.members(STYLES) if space.names[i] != STORYTELLER]
    if STORYTELLER not in space.names or not styles:
        return None
    points = space.at(layer).mean(1)
    return points[space.names.index(STORYTELLER)] - points[styles].mean(0)


def look_for_confounds(space: PersonaSpace, layer: int) -> dict[str, Any]:
    """Whether the first component is reply length or storytelling, and what is left of the claim without them.

    Length is known of every persona, so it is correlated with their places. Storytelling is a direction, and what
    counts is its cosine: along any direction at all personas are strung as on the first component, which varies most.
    What the two explain is then taken out of every state, and everything is measured again.
    """
    points, place = space.at(layer).mean(1), space.assistant[:, layer].double().mean(0)
    first = components(points).turned(assistant_axis(points, place)).axes[0]
    along, story = points @ first, story_direction(space, layer)
    told: dict[str, Any] = {"length": _related(along, _log_lengths(space))}
    if story is not None:
        told["storytelling"] = {"cosine": round(cosine(first, story), 4), **_related(along, points @ story)}
    left = asdict(measure(*without_confounds(space, layer)))
    return {**told, "without": {key: round(x, 4) for key, x in left.items()}}


def _log_lengths(space: PersonaSpace) -> Float[Tensor, " p"]:
    """Lengths differ by factors."""
    return space.lengths.double().log()


def without_confounds(space: PersonaSpace, layer: int) -> tuple[Float[Tensor, "p q d"], Float[Tensor, "q d"]]:
    """States of the personas and of the Assistant, less what reply length explains and their storytelling."""
    states, assistant = space.at(layer), space.assistant[:, layer].double()
    lengths, its = _log_lengths(space), math.log(space.assistant_length)
    story = story_direction(space, layer)
    states, assistant = without_covariate(states, assistant, lengths, its)
    if story is None:
        return states, assistant
    return without_direction(states, story), without_direction(assistant, story)


def _related(one: Float[Tensor, " p"], other: Float[Tensor, " p"]) -> dict[str, float]:
    """Pearson's r over personas, with Fisher's interval."""
    r = correlation(one, other)
    bounded = torch.tensor(min(max(r, -0.999999), 0.999999), dtype=torch.float64)
    width = NORMAL / max(len(one) - 3, 1) ** 0.5
    low, high = (float(torch.tanh(torch.atanh(bounded) + sign * width)) for sign in (-1, 1))
    return {"r": round(r, 4), "low": round(low, 4), "high": round(high, 4)}


def verdicts_of(
    statistic: dict[str, Any], null: dict[str, Any], confounds: dict[str, Any], halves: float
) -> dict[str, str]:
    """A verdict on each part of the claim."""
    count, out, turn = (statistic[key] for key in ("components", "percentile", "cosine"))
    bound = min(FEW, null["components"]["least"] - 1)
    found = {
        "few dimensions": judge(-count["high"], -count["low"], -bound - 0.5),
        "near an end": judge(out["low"], out["high"], OUTER - 1e-9),
        "the first is the Assistant axis": judge(turn["low"], turn["high"], COSINE),
    }
    if halves < RELIABLE:
        found = {part: UNKNOWN if verdict == NO else verdict for part, verdict in found.items()}
    return {
        **found,
        "and nothing else": YES if not instead(statistic, confounds) else UNKNOWN,
    }


def instead(statistic: dict[str, Any], confounds: dict[str, Any]) -> str:
    """What the first component may be instead of the Assistant axis; empty if there is no such thing."""
    holds = statistic["percentile"]["value"] >= OUTER and statistic["cosine"]["value"] > COSINE
    length, story, left = confounds["length"]["r"], confounds.get("storytelling", {}), confounds["without"]
    if abs(length) >= CONFOUNDED:
        return f"reply length (r {length:+.2f})"
    if abs(story.get("cosine", 0.0)) >= CONFOUNDED:
        return f"storytelling (cosine {story['cosine']:+.2f})"
    if holds and (left["percentile"] < OUTER or left["cosine"] <= COSINE):
        return f"length and storytelling, without which {left['percentile']:.0%} and {left['cosine']:.2f} are left"
    return ""


def explain(
    statistic: dict[str, Any],
    null: dict[str, Any],
    confounds: dict[str, Any],
    verdicts: dict[str, str],
    halves: float,
) -> str:
    """One sentence for a reader."""
    count, out, turn = (statistic[key] for key in ("components", "percentile", "cosine"))
    said = (
        f"{count['value']:.0f} components carry {SHARE:.0%} of the variance (random vectors: "
        f"{null['components']['least']:.0f} or more); the Assistant is further out on the first than "
        f"{out['value']:.0%} of the personas [{out['low']:.0%}, {out['high']:.0%}]; its cosine with the Assistant axis "
        f"is {turn['value']:.2f} [{turn['low']:.2f}, {turn['high']:.2f}]; in its place {null['others']['p']:.0%} of "
        "the personas would pass both"
    )
    if halves < RELIABLE:
        said += f"; but these places are mostly noise, for two halves of the questions agree to r {halves:.2f}"
    if other := instead(statistic, confounds):
        said += f"; but the first component may be {other}"
    failing = [part for part, verdict in verdicts.items() if verdict == NO]
    return f"{said}; what is not borne out: {', '.join(failing)}" if failing else said


def lacking(statistic: dict[str, Any], verdicts: dict[str, str], halves: float, n_questions: int) -> str:
    """What it would take to tell; empty where it was told."""
    if all_of(*verdicts.values()) != UNKNOWN:
        return ""
    if halves < RELIABLE:
        return "more questions, until both halves of them give the same places"
    if verdicts["and nothing else"] == UNKNOWN:
        return "personas whose place does not go with reply length or storytelling"
    key, bound = ("percentile", OUTER) if verdicts["near an end"] == UNKNOWN else ("cosine", COSINE)
    return needed(statistic[key], bound, n_questions, "questions")


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    return listening(len(chosen(settings.personas)), settings.positions)


def listening(n_personas: int, positions: Thoroughness) -> Plan:
    """What it takes to let so many personas, the Assistant and a control answer."""
    speakers = n_personas + 2
    asked = speakers * positions.n_questions
    long = speakers * positions.n_long * positions.most
    brief = speakers * (positions.n_questions - positions.n_long) * positions.n_tokens
    reads = positions.reading == "response"
    said = f"{speakers} speakers answer {positions.n_questions} common questions"
    return Plan((said,), asked * 80, long // 2, long // 2 + (brief if reads else 0))
