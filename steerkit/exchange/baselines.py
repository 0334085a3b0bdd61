"""Where a score begins for a vector that came without its baseline: the Assistant's own replies."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.generation import Sampling, stream
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.passes import Means
from steerkit.steering import Steering
from steerkit.weights import Progress, ignore_progress

TOKENS = 40
ROWS = 12


def assistant_baseline(model: Model, progress: Progress = ignore_progress) -> Float[Tensor, "l d"]:
    """The mean residual stream of a model's own replies to the neutral questions, with no system prompt [l d].

    A vector that `extract` makes has the mean of its negative persona's replies there; for the Assistant the two are
    nearly the same place.
    """
    asked, model = neutral("questions"), model.for_measuring()
    total, done = len(asked) * TOKENS, 0
    means = []
    for start in range(0, len(asked), ROWS):
        prompts = [
            model.chat_tokens([{"role": "user", "content": text}], TOKENS) for text in asked[start : start + ROWS]
        ]
        listener = Means(model, len(prompts))
        plain = [Steering()] * len(prompts)
        heard: set[int] = set()
        for step in stream(model, prompts, plain, (), Sampling(TOKENS), listener):
            if not step.thought or model.thoughts.included:
                heard.add(step.row)
            done += 1
            progress("extract", min(done, total), total)
        means.append(listener.values[sorted(heard)].cpu())
    progress("extract", total, total)
    rows = torch.cat(means)
    return rows.mean(0) if len(rows) else torch.zeros(model.n_layers, model.width)
