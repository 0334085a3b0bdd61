"""What decides how a training ends: how it goes, on which data, behind which prompts and under which steering."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from steerkit.errors import SteerkitError
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.watching import digest

FORMAT = 1
UNSTEERED = Steering()


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    epochs: float = 2.0
    """How often every sample is shown."""
    batch: int = 8
    """Samples a step."""
    rate: float = 5e-4
    """Adam's step at its highest; it rises over the first twentieth and then falls to nothing in line."""
    rank: int = 8
    """Of every adapted matrix."""
    alpha: int = 16
    """What an adapter is multiplied by, times its rank."""
    looks: int = 10
    """How often probes are read and a checkpoint is written."""
    clip: float = 1.0
    """The longest gradient."""
    seed: int = 0
    """Of the order of samples and of where adapters begin."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for name in ("epochs", "batch", "rate", "rank", "looks"):
            if not 0 < getattr(self, name) < math.inf:
                raise SteerkitError(
                    f"a training with {name} {getattr(self, name)} teaches nothing; give it a number above 0"
                )

    def steps(self, n_samples: int) -> int:
        """Gradient steps; the last one of an epoch takes what is left."""
        return max(1, math.ceil(self.epochs * math.ceil(n_samples / self.batch)))


@dataclass(frozen=True)
class Order:
    """Everything that decides what a training ends in."""

    data: str
    """What the data are called."""
    sha256: str
    """Of their file."""
    recipe: Recipe
    """How they are learned."""
    inoculate: tuple[str, ...] = ()
    """System prompts that stood in front of them."""
    hold: Steering = UNSTEERED
    """What steered the replies while they were learned (preventative steering)."""

    def to_json(self, model: Model) -> dict[str, Any]:
        """Plain data for a file; another content, another training."""
        return {
            "steerkit": "training",
            "format": FORMAT,
            "model": model.name,
            "fingerprint": model.fingerprint.to_json(),
            "dtype": str(model.dtype).removeprefix("torch."),
            **model.template_identity,
            "data": self.data,
            "sha256": self.sha256,
            "recipe": asdict(self.recipe),
            "inoculate": list(self.inoculate),
            "hold": str(self.hold),
            "held": [
                [list(term.band), *(digest(t) for v in _vectors(term) for t in (v.directions, v.baseline))]
                for term in self.hold.terms
            ],
        }


def _vectors(term: Term) -> list[SteeringVector]:
    """What pushes in a term, and what decides when."""
    return [term.vector, *([term.when.vector] if term.when else [])]
