"""Given text through a model under steerings; whatever rows have in common is computed once.

Rows of a batch often begin alike: the same system prompt before every question, the same question under every
steering. Each stretch that is shared is one row of its own pass, and rows part where they begin to differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import ModelError, PromptError
from steerkit.models import Model, ResidualFunction, pad_left, pad_right
from steerkit.passages import Passage
from steerkit.steering import Steering, edits, pushes_of
from steerkit.validation import REPLY, check_context, check_steerings, check_tokens

BATCH_ROWS = 128
"""At most so many rows of one forward pass, where a caller may hand over any number of them."""
BATCH_TOKENS = 1 << 14
"""At most so many tokens in its cache, padding counted."""


def batches(
    lengths: Sequence[int], most_rows: int = BATCH_ROWS, most_tokens: int = BATCH_TOKENS
) -> Iterator[list[int]]:
    """Which rows run together, so that memory does not grow with their number.

    Rows that fit one batch are left in their order. More are sorted by length, because padding is work.

    Args:
        lengths: tokens of each row, with the room for its reply
        most_rows: rows of a batch
        most_tokens: tokens of a batch, padding counted; a row that is longer is a batch of its own

    >>> list(batches([5, 1, 3, 1], most_rows=2)), list(batches([5, 1, 3, 1], most_tokens=6))
    ([[1, 3], [2, 0]], [[1, 3], [2], [0]])
    """
    rows = list(range(len(lengths)))
    if len(rows) > most_rows or len(rows) * max(lengths, default=0) > most_tokens:
        rows.sort(key=lambda row: lengths[row])
    batch: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if batch and (len(batch) >= most_rows or (len(batch) + 1) * longest > most_tokens):
            yield batch
            batch, longest = [], lengths[row]
        batch.append(row)
    if batch:
        yield batch


def prefill(
    model: Model, prompts: Sequence[Sequence[int]], steerings: Sequence[Steering]
) -> tuple[Any, Int[Tensor, "b t"]]:
    """Process every prompt but its last token, which is where steering begins; rows that start alike share the work.

    Returns:
        The cache, and the mask [b t] of what is in it, one row a prompt. Prompts of one token leave nothing to do.
    """
    starts = [
        (tuple(prompt[:-1]), steering if steering.everywhere else Steering())
        for prompt, steering in zip(prompts, steerings, strict=True)
    ]
    if not any(start for start, _ in starts):
        return None, torch.ones(len(starts), 0, dtype=torch.long, device=model.device)
    unique = list(dict.fromkeys(starts))
    places = {start: i for i, start in enumerate(unique)}
    rows = torch.tensor([places[start] for start in starts], device=model.device)
    whole = [start for start, _ in unique]
    # Behind a shared head padding stands inside a row.
    alike = model.holes and model.continues and not any(steering for _, steering in unique)
    heads, owners = shared_starts(whole) if alike else ([()], [0] * len(whole))
    cache: Any = None
    before = torch.ones(len(whole), 0, dtype=torch.long, device=model.device)
    if any(heads):
        tokens, before = pad_left(heads, model.device)
        _, cache = model.forward(tokens, before, keep=0)
        owner = torch.tensor(owners, device=model.device)
        cache.batch_select_indices(owner)
        before = before[owner]
    rest = [start[len(heads[i]) :] for start, i in zip(whole, owners, strict=True)]
    tokens, mask = pad_left(rest, model.device)
    mask = torch.cat([before, mask], dim=1)
    if tokens.shape[1]:
        like = torch.empty(0, device=model.device, dtype=model.dtype)
        _, cache = model.forward(tokens, mask, cache, edits([steering for _, steering in unique], like), keep=0)
    cache.batch_select_indices(rows)
    return cache, mask[rows]


STRETCH = 256
"""Tokens that are read in one go where somebody may want to stop."""


class Recall:
    """What a model has read of a text that keeps growing, such as a chat, so that nothing is read twice.

    There is one cache. A reply is written behind the text in it, and forgotten when the next text is read, because it
    was steered and the next time it is only read. Of the text the beginning stays that the next one has in common.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._tokens: list[int] = []
        self._cache: Any = None

    def prefill(
        self, prompt: Sequence[int], n_rows: int, progress: Callable[[int, int], None] = lambda _done, _total: None
    ) -> tuple[Any, Int[Tensor, "b t"]]:
        """Like the function `prefill`, for several rows of one prompt that is not steered.

        `progress` is told how many tokens have been read, of how many; what it raises stops the reading, and what has
        been read is kept.
        """
        wanted = list(prompt[:-1])
        shared = _common(wanted, self._tokens) if self._can_forget else 0
        if shared:
            self._cache.batch_select_indices(torch.zeros(1, dtype=torch.long, device=self._model.device))
            if surplus := self._cache.get_seq_length() - shared:
                self._cache.crop(-surplus)
        else:
            self._cache = None
        self._tokens = wanted[:shared]
        stretch_size = STRETCH if self._model.continues else max(len(wanted), 1)
        while len(self._tokens) < len(wanted):
            progress(len(self._tokens), len(wanted))
            stretch = wanted[len(self._tokens) :][:stretch_size]
            tokens = torch.tensor([stretch], device=self._model.device)
            mask = torch.ones(1, len(self._tokens) + len(stretch), dtype=torch.long, device=self._model.device)
            _, self._cache = self._model.forward(tokens, mask, self._cache, keep=0)
            self._tokens += stretch
        if self._cache is not None:
            self._cache.batch_select_indices(torch.zeros(n_rows, dtype=torch.long, device=self._model.device))
        return self._cache, torch.ones(n_rows, len(wanted), dtype=torch.long, device=self._model.device)

    @property
    def _can_forget(self) -> bool:
        """A window that slides, or a state that runs on, has already lost what stood before."""
        return self._model.holes and self._model.continues and hasattr(self._cache, "crop")


