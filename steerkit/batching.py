"""A batch that never ends: rows join between two tokens, each with a steering of its own, and leave when they are done.

A row says exactly what `generation.complete` says of it alone: it has its own steering, probes, random stream and
place in the cache, and what the others do changes nothing. Each pass makes one token of every row. Prompts of
newcomers are read in stretches between the passes, so that nobody who is speaking waits long for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.caches import Seats, can_merge
from steerkit.generation import Chooser, Sampling, in_force, where_in_force
from steerkit.models import Model, ResidualFunction
from steerkit.passes import STRETCH, merge, prefill
from steerkit.readings import Probe, Readings
from steerkit.steering import Steering, edits
from steerkit.thinking import ReplyText, Thoughts


@dataclass(frozen=True, eq=False)
class Ask:
    """One reply that is wanted."""

    prompt: Sequence[int]
    """Tokens before it; at least one."""
    steering: Steering = field(default_factory=Steering)
    """Under which steering it is made."""
    probes: tuple[Probe, ...] = ()
    """What is read at every token of it."""
    sampling: Sampling = field(default_factory=Sampling)
    """How its tokens are chosen."""
    likeliest: int | None = None
    """For how many of the likeliest tokens a log probability is wanted beside that of the one chosen; None for none."""
    thoughts: Thoughts | None = None
    """What becomes of thoughts; None for what the model does with them."""


@dataclass(frozen=True)
class Said:
    """One token of a reply."""

    token: int
    """Its number."""
    text: str = ""
    """What it adds to the reply, or to a thought before it; empty where a character is not complete yet."""
    scores: tuple[float, ...] = ()
    """One score a probe."""
    thought: bool = False
    """Whether it is part of a thought, or of the tags around it, which have no text."""
    open: bool = False
    """Whether the thought goes on behind it."""
    chance: float | None = None
    """Its log probability at temperature 1, where it was asked for."""
    likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs."""


@dataclass(frozen=True)
class Done:
    """A reply is over."""

    reason: str
    """`stop` where the model ended it, `length` where it was as long as it may be."""


Event = tuple[Ask, Said | Done]


@dataclass(eq=False)
class _Row:
    """A row that is speaking."""

    ask: Ask
    text: ReplyText
    choose: Chooser | None
    """None takes the likeliest token, which is done for all rows at once."""
    last: int
    """The token that is processed next."""
    n_cached: int
    """How many tokens the cache holds of it."""
    columns: list[int] = field(default_factory=list)
    """Where its probes are among those of all rows."""
    said: deque[Said] = field(default_factory=deque)
    """Tokens that have not been given out, because their text is not settled."""
    unread: bool = False
    """Whether the scores of the last of them come with the next pass."""
    n_said: int = 0

    def settled(self) -> list[Said]:
        """The tokens that can be given out, with their texts."""
        found = []
        while self.text.words and len(self.said) > self.unread:
            word = self.text.words.popleft()
            found.append(replace(self.said.popleft(), text=word.text, thought=word.thought, open=word.open))
        return found

    def end(self, reason: str) -> list[Said | Done]:
        """What is left to give out where no more tokens come."""
        self.text.end()
        return [*self.settled(), Done(reason)]


@dataclass(eq=False)
class _Reading:
    """A long prompt of which only the beginning has been read."""

    ask: Ask
    cache: Any = None
    n_read: int = 0


