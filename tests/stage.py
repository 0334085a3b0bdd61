"""A chat application on a tiny model whose every token waits to be let through."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from steerkit.chats import Chat
from steerkit.generation import Sampling, Step, complete, stream
from steerkit.models import Model
from steerkit.steering import Steering
from steerkit.tui.app import ChatApp
from steerkit.tui.dials import DialView
from steerkit.tui.session import Plan
from steerkit.vectors import VectorSet

PATIENCE = 20.0
LIMITS = {"limit": 1.2, "limit_below": -0.8, "place": [1, 4], "thresholds": {"p75": 0.3, "p25": -0.3}}

Script = Callable[["Stage"], Awaitable[None]]


class Gate:
    """Lets a reply go on a token at a time."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.open = False
        self.broken: Exception | None = None

    def release(self, n_tokens: int) -> None:
        """Let so many tokens through."""
        for _ in range(n_tokens):
            self._permits.release()

    def stream(self, *given: Any, **named: Any) -> Iterator[Step]:
        """What the speaker uses instead of `generation.stream`."""
        steps = stream(*given, **named)
        while True:
            while not self.open and not self._permits.acquire(timeout=0.02):
                if self.broken is not None:
                    raise self.broken
            if self.broken is not None:
                raise self.broken
            try:
                # With two rows a permit is a token of both.
                for _ in given[1]:
                    yield next(steps)
            except StopIteration:
                return


class Stage:
    """The application and its pilot."""

    def __init__(self, app: ChatApp, gate: Gate, pilot: Pilot[None]) -> None:
        self.app, self.gate, self.pilot = app, gate, pilot
        self.session = app.session

    async def press(self, *keys: str) -> None:
        """Press keys and let the application answer them."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, holds: Callable[[], Any]) -> None:
        """Wait for something, but not for ever."""
        for _ in range(int(PATIENCE / 0.01)):
            if holds():
                # Who leaves draws no more, and cannot be waited for.
                if not self.app._exit:
                    await self.pilot.pause()
                return
            await asyncio.sleep(0.01)
        raise AssertionError("waited in vain")

    async def hear(self, n_tokens: int) -> None:
        """Let so many more tokens come, or fewer if the reply ends."""
        already = len(self.session.live.heard) if self.session.live else 0
        self.gate.release(n_tokens)
        await self.until(lambda: not self.session.live or len(self.session.live.heard) >= already + n_tokens)

    async def finish(self) -> None:
        """Let the reply come to its end."""
        self.gate.open = True
        await self.until(lambda: not self.session.busy)
        self.gate.open = False

    async def say(self, text: str) -> None:
        """Write a message and send it."""
        message = self.app.query_one("#message", Input)
        message.focus()
        message.value = text
        await self.press("enter")

    def dial(self, name: str) -> DialView:
        """The view of a dial."""
        return next(view for view in self.app.query(DialView) if view.called == name)

    def screen(self) -> str:
        """What stands on the screen, as text."""
        return "\n".join("".join(segment.text for segment in strip) for strip in self.rows())

    def rows(self) -> list[Any]:
        """The screen's lines."""
        return self.app.screen._compositor.render_strips()


def new_plan(model: Model, folder: Path, steer: str = "0.5 hal + 0 warmth", **named: Any) -> Plan:
    """A plan that keeps its chat in a folder."""
    plan = Plan(lambda _tell: model, steer, kept=folder / "kept.jsonl", sampling=Sampling(24))
    for name, value in named.items():
        setattr(plan, name, value)
    return plan


@asynccontextmanager
async def staged(plan: Plan, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] = (110, 30)) -> Any:
    """The application, ready to be spoken to."""
    gate = Gate()
    monkeypatch.setattr("steerkit.tui.speaker.stream", gate.stream)
    # The pilot's own work would count as the screen's.
    monkeypatch.setattr("steerkit.tui.frames.SHARE", 1.0)
    app = ChatApp(plan)
    async with app.run_test(size=size) as pilot:
        stage = Stage(app, gate, pilot)
        try:
            yield stage
        finally:
            gate.open = True


def saved(plan: Plan) -> Chat:
    """The chat as it is kept."""
    from steerkit.chats import load_chat

    return load_chat(plan.kept)[0]


def notices(stage: Stage) -> str:
    return " / ".join(notice.message for notice in stage.app._notifications)


def replies(model: Model, question: str, steer: str, n_tokens: int = 24) -> tuple[str, ...]:
    """What `generate` says."""
    prompt = model.chat_tokens([{"role": "user", "content": question}])
    steering = Steering.parse(steer, VectorSet(model.fingerprint)) if steer else Steering()
    return complete(model, [prompt], [steering], sampling=Sampling(n_tokens))[0].readout.tokens
