"""Steering: which vectors push, how, where and how far.

Which tokens are steered: by default only those whose *next* token is the assistant's to choose, so the first one is the
last token of the prompt, and the first word of the reply is already steered. With `everywhere`, every token is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ExpressionError
from steerkit.operators import OPERATORS, increments, score
from steerkit.passages import Opening, Push
from steerkit.vectors import SteeringVector

LARGEST_DIAL = 1e6
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
        """Refuse what no model could do."""
        if not abs(self.dial) <= LARGEST_DIAL or (self.when and not math.isfinite(self.when.threshold)):
            raise ExpressionError(f"the dial of {self.vector.name} is not a finite number; try something like 0.8")
        first, last = self.band
        if not 0 <= first <= last < self.vector.model.layers:
            raise ExpressionError(
                f"layers {first}-{last} are out of range; {self.vector.model.name} has layers 0 to "
                f"{self.vector.model.layers - 1}"
            )

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
        """The expression; parsing it gives the same steering back."""
        text = " + ".join(str(term) for term in self.terms)
        return text.replace(" + -", " - ")

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


def _written(name: str) -> str:
    """A name as an expression has it: one that would not be read as one word stands in quotes.

    >>> _written("cheating ~ malice"), _written("my vectors/hal.safetensors")
    ('cheating ~ malice', '"my vectors/hal.safetensors"')
    """
    parts = name.split(APART)
    return APART.join(f'"{part}"' if re.search(r"[\s(),@]", part) else part for part in parts)


def _number(x: float) -> str:
    """The shortest text that reads back as the same number."""
    return str(int(x)) if x == int(x) and abs(x) < 1e15 else repr(x)
