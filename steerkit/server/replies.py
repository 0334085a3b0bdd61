"""What comes from the engine, put together as OpenAI's clients read it."""

from __future__ import annotations

import asyncio
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from steerkit.batching import Done, Said
from steerkit.server.faults import as_fault
from steerkit.server.planning import Plan
from steerkit.server.stops import Stopper
from steerkit.thinking import unfinished_note

FAINTEST = -9999.0
"""The log probability that stands for nothing at all, as OpenAI writes it."""

HALF = "\ufffd"
"""What stands for a part of a character."""


@dataclass(frozen=True)
class Piece:
    """What one token, or its end, adds to a choice."""

    number: int
    """Which choice."""
    text: str
    """What may be shown; a beginning of a stop text is held back."""
    said: Said | None
    """The token."""
    reason: str | None
    """Why the choice is over, if it is."""
    thought: str = ""
    """What is thought, not said."""


class Listener:
    """Takes what the engine's thread tells, and hands it out in the server's loop.

    The queue has no bound of its own: a reply has no more tokens than it may have, and the engine never waits for a
    client that reads slowly.
    """

    def __init__(self, plan: Plan) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._stoppers = [Stopper(plan.stops) for _ in plan.asks]

    def hear(self, number: int, event: Said | Done | Exception) -> bool:
        """On the engine's thread: whether this choice has heard enough."""
        heard: Piece | Exception
        if isinstance(event, Exception):
            heard, enough = event, True
        elif isinstance(event, Said) and event.thought:
            # A stop text ends what is said, and nothing has been said.
            heard, enough = Piece(number, "", event, None, event.text), False
        elif isinstance(event, Done):
            heard, enough = Piece(number, self._stoppers[number].rest(), None, event.reason), True
        else:
            text, enough = self._stoppers[number].push(event.text)
            heard = Piece(number, text, event, "stop" if enough else None)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, heard)
        return enough

    async def pieces(self) -> AsyncIterator[Piece]:
        """Everything, until all choices are over. Raises ApiFault if the engine failed."""
        going_on = set(range(len(self._stoppers)))
        while going_on:
            heard = await self._queue.get()
            if isinstance(heard, Exception):
                raise as_fault(heard)
            if heard.number not in going_on:
                continue
            if heard.reason is not None:
                going_on.remove(heard.number)
            yield heard


@dataclass
class Choice:
    """One choice as it grows."""

    text: str = ""
    thought: str = ""
    reason: str | None = None
    said: list[Said] = field(default_factory=list)

    @property
    def n_thought(self) -> int:
        """So many tokens were thought, not said."""
        return sum(said.thought for said in self.said)

    @property
    def unfinished(self) -> bool:
        """Whether it ended within its thought."""
        return bool(self.said) and self.said[-1].open

    def take(self, piece: Piece) -> None:
        """Add a piece."""
        self.text += piece.text
        self.thought += piece.thought
        self.reason = piece.reason or self.reason
        if piece.said is not None:
            self.said.append(piece.said)


