"""From activations of two sides to a direction. Pure tensors: no model, no text.

Every estimator takes `positive` and `negative`, activations [n l d] whose i-th rows answer the same question, and
returns directions [l d] in persona units: the positive mean scores 1 on them and the negative mean scores 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Activations = Float[Tensor, "n l d"]
Directions = Float[Tensor, "l d"]


def mean_diff(positive: Activations, negative: Activations) -> Directions:
    """Mean of the positives minus mean of the negatives, the best default (AxBench, arXiv 2501.17148).

    >>> mean_diff(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    tensor([[1., 1., 1.]])
    """
    return positive.mean(0) - negative.mean(0)


def pca(positive: Activations, negative: Activations) -> Directions:
    """First principal axis of the paired differences, *not* centred.

    Centring the differences removes exactly what they have in common, which is the persona.
    """
    differences = (positive - negative).transpose(0, 1)
    axes = torch.linalg.svd(differences.double(), full_matrices=False).Vh[:, 0]
    return in_persona_units(axes, mean_diff(positive, negative))


def logistic(positive: Activations, negative: Activations, penalty: float = 1e-2) -> Directions:
    """Normal of a ridge-penalised logistic classifier, every layer fitted at once."""
    rows = torch.cat([positive, negative]).double()
    centre, scale = rows.mean(0), rows.std().clamp_min(1e-12)
    rows = (rows - centre) / scale
    signs = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double().to(rows.device)
    weights = torch.zeros_like(rows[0], requires_grad=True)
    bias = torch.zeros(rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        margins = signs[:, None] * ((rows * weights).sum(-1) + bias)
        total = torch.nn.functional.softplus(-margins).mean(0).sum() + penalty * weights.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    return in_persona_units(weights.detach(), mean_diff(positive, negative))


def whitened(positive: Activations, negative: Activations) -> Directions:
    """Mean difference through the inverse of the within-side covariance (LDA).

    The covariance is shrunk towards a multiple of the identity by the oracle approximating rule (Chen et al. 2010).
    It reads well and steers badly (arXiv 2501.17148); it is here to be compared with.
    """
    difference = mean_diff(positive, negative).double()
    within = torch.cat([positive - positive.mean(0), negative - negative.mean(0)]).double()
    axes = torch.stack([_solve_shrunk(within[:, l], difference[l]) for l in range(difference.shape[0])])
    return in_persona_units(axes, mean_diff(positive, negative))


def _solve_shrunk(rows: Float[Tensor, "n d"], target: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    n, d = rows.shape
    covariance = rows.T @ rows / n
    mean_variance = covariance.diagonal().mean()
    squared = covariance.square().mean()
    share = torch.clamp((squared + mean_variance**2) / ((n + 1) * (squared - mean_variance**2 / d) + 1e-30), 0, 1)
    identity = torch.eye(d, dtype=rows.dtype, device=rows.device)
    shrunk = (1 - share) * covariance + (share * mean_variance + 1e-12) * identity
    return torch.linalg.solve(shrunk, target)


def in_persona_units(axes: Float[Tensor, "l d"], difference: Directions) -> Directions:
    """Scale each axis, and turn it, so that the positive mean scores 1 where the negative mean scores 0.

    With u the unit axis and Δ the mean difference this is (Δ·u) u, the part of Δ that the axis explains.
    """
    units = torch.nn.functional.normalize(axes.double(), dim=-1)
    lengths = (difference.double() * units).sum(-1, keepdim=True)
    return (lengths * units).to(difference.dtype)


Estimator = Callable[[Activations, Activations], Directions]
ESTIMATORS: dict[str, Estimator] = {"mean_diff": mean_diff, "pca": pca, "logistic": logistic, "whitened": whitened}
