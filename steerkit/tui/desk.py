"""What the dials say: plain frozen state, from which a `Steering` follows. No widgets here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from steerkit.errors import ExpressionError
from steerkit.steering import Gate, Steering, Term
from steerkit.vectors import SteeringVector

OPERATORS = ("add", "rotate", "set", "ablate", "cap", "floor")
"""In the order in which a key goes through them."""
RESTS = {"add": 0.0, "rotate": 0.0, "ablate": 0.0}
"""The dial at which an operator does nothing, where there is one."""
REACH = 2.0
"""How far a dial goes when nobody knows its limit."""
UNCALIBRATED = 0.25
"""Where the floor holds the score of a vector whose thresholds nobody has measured."""


@dataclass(frozen=True)
class Dial:
    """One vector under one's fingers."""

    name: str
    """What expressions call it."""
    vector: SteeringVector
    """What pushes."""
    value: float = 0.0
    """In persona units."""
    operator: str = "add"
    """One of `OPERATORS`."""
    layers: tuple[int, int] | None = None
    """First and last layer; None for the vector's own place."""
    when: Gate | None = None
    """A condition that the expression set; there is no key for it."""
    muted: bool = False
    """Whether it is left out for now."""

    @property
    def term(self) -> Term:
        """What it does when it is not muted."""
        return Term(self.vector, self.operator, self.value, self.layers, self.when, self.name)

    @property
    def rests(self) -> bool:
        """Whether it does nothing."""
        return self.muted or RESTS.get(self.operator) == self.value

    @property
    def limits(self) -> tuple[float, float] | None:
        """The lowest and highest dial before text falls apart or loops, where that is known and means anything."""
        return self.vector.limits(self.layers) if self.operator in ("add", "rotate") else None

    @property
    def reach(self) -> float:
        """How far the dial goes either way: a little past its limits, and always as far as it stands."""
        far = max(map(abs, self.limits)) * 1.25 if self.limits else REACH
        return max(round(far + 0.05, 1), 1.0, abs(self.value))

    @property
    def past_limit(self) -> bool:
        """Whether text falls apart, or greedy text loops, where it stands."""
        return self.limits is not None and not self.limits[0] <= self.value <= self.limits[1]


@dataclass(frozen=True)
class Desk:
    """All dials, and what stands above them."""

    dials: tuple[Dial, ...] = ()
    """From the top down; terms are applied in this order."""
    solo: str | None = None
    """The name of the only dial that counts, if one does."""
    floor: bool = False
    """Whether no vector's score may rise above where the Assistant's own lie (activation capping, arXiv 2601.10387)."""

    @classmethod
    def of(cls, steering: Steering) -> Desk:
        """A dial for every term.

        Raises:
            ExpressionError: a vector stands in two terms, and would need two dials of one name.
        """
        desk = cls()
        for term in steering.terms:
            name = term.name or term.vector.name
            if name in desk.names:
                raise ExpressionError(f"{name} stands twice in {str(steering)!r}; chat has one dial a vector")
            desk = desk.with_dial(Dial(name, term.vector, term.dial, term.operator, term.layers, term.when))
        return desk

    @property
    def steering(self) -> Steering:
        """What the model is told."""
        heard = [dial for dial in self.dials if self.solo in (None, dial.name) and not dial.rests]
        held = self.held if self.floor else ()
        return Steering((*(dial.term for dial in heard), *held))

    @property
    def stands(self) -> str:
        """Where the dials stand, also those at rest, as an expression that `of` takes back; the floor is not in it."""
        terms = (dial.term if not dial.muted else replace(dial, value=0.0).term for dial in self.dials)
        return str(Steering(tuple(terms)))

    @property
    def held(self) -> tuple[Term, ...]:
        """What the floor adds: no vector scores above the 75th percentile of the Assistant's own tokens."""
        vectors = {dial.name: dial.vector for dial in self.dials}
        return tuple(
            Term(vector, "cap", vector.evidence.get("thresholds", {}).get("p75", UNCALIBRATED), name=name)
            for name, vector in vectors.items()
        )

    def __getitem__(self, name: str) -> Dial:
        """The dial of that name."""
        return next(dial for dial in self.dials if dial.name == name)

    def with_dial(self, dial: Dial) -> Desk:
        """With a dial changed, or one more at the end."""
        if dial.name in self.names:
            return replace(self, dials=tuple(dial if old.name == dial.name else old for old in self.dials))
        return replace(self, dials=(*self.dials, dial))

    def without(self, name: str) -> Desk:
        """With one dial fewer."""
        rest = tuple(dial for dial in self.dials if dial.name != name)
        return replace(self, dials=rest, solo=None if self.solo == name else self.solo)

    @property
    def names(self) -> Sequence[str]:
        """What the dials are called."""
        return [dial.name for dial in self.dials]


def turned(dial: Dial, by: float) -> Dial:
    """A dial moved by a step, which rests at zero on its way and stays within its reach.

    A dial that stands past its reach, because an expression put it there, may come back but not go further.
    """
    value = min(max(dial.value + by, -dial.reach), dial.reach)
    return replace(dial, value=round(value, 3) + 0.0)


def next_operator(dial: Dial) -> Dial:
    """The same dial under the next operator, at the value that means most: its threshold, or where it does nothing."""
    operator = OPERATORS[(OPERATORS.index(dial.operator) + 1) % len(OPERATORS)]
    thresholds = dial.vector.evidence.get("thresholds", {})
    values = {"ablate": 1.0, "cap": thresholds.get("p75", UNCALIBRATED), "floor": thresholds.get("p25", -UNCALIBRATED)}
    keeps = operator in ("rotate", "set") and dial.operator in ("add", "rotate")
    return replace(dial, operator=operator, value=dial.value if keeps else round(values.get(operator, 0.0), 3))


def changed(desk: Desk, name: str, what: str) -> Desk:
    """The desk after one of a dial's keys: reset, mute, solo, operator or remove."""
    dial = desk[name]
    match what:
        case "reset":
            return desk.with_dial(replace(dial, value=0.0))
        case "mute":
            return desk.with_dial(replace(dial, muted=not dial.muted))
        case "solo":
            return replace(desk, solo=None if desk.solo == name else name)
        case "operator":
            return desk.with_dial(next_operator(dial))
        case "remove":
            return desk.without(name)
    raise ValueError(f"no key {what!r}")
