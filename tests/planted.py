"""Truth that is planted: directions of which it is known what they do to a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from steerkit.measures import item_rows
from steerkit.models import Model
from steerkit.passes import reply_logits
from steerkit.personas import Item
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector


def true_vector(model: Model, items: Sequence[Item], layer: int, length: float = 3.0) -> SteeringVector:
    """Steepest ascent of the items' mean propensity, at one layer; the same direction stands at every other layer."""
    rows = item_rows(model, items)
    moved = torch.zeros(model.n_layers, model.width, requires_grad=True)
    plain = torch.zeros(model.n_layers, model.width)
    vector = SteeringVector("true", model.fingerprint, moved, plain, evidence={"place": [layer, layer]})
    steering = Steering((Term(vector, dial=1.0),))
    logits = reply_logits(model, rows, [steering] * len(rows), gradient=True)
    means = [
        row.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).mean()
        for row, (_, reply) in zip(logits, rows, strict=True)
    ]
    (torch.stack(means[0::2]) - torch.stack(means[1::2])).mean().backward()
    assert moved.grad is not None
    ascent = torch.nn.functional.normalize(moved.grad[layer], dim=-1) * length
    evidence = {"place": [layer, layer], "best_layer": layer}
    return replace(vector, directions=ascent.expand(model.n_layers, -1).clone(), evidence=evidence)
