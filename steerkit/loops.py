"""Greedy replies that run into a loop, and the dial up to which they hardly do so more often than unsteered ones.

Greedy text of a small model may come to a stretch that it repeats until it is cut off. Forty tokens do not show that:
loops set in at about the hundredth, so replies are 200 tokens long here. Unsteered text loops, too, now and then; a
limit is where it happens clearly more often. What counts as a loop and how many are too many is fixed in this file,
and was so before any vector's limit was measured by it.

A reply either loops or does not, and how often it does can only be told from many. Instead of many replies at each of
many dials, a few replies at dials that are chosen as it goes tell where the rate rises: a psychometric function whose
threshold is estimated by Bayes' rule, as in QUEST (Watson and Pelli 1983). Replies of several vectors share a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.batching import Ask, Batch, Said
from steerkit.generation import Sampling, complete
from steerkit.kept import measure_once
from steerkit.measures import neutral
from steerkit.models import Model
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

REPLY_TOKENS = 200
"""Tokens of a reply; loops of greedy text set in at about the hundredth, rarely after the two hundredth."""
TIMES = 3
"""A loop is a stretch that stands at the end of a reply this often. Twice may be an echo; three times it goes on."""
SHORTEST = 24
"""Tokens that the repeated stretches have together at least, so that "no, no, no" is none."""
EXCESS = 0.2
"""The share of replies that may loop at a limit beyond the share that loops unsteered: one in five is what a reader
does not meet in every chat, and the least that a handful of replies can tell from nothing."""
TOO_OFTEN = 0.6
"""Where more of the unsteered replies loop than this, loops tell nothing of a dial, and KL alone sets limits."""
SLOPE = 5.0
"""How steeply the logit of the share of looping replies rises with the logarithm of the dial. Six vectors of the
default model, looked at beforehand, have about this; a limit hardly depends on it."""
SPREAD = 0.7
"""Before anything is measured, the dial at which every second reply loops is thought to be the KL limit times or
divided by two, e^0.7, give or take: one standard deviation."""
FIRST = (1.0, 0.85, 0.65, 0.45)
"""The shares of the KL limit at which the first replies are made; the next are where what is known says least."""
ROUNDS = 2
"""So often are so many replies made. On simulated vectors eight replies are right to a fifth in two cases of three."""
SURE = 0.8
"""If the KL limit is free of loops with this probability after a round, no more replies are made."""
ROWS = 96
"""Replies of one forward pass."""
KIND = "loops"


def has_loop(tokens: Sequence[int]) -> bool:
    """Whether a text ends in a loop: a stretch, of any length, that stands at its end `TIMES` times or more.

    >>> has_loop(range(200)), has_loop([*range(40), *[7, 8, 9] * 8]), has_loop([7] * 23), has_loop([*[5] * 60, 6])
    (False, True, False, False)
    """
    lengths = ((period, max(TIMES * period, SHORTEST)) for period in range(1, len(tokens) // TIMES + 1))
    return any(
        all(tokens[-i] == tokens[-i - period] for i in range(1, length - period + 1))
        for period, length in lengths
        if length <= len(tokens)
    )


def looping(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering],
    sampling: Sampling | None = None,
) -> list[bool]:
    """Which replies run into a loop; one that ends by itself before it has none.

    Args:
        model: the model that replies
        prompts: tokens of each prompt
        steerings: one per prompt
        sampling: how tokens are chosen: greedily, at most `REPLY_TOKENS` of them, unless it says otherwise
    """
    trials = [Trial(prompt, steering) for prompt, steering in zip(prompts, steerings, strict=True)]
    for _ in run_trials(model, iter(trials), sampling or Sampling(REPLY_TOKENS)):
        pass
    return [bool(trial.loops) for trial in trials]


@dataclass(eq=False)
class Trial:
    """One reply that is watched for a loop."""

    prompt: Sequence[int]
    """Tokens before it."""
    steering: Steering
    """Under which steering it is made."""
    share: float = 0.0
    """Its dial as a share of the KL limit, where it is part of a search."""
    loops: bool | None = None
    """Whether it runs into a loop; None before it is known."""


def run_trials(model: Model, trials: Iterator[Trial | None], sampling: Sampling, rows: int = ROWS) -> Iterator[Trial]:
    """Make replies in one batch that new ones join as others end; each is given back once it is known to loop or not.

    Args:
        model: the model that replies
        trials: asked for more while there is room; None says that more may come once others are known
        sampling: how tokens are chosen
        rows: replies of one forward pass
    """
    if model.engine is not None:
        yield from _run_elsewhere(model, trials, sampling, rows)
        return
    batch, running = Batch(model, rows), dict[Ask, tuple[Trial, list[int]]]()
    while True:
        while batch.free and (trial := next(trials, None)) is not None:
            ask = Ask(trial.prompt, trial.steering, sampling=sampling)
            running[ask] = trial, []
            batch.add(ask)
        if not running:
            return
        while batch.unread:
            batch.read()
        known: list[Ask] = []
        for ask, event in batch.speak():
            trial, tokens = running[ask]
            if isinstance(event, Said):
                tokens.append(event.token)
                if not has_loop(tokens):
                    continue
            # The last token may be followed by word that it was the last.
            if trial.loops is None:
                trial.loops = isinstance(event, Said)
                known.append(ask)
        batch.drop(known)
        for ask in known:
            yield running.pop(ask)[0]


def _run_elsewhere(model: Model, trials: Iterator[Trial | None], sampling: Sampling, rows: int) -> Iterator[Trial]:
    """The same on an engine, which gives whole replies."""
    while part := [trial for _, trial in zip(range(rows), iter(partial(next, trials, None), None), strict=False)]:
        replies = complete(model, [t.prompt for t in part], [t.steering for t in part], sampling=sampling)
        for trial, reply in zip(part, replies, strict=True):
            trial.loops = any(has_loop(reply.tokens[:end]) for end in range(SHORTEST, len(reply.tokens) + 1))
        yield from part


def longest_reply(model: Model, n_tokens: int = REPLY_TOKENS) -> int:
    """How long replies may be: no longer than half of what the model holds, so that the prompts fit as well."""
    if n_tokens <= model.context // 2:
        return n_tokens
    model.note(f"{model.name} holds {model.context} tokens, so loops are looked for in replies of {model.context // 2}")
    return model.context // 2


def unsteered_rate(model: Model, n_tokens: int = REPLY_TOKENS) -> float:
    """The share of unsteered greedy replies to the neutral questions that loop; measured once, and kept.

    It has half a reply added on either side, so that it is neither 0 nor 1.

    Raises:
        OutputError: the cache cannot be written.
    """
    prompts = [model.chat_tokens([{"role": "user", "content": question}]) for question in neutral("questions")]

    def measure() -> dict[str, Tensor]:
        return {"loops": torch.tensor(looping(model, prompts, [Steering()] * len(prompts), Sampling(n_tokens))).float()}

    loops = measure_once(KIND, model, "unsteered", [prompts, n_tokens, TIMES, SHORTEST], measure)["loops"]
    return (float(loops.sum()) + 0.5) / (len(loops) + 1)


@dataclass(eq=False)
class LoopSearch:
    """Looks for the dial of one sign at which text loops more often than it may."""

    vector: SteeringVector
    """At its own place."""
    kl_limit: float
    """The dial of this sign at which KL reaches its limit; it is not searched beyond."""
    prompts: Sequence[Sequence[int]]
    """What is asked, as tokens; each reply is to another."""
    unsteered: float
    """The share of replies that loop unsteered."""
    trials: list[Trial] = field(default_factory=list)
    """Replies that are made or being made."""

    def next_trials(self) -> list[Trial]:
        """The replies of the next round; none if no more are needed or some are being made."""
        if any(trial.loops is None for trial in self.trials) or self.found:
            return []
        shares = self._quantiles(len(FIRST)) if self.trials else list(FIRST)
        begin = len(self.trials)
        new = [
            Trial(
                self.prompts[(begin + i) % len(self.prompts)],
                Steering((Term(self.vector, dial=self.kl_limit * share),)),
                share,
            )
            for i, share in enumerate(shares)
        ]
        self.trials += new
        return new

    @property
    def found(self) -> bool:
        """Whether enough is known."""
        if not self.trials or any(trial.loops is None for trial in self.trials):
            return False
        free = float(self._posterior()[_POSITIONS + self._offset >= 0].sum())
        return len(self.trials) >= ROUNDS * len(FIRST) or free > SURE

    @property
    def share(self) -> float:
        """The limit as a share of the KL limit: the median of what is thought of it; 1 where loops set none."""
        return min(1.0, math.exp(self._quantile(0.5) + self._offset))

    def to_json(self) -> dict[str, Any]:
        """What was seen, and within what the limit is with a probability of two thirds, were KL not to end it."""
        low, high = (math.exp(self._quantile(q) + self._offset) * self.kl_limit for q in (1 / 6, 5 / 6))
        return {
            "between": sorted(float(f"{dial:.4g}") for dial in (low, high)),
            "replies": [[float(f"{t.share * self.kl_limit:.4g}"), bool(t.loops)] for t in self.trials],
        }

    @property
    def _offset(self) -> float:
        """From the logarithm of the dial at which every second reply loops to that of the limit."""
        share = EXCESS / (1 - self.unsteered)
        return math.log(share / (1 - share)) / SLOPE

    def _posterior(self) -> Float[Tensor, " p"]:
        """Probability of each position of the dial at which every second reply that would not loop anyway loops."""
        logs = -0.5 * (_POSITIONS / SPREAD) ** 2
        for trial in self.trials:
            if trial.loops is not None:
                rate = self.unsteered + (1 - self.unsteered) * torch.sigmoid(
                    SLOPE * (math.log(trial.share) - _POSITIONS)
                )
                logs = logs + (rate if trial.loops else 1 - rate).log()
        return logs.softmax(0)

    def _quantile(self, share: float) -> float:
        reached = torch.searchsorted(self._posterior().cumsum(0), torch.tensor(share, dtype=torch.float64))
        return float(_POSITIONS[min(int(reached), len(_POSITIONS) - 1)])

    def _quantiles(self, n: int) -> list[float]:
        """Dials for replies that tell most: where the threshold may be, no higher than the KL limit."""
        return [math.exp(min(0.0, self._quantile((i + 0.5) / n))) for i in range(n)]


_POSITIONS = torch.linspace(-3.5, 2.5, 601, dtype=torch.float64)


def settle(
    model: Model,
    searches: Iterable[LoopSearch],
    n_tokens: int = REPLY_TOKENS,
    progress: Progress = ignore_progress,
) -> Iterator[LoopSearch]:
    """Carry out searches, replies of many in one batch, and give back each as soon as its limit is found.

    Args:
        model: the model that replies
        searches: each is asked for only when there is room for its replies
        n_tokens: the longest reply
        progress: told how many of those begun are done
    """
    coming = iter(searches)
    open_searches: list[LoopSearch] = []
    n_done = 0

    def draw() -> Iterator[Trial | None]:
        while True:
            ready = [trial for search in open_searches for trial in search.next_trials()]
            if not ready:
                if (search := next(coming, None)) is None:
                    # Whoever asks again may find that a round has ended meanwhile.
                    yield None
                    continue
                open_searches.append(search)
            yield from ready

    for _ in run_trials(model, draw(), Sampling(n_tokens)):
        for search in [each for each in open_searches if each.found]:
            open_searches.remove(search)
            n_done += 1
            progress("loops", n_done, n_done + len(open_searches))
            yield search
