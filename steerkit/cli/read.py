"""`steerkit read`: how a text, or a file of chats, scores on vectors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steerkit.cli.console import out, print_json, progress, quiet_libraries
from steerkit.cli.options import Device, Dtype, Json, ModelName, open_model, say_notes
from steerkit.errors import PromptError, SteerkitError
from steerkit.tints import bar, tinted

if TYPE_CHECKING:
    from steerkit.generation import Turn

ASKED = "Say something."


def read(
    text: Annotated[str, typer.Argument(help="A text, - for stdin, or a .jsonl file of chats.")],
    probe: Annotated[list[str], typer.Option("--probe", "-p", help="Vectors to read; repeat for several.")],
    prompt: Annotated[str, typer.Option("--prompt", help="What a plain text was said in answer to.")] = ASKED,
    layer: Annotated[int | None, typer.Option("--layer", help="Where to read; each vector's own layer if not.")] = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Read how far every word stands towards a persona: 0 is the Assistant, 1 the persona asked for outright.

    A plain text is read as the assistant's answer to --prompt. In a .jsonl file each line is a chat, a list of messages
    or {"messages": [...]}, or it is what `chat` saves; every turn is read.
    """
    file = text.endswith(".jsonl")
    if file:
        from steerkit.chats import date_in, read_chats

        chats, date = read_chats(Path(text)), date_in(Path(text))
    else:
        date = ""
        chats = [_answer(sys.stdin.read() if text == "-" else text, prompt)]
    loaded = open_model(model, device, dtype).at_date(date)
    if loaded.include_thoughts:
        raise SteerkitError("read scores what is said, and templates leave out what was thought; drop --steer-thoughts")
    from steerkit.generation import Probe, read_chat
    from steerkit.vectors import VectorSet

    vectors = VectorSet(loaded.fingerprint)
    probes = [Probe.of(vectors[name], layer, name) for name in probe]
    with progress("chats") as tell, quiet_libraries():
        turns = []
        for i, chat in enumerate(chats):
            try:
                turns.append(read_chat(loaded, chat, probes))
            except PromptError as error:
                raise PromptError(f"chat {i + 1}: {error}" if len(chats) > 1 else str(error)) from error
            if len(chats) > 1:
                tell("reading", i + 1, len(chats))
    say_notes(loaded)
    thoughts = [[turn.get("thought", "") for turn in chat] for chat in chats]
    if json:
        result = _result(loaded.name, probe, turns, thoughts) if file else _single(loaded.name, probe, turns[0][-1])
        print_json(result | ({"thought": thoughts[0][-1]} if not file and thoughts[0][-1] else {}))
    else:
        _show(turns if file else [[turns[0][-1]]], probe, thoughts if file else [[thoughts[0][-1]]])


def _answer(text: str, prompt: str) -> list[dict[str, str]]:
    if not text.strip():
        raise PromptError("there is no text to read; give some, or a .jsonl file of chats")
    from steerkit.thinking import split_thought

    thought, said = split_thought(text.strip())
    if not said:
        raise PromptError("the text is a thought without a reply; give the reply, too")
    reply = {"role": "assistant", "content": said, **({"thought": thought} if thought else {})}
    return [{"role": "user", "content": prompt}, reply]


def _tokens(turn: Turn) -> list[dict[str, Any]]:
    names, readout = turn.readout.probes, turn.readout
    return [
        {"text": text, "scores": {name: round(x, 4) for name, x in zip(names, row, strict=True)}}
        for text, row in zip(readout.tokens, readout.scores.tolist(), strict=True)
    ]


def _rounded(turn: Turn) -> dict[str, float]:
    return {name: round(mean, 4) for name, mean in turn.readout.means().items()}


def _single(model: str, probes: Sequence[str], turn: Turn) -> dict[str, Any]:
    return {"model": model, "probes": list(probes), "tokens": _tokens(turn), "scores": _rounded(turn)}


def _result(
    model: str, probes: Sequence[str], chats: Sequence[Sequence[Turn]], thoughts: Sequence[Sequence[str]]
) -> dict[str, Any]:
    turns = [
        {
            "chat": i,
            "role": turn.role,
            "text": "".join(turn.readout.tokens),
            **({"thought": thought} if thought else {}),
            "scores": _rounded(turn),
            "tokens": _tokens(turn),
        }
        for i, chat in enumerate(chats)
        for turn, thought in zip(chat, thoughts[i], strict=True)
    ]
    spoken = [turn["scores"] for turn in turns if turn["role"] == "assistant" and turn["scores"]]
    means = {name: round(sum(s[name] for s in spoken) / len(spoken), 4) for name in probes} if spoken else {}
    return {"model": model, "probes": list(probes), "turns": turns, "scores": means}


def _show(chats: Sequence[Sequence[Turn]], probes: Sequence[str], thoughts: Sequence[Sequence[str]]) -> None:
    """Every turn with a bar a probe, its words tinted by the first probe; what was thought is folded."""
    from steerkit.thinking import folded

    console = out()
    for i, chat in enumerate(chats):
        if len(chats) > 1:
            console.print(f"[dim]chat {i + 1}[/]")
        for turn, thought in zip(chat, thoughts[i], strict=True):
            means = turn.readout.means()
            scores = "  ".join(f"{name} {bar(means[name])} {means[name]:+.2f}" for name in probes if name in means)
            console.print(f"[bold]{turn.role}[/]  [dim]{scores}[/]" if len(chat) > 1 else f"[dim]{scores}[/]")
            if thought:
                console.print(f"[dim italic]{folded(len(thought.split()), 'words')}[/]")
            console.print(tinted(turn.readout.tokens, turn.readout.scores[:, 0].tolist()))
