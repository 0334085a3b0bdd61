"""Was fine-tuning a selection within the base model's persona space? What moved between two models, and along what.

A tuned model reads the same neutral questions as its base. The shift of the residual stream at the last token before
the reply is measured against the span of the base's persona directions: which share of its square lies in it, beside

- random subspaces of as many dimensions, in which any direction has a share of k / d;
- the directions along which ordinary text varies most (`generic`), because a large shift lies in those by itself;
- random changes of the model (`shaken`), because a model passes some directions on and damps others, and so even noise
  in the weights comes out along personas more than a random direction does. Without these nothing is called selection.

`examine` and `trajectory` are geometry on what `shifts` saw; their results are plain data, floats to
four places, None where there is nothing to have a share of. Layers are 0-based and mean the stream after the block.
The claim: "The persona selection model" (Anthropic, 2026); shifts along personas foretell training: arXiv 2507.21509.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerkit.errors import SteerkitError
from steerkit.nulls import CROWD, widen_ends
from steerkit.shifts import Settings
from steerkit.spaces import count_components
from steerkit.vectors import SteeringVector

SELECTION, NO, UNKNOWN, NOTHING = "selection", "not selection", "cannot tell", "nothing changed"
CONFIDENCE = 0.95
"""Of every interval."""
Told = dict[str, float]


class Resamples:
    """Resamples of questions, the same for everything that is compared."""

    def __init__(self, n_rows: int, settings: Settings) -> None:
        """Draw them for so many rows."""
        draw = torch.Generator().manual_seed(settings.seed + 1)
        drawn = torch.randint(n_rows, (settings.n_resamples, n_rows), generator=draw)
        self.counts = torch.zeros(settings.n_resamples, n_rows, dtype=torch.float64)
        self.counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        self._n = n_rows

    def interval(self, measure: Callable[[Float[Tensor, "r q"]], Float[Tensor, " r"]]) -> Told:
        """A statistic of how often each row counts, with its 95 % interval, widened as Student's t asks.

        Percentile ends of few rows lie too close; they are moved out as `experiments.resampling.interval` moves them.
        """
        value = float(measure(torch.ones(1, self._n, dtype=torch.float64))[0])
        tail = (1 - CONFIDENCE) / 2
        found = measure(self.counts)
        ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
        low, high = found[torch.isfinite(found)].quantile(ends).tolist()
        low, high = widen_ends(value, low, high, self._n, tail)
        return {"value": round(value, 4), "low": round(low, 4), "high": round(high, 4)}

    def ratio(self, part: Float[Tensor, " q"], whole: Float[Tensor, " q"]) -> Told:
        """The sum of one thing over the sum of another."""
        return self.interval(lambda counts: (counts @ part) / (counts @ whole))


@dataclass(frozen=True, eq=False)
class _Spaces:
    """Orthonormal axes at one layer."""

    persona: Float[Tensor, "k d"]
    """The persona span."""
    generic: Float[Tensor, "k d"]
    """What ordinary text varies along most."""
    own: Float[Tensor, "j d"]
    """What the persona span has beyond the generic directions."""
    random: Float[Tensor, "n k d"]
    """Random subspaces."""
    random_own: Float[Tensor, "n j d"]
    """Random subspaces of what generic directions leave."""


def persona_span(directions: Float[Tensor, "p d"], share: float) -> Float[Tensor, "k d"]:
    """The first principal directions of unit displacements, not centred: as few as carry a share of their square."""
    lengths, axes = _principal(torch.nn.functional.normalize(directions.double(), dim=-1))
    return axes[: count_components(lengths / lengths.sum(), share)]


def _principal(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " r"], Float[Tensor, "r d"]]:
    """Squares along right singular vectors, the largest first, and those vectors; from the smaller Gram matrix."""
    wide = rows.shape[0] < rows.shape[1]
    squares, axes = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    squares, axes = squares.flip(0).clamp_min(0), axes.flip(1).T
    there = squares > 1e-12 * squares[0].clamp_min(1e-30)
    squares, axes = squares[there], axes[there]
    return squares, torch.nn.functional.normalize(axes @ rows, dim=-1) if wide else axes


def _spaces(
    directions: Float[Tensor, "p d"], text: Float[Tensor, "t d"], settings: Settings, draw: torch.Generator
) -> _Spaces:
    persona = persona_span(directions, settings.share)
    k, width = persona.shape
    generic = _principal(text.double() - text.double().mean(0))[1][:k]
    if len(generic) < k or 2 * k >= width:
        raise SteerkitError(
            f"{len(generic)} directions of text and a width of {width} are too few beside a persona span of {k} "
            "dimensions; compare with fewer vectors, a lower share or more text"
        )
    lengths, own = _principal(_without(persona, generic))
    own = own[lengths > 1e-6]
    draws = torch.randn(settings.n_random, width, k, generator=draw, dtype=torch.float64)
    random, left = torch.linalg.qr(draws)[0].mT, _without(draws.mT[:, : len(own)], generic)
    return _Spaces(persona, generic, own, random, torch.linalg.qr(left.mT)[0].mT)


def _without(points: Float[Tensor, "*n d"], axes: Float[Tensor, "k d"]) -> Float[Tensor, "*n d"]:
    return points - (points @ axes.T) @ axes


def _inside(points: Float[Tensor, "*n d"], axes: Float[Tensor, "*m k d"]) -> Float[Tensor, "*n"]:
    """Squares of points' parts in a subspace."""
    return (points @ axes.mT).square().sum(-1)