class Writer:
    """Writes the answer to one request, as a whole or in chunks."""

    def __init__(self, plan: Plan, model: Any, chat: bool) -> None:
        self._plan, self._tokenizer, self._chat = plan, model.tokenizer, chat
        self._probes = [probe.name for probe in plan.asks[0].probes]
        self._chances = plan.asks[0].likeliest is not None
        self._included = (plan.asks[0].thoughts or model.thoughts).included
        self._choices = [Choice() for _ in plan.asks]
        kind = "chat.completion" if chat else "text_completion"
        mark = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": mark, "object": kind, "created": int(time.time()), "model": model.name}

    def take(self, piece: Piece) -> None:
        """Note a piece."""
        self._choices[piece.number].take(piece)

    def usage(self) -> dict[str, Any]:
        """Tokens read and written so far."""
        n_prompt, n_said = self._plan.n_prompt, sum(len(choice.said) for choice in self._choices)
        usage: dict[str, Any] = {"prompt_tokens": n_prompt, "completion_tokens": n_said}
        if n_thought := sum(choice.n_thought for choice in self._choices):
            usage["completion_tokens_details"] = {"reasoning_tokens": n_thought}
        return {**usage, "total_tokens": n_prompt + n_said}

    def whole(self) -> dict[str, Any]:
        """The answer."""
        choices = []
        for index, choice in enumerate(self._choices):
            thought = {"reasoning_content": choice.thought} if choice.n_thought else {}
            message = {"role": "assistant", "content": choice.text, "refusal": None, **thought}
            said = {"message": message} if self._chat else {"text": choice.text, **thought}
            counted = self._counted(choice.said)
            entry = {"index": index, **said, "logprobs": self._logprobs(counted), "finish_reason": choice.reason}
            if self._probes:
                entry["steerkit"] = {"scores": self._means(counted), "tokens": self._scores(counted)}
            choices.append(entry)
        used = {**self._plan.used, "warnings": [*self._plan.used.get("warnings", ()), *self._unfinished()]}
        return {**self._head, "choices": choices, "usage": self.usage(), "steerkit": used}

    def _counted(self, said: Sequence[Said]) -> list[Said]:
        """The tokens that have scores: those of replies, and those of thoughts where these are included."""
        return [each for each in said if self._included or not each.thought]

    def _unfinished(self) -> list[str]:
        cut = [choice for choice in self._choices if choice.unfinished]
        return [unfinished_note(len(cut), len(self._choices), "max_tokens", "thinking: off")] if cut else []

    def first(self) -> list[str]:
        """What a stream begins with: how the reply is steered, and who speaks."""
        chunks = []
        for index in range(len(self._choices)):
            said = {"delta": {"role": "assistant", "content": ""}} if self._chat else {"text": ""}
            entry = {"index": index, **said, "logprobs": None, "finish_reason": None}
            used = {"steerkit": self._plan.used} if not index else {}
            chunks.append(self._event([entry], **used))
        return chunks

    def chunk(self, piece: Piece) -> str | None:
        """A piece as an event of a stream; None if nobody would see it."""
        said = [piece.said] if piece.said else []
        said = self._counted(said)
        if not (piece.text or piece.thought or piece.reason or (said and (self._probes or self._chances))):
            return None
        thought = {"reasoning_content": piece.thought} if piece.thought else {}
        content = {"content": piece.text} if piece.text else {}
        text = {"delta": {**thought, **content}} if self._chat else {"text": piece.text, **thought}
        logprobs = self._logprobs(said) if said else None
        entry: dict[str, Any] = {"index": piece.number, **text, "logprobs": logprobs, "finish_reason": piece.reason}
        if self._probes:
            entry["steerkit"] = {"tokens": self._scores(said)}
            if piece.reason:
                entry["steerkit"] |= {"scores": self._means(self._counted(self._choices[piece.number].said))}
        if piece.reason and self._choices[piece.number].unfinished:
            entry["steerkit"] = {**entry.get("steerkit", {}), "warnings": self._unfinished()}
        return self._event([entry])

    def last(self, with_usage: bool) -> list[str]:
        """What a stream ends with."""
        return [*([self._event([], usage=self.usage())] if with_usage else []), "data: [DONE]\n\n"]

    def _event(self, choices: Sequence[dict[str, Any]], **more: Any) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return write_event({**self._head, "object": kind, "choices": choices, **more})

    def _scores(self, said: Sequence[Said]) -> list[dict[str, Any]]:
        return [
            {"text": s.text, "scores": {n: _finite(x) for n, x in zip(self._probes, s.scores, strict=True)}}
            for s in said
        ]

    def _means(self, said: Sequence[Said]) -> dict[str, float | None]:
        columns = zip(*(s.scores for s in said), strict=True)
        return {name: _finite(sum(xs) / len(xs)) for name, xs in zip(self._probes, columns, strict=False)}

    def _logprobs(self, said: Sequence[Said]) -> dict[str, Any] | None:
        if not self._chances:
            return None
        if self._chat:
            return {"content": [self._chance(s) for s in said], "refusal": None}
        tokens = [self._written(s.token) for s in said]
        return {
            "tokens": tokens,
            "token_logprobs": [_chance(s.chance) for s in said],
            "top_logprobs": [{self._written(token): _chance(x) for token, x in s.likeliest} for s in said],
            "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))],
        }

    def _chance(self, said: Said) -> dict[str, Any]:
        def entry(token: int, chance: float | None) -> dict[str, Any]:
            text = self._written(token)
            # A token that is part of a character has no text of its own, and so no bytes that one could join.
            whole = HALF not in text
            return {"token": text, "logprob": _chance(chance), "bytes": list(text.encode()) if whole else None}

        likeliest = [entry(token, chance) for token, chance in said.likeliest]
        return {**entry(said.token, said.chance), "top_logprobs": likeliest}

    def _written(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


def write_event(data: dict[str, Any]) -> str:
    """One event of a stream, in ASCII, because some clients take more than a line feed for the end of a line."""
    return f"data: {json.dumps(data, allow_nan=False)}\n\n"


def _finite(x: float) -> float | None:
    """A number that JSON has."""
    return round(x, 4) if math.isfinite(x) else None


def _chance(x: float | None) -> float:
    return max(x, FAINTEST) if x is not None and math.isfinite(x) else FAINTEST
