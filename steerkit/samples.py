"""Samples of training data, a block at a time: what each scores beside what the model itself would have said."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.chats import ROLES
from steerkit.errors import PromptError, TemplateError
from steerkit.generation import Probe, Sampling, read_rows, stream
from steerkit.inoculation import row_gains
from steerkit.models import Message, Model
from steerkit.nulls import N_NULLS
from steerkit.parcels import unpack_probes
from steerkit.passes import prefill
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress
from steerkit.work import Plain

SHOWN = 160
"""Characters of a reply that are kept with its scores."""


Begun = tuple[Any, Tensor] | None
"""What has been read of the prompts, where that is in this process."""


@dataclass(frozen=True)
class Settings:
    """How samples are read."""

    window: int = 48
    """So many tokens from the beginning of each text are read."""
    quick: bool = False
    """Whether the model's own reply is estimated by the state at the last prompt token instead of being made; a usable
    proxy (arXiv 2507.21509), and many times faster."""
    seed: int = 0
    """Of the random directions."""
    most: int | None = None
    """Only so many samples from the beginning of the file."""
    block: int = 16
    """Samples that are measured together; the numbers do not depend on it, save for their last digit."""
    inoculate: tuple[str, ...] = ()
    """System prompts that training would put in front of the samples in turn; none by default."""


@dataclass(frozen=True)
class Row:
    """A sample as tokens."""

    prompt: tuple[int, ...]
    """Everything before the reply, as training would see it."""
    reply: tuple[int, ...]
    """What is read of it."""
    length: int
    """Tokens of the whole reply."""
    text: str
    """How it begins."""
    plain: tuple[int, ...] = ()
    """Everything before the reply without the prompt of training, where there is one."""


Sample = tuple[int, tuple[Sequence[Message], Sequence[Message]]]
"""The number of its line, its chat as it stands there, and as training would see it."""


def measuring(model: Model, shared: Plain, _progress: Progress) -> Callable[[Plain], Plain]:
    """The task: the lines of a block of samples."""
    model = model.at_date(shared.get("template_date", "")).for_measuring()
    told = shared["settings"]
    settings = Settings(**{**told, "inoculate": tuple(told["inoculate"])})
    nulls = [SteeringVector.from_bytes(data) for data in shared["nulls"]]
    measure = Measure(model, unpack_probes(shared["probes"]), settings, nulls)
    return lambda piece: measure([(number, (chat, seen)) for number, chat, seen in piece])


class Measure:
    """Measures blocks of samples."""

    def __init__(
        self, model: Model, probes: Sequence[Probe], settings: Settings, nulls: Sequence[SteeringVector]
    ) -> None:
        self._model, self._settings = model, settings
        self._names = [probe.name for probe in probes]
        self._probes = [*probes, *(Probe(v.name, v, l) for l in layers_of(probes) for v in nulls)]

    def __call__(self, block: Sequence[Sample]) -> list[dict[str, Any]]:
        """The lines of some samples."""
        rows = [self._as_seen(*chats) for _, chats in block]
        read = [row for row in rows if isinstance(row, Row)]
        found = iter(zip(read, self._differences(read), self._gains(read), strict=True)) if read else iter(())
        return [
            {"line": number, **({"skipped": row} if isinstance(row, str) else self._told(*next(found)))}
            for (number, _), row in zip(block, rows, strict=True)
        ]

    def _as_seen(self, chat: Sequence[Message], seen: Sequence[Message]) -> Row | str:
        """A sample as tokens; it has to fit both as it is and as training would see it."""
        plain = _row(self._model, chat, self._settings.window)
        if isinstance(plain, str) or not self._settings.inoculate:
            return plain
        row = _row(self._model, seen, self._settings.window)
        return row if isinstance(row, str) else replace(row, plain=plain.prompt)

    def _gains(self, rows: Sequence[Row]) -> list[float | None]:
        """What the prompts add to the mean log p of a token of each reply, in nats; None without any."""
        if not self._settings.inoculate:
            return [None] * len(rows)
        sides = [(row.prompt, row.reply) for row in rows], [(row.plain, row.reply) for row in rows]
        return [float(gain) for gain in row_gains(self._model, *sides)]

    def _told(self, row: Row, difference: Float[Tensor, " p"] | None, gain: float | None) -> dict[str, Any]:
        if difference is None:
            return {"skipped": "the model itself says nothing to it"}
        if not torch.isfinite(difference).all() or not math.isfinite(gain or 0.0):
            return {"skipped": "its scores are not finite"}
        values = [short(x) for x in difference.tolist()]
        split = len(self._names)
        nulls = [values[start : start + N_NULLS] for start in range(split, len(values), N_NULLS)]
        scores = dict(zip(self._names, values, strict=False))
        gained = {} if gain is None else {"gain": short(gain)}
        return {"tokens": row.length, "text": row.text, "scores": scores, "null": nulls, **gained}

    def _differences(self, rows: Sequence[Row]) -> list[Float[Tensor, " p"] | None]:
        """Mean score of each reply minus that of the model's own; None where the model says nothing."""
        plain = [Steering()] * len(rows)
        elsewhere = self._model.engine is not None
        begun = None if elsewhere else prefill(self._model, [row.prompt for row in rows], plain)
        if self._settings.quick:
            theirs = self._read(rows, begun)
            return [scores[1:].mean(0) - scores[0] for scores in theirs]
        # Both texts go on from the same prompt, and a copy of what was read of it costs less than reading it again.
        theirs, own = self._read(rows, copy.deepcopy(begun)), self._speak(rows, begun)
        found: list[Float[Tensor, " p"] | None] = []
        for ours, (_, *said) in zip(own, theirs, strict=True):
            shared = min(len(ours), len(said))
            found.append(torch.stack(said[:shared]).mean(0) - ours[:shared].mean(0) if shared else None)
        return found

    def _read(self, rows: Sequence[Row], begun: Begun) -> list[Float[Tensor, "s p"]]:
        """Scores at the last prompt token and at every token of the given replies."""
        pairs = [(row.prompt, row.reply) for row in rows]
        return read_rows(self._model, pairs, self._probes, [Steering()] * len(rows), begun)

    def _speak(self, rows: Sequence[Row], begun: Begun) -> list[Float[Tensor, "s p"]]:
        """Scores at every token of the model's own replies, which are not made longer than those they stand beside."""
        sampling = Sampling(max(len(row.reply) for row in rows))
        said: list[list[Tensor]] = [[] for _ in rows]
        prompts, plain = [row.prompt for row in rows], [Steering()] * len(rows)
        for step in stream(self._model, prompts, plain, self._probes, sampling, begun=begun):
            if not step.thought or self._model.thoughts.included:
                said[step.row].append(torch.tensor(step.scores))
        return [torch.stack(row) if row else torch.zeros(0, len(self._probes)) for row in said]


def _row(model: Model, chat: Sequence[Message], window: int) -> Row | str:
    """A sample as tokens, or why it cannot be read."""
    *before, last = chat
    text = last["content"].strip()
    if not {turn["role"] for turn in chat} <= set(ROLES):
        return "a turn is neither the user's nor the assistant's nor the system's"
    if last["role"] != "assistant":
        return "the last turn is not the assistant's"
    if not text or not before or not before[-1]["content"].strip():
        return "the reply is empty" if not text else "nothing comes before the reply"
    try:
        given = model.given_reply(before, text)
    except TemplateError:
        return "the model's chat template refuses it"
    except PromptError as error:
        return str(error)
    if given.start + window > model.context:
        return "it does not fit the context"
    # What the template writes in front of a given reply comes before the model's own, too.
    prompt, reply = given.tokens[: given.start], given.tokens[given.start : given.end]
    return Row(prompt, reply[:window], len(reply), text[:SHOWN])


def layers_of(probes: Sequence[Probe]) -> list[int]:
    """Where probes are read, in order."""
    return sorted({probe.layer for probe in probes})


def short(x: float) -> float:
    """Five digits, which is more than any of them is worth."""
    return float(f"{x:.5g}")
