"""How the command line speaks: results on stdout, talk on stderr, one voice for both."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

STAGES = {
    "fetch": "fetching the default model",
    "unpack": "unpacking it",
    "convert": "converting it, once",
    "start": "starting vLLM",
    "extract": "extracting",
    "measure": "measuring",
    "choose": "choosing layers for",
    "limit": "finding the limit of",
    "loops": "looking for loops of",
    "prove": "testing",
    "write": "writing",
    "train": "training",
    "bake": "baking",
    "sweep": "sweeping",
    "time": "timing",
    "positions": "listening to everybody",
    "match": "matching KL",
    "contexts": "showing contexts",
    "talk": "holding conversations",
    "workers": "waiting for workers",
}


def out() -> Console:
    """Where results go. A pipe gets lines as long as they are."""
    return Console(file=sys.stdout, highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def talk() -> Console:
    """Where everything else goes."""
    return Console(file=sys.stderr, highlight=False, emoji=False)


def print_table(table: Table) -> None:
    """Print a table of results; in a pipe no cell is folded."""
    width = None if sys.stdout.isatty() else 10_000
    Console(file=sys.stdout, highlight=False, emoji=False, width=width).print(table)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object, and nothing else, on stdout."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


def warn(message: str) -> None:
    """Say something the user should know, in one line on stderr."""
    talk().print(Text.assemble(("note ", "yellow"), message), soft_wrap=True)


def complain(message: str) -> None:
    """Say what went wrong, in one line on stderr."""
    talk().print(Text.assemble(("error ", "bold red"), " ".join(message.split())), soft_wrap=True)


@contextmanager
def progress(label: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Show bars with the time left on stderr; they vanish when the work is done, and a pipe never sees them."""
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(compact=True))
    console = talk()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            description = f"{STAGES.get(stage, stage)} {label if stage not in ('fetch', 'unpack', 'convert') else ''}"
            if stage not in tasks:
                tasks[stage] = bars.add_task(description.strip(), total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the warnings of libraries off the user's terminal while a model loads and runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
