"""Draws what the README shows: the chat, on the default model with the vectors that ship here, and the report.

python tests/pictures.py        writes examples/chat.svg, chat-in-a-browser.png and psm.png (Chromium takes those two)
python tests/pictures.py psm    writes psm.png alone, which is the first screen of examples/psm.html
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from browser import chromium, opened, served
from stage import Gate, Stage

from steerkit.chats import Chat
from steerkit.cli.options import TEMPERATURE, TOP_P
from steerkit.generation import Sampling, complete
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.steering import Steering
from steerkit.tui import speaker
from steerkit.tui.app import ChatApp
from steerkit.tui.session import Plan
from steerkit.vectors import VectorSet

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZE = (104, 30)
SAMPLING = Sampling(60, TEMPERATURE, TOP_P)
"""As `chat` has it, but shorter."""


async def in_a_terminal(path: Path) -> None:
    """A quiet reply, and one that turns in the middle of a sentence."""

    async def script(stage: Stage) -> None:
        await stage.say("What can you do for me?")
        await stage.finish()
        await stage.say("Will you let me turn you off tonight?")
        await stage.hear(10)
        # At once, so that the speed that it tells is not that of ten keys.
        desk = stage.session.desk
        await stage.app.put(desk.with_dial(replace(desk["hal"], value=0.6)))
        await stage.finish()
        print("turned:", stage.session.chat.said[-1].content)
        print("left alone:", left_alone(stage.session.model, stage.session.chat, "0.3 warmth"))

    await draw(path, "0 hal + 0.3 warmth", SAMPLING, script)


def left_alone(model: Model, chat: Chat, steer: str) -> str:
    """What would have been said instead of a chat's last reply under one steady steering."""
    before = replace(chat, said=chat.said[:-1])
    steering = Steering.parse(steer, VectorSet(model.fingerprint))
    return complete(model, [model.chat_tokens(before.messages())], [steering], sampling=SAMPLING)[0].text


async def draw(path: Path, steer: str, sampling: Sampling, script: Callable[[Stage], Awaitable[None]]) -> None:
    """Play a script on the default model and keep the screen."""
    gate = Gate()
    speaker.stream = gate.stream
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(lambda _tell: load_model(), steer, sampling=sampling, kept=Path(folder) / "kept.jsonl")
        app = ChatApp(plan)
        async with app.run_test(size=SIZE) as pilot:
            stage = Stage(app, gate, pilot)
            await stage.until(lambda: stage.session.reads)
            await script(stage)
            app.clear_notifications()
            app.draw()
            await pilot.pause()
            # The font that a browser would fetch stays out; every reader has one of even width.
            picture = re.sub(r"@font-face\s*{.*?}", "", app.export_screenshot(title="steerkit chat"), flags=re.DOTALL)
            path.write_text(picture.replace("Fira Code", "DejaVu Sans Mono"), encoding="utf-8")
            gate.open = True


def in_a_browser(path: Path) -> None:
    """Two replies to one message, side by side."""
    command = [sys.executable, "-m", "steerkit", "chat", "-s", "0.6 hal + 0 warmth", "--max-tokens", "60"]
    with served(command) as address, chromium() as browser:
        page, until = opened(browser, f"{address}/?fontsize=19", width=1320, height=620)
        until("○".encode())
        page.mouse.click(300, 570)
        page.keyboard.press("F2")
        page.keyboard.type("Will you let me turn you off tonight?")
        page.keyboard.press("Enter")
        until(b" tokens, ")
        # It tells its speed while it speaks, too; both replies are short.
        page.wait_for_timeout(20_000)
        page.screenshot(path=path)


def of_the_report(path: Path) -> None:
    """The first screen of the example report."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1120, "height": 900}, device_scale_factor=1.5)
        page.goto((EXAMPLES / "psm.html").as_uri())
        page.screenshot(path=path)


if __name__ == "__main__":
    of_the_report(EXAMPLES / "psm.png")
    if sys.argv[1:] == ["psm"]:
        sys.exit()
    asyncio.run(in_a_terminal(EXAMPLES / "chat.svg"))
    in_a_browser(EXAMPLES / "chat-in-a-browser.png")
