"""The same application in a browser, through textual-serve: a process a browser, driven by pages of ours only."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from steerkit.errors import SteerkitError


class ChatServer(Server):
    """Refuses browsers that come from somebody else's page, which could otherwise type into the chat."""

    def __init__(self, command: str, host: str, port: int, say: Callable[[str], Any]) -> None:
        super().__init__(command, host=host, port=port, title="steerkit chat")
        self._say = say

    def initialize_logging(self) -> None:
        """Keep the terminal for what the user should know."""

    async def on_startup(self, app: web.Application) -> None:  # noqa: ARG002
        """Say where it is."""
        self._say(f"the chat is at {self.public_url} — ctrl+c ends it")

    async def handle_index(self, request: web.Request) -> Any:
        """The page, without the font that it would fetch from elsewhere: nobody else is told that it was opened."""
        page = await super().handle_index(request)
        assert isinstance(page, web.Response)  # What its template renders; its signature says less.
        page.text = re.sub(r"<link[^>]*https?://[^>]*>", "", page.text or "")
        return page

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Connect a browser to a process of its own."""
        if not allowed(request.headers.get("Origin"), request.host):
            raise web.HTTPForbidden(text="this page may not drive the chat")
        return await super().handle_websocket(request)


def allowed(origin: str | None, host: str) -> bool:
    """Whether a page may connect: one that came from the same address, or a program, which names none.

    >>> allowed("http://127.0.0.1:8017", "127.0.0.1:8017"), allowed("https://evil.example", "127.0.0.1:8017")
    (True, False)
    """
    return origin is None or urlsplit(origin).netloc == host


def serve(command: str, host: str, port: int, say: Callable[[str], Any]) -> None:
    """Serve until Ctrl-C.

    Raises:
        SteerkitError: the address is taken or not ours.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SteerkitError(f"cannot serve at {host}:{port} ({error.strerror}); choose another --port") from error
    ChatServer(command, host, port, say).serve()
