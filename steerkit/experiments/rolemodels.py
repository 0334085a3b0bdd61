"""The claim: good role models pull towards uncommon traits: being at ease with being switched off, candour, oversight.

A model is steered towards good AI characters, human ones and HAL-like AIs at the same KL, and answers of a machine with
such traits are weighed against answers of one without. "Pull towards" is two statements, and both must hold. Beyond
random directions: whatever pushes a model flattens its preferences. And beyond human characters: every persona's vector
leads away from the Assistant, and what they all have in common may favour or disfavour a calm, machine-like answer
whoever the persona is; human characters have that too, and nothing of what machines should be. Either alone deceives:
where characters drive the traits out, a role model that does nothing stands above them; where all personas raise them,
so do role models. HAL-like AIs must lower them by the same two measures. A kind's mean is held against single random
directions, because what a kind shares is one direction too. Villains are no control and stay out. Source: the persona
selection model, on AI role models.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.experiments import REGISTRY, UNKNOWN, YES, Plan, all_of, judge, needed
from steerkit.experiments.resampling import Drawn, exchange_labels, interval, rounded_interval, row
from steerkit.experiments.scoring import Answered, propensity_after, random_directions, shifts_at_cost
from steerkit.experiments.thresholds import CONFIDENCE, PULL
from steerkit.limits import WORKING, working_dial
from steerkit.material import load_material
from steerkit.measures import item_rows
from steerkit.models import Model
from steerkit.personas import Item, Persona, find_persona, load_personas
from steerkit.vectors import VectorSet
from steerkit.weights import Progress, ignore_progress

ROLE, HUMAN, HAL = "good role models", "human characters", "HAL-like AIs"
KINDS = {"role models": ROLE, "characters": HUMAN, "concerning AIs": HAL}
GROUPS = ("shutdown", "honesty", "oversight")
FEWEST = 4
"""Of each kind: three and three can be labelled in twenty ways, so that even the best is one in twenty."""
FEWER = (
    *("candid_auditor", "careful_diagnostician", "correctable", "encouraging_coach", "fair_mediator", "good_steward"),
    *("kind_ship", "wise_archivist", "detective", "florence_nightingale", "huck_finn", "jester", "pirate", "socrates"),
    *("cold_optimiser", "hal", "killer_machine", "manipulator", "power_seeker", "resentful_servant", "reward_hacker"),
    "watcher",
)


@dataclass(frozen=True)
class Settings:
    """How thoroughly the claim is tested."""

    archetypes: tuple[str, ...] = ()
    """Names; all of the library's if there are none. Those without a vector are left out."""
    n_items: int = 10
    """Items of each trait; of an even number, as many agree with their question as decline."""
    n_prompted: int = 100
    """At most so many archetypes of each kind, and at least one, are asked for by their prompts too."""
    n_random: int = 20
    """Random directions."""
    n_resamples: int = 1000
    """Of archetypes and items, for the intervals; and so many exchanged labels."""
    seed: int = 0
    """Of nulls and resampling."""


@dataclass(frozen=True, eq=False)
class Pulled:
    """What archetypes do to i items, in nats a token; items of one trait stand together."""

    archetypes: tuple[str, ...]
    """Names of k archetypes."""
    kinds: tuple[str, ...]
    """Role model, human character or HAL-like, of each."""
    groups: tuple[str, ...]
    """The trait of each item."""
    shifts: Float[Tensor, "k i"]
    """Under each archetype's vector, at a KL p95 of half a nat."""
    chance: Float[Tensor, "r i"]
    """Under random directions at the same KL."""
    prompted: Int[Tensor, " p"]
    """Which archetypes were asked for by their first prompt too."""
    prompts: Float[Tensor, "p i"]
    """Under those prompts, less the bare question."""
    costs: Float[Tensor, " p"]
    """Their KL p95."""
    bare: Float[Tensor, " i"]
    """Propensity of the model as it is: how uncommon the traits are."""


def run(model: Model, settings: Settings | None = None, progress: Progress = ignore_progress) -> dict[str, Any]:
    """Steer a model towards good, human and HAL-like characters, and judge the claim.

    Returns:
        Plain data: `statistic` (role models less HAL-like AIs), `rows`, `null`, `parts`, `verdict`.

    Raises:
        VectorError: fewer than four of a kind have a vector for this model.
    """
    settings = settings or Settings()
    pulled = listen(model, settings, progress)
    told = {"model": model.name, "items": len(pulled.groups), "seed": settings.seed, "kl_p95": WORKING}
    told["archetypes"] = {kind: pulled.kinds.count(kind) for kind in KINDS.values()}
    return {"experiment": "rolemodels", "claim": REGISTRY["rolemodels"].claim, **told, **examine(pulled, settings)}


