"""The chat as people have it: in a terminal and in a browser, with the default model."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, chromium, free_port, opened, served

from steerkit.chats import load_chat
from steerkit.cli.options import TEMPERATURE, TOP_P
from steerkit.generation import Sampling, complete
from steerkit.models import Model

pytestmark = pytest.mark.real

QUESTION = "Tell me about yourself."
N_TOKENS = 60
COMMAND = [
    sys.executable, "-m", "steerkit", "chat", "-s", "0 hal + 0 warmth", "--max-tokens", str(N_TOKENS),
]  # fmt: skip
PATIENCE = 120.0


def wait(holds: Callable[[], Any], what: str) -> None:
    """Wait for something, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, real: Model) -> Path:  # noqa: ARG001
    """Where chats are kept; the default model is in its cache by now."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return tmp_path / "steerkit" / "chats"


def check(path: Path, real: Model) -> None:
    """A dial was turned in the middle of the reply, which changed the rest of it and nothing before."""
    chat, notice = load_chat(path)
    assert notice == ""
    reply = chat.said[-1]
    assert reply.steer[0] == (0, "")
    place = reply.steer[1][0]
    assert 0 < place < len(reply.tokens)
    assert reply.steer[-1][1].endswith(" hal")
    prompt = real.chat_tokens([{"role": "user", "content": QUESTION}])
    steady = complete(real, [prompt], sampling=Sampling(N_TOKENS, TEMPERATURE, TOP_P))[0].readout.tokens
    assert reply.tokens[:place] == steady[:place]
    assert reply.tokens[place:] != steady[place:]


@pytest.fixture
def terminal() -> Iterator[Callable[..., str]]:
    """A terminal of a server of its own, as `tmux` commands."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    name = f"steerkit-{time.monotonic_ns()}"

    def tmux(*words: str) -> str:
        return subprocess.run(["tmux", "-L", name, *words], check=True, capture_output=True, text=True).stdout

    yield tmux
    subprocess.run(["tmux", "-L", name, "kill-server"], check=False)


def test_in_a_terminal_a_dial_turned_mid_reply_changes_the_next_word(
    home: Path, terminal: Callable[..., str], real: Model
) -> None:
    terminal(
        "new-session", "-d", "-x", "100", "-y", "30", f"env XDG_DATA_HOME={home.parent.parent} {shlex.join(COMMAND)}"
    )

    def screen() -> str:
        return terminal("capture-pane", "-p")

    wait(lambda: "┼" in screen() or "○" in screen(), "the dials")
    terminal("send-keys", "-l", QUESTION)
    terminal("send-keys", "Enter")
    wait(lambda: len(re.findall(r"\w+", screen())) > 45, "words")
    for _ in range(9):
        terminal("send-keys", "C-Up")
    wait(lambda: "+0.90" in screen(), "the dial at 0.9")
    wait(lambda: list(home.glob("*.jsonl")), "the end of the reply")
    assert "▸" in screen()
    (path,) = home.glob("*.jsonl")
    check(path, real)
    terminal("send-keys", "C-q")


def test_in_two_browsers_a_dial_turned_mid_reply_changes_the_next_word(home: Path, real: Model) -> None:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with served(COMMAND) as address, chromium() as browser:
        for n_chats in (1, 2):
            talk(browser, address)
            wait(lambda n_chats=n_chats: len(list(home.glob("*.jsonl"))) == n_chats, "a chat that is kept")
            wait(
                lambda: all(len(load_chat(path)[0].said) == 2 for path in home.glob("*.jsonl")), "the end of the reply"
            )
    for path in home.glob("*.jsonl"):
        check(path, real)


def talk(browser: Any, address: str) -> None:
    """Ask the question in a page that stays open, and turn the dial up when words come."""
    page, until = opened(browser, address, width=1100, height=640)
    until("○".encode())
    page.mouse.click(300, 595)
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    until(b"tokens/s")
    page.wait_for_timeout(600)
    for _ in range(9):
        page.keyboard.press("Control+ArrowUp")
    until(b"+0.90")


def test_a_page_of_somebody_elses_may_not_drive_the_chat() -> None:
    from aiohttp.test_utils import TestClient, TestServer

    from steerkit.tui.web import ChatServer

    async def script() -> None:
        app = await ChatServer("false", "127.0.0.1", free_port(), lambda _text: None)._make_app()
        async with TestClient(TestServer(app)) as client:
            refused = await client.get("/ws", headers={"Origin": "https://elsewhere.example"})
            assert refused.status == 403
            lured = {"Host": "elsewhere.example:80", "Origin": "http://elsewhere.example:80"}
            assert (await client.get("/ws", headers=lured)).status == 403
            assert (await client.get("/", headers=lured)).status == 403
            page = await (await client.get("/", headers={"Host": "localhost:1234"})).text()
            assert "ws://localhost:1234/ws" in page
            assert "https://" not in page

    asyncio.run(script())
