"""The command line: parse, call, print. One file per help panel; nothing here computes.

Importing this must not import torch: `steerkit --help` answers at once.
"""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperGroup

# With other work on the cores, threads that spin while they wait make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from steerkit.cli import (
    bench,
    chat,
    compare,
    experiment,
    generate,
    libraries,
    make,
    measure,
    read,
    screen,
    serve,
    share,
    space,
    start,
    train,
)
from steerkit.cli.console import complain
from steerkit.cli.options import with_engine, with_thinking
from steerkit.errors import SteerkitError


class Group(TyperGroup):
    """Prints the user's errors as one line and exits with 1, whoever runs the command."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except SteerkitError as error:
            complain(str(error))
            raise typer.Exit(1) from error
        except BrokenPipeError:
            # The reader of our output went away, as `head` does; that is no failure.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find a persona's direction in a language model, turn it up and down as the model talks, and see what moved.",
)

app.command("demo", rich_help_panel="Start")(with_thinking(start.demo))
app.command("extract", rich_help_panel="Make")(with_engine(with_thinking(make.extract)))
app.command("calibrate", rich_help_panel="Make")(with_thinking(make.calibrate))
app.add_typer(libraries.personas_app, name="personas", rich_help_panel="Make")
app.add_typer(libraries.vectors_app, name="vectors", rich_help_panel="Make")
app.add_typer(libraries.models_app, name="models", rich_help_panel="Make")
app.command("generate", rich_help_panel="Use")(with_engine(with_thinking(generate.generate)))
app.command("chat", rich_help_panel="Use")(with_thinking(chat.chat))
app.command("read", rich_help_panel="Use")(with_thinking(read.read))
app.command("serve", rich_help_panel="Use")(with_thinking(serve.serve))
app.command("eval", rich_help_panel="Measure")(with_engine(with_thinking(measure.evaluate)))
app.command("sweep", rich_help_panel="Measure")(with_engine(with_thinking(measure.sweep)))
app.command("map", rich_help_panel="Measure")(with_thinking(space.draw_map))
app.command("spillover", rich_help_panel="Measure")(with_engine(with_thinking(space.spillover)))
app.command("experiment", rich_help_panel="Measure")(with_thinking(experiment.experiment))
app.command("psm", rich_help_panel="Measure")(with_engine(with_thinking(experiment.psm)))
app.command("screen", rich_help_panel="Measure")(with_engine(with_thinking(screen.screen)))
app.command("bench", rich_help_panel="Measure")(bench.bench)
app.command("train", rich_help_panel="Train")(with_thinking(train.train))
app.command("compare", rich_help_panel="Train")(with_thinking(compare.compare))
app.add_typer(share.export_app, name="export", rich_help_panel="Share")
app.command("import", rich_help_panel="Share")(share.import_file)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("persona-steerkit"))
        raise typer.Exit()


@app.callback()
def _root(
    _version: bool = typer.Option(
        False, "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
    ),
) -> None: ...


def main() -> None:
    """Run the command line."""
    app()
