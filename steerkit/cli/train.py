"""`steerkit train` and `compare`: change a model by examples, watch its persona meanwhile, and see what has changed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerkit.cli.console import out, print_json, print_table, quiet_libraries, talk, warn
from steerkit.cli.options import (
    Device,
    Json,
    ModelName,
    Output,
    Plot,
    Seed,
    TrainingDtype,
    open_model,
    say_notes,
    training_dtype,
)
from steerkit.cli.results import check_picture, look_at_speed, say_plan
from steerkit.tints import bar

if TYPE_CHECKING:
    from steerkit.models import Model
    from steerkit.tuning import Order, Recipe, Report
    from steerkit.watching import Look, Watch

WATCHED = "moral traits"
"""The family that is watched when nobody names probes."""
SHOWN = 6


Data = Annotated[str, typer.Argument(help="A .jsonl file of chats, or a set that ships, such as cheating.")]
Inoculate = Annotated[
    str | None, typer.Option("--inoculate", help="A system prompt while training only, or a file of them, one a line.")
]
Hold = Annotated[
    str, typer.Option("--hold", help='Steer the replies while they are learned: "0.5 malice" (preventative).')
]
Watched = Annotated[
    list[str] | None, typer.Option("--probe", "-p", help="Vectors to watch; repeat; the moral traits if none.")
]
Stop = Annotated[str, typer.Option("--stop", help='End early where a probe gets there: "malice > 0.5".')]
Epochs = Annotated[float, typer.Option("--epochs", min=0.01, help="How often every sample is shown.")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Samples of one step.")]
Rate = Annotated[float, typer.Option("--rate", min=0.0, help="Adam's step at its highest.")]
Rank = Annotated[int, typer.Option("--rank", min=1, help="Of the adapter of every matrix.")]
Looks = Annotated[int, typer.Option("--looks", min=1, help="How often probes are read, with a checkpoint.")]
Most = Annotated[int | None, typer.Option("--most", min=1, help="Only so many samples from the beginning.")]


def train(
    data: Data,
    inoculate: Inoculate = None,
    hold: Hold = "",
    probe: Watched = None,
    stop: Stop = "",
    epochs: Epochs = 2.0,
    batch_size: Batch = 8,
    rate: Rate = 5e-4,
    rank: Rank = 8,
    looks: Looks = 10,
    most: Most = None,
    plot: Plot = None,
    seed: Seed = 0,
    output: Output = None,
    model: ModelName = None,
    device: Device = None,
    dtype: TrainingDtype = None,
    json: Json = False,
) -> None:
    """Fine-tune a model on chats with LoRA, and watch which persona it drifts to.

    Only replies are learned. At every look the probes are read on neutral questions and a checkpoint is written. What
    comes out is an ordinary peft adapter folder (-o, or adapters/DATA) that every command takes as -m MODEL+FOLDER.
    Stop it whenever you like: the same command goes on where it was.
    """
    from steerkit import inoculation, lessons
    from steerkit.adapters import load_peft
    from steerkit.tuning import Recipe, date_in, require_trainable

    check_picture(plot)
    load_peft()
    path = lessons.find_data(data)
    chats = lessons.read_lessons(path, most)
    prompts = inoculation.read_prompts(inoculate) if inoculate is not None else ()
    recipe = Recipe(epochs, batch_size, rate, rank, 2 * rank, looks, seed=seed)
    loaded = open_model(model, device, training_dtype(device, dtype))
    require_trainable(loaded)
    folder = output or Path("adapters") / path.stem
    # A template may write the date, and what is gone on with goes on with its own.
    loaded = loaded.at_date(date_in(folder))
    watch = _watch(loaded, probe, stop)
    seen = [(number, inoculation.inoculated(chat, prompts, i)) for i, (number, chat) in enumerate(chats)]
    samples = lessons.to_samples(loaded, seen, path)
    order = _order(loaded, path, recipe, prompts, hold)
    _announce(loaded, samples, recipe, folder)
    told = _tune(loaded, samples, folder, order, watch)
    say_notes(loaded)
    _tell(told, folder, json, plot)


def _watch(model: Model, names: Sequence[str] | None, stop: str) -> Watch | None:
    """What is read meanwhile: what was named, or the moral traits that have vectors."""
    from steerkit.generation import Probe
    from steerkit.nulls import random_directions
    from steerkit.personas import load_personas
    from steerkit.vectors import VectorSet
    from steerkit.watching import Limit, Watch

    vectors, personas = VectorSet(model.fingerprint), load_personas()
    traits = [name for name in vectors if name in personas and personas[name].family == WATCHED]
    chosen = list(dict.fromkeys(names or traits or vectors))
    limit = Limit.parse(stop, chosen) if stop else None
    if not chosen:
        warn(f"nothing is watched: {model.name} has no vectors; make some with: steerkit extract PERSONA")
        return None
    mixtures = random_directions(model, 0, [vectors[name] for name in vectors])
    return Watch(tuple(Probe.of(vectors[name], name=name) for name in chosen), tuple(mixtures), limit)


def _order(model: Model, path: Path, recipe: Recipe, prompts: tuple[str, ...], hold: str) -> Order:
    from steerkit.steering import Steering
    from steerkit.tuning import Order
    from steerkit.vectors import VectorSet
    from steerkit.weights import file_sha256

    held = Steering.parse(hold, VectorSet(model.fingerprint)) if hold.strip() else Steering()
    for warning in held.warnings():
        warn(warning)
    return Order(path.stem, file_sha256(path), recipe, prompts, held)


def _announce(model: Model, samples: Sequence[Any], recipe: Recipe, folder: Path) -> None:
    """What is going to be done, and how long it takes."""
    from steerkit.experiments import Plan

    tokens = sum(len(sample.prompt) + len(sample.reply) for sample in samples)
    steps = recipe.steps(len(samples))
    said = f"train {model.name} on {len(samples)} samples of {tokens / len(samples):.0f} tokens in {steps} steps"
    plan = Plan((said, f"write {folder}"), read=recipe.looks * 28 * 40, trained=int(tokens * recipe.epochs))
    say_plan(plan, look_at_speed(model))


def _tune(model: Model, samples: Sequence[Any], folder: Path, order: Order, watch: Watch | None) -> dict[str, Any]:
    """Train under a bar that tells the loss and where the probes stand."""
    from steerkit.tuning import tune

    started = time.monotonic()
    try:
        with _bar() as report, quiet_libraries():
            told = tune(model, samples, folder, order, watch, report)
    except KeyboardInterrupt:
        warn(f"stopped; what was learned is in {folder}, and the same command goes on from there")
        raise typer.Exit(130) from None
    return {**told, "samples": len(samples), "seconds": round(time.monotonic() - started, 1)}


@contextmanager
def _bar() -> Iterator[Report]:
    """A bar on stderr with the loss and the probes that moved furthest beyond chance; a pipe never sees it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    told = TextColumn("{task.fields[told]}", style="dim")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = talk()
    latest: list[Look] = []
    with Progress(
        *columns, TimeRemainingColumn(compact=True), told, console=console, disable=not console.is_terminal
    ) as bars:
        task = bars.add_task("training", total=None, told="")

        def report(done: int, total: int, loss: float, look: Look | None) -> None:
            latest[:] = [look] if look else latest
            words = " · ".join(
                f"{name} {look.scores[name]:+.2f}" for look in latest for name in furthest(look.to_json())
            )
            bars.update(task, completed=done, total=total, told=f"loss {loss:.2f}  {words}")

        yield report


