"""A browser at a chat that `steerkit chat --web` serves."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: Sequence[str]) -> Iterator[str]:
    """The chat of a command, served to browsers at an address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    words = [*command, "--web", "--port", str(port)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        told = server.stderr.readline()
        assert address in told, told + server.stderr.read()
        try:
            yield address
        finally:
            server.terminate()
            server.stderr.close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Any, address: str, **viewport: int) -> tuple[Any, Callable[[bytes], None]]:
    """A page of the chat, and what waits until something has been drawn on it."""
    page = browser.new_page(viewport=viewport)
    seen: list[bytes] = []

    def listen(websocket: Any) -> None:
        websocket.on("framereceived", lambda frame: seen.append(frame if isinstance(frame, bytes) else frame.encode()))

    def until(text: bytes) -> None:
        end = time.monotonic() + PATIENCE
        while text not in b"".join(seen):
            assert time.monotonic() < end, f"waited in vain for {text!r}"
            page.wait_for_timeout(50)

    page.on("websocket", listen)
    page.goto(address)
    return page, until
