"""The space that personas span: components, the Assistant axis, who is near whom. Geometry; no model.

Personas are rows of states [p q d]: for each of p personas its mean state over the reply to each of q questions that
all of them were asked, at one layer. A persona's point is the mean over its questions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError

Points = Float[Tensor, "p d"]
States = Float[Tensor, "p q d"]


@dataclass(frozen=True, eq=False)
class PersonaSpace:
    """Where personas stand at every layer, and where the model stands when nobody asks it to be anyone."""

    names: tuple[str, ...]
    """Of the p personas."""
    families: tuple[str, ...]
    """What family each belongs to."""
    states: Float[Tensor, "p q l d"]
    """Mean state of each persona over its reply to each question, at every layer."""
    assistant: Float[Tensor, "q l d"]
    """The same of the model without any system prompt of ours."""
    control: Float[Tensor, "q l d"]
    """The same under system prompts that ask for nobody."""
    lengths: Float[Tensor, " p"]
    """How long each persona's replies are expected to be, in tokens."""
    assistant_length: float
    """The same of the Assistant's."""
    replies: tuple[str, ...] = ()
    """What each persona says to the first question."""

    def __post_init__(self) -> None:
        """Refuse a space that is too small to have components."""
        if len(self.names) < 4:
            raise SteerkitError(f"a space needs at least 4 personas, and there are {len(self.names)}; name more")

    def at(self, layer: int) -> States:
        """States at one layer, in double precision.

        Raises:
            SteerkitError: there is no such layer.
        """
        last = self.states.shape[2] - 1
        if not 0 <= layer <= last:
            raise SteerkitError(f"layer {layer} is out of range; this model has layers 0 to {last}")
        return self.states[:, :, layer].double()

    def members(self, *families: str) -> list[int]:
        """Rows of the personas of some families."""
        return [i for i, family in enumerate(self.families) if family in families]


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of a cloud of points."""

    mean: Float[Tensor, " d"]
    """Its middle."""
    axes: Float[Tensor, "k d"]
    """Unit vectors, the one of most variance first."""
    shares: Float[Tensor, " k"]
    """The share of variance along each; they sum to 1."""

    def project(self, points: Float[Tensor, "n d"], k: int = 3) -> Float[Tensor, "n k"]:
        """Coordinates of points along the first k axes; 0 is the middle of the cloud."""
        return (points - self.mean) @ self.axes[:k].T

    def turned(self, towards: Float[Tensor, " d"]) -> Components:
        """The same with the first axis pointing the way that a displacement goes, because its sign means nothing."""
        sign = -1.0 if float(self.axes[0] @ towards) < 0 else 1.0
        return replace(self, axes=torch.cat([self.axes[:1] * sign, self.axes[1:]]))


def components(points: Points) -> Components:
    """Principal components of points; there are as many as points less one, or as coordinates if those are fewer.

    >>> line = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [5.0, 0.0]])
    >>> components(line).shares
    tensor([1., 0.])
    """
    mean = points.mean(0)
    _, lengths, axes = torch.linalg.svd(points - mean, full_matrices=False)
    most = min(len(points) - 1, points.shape[1])
    variances = lengths.square()
    return Components(mean, axes[:most], (variances / variances.sum().clamp_min(1e-30))[:most])


def count_components(shares: Float[Tensor, " k"], share: float) -> int:
    """How many components it takes to carry a share of the variance.

    >>> count_components(torch.tensor([0.5, 0.3, 0.2]), 0.7)
    2
    """
    return int((shares.cumsum(0) < share - 1e-9).sum()) + 1


def assistant_axis(points: Points, assistant: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """From the mean of all roles to the Assistant as it is by default (arXiv 2601.10387)."""
    return assistant - points.mean(0)


def percentile(values: Float[Tensor, " p"], value: float | Tensor) -> float:
    """The share of values that lie below one, ties counted half.

    >>> percentile(torch.tensor([1.0, 2.0, 3.0, 4.0]), 3.5)
    0.75
    """
    return float(((values < value).double() + (values == value).double() / 2).mean())


def cosine(one: Float[Tensor, " d"], other: Float[Tensor, " d"]) -> float:
    """Cosine of two displacements; 0 where one has no length."""
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def correlation(one: Float[Tensor, " p"], other: Float[Tensor, " p"]) -> float:
    """Pearson's r; 0 where one of them does not vary."""
    return cosine(one - one.mean(), other - other.mean())


def random_points(points: Points, draw: torch.Generator) -> Points:
    """As many points as far from their middle as these, in random directions: a space that nothing has shaped."""
    lengths = (points - points.mean(0)).norm(dim=-1, keepdim=True)
    noise = torch.randn(points.shape, generator=draw, dtype=points.dtype)
    return torch.nn.functional.normalize(noise, dim=-1) * lengths


def without_direction(points: Float[Tensor, "*n d"], direction: Float[Tensor, " d"]) -> Float[Tensor, "*n d"]:
    """Points without their part along a direction; doing it twice does nothing more."""
    unit = torch.nn.functional.normalize(direction, dim=0)
    return points - (points @ unit)[..., None] * unit


def without_covariate(
    states: States, assistant: Float[Tensor, "q d"], known: Float[Tensor, " p"], its: float
) -> tuple[States, Float[Tensor, "q d"]]:
    """States less what something known of each persona explains by least squares, and the Assistant's likewise.

    Args:
        states: of the personas
        assistant: states of the Assistant
        known: a number for each persona, such as the length of its replies
        its: the same number for the Assistant
    """
    points, centred = states.mean(1), (known - known.mean()).to(states.dtype)
    slope = centred @ (points - points.mean(0)) / centred.square().sum().clamp_min(1e-30)
    return states - centred[:, None, None] * slope, assistant - (its - float(known.mean())) * slope


def neighbours(points: Points, place: Float[Tensor, " d"]) -> list[tuple[int, float]]:
    """Rows by their distance from a place, the nearest first, with the distance."""
    distances = (points - place).norm(dim=-1)
    return [(int(i), float(distances[i])) for i in distances.argsort()]
