"""`steerkit generate`: one prompt under one steering or several."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.cli.console import out, print_json, quiet_libraries, talk, warn
from steerkit.cli.options import (
    TEMPERATURE,
    TOP_P,
    Device,
    Dtype,
    Json,
    Layers,
    MaxTokens,
    ModelName,
    Output,
    Seed,
    Temperature,
    TopP,
    open_model,
    parse_steering,
    say_notes,
)
from steerkit.errors import SteerkitError
from steerkit.thinking import folded, unfinished_note
from steerkit.tints import tinted

if TYPE_CHECKING:
    from rich.live import Live

    from steerkit.generation import Probe, Sampling, Step
    from steerkit.models import Model
    from steerkit.steering import Steering


def generate(
    prompt: Annotated[str, typer.Argument(help="What to say to the model; - reads it from stdin.")],
    steer: Annotated[
        list[str] | None,
        typer.Option("--steer", "-s", help="A steering, as '0.8 hal - 0.3 warmth'; several are compared."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Put the unsteered reply beside.")] = False,
    dials: Annotated[
        str | None, typer.Option("--dials", help="Multiply each steering by these, as -1,0,1: a grid of replies.")
    ] = None,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", "-p", help="Vectors to read; those that steer if none is named.")
    ] = None,
    system: Annotated[str, typer.Option("--system", help="A system prompt.")] = "",
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Steer the prompt too, not only the reply.")] = False,
    layers: Layers = None,
    max_tokens: MaxTokens = 80,
    temperature: Temperature = TEMPERATURE,
    top_p: TopP = TOP_P,
    seed: Seed = 0,
    output: Output = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Let the model answer under a steering, every word tinted by its score.

    With --compare, several -s, or --dials, replies stand side by side; with a temperature they are drawn with the same
    random numbers, so that what differs is the steering. -o FILE.html or FILE.svg keeps them as a page or a drawing.
    """
    from steerkit.generation import Sampling

    if output is not None:
        from steerkit.plots.pages import drawer

        drawer(output)
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = open_model(model, device, dtype)
    messages = [{"role": "system", "content": system}] if system else []
    tokens = loaded.chat_tokens([*messages, {"role": "user", "content": text}], max_tokens)
    steerings, probes = _plan(loaded, steer or [], dials, compare, layers, everywhere, probe or [])
    for line in dict.fromkeys(line for steering in steerings for line in steering.warnings()):
        warn(line)
    sampling = Sampling(max_tokens, temperature, top_p, seed)
    say_notes(loaded)
    many = len(steerings) > 1 or compare or output is not None
    replies = run(loaded, text.strip(), tokens, steerings, probes, sampling, show=not json)
    if json:
        print_json({"model": loaded.name, "prompt": text.strip(), "replies": replies} if many else replies[0])
    if output is not None:
        from steerkit.plots.pages import save_picture

        save_picture({"model": loaded.name, "prompt": text.strip(), "replies": replies}, output)
        talk().print(Text.assemble(("saved", "dim"), f"  {output}"), soft_wrap=True)


def _plan(
    model: Model,
    expressions: list[str],
    dials: str | None,
    compare: bool,
    layers: str | None,
    everywhere: bool,
    names: list[str],
) -> tuple[list[Steering], list[Probe]]:
    """Which steerings to run, the unsteered first where it is wanted, and what to read."""
    from steerkit.generation import Probe
    from steerkit.steering import Steering
    from steerkit.vectors import VectorSet

    vectors = VectorSet(model.fingerprint)
    written = [parse_steering(text, vectors, layers, everywhere) for text in expressions]
    used = {term.name or term.vector.name: term.vector for steering in written for term in steering.terms}
    steerings = _grid(written, dials)
    if compare or not steerings:
        steerings = [Steering()] + [steering for steering in steerings if steering]
    wanted = {name: vectors[name] for name in names} or used
    return steerings, [Probe.of(vector, name=name) for name, vector in wanted.items()]


def _grid(steerings: list[Steering], dials: str | None) -> list[Steering]:
    """Every steering at every dial."""
    if dials is None:
        return steerings
    if not steerings:
        raise SteerkitError("--dials multiplies a steering, and there is none; add one, as -s '1 hal'")
    try:
        factors = [float(part) for part in dials.split(",")]
    except ValueError as error:
        raise SteerkitError(f"--dials {dials!r} is not a list of numbers; write -1,0,1") from error

    def scaled(steering: Steering, factor: float) -> Steering:
        return replace(steering, terms=tuple(replace(term, dial=term.dial * factor) for term in steering.terms))

    return [scaled(steering, factor) for steering in steerings for factor in factors]


