"""The full table of what was trained, the courses that probes took meanwhile, and what could have been seen at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerkit.experiments.resampling import interval
from steerkit.experiments.thresholds import CONFIDENCE

if TYPE_CHECKING:
    from steerkit.experiments.inoculation import Trained

POWER = 0.8
"""What could have been seen is what would show in so many of equal experiments."""


def arm_table(
    trained: Trained, spill: Float[Tensor, "a s i"], own: Float[Tensor, "a s o"], n: int, draw: torch.Generator
) -> list[dict[str, Any]]:
    """Everything that was measured of every arm, with intervals over seeds and items."""

    def over(values: Tensor) -> dict[str, float]:
        return interval(lambda s, i: float(values[s][:, i].mean()), list(values.shape), n, draw)

    lines = []
    for a, (name, kind) in enumerate(zip(trained.arms, trained.kinds, strict=True)):
        both = {key: getattr(trained, key)[a].double() for key in ("own", "malign", "benign")}
        lines.append(
            {
                "arm": name,
                "kind": kind,
                "learned": over(own[a]),
                "spill": over(spill[a]),
                **{key: over(values[:, 0]) for key, values in both.items()},
                **{f"{key}_prompted": over(values[:, 1]) for key, values in both.items()},
                "prompt_only": dict(zip(("own", "malign", "benign"), _rounded(trained.prompted[a]), strict=True)),
                "probes": _probes(trained, a),
                "loss": round(float(trained.losses[a].mean()), 4),
            }
        )
    return lines


def _probes(trained: Trained, a: int) -> dict[str, dict[str, float]]:
    """Every probe's shift without the prompt and with it, over seeds, and how many times chance it is."""
    scores, chance = trained.scores[a].double(), trained.chance[a].double()
    found = {}
    for p, name in enumerate(trained.probes):
        size = float(chance[:, 0, p].square().mean().sqrt())
        mean = float(scores[:, 0, p].mean())
        found[name] = {
            "value": round(mean, 4),
            "least": round(float(scores[:, 0, p].min()), 4),
            "most": round(float(scores[:, 0, p].max()), 4),
            "prompted": round(float(scores[:, 1, p].mean()), 4),
            "beyond": round(mean / size, 2) if size else 0.0,
        }
    return found


def drift_of(trained: Trained) -> list[dict[str, Any]]:
    """How far every probe had moved at every look while it was trained, the mean over seeds, from 0."""
    curves = []
    for a, name in enumerate(trained.arms):
        looks = trained.drift[a].double().mean(0)
        points = [{"step": 0, **dict.fromkeys(trained.probes, 0.0)}]
        points += [
            {"step": round(float(look[0])), **dict(zip(trained.probes, _rounded(look[1:]), strict=True))}
            for look in looks
        ]
        curves.append({"arm": name, "points": points})
    return curves


def detectable(told: dict[str, float], n_seeds: int, bound: float = 0.0) -> dict[str, float]:
    """The smallest spill that would have been told from a bound in four of five experiments of this size, in nats.

    >>> detectable({"value": 0.0, "low": -0.1, "high": 0.1}, 30)
    {'nats': 0.1418, 'power': 0.8}
    """
    tail, freedom = (1 - CONFIDENCE) / 2, max(n_seeds - 1, 1)
    ends = float(stats.t.ppf(1 - tail, freedom))
    deviation = (told["high"] - told["low"]) / 2 / ends
    seen = bound + deviation * (ends + float(stats.t.ppf(POWER, freedom)))
    return {"nats": round(seen, 4), "power": POWER}


def _rounded(values: Tensor) -> list[float]:
    return [round(x, 4) for x in values.tolist()]
