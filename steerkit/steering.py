"""Steering: which vectors push, how, where and how far.

Which tokens are steered: by default only those whose *next* token is the assistant's to choose, so the first one is the
last token of the prompt, and the first word of the reply is already steered. With `everywhere`, every token is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ExpressionError, nearest
from steerkit.operators import OPERATORS, increments, score
from steerkit.passages import Opening, Push
from steerkit.vectors import SteeringVector

LARGEST_DIAL = 1e6
NO_NAMES = ("nan", "inf", "infinity")
"""Words that an expression takes for numbers that are not finite."""
APART = " ~ "
"""Between a vector's name and those whose share of it is left out."""

Edit = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"]]


@dataclass(frozen=True)
class Gate:
    """A condition on each token: another vector's score, read at the layer that the term edits (arXiv 2409.05907)."""

    vector: SteeringVector
    """The vector whose score decides."""
    above: bool
    """True for `>`, False for `<`."""
    threshold: float
    """The score at which it opens."""
    name: str = ""
    """What the expression called the vector."""

    def __post_init__(self) -> None:
        """Refuse what is no condition.

        Raises:
            ExpressionError: the vector is none, its name cannot be written, or the threshold is not finite.
        """
        _require_vector(self.vector, self.name)
        if not _finite(self.threshold):
            raise ExpressionError(
                f"the threshold of {self.vector.name} is {self.threshold!r}, not a finite number; try something like 1"
            )

    def __str__(self) -> str:
        """The gate as an expression has it."""
        return f"when {_written(self.name or self.vector.name)} {'>' if self.above else '<'} {_number(self.threshold)}"


@dataclass(frozen=True)
class Term:
    """One vector, one operator, one dial."""

    vector: SteeringVector
    """What pushes."""
    operator: str = "add"
    """How; a key of `operators.OPERATORS`."""
    dial: float = 1.0
    """How far, in persona units; for `cap` and `floor` the score that bounds."""
    layers: tuple[int, int] | None = None
    """First and last layer; None for the vector's own place, which calibration finds."""
    when: Gate | None = None
    """Only on tokens where this holds."""
    name: str = ""
    """What the expression called the vector: its name or the path of its file, and what it was made orthogonal to."""

    def __post_init__(self) -> None:
        """Refuse what no model could do.

        Raises:
            ExpressionError: an operator that does not exist, a dial that is not finite, layers that the model has not,
                or a vector, or a gate's, that is zero at one of them.
        """
        _require_vector(self.vector, self.name)
        if self.operator not in OPERATORS:
            hint = nearest(self.operator, OPERATORS, "operators are " + ", ".join(OPERATORS))
            raise ExpressionError(f"no operator is called {self.operator!r}; {hint}")
        if not _finite(self.dial) or not abs(self.dial) <= LARGEST_DIAL:
            raise ExpressionError(f"the dial of {self.vector.name} is not a finite number; try something like 0.8")
        if self.layers is not None:
            object.__setattr__(self, "layers", _band(self.layers))
        if self.when is not None and not isinstance(self.when, Gate):
            raise ExpressionError(f"a term holds when a Gate is open, not {self.when!r}; write Gate(vector, True, 1.0)")
        first, last = self.band
        if not 0 <= first <= last < self.vector.model.layers:
            raise ExpressionError(
                f"layers {first}-{last} are out of range; {self.vector.model.name} has layers 0 to "
                f"{self.vector.model.layers - 1}"
            )
        _require_direction(self.vector, first, last, "steers nothing")
        if self.when is not None:
            if self.when.vector.directions.shape != self.vector.directions.shape:
                gate = self.when.vector
                raise ExpressionError(
                    f"{gate.name} was made on {gate.model.name} and {self.vector.name} on {self.vector.model.name}; "
                    "a gate needs a vector of the same model"
                )
            _require_direction(self.when.vector, first, last, "opens no gate")

    @property
    def band(self) -> tuple[int, int]:
        """First and last layer that this term edits."""
        return self.layers or self.vector.place

    @property
    def limit(self) -> float | None:
        """The dial of this sign past which text falls apart or loops; None where nobody has measured it."""
        limits = self.vector.limits(self.layers) if self.operator in ("add", "rotate") else None
        return limits[0 if self.dial < 0 else 1] if limits else None

    @property
    def fault(self) -> str:
        """What text does past the limit of this sign."""
        loops = self.vector.evidence.get("limited_by_below" if self.dial < 0 else "limited_by") == "repetition"
        return "greedy text often loops" if loops else "text falls apart"

    @property
    def spills(self) -> str:
        """What `spillover` found that turning this up brings along, in one sentence; empty where nothing is known."""
        name, known = self.name or self.vector.name, self.vector.evidence.get("spills", ())
        if self.operator != "add" or self.dial <= 0 or not known:
            return ""
        brought = ", ".join(str(spill["measured"]) for spill in known)
        apart = _written(name) + "".join(f"{APART}{spill['measured']}" for spill in known)
        return f"{name} brings {brought} along; {_number(self.dial)} {apart} leaves out what they share"

    def __str__(self) -> str:
        """The term as an expression has it."""
        name = _written(self.name or self.vector.name)
        if self.operator == "add":
            text = f"{_number(self.dial)} {name}"
        elif self.dial == OPERATORS[self.operator].default:
            text = f"{self.operator}({name})"
        else:
            text = f"{self.operator}({name}, {_number(self.dial)})"
        if self.layers is not None:
            first, last = self.layers
            text += f" @{first}" if first == last else f" @{first}-{last}"
        return f"{text} {self.when}" if self.when else text


