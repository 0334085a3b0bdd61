"""What makes a model the model that a vector was made on.

A name and a shape are not enough: the same weights read with another configuration are another model, so a fingerprint
also holds how the model behaves on a fixed sequence.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from steerkit.networks import ordinary_tokens

if TYPE_CHECKING:
    from steerkit.models import Model

FIXED_LENGTH = 12
SAMPLES = 24
EXACT_TOLERANCE = 1e-3
ROUGH_TOLERANCE = 0.1


def fixed_sequence(model: Model) -> tuple[int, ...]:
    """The tokens on which models are told apart."""
    return ordinary_tokens(model.original, [97 + 31 * i * i for i in range(FIXED_LENGTH)])


@dataclass(frozen=True)
class Fingerprint:
    """A model's identity: its name for people, its shape and its behaviour for the machine."""

    name: str
    """What people call the model."""
    layers: int
    """How many blocks it has."""
    width: int
    """The size of its residual stream."""
    behaviour: tuple[tuple[float, ...], ...]
    """At the first, middle and last layer, evenly spaced coordinates of the last token of a fixed sequence."""
    dtype: str = "float32"
    """The precision it was measured in; halves are compared roughly."""
    adapter: str = ""
    """The digest of the adapter that is merged into its weights, if one is: few steps of training change little of
    what is compared here."""
    base: Fingerprint | None = None
    """The model without that adapter, whose vectors may be read and turned on it."""

    @classmethod
    def of(cls, model: Model) -> Fingerprint:
        """Run the fixed sequence through a model."""
        tokens = torch.tensor([fixed_sequence(model)], device=model.device)
        last = torch.zeros_like(tokens, dtype=torch.bool)
        last[:, -1] = True
        means = model.residuals(tokens, torch.ones_like(tokens), last)[0].cpu()
        places = torch.linspace(0, model.width - 1, min(SAMPLES, model.width)).round().long()
        behaviour = [
            tuple(round(x, 5) for x in means[l, places].tolist()) for l in (0, model.n_layers // 2, model.n_layers - 1)
        ]
        dtype = next(model.original.parameters()).dtype
        shape, precision = (model.n_layers, model.width), str(dtype).removeprefix("torch.")
        return cls(model.name, *shape, tuple(behaviour), precision, model.adapter, model.base)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Fingerprint:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        behaviour = tuple(tuple(float(x) for x in row) for row in data["behaviour"])
        base = cls.from_json(data["base"]) if "base" in data else None
        shape, adapter = (int(data["layers"]), int(data["width"])), str(data.get("adapter", ""))
        return cls(str(data["name"]), *shape, behaviour, str(data["dtype"]), adapter, base)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file; a model without an adapter is written as it always was."""
        data = {key: value for key, value in asdict(self).items() if key not in ("adapter", "base")}
        return data | ({"adapter": self.adapter, "base": self.base.to_json()} if self.base else {})

    def takes(self, other: Fingerprint) -> bool:
        """Whether what was made on another model may be used on this one: it is the same one, or its base."""
        return other.difference(self) is None or (self.base is not None and other.difference(self.base) is None)

    def difference(self, other: Fingerprint) -> str | None:
        """Why two fingerprints are of different models, in words; None if they are the same model."""
        if (self.layers, self.width) != (other.layers, other.width):
            return f"{self.layers} layers × {self.width} against {other.layers} × {other.width}"
        if self.adapter != other.adapter:
            return "same shape, but another adapter"
        exact = {self.dtype, other.dtype} <= {"float32", "float64"}
        if [len(row) for row in self.behaviour] != [len(row) for row in other.behaviour]:
            return "same shape, but measured differently"
        for ours, theirs in zip(self.behaviour, other.behaviour, strict=True):
            a, b = torch.tensor(ours), torch.tensor(theirs)
            if not (a - b).norm() <= (EXACT_TOLERANCE if exact else ROUGH_TOLERANCE) * b.norm():
                return "same shape, but they compute different things"
        return None