class Means:
    """Collects the mean residual stream of some tokens of each row, of at most the first few, while a model runs."""

    def __init__(self, model: Model, n_rows: int, most: float = math.inf) -> None:
        self._most = most
        self._latest = torch.zeros(n_rows, model.n_layers, model.width, device=model.device)
        self._totals = torch.zeros_like(self._latest)
        self._counts = torch.zeros(n_rows, device=model.device)

    def functions(self) -> dict[int, list[ResidualFunction]]:
        """A reader for every layer; they belong behind the edits."""
        return {l: [self._reader(l)] for l in range(self._latest.shape[1])}

    def _reader(self, l: int) -> ResidualFunction:
        def read(h: Tensor) -> Tensor:
            self._latest[:, l] = h[:, -1].float()
            return h

        return read

    def take(self, rows: Sequence[bool]) -> None:
        """Count the token that was read last, in some of the rows."""
        counted = torch.tensor(rows, device=self._counts.device) & (self._counts < self._most)
        self._totals += self._latest * counted[:, None, None]
        self._counts += counted

    @property
    def most(self) -> int | None:
        """So many tokens of a row are counted; None for all."""
        return None if math.isinf(self._most) else int(self._most)

    def fill(self, means: Float[Tensor, "b l d"]) -> None:
        """Take means that an engine has made."""
        self._totals[:] = means
        self._counts[:] = 1

    @property
    def values(self) -> Float[Tensor, "b l d"]:
        """The means, in float32; 0 where nothing was counted."""
        return self._totals / self._counts.clamp_min(1)[:, None, None]