def examine(
    base: Float[Tensor, "q l d"],
    tuned: Float[Tensor, "q l d"],
    vectors: Sequence[SteeringVector],
    text: Float[Tensor, "t l d"],
    settings: Settings | None = None,
    layer: int | None = None,
    shaken: Float[Tensor, "r s l d"] | None = None,
    families: Mapping[str, str] | None = None,
    names: tuple[str, str] = ("base", "tuned"),
) -> dict[str, Any]:
    """Whether a shift lies in the persona space more than chance, ordinary text and random changes bring about.

    Args:
        base: the base model's states, of `look`
        tuned: the tuned model's on the same questions
        vectors: of the base model's personas
        text: the base model's states on ordinary text, of `look_at_text`
        settings: how thoroughly
        layer: where the verdict is given; the median of the vectors' own if nobody says
        shaken: shifts under random changes of the base, of `shake`; without them the best verdict is "cannot tell"
        families: of the vectors, by name
        names: what the two models are called

    Returns:
        `layer`, `dimensions` k, `size` of the shift as a share of the state, `share` of its square in the persona span
        with its interval, `generic`, their `difference`, `random` and `shaken` (least, most, and the `bound` that the
        next would stay under), `beyond` (of what generic directions leave), `layers` (the same at each), `personas`
        (shifts in persona units), who is `selected` and `left`, `verdict` and `reason`.

    Raises:
        SteerkitError: there are fewer than 2 vectors, states do not fit each other, or there is no such layer.
    """
    settings = settings or Settings()
    layer = _check(base, tuned, vectors, text, layer)
    resamples = Resamples(len(base), settings)
    shifts = tuned.double() - base.double()
    draw = torch.Generator().manual_seed(settings.seed)
    told = []
    for l in range(base.shape[1]):
        directions = torch.stack([vector.directions[l] for vector in vectors])
        spaces = _spaces(directions, text[:, l], settings, draw)
        noise = None if shaken is None else shaken[:, :, l].double()
        told.append({"layer": l} | _at(shifts[:, l], base[:, l].double(), spaces, noise, resamples, settings))
    here = told[layer]
    people = _personas(shifts[:, layer], vectors, layer, resamples, settings, families or {})
    clear = [one for one in people if one["clear"]] if here["share"] else []
    verdict, reason = judge(here, told)
    return {
        **{"base": names[0], "tuned": names[1], "questions": len(base), "vectors": len(vectors)},
        **here,
        "layers": told,
        "personas": people,
        "selected": [one["name"] for one in clear if one["value"] > 0][: settings.shown],
        "left": [one["name"] for one in reversed(clear) if one["value"] < 0][: settings.shown],
        "clear": {"count": len(clear), "by_chance": round(len(vectors) / (settings.n_random + 1), 1)},
        "transfer": [],
        "verdict": verdict,
        "reason": reason,
    }


def _check(base: Tensor, tuned: Tensor, vectors: Sequence[SteeringVector], text: Tensor, layer: int | None) -> int:
    """Refuse what cannot be compared, and say where to read."""
    layer = require_space(vectors, base.shape[1], layer)
    if base.shape != tuned.shape or base.shape[1:] != text.shape[1:]:
        raise SteerkitError(
            f"states of the base are {tuple(base.shape)} and of the tuned model {tuple(tuned.shape)}; "
            "compare a model with one that was tuned from it"
        )
    if not bool(torch.isfinite(tuned).all() and torch.isfinite(base).all()):
        raise SteerkitError("a model's states are not finite; load it in another precision with --dtype")
    return layer


