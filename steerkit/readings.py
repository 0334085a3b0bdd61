"""Probes, and what they read of the residual stream while a model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.models import ResidualFunction
from steerkit.vectors import SteeringVector


@dataclass(frozen=True)
class Probe:
    """A vector that is read."""

    name: str
    """What its scores are called."""
    vector: SteeringVector
    """What states are projected on."""
    layer: int
    """Where they are read."""

    def __post_init__(self) -> None:
        """Refuse what reads nothing.

        Raises:
            VectorError: the layer does not exist, or the vector is zero there.
        """
        last = self.vector.model.layers - 1
        if not isinstance(self.layer, Integral) or not 0 <= self.layer <= last:
            raise VectorError(f"layer {self.layer} is out of range; {self.vector.model.name} has layers 0 to {last}")
        if self.vector.zeros(self.layer, self.layer):
            raise VectorError(
                f"{self.vector.name} is zero at layer {self.layer}, so nothing can be read along it; "
                f"{self.vector.where_not_zero()}"
            )

    @classmethod
    def of(cls, vector: SteeringVector, layer: int | None = None, name: str = "") -> Probe:
        """A probe at a layer, by default the vector's own.

        Raises:
            VectorError: the layer does not exist, or the vector is zero there.
        """
        return cls(name or vector.name, vector, vector.layer if layer is None else layer)


def distinct_names(probes: Sequence[Probe]) -> tuple[str, ...]:
    """What the columns of some probes are called: their names, and where two have one name, what tells them apart.

    The same vector at another layer is told by the layer, as `hal@15`; another vector of the name by a number.
    """
    names: list[str] = []
    for i, probe in enumerate(probes):
        elsewhere = all(other.layer != probe.layer for other in probes[:i] if other.name == probe.name)
        numbered = (f"{probe.name}_{number}" for number in range(2, len(probes) + 2))
        choices = [probe.name, *([f"{probe.name}@{probe.layer}"] if elsewhere else []), *numbered]
        names.append(next(name for name in choices if name not in names))
    return tuple(names)


@dataclass
class Readings:
    """Collects scores from the residual stream during a forward pass."""

    probes: Sequence[Probe]
    device: torch.device
    scores: Float[Tensor, "b s p"] = field(init=False)

    def functions(self) -> dict[int, list[ResidualFunction]]:
        """Readers by layer; they belong behind the edits of the same layer."""
        return {l: [self._reader(*told)] for l, told in self.readers().items()}

    def readers(self) -> dict[int, tuple[list[int], Float[Tensor, "p d"], Float[Tensor, " p"]]]:
        """By layer: the columns of its probes, what states are projected on, and where the projection is 0."""
        by_layer: dict[int, list[int]] = {}
        for column, probe in enumerate(self.probes):
            by_layer.setdefault(probe.layer, []).append(column)
        return {l: (columns, *self._projection(l, columns)) for l, columns in by_layer.items()}

    def _projection(self, l: int, columns: list[int]) -> tuple[Tensor, Tensor]:
        directions = torch.stack([self.probes[c].vector.directions[l] for c in columns]).to(self.device)
        baselines = torch.stack([self.probes[c].vector.baseline[l] for c in columns]).to(self.device)
        readers = directions / directions.square().sum(-1, keepdim=True).clamp_min(1e-20)
        return readers, (readers * baselines).sum(-1)

    def put(self, projected: Mapping[int, Float[Tensor, "s _"]]) -> Float[Tensor, "s p"]:
        """Scores of one row whose states an engine has projected."""
        readers = self.readers()
        scores = torch.zeros(len(next(iter(projected.values()), ())), len(self.probes))
        for l, (columns, _, offsets) in readers.items():
            scores[:, columns] = projected[l] - offsets.cpu()
        return scores

    def _reader(self, columns: list[int], readers: Tensor, offsets: Tensor) -> ResidualFunction:
        def read(h: Tensor) -> Tensor:
            if not hasattr(self, "scores") or self.scores.shape[:2] != h.shape[:2]:
                self.scores = torch.zeros(*h.shape[:2], len(self.probes), device=self.device)
            self.scores[..., columns] = h.float() @ readers.T - offsets
            return h

        return read