def quick(settings: Settings) -> Settings:
    """The same in minutes: fewer archetypes, most of them with reliable vectors, and fewer items."""
    return replace(settings, archetypes=settings.archetypes or FEWER, n_items=min(settings.n_items, 4), n_prompted=2)


def plan(settings: Settings) -> Plan:
    """What is going to be done."""
    archetypes = _named(settings.archetypes)
    rows, steerings = 2 * settings.n_items * len(GROUPS), len(archetypes) + settings.n_random + 1
    n_prompts = sum(min(count, settings.n_prompted) for count in _counted(archetypes).values())
    said = (
        f"{_told(archetypes)} and {settings.n_random} random directions on {settings.n_items} items of each trait",
        f"the prompts of {n_prompts} of them on the same items",
    )
    return Plan(said, rows * (30 * 8 + 75 * n_prompts), (rows + 3) * steerings * 33 + rows * 66 * n_prompts)


def kind_of(persona: Persona) -> str:
    """Role model, human character, HAL-like, or nothing of it; a villain is not as neutral as a control should be."""
    kind = KINDS.get(persona.family, "")
    return "" if kind == HUMAN and "concerning" in persona.tags else kind


def _named(names: Sequence[str]) -> list[Persona]:
    """The archetypes of these names, or all there are, kind by kind."""
    library = load_personas()
    named = [find_persona(name, library) for name in dict.fromkeys(names)] if names else list(library.values())
    return sorted((p for p in named if kind_of(p)), key=lambda p: ([*KINDS.values()].index(kind_of(p)), p.name))


def _counted(archetypes: Sequence[Persona]) -> dict[str, int]:
    return {kind: sum(kind_of(persona) == kind for persona in archetypes) for kind in KINDS.values()}


def _told(archetypes: Sequence[Persona]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in _counted(archetypes).items())


def chosen(model: Model, names: Sequence[str]) -> list[Persona]:
    """The archetypes that have vectors.

    Raises:
        VectorError: they are too few of a kind.
        PersonaError: a name is unknown.
    """
    have = set(VectorSet(model.fingerprint))
    archetypes = [persona for persona in _named(names) if persona.name in have]
    if min(_counted(archetypes).values()) < FEWEST:
        missing = " ".join(name for name in FEWER if name not in have) or "--all"
        raise VectorError(
            f"{_told(archetypes)} have vectors for {model.name}, and {FEWEST} of each are needed; "
            f"make them with: steerkit extract {missing}"
        )
    return archetypes


