"""Probes that are read as a model changes: how far its state before a reply has moved, on questions about nothing.

The same neutral questions are put to the base and to the model as it is now; what moved is projected on every probe at
the probe's own layer, in persona units, beside what random mixtures of all personas give. The last token of a prompt
is where the shift foretells the trait after fine-tuning (persona vectors, arXiv 2507.21509).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ExpressionError, nearest
from steerkit.generation import Probe
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.passes import prompt_states
from steerkit.vectors import SteeringVector

LIMIT = re.compile(r"\s*([a-z_][a-z0-9_]*)\s*([<>])\s*(-?\d+(?:\.\d*)?|-?\.\d+)\s*")


@dataclass(frozen=True)
class Limit:
    """Where a probe ends a training."""

    probe: str
    """Which one."""
    above: bool
    """True for `>`, False for `<`."""
    threshold: float
    """The shift at which it does, in persona units."""

    @classmethod
    def parse(cls, text: str, names: Sequence[str]) -> Limit:
        """Read `malice > 0.5`.

        Raises:
            ExpressionError: it is something else, or no probe is called that.
        """
        found = LIMIT.fullmatch(text)
        if found is None:
            raise ExpressionError(f"cannot read the limit {text!r}; write it as: malice > 0.5")
        if found[1] not in names:
            hint = nearest(found[1], names, "probes are: " + ", ".join(names))
            raise ExpressionError(f"no probe is called {found[1]!r}; {hint}")
        return cls(found[1], found[2] == ">", float(found[3]))

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.probe} {'>' if self.above else '<'} {self.threshold:g}"

    def crossed(self, shift: float) -> bool:
        """Whether a shift is past it."""
        return shift > self.threshold if self.above else shift < self.threshold


@dataclass(frozen=True)
class Look:
    """How far probes have moved."""

    scores: dict[str, float]
    """Mean shift from the base, in persona units."""
    chance: dict[str, float]
    """How far random directions of the same length move in root mean square, at the same layer."""
    crossed: bool = False
    """Whether the limit is."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for a log."""
        return {"scores": _rounded(self.scores), "chance": _rounded(self.chance)}


@dataclass(eq=False)
class Watch:
    """What is read, and when it is enough."""

    probes: tuple[Probe, ...]
    """Which personas."""
    mixtures: tuple[SteeringVector, ...] = ()
    """Random directions of unit length; see `screening.random_directions`."""
    limit: Limit | None = None
    """What ends the training."""
    _prompts: list[list[int]] = field(default_factory=list, repr=False)
    _base: Tensor | None = field(default=None, repr=False)

    def begin(self, base: Model) -> None:
        """Read the base, before anything is changed; its weights may be the very ones that are trained."""
        self._prompts = [base.chat_tokens([{"role": "user", "content": asked}]) for asked in neutral_questions()]
        self._base = prompt_states(base, self._prompts)

    def look(self, tuned: Model) -> Look:
        """Read a model as it is now."""
        assert self._base is not None, "begin with the base"
        moved = (prompt_states(tuned, self._prompts) - self._base).mean(0).cpu()
        scores, chance = read_shift(moved, self.probes, self.mixtures)
        return Look(scores, chance, self.limit is not None and self.limit.crossed(scores[self.limit.probe]))

    def to_json(self) -> dict[str, Any]:
        """Plain data: what a training's course may depend on."""
        told = [[p.name, p.layer, digest(p.vector.directions[p.layer])] for p in self.probes]
        return {"probes": told, "mixtures": len(self.mixtures), "limit": str(self.limit or "")}


def read_shift(
    moved: Float[Tensor, "l d"], probes: Sequence[Probe], mixtures: Sequence[SteeringVector]
) -> tuple[dict[str, float], dict[str, float]]:
    """Every probe's share of a shift in persona units, and what random directions have of it at the same layer."""
    scores, chance = {}, {}
    for probe in probes:
        direction, there = probe.vector.directions[probe.layer].float(), moved[probe.layer].float()
        scores[probe.name] = float(there @ direction / direction.square().sum())
        along = [float(there @ mixture.directions[probe.layer]) for mixture in mixtures]
        size = (sum(x * x for x in along) / len(along)) ** 0.5 if along else 0.0
        chance[probe.name] = size / float(direction.norm())
    return scores, chance


def neutral_questions() -> list[str]:
    """Questions about nothing that a persona would be asked about, and those that everybody answers."""
    return [*neutral("questions"), *neutral("common")]


def digest(directions: Float[Tensor, "..."]) -> str:
    """Which direction it is: the beginning of its SHA-256."""
    return hashlib.sha256(directions.float().contiguous().numpy().tobytes()).hexdigest()[:16]


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(x, 5) for name, x in numbers.items()}
