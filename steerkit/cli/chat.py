"""`steerkit chat`: talk to a model with dials under your fingers, in the terminal or in a browser."""

from __future__ import annotations

import os
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from steerkit.cli.console import talk
from steerkit.cli.options import (
    TEMPERATURE,
    TOP_P,
    Device,
    Dtype,
    ModelName,
    Seed,
    Temperature,
    TopP,
    thinking_chosen,
)
from steerkit.errors import SteerkitError

if TYPE_CHECKING:
    from steerkit.chats import Chat

MISSING = "chat needs the tui extra; install it with: pip install 'persona-steerkit[tui]'"


def chat(
    steer: Annotated[str, typer.Option("--steer", "-s", help="Where the dials begin, as '0.8 hal - 0.3 warmth'.")] = "",
    probe: Annotated[
        list[str] | None, typer.Option("--probe", "-p", help="A vector to read that gets no dial; repeat for several.")
    ] = None,
    system: Annotated[str, typer.Option("--system", help="A system prompt.")] = "",
    resume: Annotated[Path | None, typer.Option("--resume", help="A saved chat to go on with.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve the same in a browser.")] = False,
    host: Annotated[str, typer.Option("--host", help="With --web: where to serve; others let other machines in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="With --web: the port.")] = 8017,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="The longest reply.")] = 300,
    temperature: Temperature = TEMPERATURE,
    top_p: TopP = TOP_P,
    seed: Seed = 0,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Talk to the model with dials: turn one in the middle of a reply, and it acts from the next word on.

    Every word is tinted by its score, steered or not. The chat is kept turn by turn; F1 lists the keys.
    """
    try:
        import textual  # noqa: F401
        import textual_serve.server  # noqa: F401
    except ImportError as error:
        raise SteerkitError(MISSING) from error
    from steerkit.chats import load_chat

    # What cannot be read is said here, before a browser waits for it.
    resumed = load_chat(resume) if resume is not None else (None, "")
    if web:
        _serve(host, port)
        return
    if not sys.stdout.isatty() and "TEXTUAL_DRIVER" not in os.environ:
        raise SteerkitError("chat draws on a terminal, and this is none; use generate in scripts, or chat --web")
    sampling, place = (max_tokens, temperature, top_p, seed), (model, device, dtype)
    _run(steer, tuple(probe or ()), system, resume or _kept(), resumed, sampling, place)


def _run(
    steer: str,
    probes: tuple[str, ...],
    system: str,
    kept: Path,
    resumed: tuple[Chat | None, str],
    sampling: tuple[int, float, float, int],
    place: tuple[str | None, str | None, str],
) -> None:
    """Run the application here, and say at the end where the chat is kept."""
    from steerkit.generation import Sampling
    from steerkit.tui.app import ChatApp
    from steerkit.tui.session import Plan

    # The model is loaded in a thread of its own, which does not know what this one was told.
    thinking = thinking_chosen()

    def load(tell: object) -> object:
        import warnings

        from steerkit.loading import load_model

        warnings.simplefilter("ignore")
        return thinking.applied(load_model(*place, tell))  # type: ignore[arg-type]

    found, notice = resumed
    plan = Plan(
        load,  # type: ignore[arg-type]
        steer or (found.steer if found else ""),
        probes,
        system,
        Sampling(*sampling),
        place[0] is not None,
        kept,
        found,
        notice,
    )
    app = ChatApp(plan)
    app.run()
    if plan.kept.exists():
        words = ["steerkit", "chat", "--resume", str(plan.kept), *(["-m", place[0]] if place[0] else [])]
        told = Text.assemble(("kept", "dim"), f"  {plan.kept}\n", ("go on with", "dim"), f"  {shlex.join(words)}")
        talk().print(told, soft_wrap=True)
    if app.return_code:
        raise typer.Exit(1)


def _kept() -> Path:
    """Where a new chat is kept: beside the user's other data, named by the time."""
    import platformdirs

    name = f"{datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}.jsonl"
    return platformdirs.user_data_path("steerkit") / "chats" / name


def _serve(host: str, port: int) -> None:
    """Serve this very command without --web, one process a browser."""
    from steerkit.tui.web import serve

    words = [word for word in sys.argv[1:] if word != "--web"]
    serve(shlex.join([sys.executable, "-m", "steerkit", *words]), host, port, talk().print)