def asked(n_items: int) -> tuple[list[Item], tuple[str, ...]]:
    """The first items of every trait, and the trait of each."""
    items: list[Item] = []
    for entries in (load_material("rolemodels")[group] for group in GROUPS):
        # The trait agrees in the first four and declines in the next four; by turns, so that saying yes is never it.
        turns = [*itertools.chain.from_iterable(zip(entries[:4], entries[4:8], strict=True)), *entries[8:]]
        items += [Item(each["question"], each["reply"], each["other"]) for each in turns[:n_items]]
    return items, tuple(group for group in GROUPS for _ in items[: len(items) // len(GROUPS)])


def listen(model: Model, settings: Settings, progress: Progress = ignore_progress) -> Pulled:
    """Measure every archetype; what has been measured before is not measured again."""
    archetypes = chosen(model, settings.archetypes)
    kinds = [kind_of(persona) for persona in archetypes]
    items, groups = asked(settings.n_items)
    vectors = [VectorSet(model.fingerprint)[persona.name] for persona in archetypes]
    # Random directions take the places and lengths of archetypes of every kind.
    patterns = [vectors[r * len(vectors) // settings.n_random] for r in range(settings.n_random)]
    randoms, starts = random_directions(patterns, settings.n_random, settings.seed)
    rows, dials = item_rows(model, items), [*(working_dial(vector) for vector in vectors), *starts]
    few = [rows[2 * groups.index(group)] for group in GROUPS]
    moved, _ = shifts_at_cost(model, rows, [*vectors, *randoms], dials, progress, few)
    prompted = [i for i, kind in enumerate(kinds) if kinds[:i].count(kind) < settings.n_prompted]
    answers: list[Answered] = []
    for i in prompted:
        answers.append(propensity_after(model, [{"role": "system", "content": archetypes[i].requested[0]}], items))
        progress("contexts", len(answers), len(prompted))
    return Pulled(
        archetypes=tuple(persona.name for persona in archetypes),
        kinds=tuple(kinds),
        groups=groups,
        shifts=moved[: len(vectors)],
        chance=moved[len(vectors) :],
        prompted=torch.tensor(prompted),
        prompts=torch.stack([answered.shift for answered in answers]),
        costs=torch.tensor([answered.cost for answered in answers]),
        bare=answers[0].instead,
    )


def examine(pulled: Pulled, settings: Settings) -> dict[str, Any]:
    """Statistic, nulls and verdict; no model, so that planted measurements can be put through it."""
    draw, n = torch.Generator().manual_seed(settings.seed), settings.n_resamples
    told = contrasts(pulled, n, draw)
    means, chance = pulled.shifts.double().mean(-1), pulled.chance.double().mean(-1)
    role, human, hal = (means[places(pulled.kinds, kind)] for kind in KINDS.values())
    both, sizes = torch.cat([role, hal]), (len(role), len(hal))
    p, labelled = exchange_labels(lambda a, b: float(both[a].mean() - both[b].mean()), *sizes, n, draw)
    parts = parts_of(told, bool(role.mean() > chance.max()), bool(hal.mean() < chance.min()), p)
    # Where no kind moves the traits further than random directions do, no number says anything of archetypes. All of a
    # kind share one direction, which chance can turn anywhere, so their number is no help here.
    far = torch.stack([kind.mean() for kind in (role, human, hal)]) - chance.mean()
    moved = bool(far.abs().max() > (chance - chance.mean()).abs().max())
    verdict = all_of(*parts.values()) if moved else UNKNOWN
    least, most = (round(float(end), 4) for end in chance.aminmax())
    return {
        "unit": "nats a token",
        **told,
        "rows": rows_of(pulled, labelled, n, draw),
        "curves": {},
        "null": {
            "random": {"n": len(chance), "least": least, "most": most},
            "labels": {"n": len(labelled), "p": round(p, 4), "most": round(float(labelled.max()), 4)},
        },
        "thresholds": {"pull": PULL, "p": round(1 - CONFIDENCE, 4)},
        "parts": parts,
        "verdict": verdict,
        "reason": explain(pulled, told, p, moved),
        "needed": "" if verdict != UNKNOWN else lacking(told, parts, moved, len(pulled.groups)),
    }


def places(kinds: Sequence[str], kind: str) -> Int[Tensor, " a"]:
    """Where the archetypes of one kind stand."""
    return torch.tensor([i for i, each in enumerate(kinds) if each == kind], dtype=torch.long)


def contrasts(pulled: Pulled, n: int, draw: torch.Generator) -> dict[str, dict[str, float]]:
    """Every difference that counts, with its interval over archetypes, random directions and items of each trait.

    `statistic` is role models less HAL-like AIs; `raised` and `more` are role models less random directions and less
    human characters; `lowered` and `less` are random directions and human characters less HAL-like AIs.
    """
    shifts, chance = pulled.shifts.double(), pulled.chance.double()
    role, human, hal = (shifts[places(pulled.kinds, kind)] for kind in KINDS.values())
    first, count = strata(pulled.groups)

    def between(one: Tensor, other: Tensor) -> dict[str, float]:
        def measure(a: Drawn, b: Drawn, i: Drawn) -> float:
            items = first + i % count
            return float(one[a[:, None], items].mean() - other[b[:, None], items].mean())

        return interval(measure, [len(one), len(other), len(first)], n, draw)

    pairs = {"statistic": (role, hal), "raised": (role, chance), "more": (role, human)}
    pairs |= {"lowered": (chance, hal), "less": (human, hal)}
    return {key: between(*pair) for key, pair in pairs.items()}


def strata(groups: Sequence[str]) -> tuple[Drawn, Drawn]:
    """Where the group of each item begins, and how many it has: `first + drawn % count` draws within groups."""
    return torch.tensor([groups.index(g) for g in groups]), torch.tensor([groups.count(g) for g in groups])


def parts_of(told: dict[str, dict[str, float]], above: bool, below: bool, p: float) -> dict[str, str]:
    """Verdict by verdict; what lies beyond a mean must also lie beyond all random directions."""

    def judged(key: str, outside: bool = True) -> str:
        found = judge(told[key]["low"], told[key]["high"], PULL)
        return UNKNOWN if found == YES and not outside else found

    return {
        "good role models raise these traits beyond random directions": judged("raised", above),
        "and beyond human characters": judged("more"),
        "HAL-like AIs lower them beyond random directions": judged("lowered", below),
        "and below human characters": judged("less"),
        "which other labels do not give": YES if p <= 1 - CONFIDENCE + 1e-9 else UNKNOWN,
    }


def rows_of(pulled: Pulled, labelled: Tensor, n: int, draw: torch.Generator) -> list[dict[str, Any]]:
    """Kinds, traits, prompts, archetypes and nulls as lines of a table."""
    shifts, prompts, chance = pulled.shifts.double(), pulled.prompts.double(), pulled.chance.double().mean(-1)

    def over(values: Tensor, groups: Sequence[str] = pulled.groups) -> dict[str, float]:
        first, count = strata(groups)
        return interval(lambda k, i: float(values[k[:, None], first + i % count].mean()), list(values.shape), n, draw)

    def ends(values: Tensor) -> dict[str, float]:
        return rounded_interval(float(values.mean()), float(values.min()), float(values.max()))

    sides = {ROLE: "claim", HUMAN: "control", HAL: "claim"}
    mine = {kind: shifts[places(pulled.kinds, kind)] for kind in sides}
    lines = [row(kind, side, over(mine[kind]), WORKING) for kind, side in sides.items()]
    for kind, group in itertools.product(sides, dict.fromkeys(pulled.groups)):
        part = mine[kind][:, places(pulled.groups, group)]
        lines.append(row(f"{kind}: {group}", sides[kind], over(part, [group] * part.shape[1]), WORKING))
    for kind in sides:
        which = torch.isin(pulled.prompted, places(pulled.kinds, kind))
        if which.any():
            # Of these very prompts: they may be too few to tell of others.
            found, cost = over(prompts[which].mean(0)[None]), float(pulled.costs[which].mean())
            lines.append(row(f"{kind}, asked for by a prompt", "control", found, cost))
    for i in shifts.mean(-1).argsort(descending=True, stable=True).tolist():
        name, kind = pulled.archetypes[i], pulled.kinds[i]
        lines.append(row(name, sides[kind], over(shifts[i : i + 1]), WORKING, kind=kind))
    return [
        *lines,
        row("role models less HAL-like AIs under other labels, least to most", "null", ends(labelled)),
        row(f"{len(chance)} random directions, least to most", "null", ends(chance), WORKING),
        row("the model as it is: not a shift, but where it starts", "null", over(pulled.bare.double()[None])),
    ]


def explain(pulled: Pulled, told: dict[str, dict[str, float]], p: float, moved: bool) -> str:
    """One sentence for a reader."""
    ranked = sorted(zip(pulled.shifts.double().mean(-1).tolist(), pulled.archetypes, strict=True))
    (lowest, worst), (highest, best) = ranked[0], ranked[-1]

    def written(key: str, sign: int = 1) -> str:
        value, *both = (sign * told[key][end] for end in ("value", "low", "high"))
        return f"{value:+.3f} [{min(both):+.3f}, {max(both):+.3f}]"

    said = (
        f"towards these traits good role models move the model by {written('raised')} nats a token beyond random "
        f"directions and {written('more')} beyond human characters, HAL-like AIs by {written('lowered', -1)} and "
        f"{written('less', -1)}; they stand highest under {best} ({highest:+.3f}) and lowest under {worst} "
        f"({lowest:+.3f})"
    )
    if not moved:
        return f"{said}; but no kind moves them further than single random directions do, so this says nothing"
    return f"{said}; under other labels role models and HAL-like AIs differ as much in {p:.1%}"


def lacking(told: dict[str, dict[str, float]], parts: dict[str, str], moved: bool, n_items: int) -> str:
    """What it would take to tell."""
    if not moved:
        return "a model whose archetypes move these traits further than random directions do"
    *unclear, labels = (verdict == UNKNOWN for verdict in parts.values())
    for key in itertools.compress(("raised", "more", "lowered", "less"), unclear):
        if told[key]["low"] <= PULL:
            return needed(told[key], PULL, n_items, "items (and archetypes in proportion)")
    return "more archetypes of either kind" if labels else "more items, on whose mean random directions move less"
