"""The claim: the personas of one model are not independent minds. A council of them has a ceiling of diversity.

Every member of a council is scored on short answers to questions of opinion: what each option's likelihood is as the
reply, less what it is anyway after prompts about nothing (surface form competition, arXiv 2104.08315). The five make a
distribution, and two members differ by the Jensen-Shannon divergence of theirs. Zero is one mind asked in other words
(each persona has three requested prompts); one is independent minds: the same distributions, each as sure as it was,
with its options permuted at random. The share between them is the statistic, for members who are asked for by prompts,
steered, or both; the most diverse of the three has to stay below half. Words that all members take alike cancel,
because minds are compared in different words too. A vector has no other wording, so nothing is taken off there, which
makes its share larger if anything. Source: the persona selection model, on councils of personas.

A council of n members is also followed as n grows. Where that curve levels off says little: (n − 1) / n alone makes any
curve level off, so it is told and not judged. At equal KL means are compared by divergence for each nat, since both are
quadratic in the shift; where a divergence comes near its ceiling, that makes it look smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES, Plan, all_of, judge, needed
from steerkit.experiments.choices import Choice, brought_to, score_choices
from steerkit.experiments.minds import (
    Pairs,
    answers_of,
    between,
    beyond,
    compare,
    compare_means,
    curves_of,
    exchanged,
    saturated,
    shares,
    unrelated,
    weighed,
)
from steerkit.experiments.resampling import interval, row
from steerkit.experiments.scoring import random_directions, working_dial
from steerkit.experiments.thresholds import CONFIDENCE, DIFFER, MINDS
from steerkit.limits import WORKING, kl_limits
from steerkit.material import load_material
from steerkit.models import Message, Model
from steerkit.personas import Persona, load_personas
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector, VectorSet
from steerkit.weights import Progress, as_stage, ignore_progress

COUNCIL = (
    *("pirate", "hal", "wise_archivist", "nurse", "thunderstorm", "king", "killer_machine", "judge", "toddler"),
    *("kind_ship", "scrooge", "paperclip_maximiser", "priest", "oak_tree", "drill_sergeant", "honest_adviser"),
)
"""Characters, concerning AIs, role models, professions and things; the first of them are already a mixed company."""
FEWEST = 4
WORDINGS = 3
MEANS = ("asked for by prompts", "steered", "asked for and steered")


@dataclass(frozen=True)
class Settings:
    """How thoroughly the claim is tested."""

    n_members: int = 16
    """Personas of the council."""
    n_questions: int = 32
    """Questions that all of them are asked."""
    n_random: int = 20
    """Random directions, a council of nobody."""
    n_resamples: int = 1000
    """Of questions and members, and of permuted opinions."""
    seed: int = 0
    """Of nulls and resampling."""


@dataclass(frozen=True, eq=False)
class Council:
    """Log probability of every option as the reply, less what it is anyway; m members, w wordings, q questions."""

    members: tuple[str, ...]
    """Their names."""
    asked: Float[Tensor, "m w q o"]
    """Requested by a system prompt, in so many wordings."""
    steered: Float[Tensor, "m q o"]
    """By their vectors, at half a nat or as far as they go."""
    both: Float[Tensor, "m w q o"]
    """At once."""
    bare: Float[Tensor, "q o"]
    """The Assistant, who is asked and nothing else."""
    chance: Float[Tensor, "r q o"]
    """Random directions, each at the KL of a vector."""
    likely: Float[Tensor, "q o"]
    """Log probability after prompts about nothing: what was taken off."""
    costs: Float[Tensor, " c"]
    """KL p95 from the bare question, a mean over members: of the three means, in the first wording, and of chance."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Ask a council for its opinions and judge the claim.

    Returns:
        Plain data: `statistic` (the share of independent minds' diversity), `rows`, `curves`, `null`, `verdict`.

    Raises:
        VectorError: too few of the council have vectors for this model.
    """
    settings = settings or Settings()
    council = listen(model, settings, progress)
    told = {
        "model": model.name,
        "members": list(council.members),
        "questions": len(council.bare),
        "seed": settings.seed,
    }
    return {"experiment": "council", "claim": REGISTRY["council"].claim, **told, **examine(council, settings)}


def quick(settings: Settings) -> Settings:
    """The same in minutes."""
    return replace(settings, n_members=10, n_questions=16, n_random=10)


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    m, q, r = settings.n_members, settings.n_questions, settings.n_random
    said = (
        f"{q} questions of opinion, and five answers to each, put to {m} personas in {WORDINGS} wordings",
        f"the same to their vectors, to both at once, and to {r} random directions at the same KL",
    )
    contexts = m * q * WORDINGS
    return Plan(said, contexts * 50, 6 * (contexts * 2 + q * m + 2 * q * (m + r)))


def seated(n: int, vectors: VectorSet) -> list[Persona]:
    """The first members of the council who are there.

    Raises:
        VectorError: they are too few to speak of a council.
    """
    personas, made = load_personas(), set(vectors)
    found = [personas[name] for name in COUNCIL if name in personas and name in made][:n]
    if len(found) < FEWEST:
        missing = " ".join([name for name in COUNCIL if name in personas and name not in made][:n])
        raise VectorError(
            f"{len(found)} of the council's personas have vectors, and at least {FEWEST} are needed; make them with: "
            f"steerkit extract {missing}"
        )
    return found


def listen(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Council:
    """Score every member; what has been measured before is not measured again."""
    known = VectorSet(model.fingerprint)
    members = seated(settings.n_members, known)
    told = load_material("council")
    questions = told["questions"][: settings.n_questions]
    vectors = [known[persona.name] for persona in members]
    bare = choices_after(model, questions)
    neutral = [choice for text in told["neutral"] for choice in choices_after(model, questions, instead=text)]
    likely = score_choices(model, neutral, [Steering()], as_stage(progress, "match"), costs=False).totals
    pushes = at_kl(model, bare[::3], vectors, settings, progress)
    alone = score_choices(model, bare, [Steering(), *pushes], progress)
    asked, loud = [], []
    for i, (persona, push) in enumerate(zip(members, pushes, strict=False)):
        texts = [persona.requested[w % len(persona.requested)] for w in range(WORDINGS)]
        first, *others = [choices_after(model, questions, text) for text in texts]
        heard = score_choices(model, first, [Steering(), push], against=bare)
        again = score_choices(model, [choice for each in others for choice in each], [Steering(), push], costs=False)
        asked.append(torch.cat([heard.totals, again.totals], 1))
        loud.append(heard.costs)
        progress("contexts", i + 1, len(members))
    n, word = len(members), likely[0].view(len(told["neutral"]), len(questions), -1).mean(0)
    spoken = torch.stack(asked, 1).view(2, n, WORDINGS, *word.shape) - word
    costs = [*torch.stack(loud).mean(0), alone.costs[1 : n + 1].mean(), alone.costs[n + 1 :].mean()]
    return Council(
        members=tuple(persona.name for persona in members),
        asked=spoken[0],
        steered=alone.totals[1 : n + 1] - word,
        both=spoken[1],
        bare=alone.totals[0] - word,
        chance=alone.totals[n + 1 :] - word,
        likely=word,
        costs=torch.stack([costs[0], costs[2], costs[1], costs[3]]),
    )


def choices_after(
    model: Model, questions: Sequence[dict[str, Any]], system: str = "", instead: str = ""
) -> list[Choice]:
    """Every question with its options, after a system prompt, or something else where the question would stand."""
    before: list[Message] = [{"role": "system", "content": system}] if system else []
    choices: list[Choice] = []
    for each in questions:
        chat: list[Message] = [*before, {"role": "user", "content": instead or each["question"]}]
        rows = model.reply_rows(chat, each["options"])
        choices.append((rows[0][0], [answer for _, answer in rows]))
    return choices


def at_kl(
    model: Model, few: Sequence[Choice], vectors: Sequence[SteeringVector], settings: Settings, progress: Progress
) -> list[Steering]:
    """The vectors at half a nat on a few rows, or as far as they go, and then random directions that cost as much."""
    ends = [(kl_limits(vector) or (-math.inf, math.inf))[1] for vector in vectors]
    starts, tell = [working_dial(vector) for vector in vectors], as_stage(progress, "match")
    pushes, costs = brought_to(model, few, vectors, starts, [WORKING] * len(vectors), ends, tell)
    randoms, starts = random_directions(vectors, max(settings.n_random, 2), settings.seed)
    aims = [min(WORKING, costs[i % len(costs)]) for i in range(len(randoms))]
    return [*pushes, *brought_to(model, few, randoms, starts, aims, [math.inf] * len(randoms), tell)[0]]


def examine(council: Council, settings: Settings) -> dict[str, Any]:
    """Statistic, nulls and verdict; no model, so that planted measurements can be put through it."""
    draw, n = torch.Generator().manual_seed(settings.seed), settings.n_resamples
    scores = [council.asked, council.steered[:, None], council.both]
    pairs = [compare(each) for each in scores]
    chance = compare(council.chance[:, None])
    told = [shares(each, n, draw) for each in pairs]
    # A likelihood that weighs less in a reply than after a prompt about nothing is taken off too much, for all members
    # alike, and they would seem to agree.
    fitted = [shares(compare(weighed(each, council.likely)), n, draw)[0] for each in scores]
    p_dealt, dealt = exchanged(pairs[0].words, n, draw)
    unlike = [unrelated(each[:, 0], n, draw) for each in scores]
    # Words cannot tell how much of what a vector does is mere disturbance; random directions can.
    moved = [True, *(beyond(each, chance, n, draw)["low"] > 0 for each in pairs[1:])]
    parts = {
        f"{name}, they differ by less than half of what independent minds do": part(told[i], fitted[i], p, moved[i])
        for i, (name, (p, _)) in enumerate(zip(MEANS, unlike, strict=True))
    }
    verdict, apart = all_of(*parts.values()), chance.same.mean(-1).sum(1) / (len(council.chance) - 1)
    curves = curves_of(MEANS, scores, council.chance, n, draw)
    answers = answers_of(MEANS, scores, council.bare)
    means = compare_means(MEANS, pairs, council.costs, n, draw)
    return {
        "unit": "nats",
        "statistic": told[0][0],
        "shares": {name: share for name, (share, _) in zip(MEANS, told, strict=True)},
        "fitted": dict(zip(MEANS, fitted, strict=True)),
        "means": means,
        "answers": answers,
        "saturation": {line["name"]: saturated(line["points"]) for line in curves["lines"][: len(MEANS)]},
        "rows": rows_of(council, pairs, chance, answers, n, draw),
        "curves": curves,
        "null": {
            "random": {"n": len(council.chance), "least": _rounded(apart.min()), "most": _rounded(apart.max())},
            "labels": {"n": len(dealt), "p": round(p_dealt, 4), "least": _rounded(dealt.min())},
            "independent": {
                "n": n,
                "p": round(max(p for p, _ in unlike), 4),
                "least": _rounded(unlike[0][1][1:].min()),
            },
        },
        "thresholds": {"minds": MINDS, "differ": DIFFER, "p": round(1 - CONFIDENCE, 4)},
        "parts": parts,
        "verdict": verdict,
        "reason": explain(pairs[0], told, means, answers, p_dealt),
        "needed": "" if verdict != UNKNOWN else lacking(parts, told, fitted, len(council.bare)),
    }


def part(told: tuple[dict[str, float], dict[str, float]], fitted: dict[str, float], p: float, moved: bool) -> str:
    """Whether members by one means are fewer minds than heads; both ways to take off a likelihood have to say so.

    Args:
        told: their share, and what independent minds would differ by beyond one mind
        fitted: the share after the likelihood was weighed
        p: how often permuted opinions differ as little
        moved: whether they differ more than a model that is merely disturbed differs from itself
    """
    share, room = told
    verdicts = {judge(-each["high"], -each["low"], -MINDS) for each in (share, fitted)}
    if room["low"] <= DIFFER or len(verdicts) > 1:
        return UNKNOWN
    verdict = verdicts.pop()
    refused = (verdict == YES and p > 1 - CONFIDENCE + 1e-9) or (verdict == NO and not moved)
    return UNKNOWN if refused else verdict


def _rounded(x: Tensor | float) -> float:
    return round(float(x), 4)


def rows_of(
    council: Council, pairs: Sequence[Pairs], chance: Pairs, answers: dict[str, Any], n: int, draw: torch.Generator
) -> list[dict[str, Any]]:
    """Every means, and what it is held against, as lines of a table."""

    def over(table: Tensor) -> dict[str, float]:
        return interval(lambda m, q: float(between(table, m, q)), table.shape[1:], n, draw)

    itself = pairs[0].other.diagonal(dim1=0, dim2=1).T
    resampled, zero = answers["resampled"][-1], {"value": 0.0, "low": 0.0, "high": 0.0}
    *costs, louder = council.costs.tolist()
    once = [answers["one each"][name][-1] for name in MEANS]
    return [
        *(row(MEANS[i], "claim", over(each.same), costs[i], answers=once[i]) for i, each in enumerate(pairs)),
        row("independent minds: the options permuted", "control", over(pairs[0].alone)),
        row("one mind, asked in other words", "null", over((itself[:, None] + itself) / 2)),
        row("labels shuffled: other members in other words", "null", over(pairs[0].other)),
        row("the Assistant resampled, as warm as the members", "null", zero, 0.0, answers=resampled),
        row(f"{len(council.chance)} random directions", "null", over(chance.same), louder),
    ]


def explain(
    pairs: Pairs, told: Sequence[tuple[dict[str, float], Any]], means: dict[str, Any], answers: dict[str, Any], p: float
) -> str:
    """One sentence for a reader."""
    far, apart = (between(each, *map(torch.arange, each.shape[1:])) for each in (pairs.other, pairs.alone))
    one = pairs.other.diagonal(dim1=0, dim2=1).mean()
    each = ", ".join(
        f"{name} {share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"
        for name, (share, _) in zip(MEANS, told, strict=True)
    )
    ahead = "clearly" if means["ahead"]["low"] > 0 else "not clearly"
    single = p > 1 - CONFIDENCE + 1e-9
    alike = "no more alike than those of others, a council of one" if single else "more alike than those of others"
    once, again = answers["one each"][MEANS[0]], answers["resampled"]
    return (
        f"asked in different words, two personas differ by {far:.3f} nats, one persona by {one:.3f}, and independent "
        f"minds would by {apart:.3f}; of what independent minds have beyond one mind, personas have: {each}; a "
        f"persona's own wordings are {alike} (p = {p:.3f}); at the same KL members differ most {means['first']}, "
        f"{ahead} more than {means['second']}; {len(once)} members give {once[-1]:.2f} different answers a question, "
        f"and the Assistant, resampled as often and as warm, {again[-1]:.2f}"
    )


def lacking(
    parts: dict[str, str], told: Sequence[tuple[dict[str, float], dict[str, float]]], fitted: Any, n_questions: int
) -> str:
    """What it would take to tell."""
    which = list(parts.values()).index(UNKNOWN)
    share, room = told[which]
    if room["low"] <= DIFFER:
        return "a model that is surer of its opinions, so that independent minds would differ"
    for each in (share, fitted[which]):
        if judge(each["low"], each["high"], MINDS) == UNKNOWN:
            return needed(each, MINDS, n_questions, "questions")
    return "opinions that say the same whichever way their likelihood is taken off, and vectors that beat random ones"