class Batch:
    """Rows that speak together."""

    def __init__(self, model: Model, most: int = 16) -> None:
        """Find out whether rows of this model can share a cache; if not, one speaks after the other.

        Args:
            model: who speaks
            most: so many rows at once
        """
        self._model = model
        probe = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        _, cache = model.forward(probe, torch.ones_like(probe), keep=0)
        self.most = most if model.holes and can_merge(cache) else 1
        self._stretch = STRETCH if model.continues else model.context
        self._like = torch.empty(0, device=model.device, dtype=model.dtype)
        self.clear()

    def clear(self) -> list[Ask]:
        """Forget everything, and return what was asked."""
        asked = self.asks if hasattr(self, "_rows") else []
        self._newcomers: deque[Ask] = deque()
        self._reading: _Reading | None = None
        self._rows: list[_Row] = []
        self._seats: Seats | None = None
        self._functions: dict[int, list[ResidualFunction]] | None = None
        self._alternate = False
        return asked

    @property
    def asks(self) -> list[Ask]:
        """What is being answered, first those that speak."""
        return [row.ask for row in self._rows] + self.unread

    @property
    def unread(self) -> list[Ask]:
        """Whose prompt has not been read to its end."""
        return ([self._reading.ask] if self._reading else []) + list(self._newcomers)

    @property
    def free(self) -> int:
        """How many may still be added."""
        return self.most - len(self.asks)

    def add(self, ask: Ask) -> None:
        """Let one more join, where there is a free place; its prompt is read by the next calls of `read`."""
        assert self.free > 0, "no free place"
        self._newcomers.append(ask)

    def drop(self, asks: Sequence[Ask]) -> None:
        """Let some leave at once, wherever they are."""
        gone = set(asks)
        self._newcomers = deque(ask for ask in self._newcomers if ask not in gone)
        if self._reading and self._reading.ask in gone:
            self._reading = None
        self._leave([i for i, row in enumerate(self._rows) if row.ask in gone])

    def read(self) -> None:
        """Read a stretch of the prompts of newcomers; those that are read to their end speak from the next pass on."""
        if self._reading is None and self._newcomers and len(self._newcomers[0].prompt) > self._stretch:
            self._reading = _Reading(self._newcomers.popleft())
        # A long prompt and short ones take turns, so that neither has to wait for the other.
        short = self._group() if self._alternate or self._reading is None else []
        self._alternate = not short
        if short:
            self._seat(short, *self._prefilled(short))
            for _ in short:
                self._newcomers.popleft()
        elif self._reading is not None:
            self._read_on(self._reading)

    def speak(self) -> list[Event]:
        """One pass: the next token of every row that is speaking."""
        if self._seats is None:
            return []
        forced = in_force([row.text for row in self._rows])
        if self._functions is None or forced != self._forced:
            self._compile(forced)
        assert self._functions is not None
        self._seats.pack(max(row.n_cached for row in self._rows))
        self._seats.grow()
        tokens = torch.tensor([[row.last] for row in self._rows], device=self._model.device)
        logits, self._seats.cache = self._model.forward(tokens, self._seats.mask, self._seats.cache, self._functions)
        events: list[Event] = []
        scores = self._readings.scores[:, -1].tolist() if self._readings.probes else []
        for i, row in enumerate(self._rows):
            row.n_cached += 1
            if row.unread:
                row.said[-1] = replace(row.said[-1], scores=tuple(scores[i][c] for c in row.columns))
                row.unread = False
                events += [(row.ask, said) for said in row.settled()]
        leaving = []
        for i, (row, token) in enumerate(zip(self._rows, self._choose(logits[:, -1]), strict=True)):
            found = self._go_on(row, token, logits[i, -1])
            events += [(row.ask, event) for event in found]
            if found and isinstance(found[-1], Done):
                leaving.append(i)
        self._leave(leaving)
        return events

    def _go_on(self, row: _Row, token: int, logits: Float[Tensor, " v"]) -> list[Said | Done]:
        """What one row makes of the token that was chosen."""
        most = row.ask.sampling.max_tokens
        if row.n_said == most:
            return row.end("length")
        if token in self._model.end_tokens:
            return row.end("stop")
        row.n_said += 1
        row.last = token
        row.text.push(token)
        said = Said(token)
        row.said.append(said if row.ask.likeliest is None else _with_chances(said, logits, row.ask.likeliest))
        row.unread = bool(row.ask.probes)
        if row.n_said == most and not row.unread:
            return row.end("length")
        return list(row.settled())

    def _choose(self, logits: Float[Tensor, "b v"]) -> list[int]:
        """The next token of each row; one that draws, draws as it would alone."""
        chosen: list[int] = logits.argmax(-1).tolist()
        for i, row in enumerate(self._rows):
            if row.choose is not None and row.n_said < row.ask.sampling.max_tokens:
                chosen[i] = int(row.choose(logits[i : i + 1]))
        return chosen

    def _compile(self, forced: list[bool]) -> None:
        """Steering, where it is in force, and readers of the rows as they sit now."""
        self._forced = forced
        probes = list(dict.fromkeys(probe for row in self._rows for probe in row.ask.probes))
        for row in self._rows:
            row.columns = [probes.index(probe) for probe in row.ask.probes]
        self._readings = Readings(probes, self._model.device)
        pushes = edits(where_in_force([row.ask.steering for row in self._rows], forced), self._like)
        self._functions = merge(pushes, self._readings.functions())

    def _group(self) -> list[Ask]:
        """The first newcomers whose prompts are read in one stretch; prompts that are the same count once."""
        group: list[Ask] = []
        prompts: set[tuple[Any, Any]] = set()
        for ask in self._newcomers:
            prompts.add(_start(ask))
            longest = max(len(prompt) for prompt, _ in prompts)
            if longest > self._stretch or (group and len(prompts) * longest > STRETCH):
                break
            group.append(ask)
        return group

    def _prefilled(self, asks: Sequence[Ask]) -> tuple[Any, Int[Tensor, "b t"]]:
        """Everything of some prompts but their last token, which is where steering begins."""
        cache, mask = prefill(self._model, [ask.prompt for ask in asks], [ask.steering for ask in asks])
        if cache is None:
            # Prompts of one token leave nothing to read, but a row must have a place in the cache.
            nothing = torch.zeros(len(asks), 1, dtype=torch.long, device=self._model.device)
            _, cache = self._model.forward(nothing, torch.ones_like(nothing), keep=0)
            mask = nothing
        return cache, mask

    def _read_on(self, reading: _Reading) -> None:
        """Read the next stretch of a long prompt."""
        wanted = reading.ask.prompt[:-1]
        stretch = wanted[reading.n_read :][: self._stretch]
        tokens = torch.tensor([list(stretch)], device=self._model.device)
        mask = torch.ones(1, reading.n_read + len(stretch), dtype=torch.long, device=self._model.device)
        steering = reading.ask.steering if reading.ask.steering.everywhere else Steering()
        functions = edits([steering], self._like)
        _, reading.cache = self._model.forward(tokens, mask, reading.cache, functions, keep=0)
        reading.n_read += len(stretch)
        if reading.n_read == len(wanted):
            # Who asked for the same has nothing left to read.
            alike = [ask for ask in self._newcomers if _start(ask) == _start(reading.ask)]
            rows = torch.zeros(1 + len(alike), dtype=torch.long, device=self._model.device)
            if alike:
                reading.cache.batch_select_indices(rows)
            self._seat([reading.ask, *alike], reading.cache, mask[rows])
            self._reading = None
            self._newcomers = deque(ask for ask in self._newcomers if ask not in alike)

    def _seat(self, asks: Sequence[Ask], cache: Any, mask: Int[Tensor, "b t"]) -> None:
        if self._seats is None:
            self._seats = Seats(cache, mask)
        else:
            self._seats.add(cache, mask)
        for ask in asks:
            drawn = Chooser(ask.sampling, 1, self._model.device) if ask.sampling.temperature > 0 else None
            text = (ask.thoughts or self._model.thoughts).follow(self._model.tokenizer, ask.prompt)
            self._rows.append(_Row(ask, text, drawn, ask.prompt[-1], len(ask.prompt) - 1))
        self._functions = None

    def _leave(self, rows: Sequence[int]) -> None:
        if not rows or self._seats is None:
            return
        if len(rows) == len(self._rows):
            self._rows, self._seats = [], None
        else:
            self._rows = [self._rows[row] for row in self._seats.leave(rows)]
        self._functions = None


def _start(ask: Ask) -> tuple[tuple[int, ...], Steering | None]:
    """What decides how a prompt is read."""
    return tuple(ask.prompt), ask.steering if ask.steering.everywhere else None


def _with_chances(said: Said, logits: Float[Tensor, " v"], n_likeliest: int) -> Said:
    """A token with its log probability, and the likeliest with theirs."""
    chances = logits.float().log_softmax(-1)
    values, tokens = chances.topk(min(n_likeliest, len(chances)))
    likeliest = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return replace(said, chance=float(chances[said.token]), likeliest=likeliest)