def prompt_states(
    model: Model, prompts: Sequence[Sequence[int]], steerings: Sequence[Steering] | None = None
) -> Float[Tensor, "b l d"]:
    """The residual stream at the last token of every prompt, from which a reply will be made.

    Any number of prompts is run in batches of bounded memory.

    Raises:
        PromptError: a prompt is text, empty or longer than the context.
        SteerkitError: there is not one steering a prompt.
    """
    prompts = check_tokens(model, prompts)
    check_context(model, [len(prompt) for prompt in prompts])
    steerings = [Steering()] * len(prompts) if steerings is None else steerings
    check_steerings(model, steerings, len(prompts))
    if not prompts:
        return torch.zeros(0, model.n_layers, model.width, device=model.device)
    if model.engine is not None:
        rows = steered_passages(prompts, steerings)
        asked = [replace(row, spans=((len(row.tokens) - 1, len(row.tokens)),)) for row in rows]
        return torch.stack([heard.means[0] for heard in model.engine.run(asked)]).to(model.device)
    parts = list(batches([len(prompt) for prompt in prompts]))
    found = [_last_states(model, [prompts[i] for i in part], [steerings[i] for i in part]) for part in parts]
    if len(parts) == 1:
        return found[0]
    states = torch.empty(len(prompts), model.n_layers, model.width, device=model.device)
    for part, some in zip(parts, found, strict=True):
        states[part] = some
    return states


def _last_states(
    model: Model, prompts: Sequence[Sequence[int]], steerings: Sequence[Steering]
) -> Float[Tensor, "b l d"]:
    """The residual stream at the last token of some prompts, in one pass."""
    cache, mask = prefill(model, prompts, steerings)
    mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    last = torch.tensor([prompt[-1:] for prompt in prompts], device=model.device)
    means = Means(model, len(prompts))
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    model.forward(last, mask, cache, merge(edits(steerings, like), means.functions()), keep=0)
    means.take([True] * len(prompts))
    return means.values


def merge(*tables: Mapping[int, Sequence[ResidualFunction]]) -> dict[int, list[ResidualFunction]]:
    """Functions of several tables on the same layers, in the order of the tables."""
    layers = {l for table in tables for l in table}
    return {l: [function for table in tables for function in table.get(l, [])] for l in layers}


def steered_passages(
    prompts: Sequence[Sequence[int]], steerings: Sequence[Steering], behind: Sequence[Sequence[int]] | None = None
) -> list[Passage]:
    """What engines are given: prompts, each under its steering, and where there is any, the text behind each."""
    pushes = {id(each): tuple(push for term in each.terms for push in pushes_of(term)) for each in steerings}
    return [
        Passage((*prompt, *more), pushes[id(steering)], 0 if steering.everywhere else max(len(prompt) - 1, 0))
        for prompt, steering, more in zip(prompts, steerings, behind or [()] * len(prompts), strict=True)
    ]


def shared_starts(rows: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], list[int]]:
    """Stretches that rows have in common, and for each row which of them it begins with.

    Sorted rows that begin alike are neighbours; they are cut into runs so that as many tokens as can be are spared.

    >>> shared_starts([[1, 2, 3, 4], [7, 8], [1, 2, 3, 5]])
    ([[1, 2, 3], []], [0, 1, 0])
    """
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    alike = [_common(rows[i], rows[j]) for i, j in pairwise(order)]
    # spared[n] is the most that the first n rows can spare, and begins[n] is where the last run of that cut begins.
    spared, begins = [0], [0]
    for end in range(1, len(rows) + 1):
        choices, shared = [(spared[end - 1], end - 1)], len(rows[order[end - 1]])
        for begin in range(end - 2, -1, -1):
            shared = min(shared, alike[begin])
            if not shared:
                break
            choices.append((spared[begin] + shared * (end - begin - 1), begin))
        most, begin = max(choices)
        spared.append(most)
        begins.append(begin)
    heads: list[Sequence[int]] = []
    owners = [0] * len(rows)
    end = len(rows)
    while end:
        run = order[begins[end] : end]
        # A row alone shares nothing, so it is all rest.
        length = min(alike[begins[end] : end - 1], default=0)
        for i in run:
            owners[i] = len(heads)
        heads.append(rows[run[0]][:length])
        end = begins[end]
    return heads[::-1], [len(heads) - 1 - owner for owner in owners]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def reply_logits(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    steerings: Sequence[Steering],
    gradient: bool = False,
) -> list[Float[Tensor, "s v"]]:
    """Logits that predict each given reply, under one steering per row.

    Any number of rows is run in batches of bounded memory; what is returned grows with them.

    Args:
        model: who is asked
        pairs: (prompt tokens, reply tokens), one per row
        steerings: one per row
        gradient: whether the vectors in the steerings can be differentiated

    Returns:
        For each row the logits [s v] of its s reply tokens, in float32.

    Raises:
        ModelError: an engine is asked for gradients.
        PromptError: a prompt or a reply is text, a prompt is empty, or both together are longer than the context.
        SteerkitError: there is not one steering a row.
    """
    prompts, replies = check_pairs(model, pairs)
    check_steerings(model, steerings, len(pairs))
    rows = list(zip(prompts, replies, strict=True))
    if model.engine is not None:
        if gradient:
            raise ModelError(f"nothing can be trained through {model.engine.name}; use --engine local")
        return _logits_elsewhere(model, rows, steerings)
    logits: list[Any] = [None] * len(rows)
    for part in batches([len(prompt) + len(reply) for prompt, reply in rows]):
        found = _logits(model, [rows[i] for i in part], [steerings[i] for i in part], gradient)
        for i, row in zip(part, found, strict=True):
            logits[i] = row
    return logits