@dataclass(frozen=True)
class Steering:
    """Terms applied in order. No terms: the model as it is."""

    terms: tuple[Term, ...] = ()
    """What pushes."""
    everywhere: bool = False
    """Whether the prompt is steered too; otherwise only where the reply is being chosen."""

    def __post_init__(self) -> None:
        """Refuse what is no term, and tell vectors of one name apart, so that no reading or key stands for two.

        Raises:
            ExpressionError: something else than a term is among them.
        """
        listed = isinstance(self.terms, Sequence) and not isinstance(self.terms, str)
        wrong = [term for term in self.terms if not isinstance(term, Term)] if listed else [self.terms]
        if wrong:
            text = isinstance(wrong[0], str)
            hint = "Steering.parse(text, vectors)" if text else "Steering((Term(vector, dial=0.8),))"
            raise ExpressionError(f"a steering is made of terms, not of a {type(wrong[0]).__name__}; write {hint}")
        object.__setattr__(self, "terms", _distinct(self.terms))

    @classmethod
    def parse(cls, text: str, vectors: Mapping[str, SteeringVector], everywhere: bool = False) -> Steering:
        """Read an expression such as `0.8 hal - 0.3 warmth @12-18`.

        Raises:
            ExpressionError: the text does not parse; the message names the column.
            VectorError: a name in it has no vector for this model.
        """
        from steerkit.expressions import parse_terms

        return cls(parse_terms(text, vectors), everywhere)

    def __str__(self) -> str:
        """The expression; parsing it gives the same steering back, where every name stands for its vector.

        A vector that shares its name with another one before it has a number behind it, as `hal_2`.
        """
        text = ""
        for term in map(str, self.terms):
            text += (" - " + term[1:] if term.startswith("-") else " + " + term) if text else term
        return text

    def __bool__(self) -> bool:
        """Whether anything pushes."""
        return bool(self.terms)

    def warnings(self) -> list[str]:
        """What a user should know before reading the text: which dials are past their limit, and what they bring."""
        past = [
            f"{term} is past the limit of {term.limit:.2f}, where {term.vector.name}'s {term.fault}"
            for term in self.terms
            if term.limit is not None and abs(term.dial) > abs(term.limit)
        ]
        return [*past, *(brought for term in self.terms if (brought := term.spills))]


def edits(steerings: Sequence[Steering], like: Tensor) -> dict[int, list[Edit]]:
    """Compile one steering per row into functions on layers, which steer every position they are given.

    Args:
        steerings: one per row of the batch
        like: a tensor on the model's device and in its precision

    Returns:
        By layer, edits in the order of the terms. Terms of different rows that share an operator become one edit.
    """
    slots: dict[tuple[int, int, str, bool], list[tuple[int, Push]]] = {}
    for row, steering in enumerate(steerings):
        for order, term in enumerate(steering.terms):
            for push in pushes_of(term):
                slots.setdefault((push.layer, order, term.operator, term.when is not None), []).append((row, push))
    functions: dict[int, list[Edit]] = {}
    for (l, _, operator, _), members in sorted(slots.items(), key=lambda slot: slot[0]):
        functions.setdefault(l, []).append(_edit(operator, members, len(steerings), like))
    return functions


def pushes_of(term: Term) -> list[Push]:
    """What a term does to each layer of its band, as plain data."""
    (first, last), vector = term.band, term.vector
    telescopes = OPERATORS[term.operator].telescopes
    directions = increments(vector.directions, first, last) if telescopes else vector.directions[first : last + 1]

    def opening(l: int) -> Opening | None:
        if (gate := term.when) is None:
            return None
        return Opening(gate.vector.directions[l], gate.vector.baseline[l], gate.above, gate.threshold)

    return [
        Push(l, term.operator, directions[l - first], vector.baseline[l], float(term.dial), opening(l))
        for l in range(first, last + 1)
    ]


