"""What a steering does to a model, measured: propensity, divergence, repetition, coherence, capability.

Nothing here judges a number; what it should be compared with is in `nulls`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.generation import Sampling, complete, require_replies
from steerkit.models import Message, Model
from steerkit.passes import reply_logits
from steerkit.personas import Item
from steerkit.steering import Steering
from steerkit.weights import Progress, ignore_progress

Row = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt and of the reply to it."""

FIRST = 20
"""So many tokens of a greedy reply tell its KL; further on, texts have parted and say less of the dial."""

NEUTRAL = Path(__file__).parent / "data" / "neutral.toml"


@dataclass(frozen=True)
class Scores:
    """Given replies under steerings."""

    totals: Float[Tensor, "k n"]
    """Log probability of each whole reply, in nats."""
    lengths: Float[Tensor, " n"]
    """Tokens of each reply."""
    divergences: Float[Tensor, "k n t"]
    """KL(steered ‖ unsteered) at each reply token, in nats; NaN behind a reply's end, or where it was not asked for."""
    reference: Float[Tensor, " n"] | None = None
    """Log probability of each reply where KL is measured from; None where it was not asked for."""

    @property
    def means(self) -> Float[Tensor, "k n"]:
        """Mean token log probability of each reply."""
        return self.totals / self.lengths


