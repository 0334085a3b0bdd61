"""`chat` before its screen is drawn: what is missing or wrong is said in one line."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.generation import Sampling
from steerkit.tui.session import Plan


@pytest.fixture
def refused(workplace: Path) -> Callable[..., str]:
    """Run chat, which must fail well, and return its one line."""

    def refused(*arguments: str) -> str:
        before = sorted(workplace.rglob("*"))
        result = CliRunner().invoke(app, ["chat", *arguments])
        assert result.exit_code == 1, repr(result.exception)
        assert result.stdout == ""
        assert sorted(workplace.rglob("*")) == before
        (line,) = result.stderr.splitlines()
        assert line.startswith("error ")
        return line

    return refused


@pytest.mark.parametrize("arguments", [(), ("--web",)])
def test_without_the_extra_it_says_what_to_install(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "textual" if not arguments else "textual_serve.server", None)
    assert "pip install 'persona-steerkit[tui]'" in refused(*arguments)


def test_where_there_is_no_terminal_it_says_what_to_use(refused: Callable[..., str]) -> None:
    assert "generate" in refused()


def test_words_are_drawn_with_a_fixed_seed_unless_told_otherwise(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[Sampling] = []

    class Recorder:
        """Takes the place of the screen."""

        return_code = 0

        def __init__(self, plan: Plan) -> None:
            chosen.append(plan.sampling)

        def run(self) -> None:
            assert workplace.is_dir()

    monkeypatch.setenv("TEXTUAL_DRIVER", "none")
    monkeypatch.setattr("steerkit.tui.app.ChatApp", Recorder)
    for options in ((), ("--temperature", "0"), ("--seed", "3", "--top-p", "0.5", "--max-tokens", "7")):
        assert CliRunner().invoke(app, ["chat", *options]).exit_code == 0
    assert chosen == [Sampling(300, 0.7, 0.95, 0), Sampling(300, 0.0, 0.95, 0), Sampling(7, 0.7, 0.5, 3)]


def test_a_port_that_is_taken_is_said(refused: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f":{port} " in refused("--web", "--port", str(port))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "missing.jsonl"),
        ("", "chat"),
        ("This is not a chat.\n", "chat"),
        ('{"format": "something else"}\n', "chat"),
    ],
)
def test_a_chat_that_cannot_be_resumed_is_said(
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    workplace: Path,
    text: str | None,
    said: str,
) -> None:
    monkeypatch.setenv("TEXTUAL_DRIVER", "none")
    path = workplace / "missing.jsonl"
    if text is not None:
        path.write_text(text)
    line = refused("--resume", str(path))
    assert said in line
    assert str(path) in line
    assert text is None or path.read_text() == text
