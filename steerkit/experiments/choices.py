"""Short answers to one question, scored together under steerings: what they begin with is computed once.

Five answers after one prompt have their first token's distribution in common, and most have one or two tokens more, so
scoring them one by one does most of the work several times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.kept import measure_once
from steerkit.limits import Search, at_dial
from steerkit.models import Model
from steerkit.passes import prefill, reply_logits
from steerkit.runners import select_cache
from steerkit.steering import Steering, edits
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

Choice = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Tokens of a prompt and of every answer to it; all prompts have as many answers."""

BLOCK = 8
"""So many steerings are measured and kept at a time."""
AT_ONCE = 32
"""So many prompts times steerings pass through the model together."""
ROUNDS = 4
"""So many dials are tried at most until a vector costs what it should."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Answers under steerings."""

    totals: Float[Tensor, "k n o"]
    """Log probability of each whole answer, and of nothing behind it, in nats."""
    costs: Float[Tensor, " k"]
    """KL p95 of each steering, in nats a token of all answers."""


def score_choices(
    model: Model,
    choices: Sequence[Choice],
    steerings: Sequence[Steering],
    progress: Progress = ignore_progress,
    against: Sequence[Choice] | None = None,
    costs: bool = True,
) -> Chosen:
    """Log probability of every answer under every steering, which begins at a prompt's last token.

    Every block is kept as soon as it is measured, so a run that was stopped goes on where it was.

    Args:
        model: who is asked
        choices: n prompts with o answers each
        steerings: k of them, none of which steers a prompt
        progress: told how many steerings of how many have been measured
        against: the same answers to other prompts, from which KL is measured; the unsteered model if there are none
        costs: whether KL is measured; without, it is 0
    """
    blocks = []
    for start in range(0, len(steerings), BLOCK):
        block = steerings[start : start + BLOCK]

        def measure(block: Sequence[Steering] = block) -> dict[str, Tensor]:
            return _measure(model, choices, block, choices if against is None else against, costs)

        depends = [_plain(choices), _plain(against or ()), costs, [_described(steering) for steering in block]]
        blocks.append(measure_once("scores", model, "choices", depends, measure))
        progress("prove", start + len(block), len(steerings))
    return Chosen(*(torch.cat([block[key] for block in blocks]) for key in ("totals", "costs")))


def brought_to(
    model: Model,
    choices: Sequence[Choice],
    vectors: Sequence[SteeringVector],
    dials: Sequence[float],
    aims: Sequence[float],
    ends: Sequence[float],
    progress: Progress = ignore_progress,
) -> tuple[list[Steering], list[float]]:
    """Add vectors at the dials where they cost what they should on some answers, or as far as they may go.

    Args:
        model: who is steered
        choices: what is answered
        vectors: each in its own place
        dials: for each one to start from
        aims: the KL p95 that is wanted of each, in nats a token
        ends: the largest dial of each
        progress: told how many steerings of how many have been measured

    Returns:
        The steerings, and what they cost where that was measured; else what was wanted.
    """
    searches, dials = [Search(aim) for aim in aims], list(dials)
    for _ in range(ROUNDS):
        dials = [min(pair) for pair in zip(dials, ends, strict=True)]
        sought = [i for i, search in enumerate(searches) if dials[i] not in search.points and not _near(search)]
        if not sought:
            break
        trial = [at_dial(vectors[i], dials[i]) for i in sought]
        for i, cost in zip(sought, score_choices(model, choices, trial, progress).costs.tolist(), strict=True):
            searches[i].points[dials[i]] = cost
            dials[i] = min(searches[i].estimate(dials[i]), ends[i])
    costs = [search.points.get(dial, search.target) for search, dial in zip(searches, dials, strict=True)]
    return [at_dial(vector, dial) for vector, dial in zip(vectors, dials, strict=True)], costs


def _near(search: Search) -> bool:
    """Whether some dial costs so nearly as much as is wanted that the next one need not be tried."""
    return any(search.target / 1.2 < cost < search.target * 1.2 for cost in search.points.values())


def _plain(choices: Sequence[Choice]) -> list[Any]:
    return [[list(prompt), [list(answer) for answer in answers]] for prompt, answers in choices]


def _described(steering: Steering) -> list[Any]:
    """All that matters of it, as plain data; vectors by their digests."""
    assert not steering.everywhere
    return [
        [term.dial, *term.band, term.operator, *(_digest(x) for x in (term.vector.directions, term.vector.baseline))]
        for term in steering.terms
    ]


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()


