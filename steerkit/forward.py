"""How the rows of a batch go through a network: together in one padded pass, or row by row.

`BatchedForward` is transformers' own batching. Recurrent states, positions that depend on the length of the longest
row, and models without a cache do not survive it; `RowForward` runs each row as if it were alone, and lets rows meet
only where hooks want to see all of them. What a model can bear is measured when it is loaded (`judge.py`).
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.networks import Hook, Network
from steerkit.runners import Cache, Functions, chain, select_rows


@dataclass(frozen=True, eq=False)
class BatchedForward:
    """All rows of a batch in one pass, shorter ones padded."""

    network: Network
    """What computes."""
    holes: bool = True
    """Whether padding may stand between the tokens of a row, and rows may be put beside each other later."""

    continues: bool = True
    """See `Runner`."""

    @property
    def path(self) -> str:
        """See `Runner`."""
        return self.network.name

    def owns(self, cache: Any) -> bool:
        """See `Runner`: Hugging Face's caches, whichever modules filled them."""
        return not isinstance(cache, (Cache, RowCache))

    def forward(
        self,
        tokens: Int[Tensor, "u s"],
        mask: Int[Tensor, "u t"],
        cache: Any,
        functions: Functions,
        keep: int,
        rows: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """See `Runner`."""
        tokens, mask = select_rows(tokens, mask, cache, rows)
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :] if self.network.takes_positions else None
        hooks = {l: chain(steps) for l, steps in functions.items() if steps}
        return self.network.run(tokens, mask, positions, cache, hooks, keep)


_order = itertools.count()


@dataclass(eq=False)
class _Segment:
    """Tokens of some rows that came in one call, or one after the other under the same functions."""

    functions: Functions
    mask: Tensor
    """1 where a place holds a token of a row, [b s], as the call had it."""
    number: int = field(default_factory=lambda: next(_order))


@dataclass(frozen=True, eq=False)
class _Row:
    """A row's text so far."""

    tokens: tuple[int, ...] = ()
    state: Any = None
    """The cache behind it; None where there is none, or none that can be used."""
    segments: tuple[tuple[_Segment, int], ...] = ()
    """What was done to which stretch of it, and which row it was then; in order."""

    def copy(self) -> _Row:
        """The same text, with a state of its own."""
        return replace(self, state=copy.deepcopy(self.state))


