"""Measuring what a steering does: propensity, KL, repetition, and the random directions they stand beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.generation import Sampling, complete, reply_logits
from steerkit.models import Model
from steerkit.personas import Item
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress


def propensities(
    model: Model,
    items: Sequence[Item],
    steerings: Sequence[Steering],
    batch_size: int = 24,
    progress: Progress = ignore_progress,
) -> Float[Tensor, "k n"]:
    """Mean token log p(persona's reply) − mean token log p(assistant's reply), in nats.

    No text is generated, so the cost is bounded and tiny models can be measured.

    Args:
        model: who is measured
        items: n held-out questions with both replies
        steerings: k steerings; every item is measured under each
        batch_size: rows of one forward pass
        progress: told how many rows of how many have been measured

    Returns:
        Propensities [k n].
    """
    replies = []
    for item in items:
        prompt = model.chat_tokens([{"role": "user", "content": item.question}])
        replies += [(prompt, model.reply_tokens(item.reply)), (prompt, model.reply_tokens(item.assistant_reply))]
    # Rows of about equal length share a batch; the order of the results does not depend on it.
    order = sorted(range(len(replies)), key=lambda i: len(replies[i][0]) + len(replies[i][1]))
    jobs = [(k, i) for i in order for k in range(len(steerings))]
    means = torch.zeros(len(steerings), len(replies))
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        logits = reply_logits(model, [replies[i] for _, i in part], [steerings[k] for k, _ in part])
        for (k, i), row in zip(part, logits, strict=True):
            target = torch.tensor(replies[i][1], device=row.device)
            means[k, i] = -torch.nn.functional.cross_entropy(row, target)
        progress("measure", start + len(part), len(jobs))
    return means[:, 0::2] - means[:, 1::2]


@dataclass(frozen=True)
class Shift:
    """How far a dial moves propensity, beside random directions of the same length."""

    per_item: Float[Tensor, " n"]
    """Steered minus unsteered, item by item, in nats a token."""
    null: Float[Tensor, " r"]
    """Mean shift of each random direction."""

    @property
    def mean(self) -> float:
        """The mean over the items."""
        return float(self.per_item.mean())

    @property
    def right_way(self) -> float:
        """The share of items that move up."""
        return float((self.per_item > 0).float().mean())

    @property
    def beats_null(self) -> bool:
        """Whether the mean is above every random direction's."""
        return bool(self.mean > self.null.max())

    @property
    def below_null(self) -> bool:
        """Whether the mean is below every random direction's."""
        return bool(self.mean < self.null.min())


def measure_shifts(
    model: Model,
    vector: SteeringVector,
    items: Sequence[Item],
    dials: Sequence[float],
    n_random: int = 20,
    seed: int = 0,
    progress: Progress = ignore_progress,
) -> dict[float, Shift]:
    """Propensity shift at each dial, beside `n_random` random directions of equal norm at a dial as large.

    A random direction has no right way round, so dials of either sign share the same ones.
    """
    randoms = [random_like(vector, seed + i) for i in range(n_random)]
    sizes = sorted({abs(dial) for dial in dials})
    terms = [Term(vector, dial=dial) for dial in dials] + [Term(r, dial=size) for size in sizes for r in randoms]
    measured = propensities(model, items, [Steering(), *(Steering((term,)) for term in terms)], progress=progress)
    shifts = measured[1:] - measured[0]
    nulls = shifts[len(dials) :].mean(-1).reshape(len(sizes), n_random)
    return {dial: Shift(shifts[i], nulls[sizes.index(abs(dial))]) for i, dial in enumerate(dials)}


def random_like(vector: SteeringVector, seed: int) -> SteeringVector:
    """A random direction, at every layer as long as the vector's own."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(vector.directions.shape, generator=draw)
    lengths = vector.directions.norm(dim=-1, keepdim=True)
    return replace(vector, name=f"random_{seed}", directions=torch.nn.functional.normalize(noise, dim=-1) * lengths)


def token_divergence(
    model: Model, prompts: Sequence[Sequence[int]], steering: Steering, n_tokens: int = 20
) -> Float[Tensor, " t"]:
    """KL(steered ‖ unsteered) in nats at each of the first greedy tokens of the steered replies, in one row."""
    replies = complete(model, prompts, [steering] * len(prompts), sampling=Sampling(n_tokens))
    pairs = [(reply.prompt, reply.tokens) for reply in replies if reply.tokens]
    if not pairs:
        return torch.zeros(0)
    steered = reply_logits(model, pairs, [steering] * len(pairs))
    plain = reply_logits(model, pairs, [Steering()] * len(pairs))
    divergences = [
        torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        for p, q in zip(steered, plain, strict=True)
    ]
    return torch.cat(divergences).cpu()


def repetition(tokens: Sequence[int]) -> float:
    """1 − the share of distinct 3-grams; 0 says nothing twice.

    >>> repetition([1, 2, 3, 4]), repetition([1, 1, 1, 1, 1])
    (0.0, 0.6666666666666667)
    """
    grams = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