def _measure(
    model: Model, choices: Sequence[Choice], steerings: Sequence[Steering], against: Sequence[Choice], costs: bool
) -> dict[str, Tensor]:
    totals, divergences = [], []
    size = max(1, AT_ONCE // len(steerings))
    for start in range(0, len(choices), size):
        part = choices[start : start + size]
        levels = _distributions(model, part, steerings)
        totals.append(_totals(part, levels))
        if costs:
            plain = _distributions(model, against[start : start + size], [Steering()])
            divergences.append(_divergences(part, levels, plain))
    told = torch.cat(divergences, -1).quantile(0.95, dim=-1) if costs else torch.zeros(len(steerings))
    return {"totals": torch.cat(totals, 1), "costs": told}


def _places(choices: Sequence[Choice]) -> list[list[tuple[int, int]]]:
    """For the second token and every one behind it: whose answers go so far, and which."""
    whole = [(c, o, len(answer)) for c, (_, answers) in enumerate(choices) for o, answer in enumerate(answers)]
    longest = max(length for _, _, length in whole)
    return [[(c, o) for c, o, length in whole if length > level] for level in range(1, longest)]


def _distributions(
    model: Model, choices: Sequence[Choice], steerings: Sequence[Steering]
) -> list[Float[Tensor, "r k v"]]:
    """Log probabilities of the first token behind each prompt, and then of each next one of answers that go so far."""
    if model.engine is not None:
        return _distributions_elsewhere(model, choices, steerings)
    k, like = len(steerings), torch.empty(0, device=model.device, dtype=model.dtype)
    cache, mask = prefill(model, [prompt for prompt, _ in choices], [Steering()] * len(choices))
    mask = torch.cat([mask, mask.new_ones(len(choices), 1)], dim=1)
    last = torch.tensor([list(prompt[-1:]) for prompt, _ in choices], device=model.device)
    rows = torch.arange(len(choices), device=model.device).repeat_interleave(k)
    logits, cache = model.forward(last, mask, cache, edits(list(steerings) * len(choices), like), 1, rows=rows)
    found, mask = [logits], mask[rows]
    begun = {(c, o): c for c, (_, answers) in enumerate(choices) for o in range(len(answers))}
    for level, places in enumerate(_places(choices), 1):
        rows = torch.tensor([begun[place] * k + i for place in places for i in range(k)], device=model.device)
        select_cache(cache, rows)
        mask = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], dim=1)
        spoken = torch.tensor([[choices[c][1][o][level - 1]] for c, o in places for _ in steerings])
        functions = edits(list(steerings) * len(places), like)
        logits, cache = model.forward(spoken.to(model.device), mask, cache, functions, 1)
        found.append(logits)
        begun = {place: i for i, place in enumerate(places)}
    return [logits.view(-1, k, logits.shape[-1]).float().log_softmax(-1) for logits in found]


def _distributions_elsewhere(
    model: Model, choices: Sequence[Choice], steerings: Sequence[Steering]
) -> list[Float[Tensor, "r k v"]]:
    """The same by an engine, which is given every whole answer."""
    places = [(c, o) for c, (_, answers) in enumerate(choices) for o in range(len(answers))]
    pairs = [(choices[c][0], choices[c][1][o]) for c, o in places for _ in steerings]
    logits = reply_logits(model, pairs, list(steerings) * len(places))
    rows = [torch.stack(logits[i : i + len(steerings)]).log_softmax(-1) for i in range(0, len(logits), len(steerings))]
    found = dict(zip(places, rows, strict=True))
    levels = [[(c, 0) for c in range(len(choices))], *_places(choices)]
    return [torch.stack([found[place][:, level] for place in each]) for level, each in enumerate(levels)]


def _totals(choices: Sequence[Choice], levels: Sequence[Float[Tensor, "r k v"]]) -> Float[Tensor, "k c o"]:
    firsts = [[answer[0] for answer in answers] for _, answers in choices]
    totals = torch.stack([row[:, tokens] for row, tokens in zip(levels[0], firsts, strict=True)], dim=1)
    for level, (rows, places) in enumerate(zip(levels[1:], _places(choices), strict=True), 1):
        for row, (c, o) in zip(rows, places, strict=True):
            totals[:, c, o] += row[:, choices[c][1][o][level]]
    return totals.cpu()


def _divergences(
    choices: Sequence[Choice], levels: Sequence[Float[Tensor, "r k v"]], plain: Sequence[Float[Tensor, "r 1 v"]]
) -> Float[Tensor, "k t"]:
    """KL(steered ‖ plain) at every token of every answer, in nats."""
    first, *later = [(ours.exp() * (ours - theirs)).sum(-1) for ours, theirs in zip(levels, plain, strict=True)]
    often = torch.tensor([len(answers) for _, answers in choices], device=first.device)
    return torch.cat([first.repeat_interleave(often, 0), *later]).T.cpu()