@dataclass(eq=False)
class RowCache:
    """Rows that were run one by one, each with its own text and state."""

    rows: list[_Row]

    def get_seq_length(self) -> int:
        """The length of the longest row."""
        return max((len(row.tokens) for row in self.rows), default=0)

    def batch_select_indices(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        seen: set[int] = set()
        chosen = []
        for i in rows.tolist():
            chosen.append(self.rows[i].copy() if i in seen else self.rows[i])
            seen.add(i)
        self.rows = chosen


@dataclass(frozen=True, eq=False)
class RowForward:
    """Every row by itself, as if the others were not there."""

    network: Network
    """What computes."""
    cached: bool
    """Whether one more token can go on from a cache; otherwise a row is read from its start for every token."""
    continues: bool
    """Whether several tokens can."""
    threshold: int | None = None
    """The length at which positions change their meaning, so that a cache cannot be carried across."""
    grows: bool = False
    """Whether beyond it they change with every token."""
    holes: bool = True
    """See `Runner`: a row knows its own tokens, wherever they stand."""

    @property
    def path(self) -> str:
        """See `Runner`."""
        return f"{self.network.name}, row by row" + ("" if self.cached else ", without a cache")

    def owns(self, cache: Any) -> bool:
        """See `Runner`."""
        return isinstance(cache, RowCache)

    def forward(
        self,
        tokens: Int[Tensor, "u s"],
        mask: Int[Tensor, "u t"],
        cache: RowCache | None,
        functions: Functions,
        keep: int,
        rows: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k v"], RowCache]:
        """See `Runner`."""
        cache = RowCache([_Row() for _ in range(len(tokens))]) if cache is None else cache
        tokens, mask = select_rows(tokens, mask, cache, rows)
        new = mask[:, mask.shape[1] - tokens.shape[1] :].bool()
        segment = _Segment(functions, new)
        cache.rows = self._remember(cache.rows, segment)
        plans = [self._plan(row, tokens[i][new[i]].tolist(), segment, i) for i, row in enumerate(cache.rows)]
        wanted = [new[i, new.shape[1] - keep :].sum().item() for i in range(len(plans))]
        outputs = _Lockstep([plan for plan in plans if plan.tokens], self.network.device).run(
            [self._job(plan, int(n)) for plan, n in zip(plans, wanted, strict=True) if plan.tokens]
        )
        cache.rows = [plan.row for plan in plans]
        logits: Tensor | None = None
        running = [i for i, plan in enumerate(plans) if plan.tokens]
        for i, (found, state) in zip(running, outputs, strict=True):
            cache.rows[i] = replace(cache.rows[i], state=state)
            if logits is None:
                logits = found.new_zeros(len(plans), keep, found.shape[-1])
            # A place of padding predicts nothing; its logits are 0.
            places = new[i, new.shape[1] - keep :].nonzero()[:, 0].to(logits.device)
            logits = logits.index_put((torch.full_like(places, i), places), found[0])
        if logits is None:
            logits = torch.zeros(len(plans), keep, 0, device=tokens.device)
        return logits, cache

    def _remember(self, rows: list[_Row], segment: _Segment) -> list[_Row]:
        """Add what is done now to the history of every row, where rows may have to be run again from their start."""
        if self.cached and self.continues and self.threshold is None:
            return rows
        last = [row.segments[-1] if row.segments else None for row in rows]
        before = last[0][0] if last and last[0] else None
        alike = before is not None and all(each == (before, i) for i, each in enumerate(last))
        same = before is not None and (
            before.functions is segment.functions or not (before.functions or segment.functions)
        )
        if before is not None and alike and same and len(before.mask) == len(rows):
            longer = _Segment(segment.functions, torch.cat([before.mask, segment.mask], dim=1))
            return [replace(row, segments=(*row.segments[:-1], (longer, i))) for i, row in enumerate(rows)]
        return [replace(row, segments=(*row.segments, (segment, i))) for i, row in enumerate(rows)]

    def _plan(self, row: _Row, new: list[int], segment: _Segment, i: int) -> _Plan:
        """What to run for one row: its new tokens behind its state, or all of it again."""
        before, length = len(row.tokens), len(row.tokens) + len(new)
        crosses = self.threshold is not None and length > self.threshold and (self.grows or before <= self.threshold)
        text = replace(row, tokens=(*row.tokens, *new))
        if not before or (self.cached and row.state is not None and not crosses and (len(new) == 1 or self.continues)):
            return _Plan(text, tuple(new), row.state, ((segment, i, 0, len(new)),))
        stretches, place = [], 0
        for each, source in row.segments:
            n = int(each.mask[source].sum())
            stretches.append((each, source, place, place + n))
            place += n
        return _Plan(text, text.tokens if new else (), None, tuple(stretches))

    def _job(self, plan: _Plan, wanted: int) -> Callable[[Mapping[int, Hook]], tuple[Tensor, Any]]:
        tokens = torch.tensor([plan.tokens], device=self.network.device)

        def run(hooks: Mapping[int, Hook]) -> tuple[Tensor, Any]:
            return self.network.run(tokens, None, None, plan.state, hooks, wanted, use_cache=self.cached)

        return run


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one row runs."""

    row: _Row
    """The row as it will be."""
    tokens: tuple[int, ...]
    """What goes through the network."""
    state: Any
    """The cache before it."""
    stretches: tuple[tuple[_Segment, int, int, int], ...]
    """Which of these tokens belong to which segment: the segment, the row in it, first place and the one behind."""


class _Lockstep:
    """Runs jobs one after the other that meet at hooks: a function sees the states of all rows, as in one batch.

    Every job has a thread, of which only one moves at a time. At a hook it leaves its state and hands over to the next;
    when all have, the functions are applied to the batch, and each goes on with its part.
    """

    def __init__(self, plans: Sequence[_Plan], device: torch.device) -> None:
        self._plans = plans
        self._device = device
        segments = {stretch[0].number: stretch[0] for plan in plans for stretch in plan.stretches}
        self._segments = [segments[number] for number in sorted(segments)]
        self._layers = sorted({l for each in self._segments for l, steps in each.functions.items() if steps})

    def run(self, jobs: Sequence[Callable[[Mapping[int, Hook]], tuple[Tensor, Any]]]) -> list[tuple[Tensor, Any]]:
        """What every job returns."""
        if not self._layers:
            return [job({}) for job in jobs]
        if len(jobs) == 1:
            return [jobs[0]({l: lambda h, l=l: self._apply(l, [h])[0] for l in self._layers})]
        return self._meet(jobs)

    def _meet(self, jobs: Sequence[Callable[[Mapping[int, Hook]], tuple[Tensor, Any]]]) -> list[tuple[Tensor, Any]]:
        turns = [threading.Semaphore(0) for _ in jobs]
        states: list[Tensor | None] = [None] * len(jobs)
        results: list[Any] = [None] * len(jobs)
        problems: list[BaseException] = []
        inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

        def hook(i: int, l: int) -> Hook:
            def wait(h: Tensor) -> Tensor:
                states[i] = h
                if i + 1 == len(jobs):
                    states[:] = self._apply(l, [state for state in states if state is not None])
                    turns[0].release()
                else:
                    turns[i + 1].release()
                turns[i].acquire()
                if problems:
                    raise _Abandoned
                edited = states[i]
                assert edited is not None
                return edited

            return wait

        def work(i: int) -> None:
            turns[i].acquire()
            try:
                if not problems:
                    with torch.inference_mode(inference), torch.set_grad_enabled(gradient):
                        results[i] = jobs[i]({l: hook(i, l) for l in self._layers})
            except _Abandoned:
                pass
            except BaseException as error:
                problems.append(error)
            if problems:
                for turn in turns:
                    turn.release()
            elif i + 1 < len(jobs):
                turns[i + 1].release()

        threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        turns[0].release()
        for thread in threads:
            thread.join()
        if problems:
            raise problems[0]
        return results

    def _apply(self, l: int, states: list[Tensor]) -> list[Tensor]:
        """A layer's functions on all rows, each [1 n d]; segment by segment, the newest last."""
        for segment in self._segments:
            steps = segment.functions.get(l, ())
            if not steps:
                continue
            part = states[0].new_zeros(*segment.mask.shape, states[0].shape[-1])
            members = [
                (k, source, start, end)
                for k, plan in enumerate(self._plans)
                for each, source, start, end in plan.stretches
                if each is segment
            ]
            places = {source: segment.mask[source].nonzero()[:, 0].to(part.device) for _, source, _, _ in members}
            for k, source, start, end in members:
                part = part.index_put(
                    (torch.full_like(places[source], source), places[source]), states[k][0, start:end]
                )
            part = chain(steps)(part)
            for k, source, start, end in members:
                stretch = part[source, places[source]][None]
                states[k] = torch.cat([states[k][:, :start], stretch, states[k][:, end:]], dim=1)
        return states


class _Abandoned(Exception):
    """Another job has failed."""