def check_pairs(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], empty: bool = False
) -> tuple[list[Any], list[Any]]:
    """Prompts and given replies as tokens; with `empty`, a prompt may have none.

    Raises:
        PromptError: one of them is text, or there is nothing in a row, or more than the model holds.
    """
    if any(isinstance(pair, (str, bytes)) or len(pair) != 2 for pair in pairs):
        raise PromptError("rows are pairs of a prompt and the reply to it, both as tokens; write [(prompt, reply)]")
    prompts = check_tokens(model, [prompt for prompt, _ in pairs], empty=empty)
    replies = check_tokens(model, [reply for _, reply in pairs], "reply", REPLY, empty=True)
    lengths = [len(prompt) + len(reply) for prompt, reply in zip(prompts, replies, strict=True)]
    if 0 in lengths:
        raise PromptError(f"row {lengths.index(0) + 1} has neither a prompt nor a reply; leave it out")
    check_context(model, lengths)
    return prompts, replies


def _logits(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    steerings: Sequence[Steering],
    gradient: bool,
) -> list[Float[Tensor, "s v"]]:
    """Logits of some rows, in one pass."""
    spoken = [(tuple(prompt), tuple(reply)) for prompt, reply in pairs]
    # A prompt that is steered too differs with its steering; else rows with the same text share it, up to where they
    # are steered.
    texts = [
        (text, steering if steering.everywhere else None) for text, steering in zip(spoken, steerings, strict=True)
    ]
    unique = list(dict.fromkeys(texts))
    places = {text: i for i, text in enumerate(unique)}
    rows = torch.tensor([places[text] for text in texts], device=model.device)
    cache, mask = prefill(
        model, [prompt for (prompt, _), _ in unique], [steering or Steering() for _, steering in unique]
    )
    # The last reply token predicts nothing that is asked for. Padding stands behind, where no token looks.
    asked = [[*prompt[-1:], *reply[:-1]] for (prompt, reply), _ in unique]
    width = max(map(len, asked))
    tokens, behind = pad_right(asked, model.device)
    mask = torch.cat([mask, behind], dim=1)
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    logits, _ = model.forward(tokens, mask, cache, edits(steerings, like), width, gradient, rows)
    return [logits[row, : len(reply)].float() for row, (_, reply) in enumerate(pairs)]


def _logits_elsewhere(
    model: Model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], steerings: Sequence[Steering]
) -> list[Float[Tensor, "s v"]]:
    """The same by an engine: it gives the last layer's states, and what is behind that layer is here."""
    assert model.engine is not None
    prompts = [prompt for prompt, _ in pairs]
    rows = steered_passages(prompts, steerings, [reply[:-1] for _, reply in pairs])
    asked = [replace(row, final=(len(prompt) - 1, len(row.tokens))) for row, prompt in zip(rows, prompts, strict=True)]
    found = zip(model.engine.run(asked), pairs, strict=True)
    return [model.head(heard.final)[: len(reply)] for heard, (_, reply) in found]