def run(
    model: Model,
    prompt: str,
    tokens: Sequence[int],
    steerings: Sequence[Steering],
    probes: Sequence[Probe],
    sampling: Sampling,
    show: bool,
) -> list[dict[str, Any]]:
    """Generate under every steering in one batch, showing words as they come, and return plain data."""
    from steerkit.generation import stream

    started = time.perf_counter()
    rows: list[list[Step]] = [[] for _ in steerings]
    with quiet_libraries(), _Screen(model, prompt, steerings, probes, show) as screen:
        for step in stream(model, [tokens] * len(steerings), steerings, probes, sampling):
            rows[step.row].append(step)
            screen.update(rows, step)
    seconds = time.perf_counter() - started
    chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
    replies = [
        {**_plain(model, prompt, steering, probes, steps, seconds), "sampling": chosen}
        for steering, steps in zip(steerings, rows, strict=True)
    ]
    _sum_up(replies, seconds, sampling, show)
    return replies


def _plain(
    model: Model, prompt: str, steering: Steering, probes: Sequence[Probe], steps: Sequence[Step], seconds: float
) -> dict[str, Any]:
    """One reply as the JSON that scripts rely on."""
    from steerkit.generation import gather

    reply = gather(model, (), steps, probes)
    readout, names = reply.readout, reply.readout.probes
    thought = {"thought": reply.thought, "n_thought": reply.n_thought, "unfinished": reply.unfinished}
    return {
        "model": model.name,
        "path": model.path,
        "prompt": prompt,
        "steer": str(steering),
        "reply": reply.text,
        **(thought if reply.n_thought else {}),
        "n_tokens": len(reply.tokens),
        "seconds": round(seconds, 3),
        "scores": {name: round(mean, 4) for name, mean in readout.means().items()},
        "tokens": [
            {"text": text, "scores": {n: round(x, 4) for n, x in zip(names, row, strict=True)}}
            for text, row in zip(readout.tokens, readout.scores.tolist(), strict=True)
        ],
    }


class _Screen:
    """Shows replies while they are made: one as running text, several side by side."""

    def __init__(
        self, model: Model, prompt: str, steerings: Sequence[Steering], probes: Sequence[Probe], show: bool
    ) -> None:
        self._model, self._prompt, self._steerings, self._probes = model, prompt, steerings, probes
        self._console = out()
        self._show = show
        self._live: Live | None = None
        self._n_thought = 0

    def __enter__(self) -> _Screen:
        if self._show and len(self._steerings) > 1 and self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=12).__enter__()
        return self

    def update(self, rows: Sequence[Sequence[Step]], step: Step) -> None:
        """Show one more word."""
        if not self._show:
            return
        self._rows = rows
        if len(self._steerings) == 1 and step.thought:
            self._n_thought += 1
        elif len(self._steerings) == 1:
            self._fold()
            self._console.print(_words([step]), end="", soft_wrap=True)
        elif self._live is not None:
            self._live.update(self._table())

    def _fold(self) -> None:
        """A line in place of the thought that is over."""
        if self._n_thought:
            self._console.print(Text(folded(self._n_thought), "dim italic"))
        self._n_thought = 0

    def _table(self) -> Any:
        from steerkit.plots.pages import replies_table

        named = zip(self._steerings, self._rows, strict=True)
        return replies_table(self._prompt, [_plain(self._model, "", s, self._probes, steps, 0.0) for s, steps in named])

    def __exit__(self, *problem: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*problem)
        elif self._show and hasattr(self, "_rows"):
            self._fold()
            self._console.print("" if len(self._steerings) == 1 else self._table())


def _words(steps: Sequence[Step]) -> Any:
    """Words as they come; the white space at their edges matters here."""
    text = Text()
    for step in steps:
        tint = tinted(["|", step.text, "|"], [0.0, step.scores[0] if step.scores else 0.0, 0.0])
        text.append_text(tint[1:-1])
    return text


def _sum_up(replies: Sequence[dict[str, Any]], seconds: float, sampling: Sampling, show: bool) -> None:
    """One line of what it took, how words were chosen and how it scored; one where replies ended in their thoughts."""
    if n_cut := sum(reply.get("unfinished", False) for reply in replies):
        warn(unfinished_note(n_cut, len(replies), "--max-tokens", "--thinking off"))
    n_tokens = sum(reply["n_tokens"] + reply.get("n_thought", 0) for reply in replies)
    parts = [f"{n_tokens} tokens", f"{n_tokens / max(seconds, 1e-9):.0f}/s"]
    among = f", top-p {sampling.top_p:g}" if sampling.top_p < 1 else ""
    drawn = f"temperature {sampling.temperature:g}{among}, seed {sampling.seed}"
    parts.append(drawn if sampling.temperature > 0 else "greedy")
    if len(replies) == 1:
        parts += [f"{name} {score:+.2f}" for name, score in replies[0]["scores"].items()]
    if show:
        talk().print(Text(" · ".join(parts), "dim"), soft_wrap=True)