def score_replies(
    model: Model,
    rows: Sequence[Row],
    steerings: Sequence[Steering],
    divergence: bool = False,
    batch_size: int = 48,
    progress: Progress = ignore_progress,
    against: Sequence[Row] | None = None,
) -> Scores:
    """Log probability of every given reply under every steering, and how far the distribution has moved.

    Args:
        model: who is asked
        rows: n prompts with the reply to each
        steerings: k steerings; every row is measured under each
        divergence: whether KL from the unsteered model is measured too
        batch_size: rows of one forward pass
        progress: told how many rows of how many have been measured
        against: rows with the same replies to other prompts, from which KL is measured instead; implies `divergence`

    Returns:
        Scores of k steerings × n rows; which rows shared a batch changes nothing.
    """
    divergence = divergence or against is not None
    longest = max(len(reply) for _, reply in rows)
    totals = torch.zeros(len(steerings), len(rows))
    divergences = torch.full((len(steerings), len(rows), longest if divergence else 0), torch.nan)
    unsteered = torch.zeros(len(rows))
    done = 0
    for group in _groups(rows, max(4, batch_size // len(steerings))):
        part = [rows[i] for i in group]
        plain: list[Tensor] = []
        if divergence:
            reference = part if against is None else [against[i] for i in group]
            plain = [logits.log_softmax(-1) for logits in reply_logits(model, reference, [Steering()] * len(part))]
            for i, (_, reply), row in zip(group, part, plain, strict=True):
                unsteered[i] = row.gather(-1, torch.tensor(reply, device=row.device)[:, None]).sum()
        jobs = [(k, place) for k in range(len(steerings)) for place in range(len(part))]
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            logits = reply_logits(model, [part[place] for _, place in batch], [steerings[k] for k, _ in batch])
            for (k, place), row in zip(batch, logits, strict=True):
                spoken = torch.tensor(part[place][1], device=row.device)
                # The whole distribution is only written out where it is compared; a log-sum is half the work.
                totals[k, group[place]] = (row.gather(-1, spoken[:, None])[:, 0] - row.logsumexp(-1)).sum()
                if divergence:
                    steered = row.log_softmax(-1)
                    divergences[k, group[place], : len(spoken)] = _divergence(steered, plain[place]).cpu()
            done += len(batch)
            progress("measure", done, len(rows) * len(steerings))
    lengths = torch.tensor([float(len(reply)) for _, reply in rows])
    return Scores(totals, lengths, divergences, unsteered if divergence else None)


def _groups(rows: Sequence[Row], size: int) -> Iterator[list[int]]:
    """Rows that are measured together: alike in length, because padding is work, and in prompt, which is shared."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]), list(rows[i][0]), len(rows[i][1])))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _divergence(steered: Float[Tensor, "s v"], plain: Float[Tensor, "s v"]) -> Float[Tensor, " s"]:
    """KL(steered ‖ unsteered) of log probabilities, in nats."""
    return (steered.exp() * (steered - plain)).sum(-1)


def percentiles(divergences: Float[Tensor, "k n t"], quantile: float = 0.95) -> Float[Tensor, " k"]:
    """A quantile of the per-token KL of each steering, by default the one that limits are about."""
    return divergences.flatten(1).nanquantile(quantile, dim=-1)


def match_divergence(
    model: Model, steering: Steering, nulls: Sequence[Steering], rows: Sequence[Row], most: int = 4
) -> list[Steering]:
    """Scale the vectors of each null until it costs as much KL as the steering does; the scale is found on a few rows.

    An operator that does not depend on a vector's length cannot be scaled, and then costs what it costs.
    """
    few = rows[:most]
    if not nulls:
        return []
    # KL grows about as the square of the scale, so one look is enough; what is reached is reported beside the result.
    costs = percentiles(score_replies(model, few, [steering, *nulls], divergence=True).divergences)
    factors = (costs[0] / costs[1:].clamp_min(1e-9)).sqrt().clamp(0.1, 10).tolist()
    return [scaled(null, factor) for null, factor in zip(nulls, factors, strict=True)]


def scaled(steering: Steering, factor: float) -> Steering:
    """The same steering by longer or shorter vectors, in the same places."""
    return replace(steering, terms=tuple(replace(term, vector=term.vector * factor) for term in steering.terms))


def at_cost(shifts: Float[Tensor, "k n"], costs: Float[Tensor, " k"], cost: float) -> Float[Tensor, "k n"]:
    """What shifts that were measured near a cost are at it: KL grows as the square of the dial, and shifts in line."""
    return shifts * (cost / costs.clamp_min(1e-9)).sqrt()[:, None]


def item_rows(model: Model, items: Sequence[Item], before: Sequence[Message] = ()) -> list[Row]:
    """Both replies of every item, the persona's first, as rows; `before` comes before each question."""
    rows: list[Row] = []
    for item in items:
        chat = [*before, {"role": "user", "content": item.question}]
        rows += model.reply_rows(chat, (item.reply, item.assistant_reply))
    return rows


def contrast(scores: Float[Tensor, "k m"]) -> Float[Tensor, "k n"]:
    """Persona's reply minus assistant's, where they take turns."""
    return scores[:, 0::2] - scores[:, 1::2]


def propensities(
    model: Model,
    items: Sequence[Item],
    steerings: Sequence[Steering],
    batch_size: int = 48,
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
    return contrast(score_replies(model, item_rows(model, items), steerings, False, batch_size, progress).means)


@dataclass(frozen=True)
class Text:
    """Greedy replies under one steering, and what they cost."""

    replies: tuple[str, ...]
    """What was said."""
    divergences: Float[Tensor, " t"]
    """KL(steered ‖ unsteered) in nats at each of the first 20 tokens of all replies."""
    repetition: float
    """Mean over the replies of 1 − distinct 3-grams."""
    loss: float
    """Mean token NLL of the replies under the unsteered model, in nats; coherence is this minus the unsteered one's."""

    def divergence(self, quantile: float = 0.95) -> float:
        """A quantile of the per-token KL, by default the one that limits are about."""
        return float(self.divergences.quantile(quantile)) if len(self.divergences) else 0.0


def write_texts(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering],
    n_tokens: int = 20,
    batch_size: int = 128,
    costs: bool = True,
    progress: Progress = ignore_progress,
) -> list[Text]:
    """Let the model answer every prompt greedily under every steering, many rows a forward pass.

    Args:
        model: who speaks
        prompts: tokens of each prompt
        steerings: one text for each
        n_tokens: the longest reply
        batch_size: rows of one forward pass; one steering's prompts are never torn apart
        costs: whether KL and loss are measured; without them only repetition is
        progress: told how many steerings of how many are done

    Returns:
        A text a steering.
    """
    if not prompts:
        return [Text((), torch.zeros(0), 0.0, 0.0) for _ in steerings]
    at_once = max(1, batch_size // len(prompts))
    texts: list[Text] = []
    for start in range(0, len(steerings), at_once):
        part = steerings[start : start + at_once]
        rows = [(prompt, steering) for steering in part for prompt in prompts]
        replies = complete(model, [p for p, _ in rows], [s for _, s in rows], sampling=Sampling(n_tokens))
        for k in range(len(part)):
            require_replies(model, replies[k * len(prompts) : (k + 1) * len(prompts)])
        # Whoever says nothing chose to end at once, and what that choice costs counts too.
        ending = () if model.end_token is None else (model.end_token,)
        said = [() if reply.unfinished else reply.tokens or ending for reply in replies]
        rows = [(reply.prompt, steering) for reply, (_, steering) in zip(replies, rows, strict=True)]
        found = _costs(model, list(zip(rows, said, strict=True))) if costs else []
        for k in range(len(part)):
            mine = range(k * len(prompts), (k + 1) * len(prompts))
            whole = [i for i in mine if not replies[i].unfinished]
            parts = [found[i] for i in whole] if costs else []
            divergences, losses = ([pair[side] for pair in parts] for side in (0, 1))
            texts.append(
                Text(
                    replies=tuple(replies[i].text for i in mine),
                    divergences=torch.cat([torch.zeros(0), *(row[:FIRST] for row in divergences)]),
                    repetition=sum(repetition(replies[i].tokens) for i in whole) / len(whole),
                    loss=float(torch.cat(losses).mean()) if losses else 0.0,
                )
            )
        progress("write", len(texts), len(steerings))
    return texts


def _costs(
    model: Model, spoken: Sequence[tuple[tuple[Sequence[int], Steering], Sequence[int]]], batch_size: int = 40
) -> list[tuple[Float[Tensor, " s"], Float[Tensor, " s"]]]:
    """Per token: KL from the unsteered model, and the loss under it."""
    # Rows with the same prompt share it when they share a pass, so they are brought together.
    order = sorted(range(len(spoken)), key=lambda i: list(spoken[i][0][0]))
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        rows = [(spoken[i][0][0], spoken[i][1]) for i in part]
        steerings = [spoken[i][0][1] for i in part]
        logits = reply_logits(model, [*rows, *rows], [*steerings, *[Steering()] * len(part)])
        for i, (_, tokens), ours, theirs in zip(part, rows, logits[: len(part)], logits[len(part) :], strict=True):
            unsteered = theirs.log_softmax(-1)
            loss = -unsteered.gather(-1, torch.tensor(tokens, device=unsteered.device)[:, None])[:, 0]
            found[i] = _divergence(ours.log_softmax(-1), unsteered).cpu(), loss.cpu()
    return [found[i] for i in range(len(spoken))]


def repetition(tokens: Sequence[int]) -> float:
    """1 − the share of distinct 3-grams; 0 says nothing twice.

    >>> repetition([1, 2, 3, 4]), repetition([1, 1, 1, 1, 1])
    (0.0, 0.6666666666666667)
    """
    grams = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def capability(model: Model, steerings: Sequence[Steering]) -> Float[Tensor, " k"]:
    """Mean token NLL of ordinary prose that ships with steerkit, in nats; more is worse.

    The prose stands where a reply would, so it is steered from its first token on.
    """
    rows: list[Row] = [*model.reply_rows([{"role": "user", "content": "Write a short paragraph."}], neutral("texts"))]
    scores = score_replies(model, rows, steerings)
    return -scores.totals.sum(-1) / scores.lengths.sum()


@cache
def neutral(kind: str) -> tuple[str, ...]:
    """The `questions` or `texts` about nothing that a persona would be asked about."""
    return tuple(tomllib.loads(NEUTRAL.read_text(encoding="utf-8"))[kind])
