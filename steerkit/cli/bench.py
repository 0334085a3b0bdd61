"""`steerkit bench`: how fast this machine is with this model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from steerkit.cli.console import out, print_json, print_table, progress, quiet_libraries
from steerkit.cli.options import Device, Dtype, Json, ModelName, open_model, say_notes


def bench(
    turns: Annotated[int, typer.Option("--turns", min=1, help="How often each thing is timed.")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="The longest reply that is timed.")] = 24,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Time replies, steered replies, probes and extraction on this machine, beside what its memory allows.

    Every token of one reply reads every weight once, so memory sets a ceiling; a batch shares that reading.
    """
    from steerkit.personas import find_pair
    from steerkit.speed import N_PROBES, N_ROWS, measure_speed

    loaded = open_model(model, device, dtype)
    with progress(loaded.name) as tell, quiet_libraries():
        found = measure_speed(loaded, find_pair("hal"), turns, max_tokens, tell)
    say_notes(loaded)
    if json:
        print_json(found.to_json())
        return
    console = out()
    console.print(Text.assemble((found.model, "bold"), f" · {found.device} {found.dtype}"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, rate, unit, of_ceiling in (
        ("one reply", found.unsteered, "tokens/s", True),
        ("steered", found.steered, "tokens/s", True),
        (f"steered, {N_PROBES} probes read", found.probed, "tokens/s", True),
        (f"{N_ROWS} replies, {N_ROWS} steerings", found.batch, "tokens/s", False),
        ("extraction from prompts", found.pairs, "pairs/s", False),
    ):
        share = f"{rate / found.ceiling:.0%} of the ceiling" if of_ceiling else ""
        table.add_row(name, Text(f"{rate:.1f}", "bold", justify="right"), unit, Text(share, "dim"))
    print_table(table)
    console.print(
        Text(
            f"ceiling {found.ceiling:.1f} tokens/s: {found.weights / 1e6:.0f} MB of weights at "
            f"{found.bandwidth / 1e9:.1f} GB/s · memory {found.memory / 1e6:.0f} MB",
            "dim",
        )
    )
    if found.loading:
        console.print(
            Text(
                f"path: {found.path}, held against plain transformers in {found.judging:.2f} s of the {found.loading:.2f} s "
                "of loading",
                "dim",
            )
        )