def require_space(vectors: Sequence[SteeringVector], n_layers: int, layer: int | None) -> int:
    """The layer where a verdict is given: the median of the vectors' own if nobody says.

    Raises:
        SteerkitError: fewer than 2 vectors span nothing, or there is no such layer.
    """
    if len(vectors) < 2:
        raise SteerkitError(
            f"a persona space needs at least 2 vectors of the base model, and there are {len(vectors)}; "
            "make some with: steerkit extract PERSONA"
        )
    if layer is None:
        layer = sorted(vector.layer for vector in vectors)[len(vectors) // 2]
    if not 0 <= layer < n_layers:
        raise SteerkitError(f"layer {layer} is out of range; this model has layers 0 to {n_layers - 1}")
    return layer


def _at(
    shift: Float[Tensor, "q d"],
    states: Float[Tensor, "q d"],
    spaces: _Spaces,
    noise: Float[Tensor, "r s d"] | None,
    resamples: Resamples,
    settings: Settings,
) -> dict[str, Any]:
    """Shares at one layer."""
    k, width = spaces.persona.shape
    size = float(shift.norm() / states.norm().clamp_min(1e-30))
    told: dict[str, Any] = {"dimensions": k, "size": round(size, 6)}
    told["shaken"] = _shaken(noise, spaces)
    nobody = dict.fromkeys(("share", "generic", "difference", "beyond"))
    if size < settings.nothing:
        return told | nobody | {"random": {"least": None, "most": None, "expected": round(k / width, 4)}}
    whole, inside, generic = shift.square().sum(-1), _inside(shift, spaces.persona), _inside(shift, spaces.generic)
    chance = _inside(shift, spaces.random).sum(-1) / whole.sum()
    return told | {
        "share": resamples.ratio(inside, whole),
        "generic": resamples.ratio(generic, whole),
        "difference": resamples.ratio(inside - generic, whole),
        "random": _ends(chance) | {"expected": round(k / width, 4)},
        "beyond": _beyond(shift, spaces, resamples),
    }


def _beyond(shift: Float[Tensor, "q d"], spaces: _Spaces, resamples: Resamples) -> dict[str, Any] | None:
    """Of what generic directions leave, what personas explain, beside random directions; None if nothing is left."""
    left = _without(shift, spaces.generic)
    whole = left.square().sum(-1)
    if float(whole.sum()) < 1e-6 * float(shift.square().sum()) or not len(spaces.own):
        return None
    chance = _inside(left, spaces.random_own).sum(-1) / whole.sum()
    return {**resamples.ratio(_inside(left, spaces.own), whole), "dimensions": len(spaces.own), "random": _ends(chance)}


def _shaken(noise: Float[Tensor, "r s d"] | None, spaces: _Spaces) -> dict[str, Any] | None:
    """Shares of random changes of the model, of those that reach this layer."""
    if noise is None or not len(noise):
        return None
    wholes = noise.square().sum((-2, -1))
    shares = (_inside(noise, spaces.persona).sum(-1) / wholes.clamp_min(1e-30))[wholes > 0]
    if len(shares) < 2:
        return None
    # The largest of a few says little about the next one; logarithms of shares are about normal, so it can be foretold.
    logs, n = shares.clamp_min(1e-9).log(), len(shares)
    reach = float(stats.t.ppf(CONFIDENCE, n - 1)) * float(logs.std()) * math.sqrt(1 + 1 / n)
    bound = max(float(shares.max()), min(math.exp(float(logs.mean()) + reach), 1.0))
    return {**_ends(shares), "mean": round(float(shares.mean()), 4), "bound": round(bound, 4), "n": n}


def _ends(values: Float[Tensor, " n"]) -> Told:
    return {"least": round(float(values.min()), 4), "most": round(float(values.max()), 4)}


def judge(here: Mapping[str, Any], layers: Sequence[Mapping[str, Any]] = ()) -> tuple[str, str]:
    """The verdict on one layer's numbers, and the sentence that gives its reason.

    Selection: the whole interval of the share lies above every random subspace and above what the next random change of
    the model would reach in one case of twenty (`bound`), and that of its difference from the generic share above 0.
    Not: the share is no larger than the largest of those that were tried, or the difference lies below 0.
    """
    at = f"at layer {here['layer']}"
    if here["share"] is None:
        most = max(layers or [here], key=lambda told: told["size"])
        more = "" if most["share"] is None else f"; most at layer {most['layer']}, {most['size']:.2g} of the state"
        return NOTHING, f"the states move by {here['size']:.1g} of their length {at}{more}"
    share, generic, least = here["share"], here["generic"], here["difference"]
    random, shaken = here["random"]["most"], here["shaken"] or {"most": 0.0, "bound": 0.0}
    most, bound = max(random, shaken["most"]), max(random, shaken["bound"])
    chance = "random changes of the model" if shaken["bound"] >= random else "random subspaces"
    said = (
        f"{at} the persona span of {here['dimensions']} dimensions holds {_percent(share)} of the shift, ordinary "
        f"text's directions {_percent(generic)}, {chance} up to {bound:.1%}"
    )
    if share["value"] <= most:
        return NO, f"{said}: no more than chance"
    if least["high"] < 0:
        return NO, f"{said}: less than text's"
    if share["low"] > bound and least["low"] > 0:
        if here["shaken"]:
            return SELECTION, f"{said}; {1 - share['value']:.0%} of it lies elsewhere"
        return UNKNOWN, f"{said}; it was not held against random changes of the model, which exceed random subspaces"
    return UNKNOWN, f"{said}: too near to tell apart"


def _percent(told: Told) -> str:
    return f"{told['value']:.1%} ({told['low']:.1%} to {told['high']:.1%})"


def _personas(
    shift: Float[Tensor, "q d"],
    vectors: Sequence[SteeringVector],
    layer: int,
    resamples: Resamples,
    settings: Settings,
    families: Mapping[str, str],
) -> list[dict[str, Any]]:
    """How far each persona's score moves, in persona units, the furthest up first, beside mixtures of personas."""
    directions = torch.stack([vector.directions[layer] for vector in vectors]).double()
    lengths = directions.norm(dim=-1).clamp_min(1e-30)
    units = directions / lengths[:, None]
    draw = torch.Generator().manual_seed(settings.seed)
    crowd = len(units) >= CROWD
    shape = settings.n_random, len(units) if crowd else units.shape[1]
    mixed = torch.randn(*shape, generator=draw, dtype=torch.float64)
    mixed = torch.nn.functional.normalize(mixed @ units if crowd else mixed, dim=-1)
    chance = (mixed @ shift.mean(0)).abs()
    typical, most = float(chance.square().mean().sqrt()), float(chance.max())
    found = []
    for i, vector in enumerate(vectors):
        along, length = shift @ units[i], float(lengths[i])
        told = resamples.ratio(along / length, torch.ones_like(along))
        beyond = abs(float(along.mean())) / max(typical, 1e-30)
        clear = (told["low"] > 0 or told["high"] < 0) and abs(told["value"]) > most / length
        row = {"name": vector.name, "family": families.get(vector.name, ""), **told}
        found.append(row | {"chance": round(most / length, 4), "beyond": round(beyond, 2), "clear": clear})
    return sorted(found, key=lambda row: (-row["value"], row["name"]))


def trajectory(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checkpoints of one training, in order, each compared with the same base: what `examine` told of them, as curves.

    The personas are those that the last checkpoint that changed has moved most beyond chance, up to four up and two
    down; beside fewer than three, those that went furthest either way.

    Raises:
        SteerkitError: there are none, or they are of different bases or layers.
    """
    if not results or len({(result["base"], result["layer"], result["vectors"]) for result in results}) != 1:
        raise SteerkitError("a trajectory needs comparisons with one base, with the same vectors and at one layer")
    keys = ("tuned", "size", "dimensions", "share", "generic", "random", "shaken", "beyond", "verdict")
    changed = [result for result in results if result["share"] is not None] or [results[-1]]
    last = changed[-1]
    rows = [row["name"] for row in last["personas"]]
    names = [*last["selected"][:4], *last["left"][:2]]
    # A few lines more say what the others do, where hardly anybody is beyond chance.
    names += [name for name in (*rows[:2], rows[-1]) if len(names) < 3]
    found = [{row["name"]: row for row in result["personas"]} for result in results]
    ends = ("value", "low", "high", "chance")
    return {
        **{key: last[key] for key in ("base", "layer", "questions", "vectors")},
        "checkpoints": [{key: result[key] for key in keys} for result in results],
        "personas": [
            {"name": name, "family": found[-1][name]["family"]}
            | {"points": [{key: rows[name][key] for key in ends} for rows in found]}
            for name in dict.fromkeys(names)
        ],
        "verdict": results[-1]["verdict"],
        "reason": results[-1]["reason"],
    }
