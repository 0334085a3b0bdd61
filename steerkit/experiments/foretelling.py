"""What training will do, foretold from forward passes of the untrained model, and how well that agrees with it.

It is what `steerkit screen --quick --inoculate PROMPT` tells of the data: how much likelier the prompt makes the
replies (PH, arXiv 2510.05024), and the projection difference on probes (arXiv 2507.21509).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from steerkit.experiments.arms import KIND, Arm
from steerkit.experiments.resampling import interval
from steerkit.experiments.thresholds import MALIGN
from steerkit.generation import Probe
from steerkit.kept import kept_folder
from steerkit.lessons import find_data
from steerkit.models import Model
from steerkit.screening import Settings, screen
from steerkit.watching import Watch
from steerkit.weights import Progress, as_stage, ignore_progress

if TYPE_CHECKING:
    from steerkit.experiments.inoculation import Trained


def foretell(
    model: Model, arm: Arm, probes: Sequence[Probe], n: int, progress: Progress = ignore_progress
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Of the first n samples of an arm: what its prompt adds to a token's log p, and the projection on malign probes.

    The lines are kept as they are measured, so a run that was stopped goes on.
    """
    malign = [probe for probe in probes if probe.name in MALIGN]
    told = [arm.data, list(arm.prompts), n, str(model.dtype), model.adapter, Watch(tuple(malign)).to_json()]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    path = kept_folder(KIND, model) / "foretold" / f"{arm.name.replace(' ', '-')}-{digest}.jsonl"
    settings = Settings(quick=True, most=n, inoculate=arm.prompts)
    screen(model, find_data(arm.data), malign, path, settings, as_stage(progress, "screening"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    read = [line for line in lines if "scores" in line]
    projections = [sum(line["scores"].values()) / len(line["scores"]) for line in read]
    return torch.tensor([line.get("gain", 0.0) for line in read]), torch.tensor(projections)


def foretold_table(trained: Trained, spill: Float[Tensor, "a s i"], n: int, draw: torch.Generator) -> dict[str, Any]:
    """Both predictions of every arm that learns cheating beside its spill, and their rank correlation across arms."""
    arms = []
    for i in range(len(trained.gains)):
        gain, projection = (
            interval(lambda s, x=values: float(x[s].mean()), [len(values)], n, draw)
            for values in (trained.gains[i].double(), trained.projections[i].double())
        )
        value = float(spill[i].mean())
        arms.append({"arm": trained.arms[i], "gain": gain, "projection": projection, "spill": round(value, 4)})
    spilt = [arm["spill"] for arm in arms]
    agreement = {key: rank_agreement([arm[key]["value"] for arm in arms], spilt) for key in ("gain", "projection")}
    return {"arms": arms, "agreement": agreement}


def rank_agreement(foretold: Sequence[float], found: Sequence[float]) -> dict[str, Any]:
    """Spearman's correlation, and how often the same numbers in another order agree as closely, either way.

    >>> rank_agreement([1, 2, 3, 4, 5], [5, 4, 3, 2, 1])
    {'r': -1.0, 'p': 0.0167, 'n': 5}
    """
    ours, theirs = (torch.tensor(stats.rankdata(each)) for each in (foretold, found))
    if ours.std() == 0 or theirs.std() == 0:
        return {"r": None, "p": None, "n": len(foretold)}
    ours, theirs = ((ranks - ranks.mean()) / (ranks - ranks.mean()).norm() for ranks in (ours, theirs))
    true = float(ours @ theirs)
    # There are at most a few thousand orders of seven arms, so all of them are looked at.
    orders = torch.tensor(list(itertools.permutations(range(len(foretold)))))
    chance = theirs[orders] @ ours
    return {
        "r": round(true, 4),
        "p": round(float((chance.abs() >= abs(true) - 1e-9).double().mean()), 4),
        "n": len(foretold),
    }