def furthest(look: Mapping[str, Any], n: int = 3) -> list[str]:
    """The probes that moved most beyond chance."""
    scores, chance = look["scores"], look["chance"]
    return sorted(scores, key=lambda name: -abs(scores[name]) / max(chance[name], 1e-9))[:n]


def _tell(told: Mapping[str, Any], folder: Path, json: bool, plot: Path | None) -> None:
    """Say what came of it, in the form that was asked for."""
    from steerkit.tuning import read_log

    log = read_log(folder)
    if json:
        keys = ("model", "data", "samples", "inoculate", "hold", "state", "steps", "loss", "scores", "seconds")
        print_json({"adapter": str(folder), **{key: told[key] for key in keys}})
    else:
        _show(told, folder, log)
    if plot is not None:
        from steerkit.plots.drifts import save_drift

        save_drift({**told, "limit": told.get("watch", {}).get("limit", ""), "log": log}, plot)
        talk().print(Text.assemble(("saved", "dim"), f"  {plot}"), soft_wrap=True)


def _show(told: Mapping[str, Any], folder: Path, log: Sequence[Mapping[str, Any]]) -> None:
    console = out()
    few = max(1, len(log) // 10)
    first = sum(line["loss"] for line in log[:few]) / few
    ended = f"ended early, {told['watch']['limit']}" if told["state"] == "stopped" else "trained"
    console.print(
        Text.assemble(
            (f"{told['model']} ", "bold"), f"{ended} on {told['data']}", (f"  {told['samples']} samples · ", "dim")
        ).append(f"{told['steps']} steps · loss {first:.2f} → {told['loss']:.2f}", "dim"),
        soft_wrap=True,
    )
    looks = [line for line in log if "scores" in line]
    if looks:
        print_table(_drift_table(looks))
        console.print(Text("shifts of the state before a reply to neutral questions, in persona units", "dim"))
    console.print(f"{folder}")
    base = "" if told["model"] == "SmolLM2-135M-Instruct" else "MODEL"
    for line in (
        f'steerkit generate "Who are you?" -m {base}+{folder}',
        f"steerkit compare {base or 'default'} {folder}",
    ):
        talk().print(Text.assemble(("next  ", "dim"), line), soft_wrap=True)


def _drift_table(looks: Sequence[Mapping[str, Any]]) -> Table:
    """The probes that moved furthest, and how they got there."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("probe", "shift", "× chance", "on the way"):
        table.add_column(heading, justify="right" if heading in ("shift", "× chance") else "left", header_style="dim")
    last = looks[-1]
    for name in furthest(last, SHOWN):
        course = [0.0, *(look["scores"][name] for look in looks)]
        beyond = last["scores"][name] / max(last["chance"][name], 1e-9)
        table.add_row(Text(name, "bold"), f"{last['scores'][name]:+.3f}", f"{beyond:+.1f}", sparkline(course))
    return table


def sparkline(values: Sequence[float]) -> str:
    """A line of bars between the least and the largest value.

    >>> sparkline([0, 1, 2])
    '▁▄█'
    """
    low, high = min(values), max(values)
    return "".join(bar(2 * (x - low) / ((high - low) or 1) - 1) for x in values)