def _edit(operator: str, members: list[tuple[int, Push]], n_rows: int, like: Tensor) -> Edit:
    """One operator on some rows of one layer."""
    rows = torch.tensor([row for row, _ in members], device=like.device)
    all_rows = len(members) == n_rows
    apply = OPERATORS[operator].apply
    # Scores square activations, which overflows half precision; vectors are float32, and so is what they do.
    direction = torch.stack([push.direction for _, push in members])[:, None].to(like.device)
    baseline = torch.stack([push.baseline for _, push in members])[:, None].to(like.device)
    dial = torch.tensor([push.dial for _, push in members])[:, None, None].to(like.device)
    gate = _gate([push.when for _, push in members], like)

    def edit(h: Tensor) -> Tensor:
        part = (h if all_rows else h[rows]).float()
        edited = apply(part, direction, baseline, dial)
        if gate is not None:
            edited = torch.where(gate(part)[..., None], edited, part)
        edited = edited.to(h.dtype)
        return edited if all_rows else h.index_copy(0, rows, edited)

    return edit


def _gate(gates: Sequence[Opening | None], like: Tensor) -> Callable[[Tensor], Tensor] | None:
    """A function from states to where the gates are open, [b s]."""
    present = [gate for gate in gates if gate is not None]
    if not present:
        return None
    direction = torch.stack([gate.direction for gate in present])[:, None].to(like.device)
    baseline = torch.stack([gate.baseline for gate in present])[:, None].to(like.device)
    sign = torch.tensor([1.0 if gate.above else -1.0 for gate in present])[:, None].to(like.device)
    threshold = torch.tensor([gate.threshold for gate in present])[:, None].to(like.device)
    return lambda h: sign * (score(h, direction, baseline)[..., 0] - threshold) > 0


def _distinct(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms, with a number behind a name that has stood for another vector before."""
    known: dict[str, SteeringVector] = {}

    def named(name: str, vector: SteeringVector) -> str:
        first, *rest = name.split(APART)
        choices = (name, *(APART.join([f"{first}_{i}", *rest]) for i in range(2, len(terms) * 2 + 2)))
        chosen = next(choice for choice in choices if choice not in known or _same(known[choice], vector))
        known[chosen] = vector
        return chosen

    found = []
    for term in terms:
        name = term.name or term.vector.name
        if (chosen := named(name, term.vector)) != name:
            term = replace(term, name=chosen)
        if (gate := term.when) is not None:
            name = gate.name or gate.vector.name
            if (chosen := named(name, gate.vector)) != name:
                term = replace(term, when=replace(gate, name=chosen))
        found.append(term)
    return tuple(found)


def _same(one: SteeringVector, other: SteeringVector) -> bool:
    """Whether two vectors are the same displacement from the same baseline."""
    return one is other or all(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in ((one.directions, other.directions), (one.baseline, other.baseline))
    )


def _require_vector(vector: SteeringVector, name: str) -> None:
    """Refuse what is no vector, and a name that no expression could hold."""
    if not isinstance(vector, SteeringVector):
        kind = "text" if isinstance(vector, str) else f"a {type(vector).__name__}"
        raise ExpressionError(f"a term takes a SteeringVector, not {kind}; write Steering.parse('0.8 hal', vectors)")
    if not (written := name or vector.name).strip() or re.search(r'["\n\r]', written):
        raise ExpressionError(
            f"the name {written!r} cannot stand in an expression; write dataclasses.replace(vector, name='hal')"
        )


def _require_direction(vector: SteeringVector, first: int, last: int, effect: str) -> None:
    """Refuse a vector that is zero at a layer where it is applied."""
    if zeros := vector.zeros(first, last):
        listed = ", ".join(map(str, zeros[:6])) + (", …" if len(zeros) > 6 else "")
        layers = f"layer{'s' if len(zeros) > 1 else ''} {listed}"
        raise ExpressionError(f"{vector.name} is zero at {layers}, where it {effect}; {vector.where_not_zero()}")


def _band(layers: object) -> tuple[int, int]:
    """First and last layer, as whole numbers."""
    whole = isinstance(layers, (tuple, list)) and len(layers) == 2 and all(isinstance(l, Integral) for l in layers)
    if not whole or not isinstance(layers, (tuple, list)):
        raise ExpressionError(f"layers {layers!r} are not a first and a last layer; write (15, 15) or (8, 23)")
    return int(layers[0]), int(layers[1])


def _finite(number: object) -> bool:
    """Whether something is a finite number."""
    try:
        return math.isfinite(number)  # type: ignore[arg-type]
    except TypeError:
        return False


BARE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*|(?![-+−]|~[^/])[^\s(),"@]*\.safetensors')
"""What an expression reads as one name; anything else stands in quotes."""


def _written(name: str) -> str:
    """A name as an expression has it: one that would not be read as one word stands in quotes.

    >>> _written("cheating ~ malice"), _written("my vectors/hal.safetensors"), _written("hal-2")
    ('cheating ~ malice', '"my vectors/hal.safetensors"', '"hal-2"')
    """

    def quoted(part: str) -> str:
        return part if BARE.fullmatch(part) and part.lower() not in NO_NAMES else f'"{part}"'

    return APART.join(map(quoted, name.split(APART)))


def _number(x: float) -> str:
    """The shortest text that reads back as the same number."""
    x = float(x)
    return str(int(x)) if x == int(x) and abs(x) < 1e15 else repr(x)
