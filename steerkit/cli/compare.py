"""`steerkit compare`: whether what changed between two models is a selection within the first one's persona space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from steerkit.cli.console import out, print_json, print_table, progress, quiet_libraries, talk
from steerkit.cli.options import Device, Dtype, Json, Plot, Seed, open_model, say_notes
from steerkit.cli.results import check_picture, stoppable

if TYPE_CHECKING:
    from steerkit.models import Model
    from steerkit.shifts import Ground, Settings
    from steerkit.vectors import SteeringVector

COLOURS = {"selection": "bold green", "not selection": "bold red", "cannot tell": "bold yellow"}
TRANSFERRED = 8
"""At most so many vectors are tried on both models when nobody names any."""


def compare(
    base: Annotated[str, typer.Argument(help="The model before: default, a hub id, a folder or a .gguf file.")],
    tuned: Annotated[list[str], typer.Argument(help="Models after: adapter folders, MODEL+ADAPTER, or any -m takes.")],
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Compare every checkpoint of a training, too, as a curve.")
    ] = False,
    probe: Annotated[
        list[str] | None, typer.Option("--probe", "-p", help="Vectors that span the persona space; all if none.")
    ] = None,
    transfer: Annotated[
        list[str] | None,
        typer.Option("--transfer", "-t", help="Vectors to try on both models; repeat; those that stand out if none."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Where the verdict is given; the vectors' own if none.")
    ] = None,
    plot: Plot = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Ask whether tuning was a selection within the base model's persona space: where the change lies, and along whom.

    Both models read the same neutral questions. The share of the shift that lies in the span of the base's persona
    vectors stands beside random subspaces, ordinary text's directions and random changes of the model. The checkpoints
    of one training make a curve; several models stand side by side.
    """
    from steerkit import selection
    from steerkit.shifts import Settings

    check_picture(plot)
    settings = Settings(seed=seed)
    from steerkit.kept import at_kept_date

    before = at_kept_date(open_model(base, device, dtype))
    names = [name for each in tuned for name in expand(each, base, checkpoints)]
    vectors = _vectors(before, probe)
    selection.require_space(vectors, before.n_layers, layer)
    with stoppable("measurements"), quiet_libraries():
        with progress() as tell:
            ground = keep_ground(before, settings, tell)
        results = []
        for name in names:
            after = _open_after(before, name, base, (device, dtype))
            results.append(_compare(before, after, vectors, ground, settings, layer))
            if name == names[-1] and (transfer or len(names) == 1):
                wanted = transfer or _with_persona(before, [*results[-1]["selected"], *results[-1]["left"]])
                results[-1]["transfer"] = _transfer(before, after, wanted, settings)
    say_notes(before)
    course = selection.trajectory(results) if is_course([result["tuned"] for result in results]) else None
    told = {"results": results, "trajectory": course}
    _tell(told, json, plot)


def expand(name: str, base: str, checkpoints: bool) -> list[str]:
    """What `-m` would be given for one model after: an adapter folder belongs to the base; its checkpoints go first."""
    from steerkit.adapters import CONFIG, TRAINING, list_checkpoints

    folder = Path(name).expanduser()
    if not (folder / CONFIG).is_file() and not (folder / TRAINING).is_file():
        return [name]
    found = list_checkpoints(folder) if checkpoints or not (folder / CONFIG).is_file() else []
    # The last checkpoint of a training is what it ended as, or has come to.
    return [f"{base}+{path}" for path in found or [folder]]


def _open_after(before: Model, name: str, base: str, place: tuple[str | None, str]) -> Model:
    """A model after; an adapter of the base's is merged into the base that is loaded already."""
    from steerkit.adapters import find_adapter
    from steerkit.loading import load_tuned

    if name.startswith(f"{base}+") and not before.adapter:
        return load_tuned(before, find_adapter(name.removeprefix(f"{base}+")))
    return open_model(name, *place).at_date(before.template_date)


def keep_ground(model: Model, settings: Settings, tell: Callable[[str, int, int], None]) -> Ground:
    """What comparisons need of a base, measured once."""
    from dataclasses import asdict

    from steerkit.kept import measure_once
    from steerkit.measures import neutral
    from steerkit.shifts import Ground, questions, take_ground

    depends = [asdict(settings), questions(settings), neutral("texts")]

    def measure() -> dict[str, Any]:
        ground = take_ground(model, settings, tell)
        return {"states": ground.states, "text": ground.text, "shaken": ground.shaken}

    return Ground(**measure_once("comparisons", model, "ground", depends, measure))


def _vectors(model: Model, names: Sequence[str] | None) -> list[SteeringVector]:
    from steerkit.vectors import VectorSet

    vectors = VectorSet(model.fingerprint)
    return [vectors[name] for name in dict.fromkeys(names or vectors)]


def _with_persona(model: Model, names: Sequence[str]) -> list[str]:
    """Those vectors that are about somebody in the library, who can be asked for."""
    from steerkit.personas import load_personas
    from steerkit.transfers import persona_of

    known = load_personas()
    chosen = zip(names, _vectors(model, names), strict=True) if names else ()
    return [name for name, vector in chosen if persona_of(vector) in known][:TRANSFERRED]


def _compare(
    before: Model,
    after: Model,
    vectors: Sequence[SteeringVector],
    ground: Ground,
    settings: Settings,
    layer: int | None,
) -> dict[str, Any]:
    """One model after against the one before."""
    from steerkit import selection, shifts
    from steerkit.personas import load_personas

    families = {each: persona.family for each, persona in load_personas().items()}
    with progress(after.name) as tell:
        states = shifts.look(after, settings, tell)
    titles = before.name, after.name
    return selection.examine(
        ground.states, states, vectors, ground.text, settings, layer, ground.shaken, families, titles
    )


def _transfer(before: Model, after: Model, wanted: Sequence[str], settings: Settings) -> list[dict[str, Any]]:
    """Whether vectors of the base go over to the last model."""
    from steerkit.personas import load_personas
    from steerkit.transfers import transfer

    if not wanted:
        return []
    with progress() as tell:
        return transfer(before, after, _vectors(before, wanted), load_personas(), settings, tell)


def _tell(told: Mapping[str, Any], json: bool, plot: Path | None) -> None:
    if json:
        print_json(told)
    else:
        for result in told["results"]:
            _show(result)
    if plot is not None:
        _draw(told, plot)
        talk().print(Text.assemble(("saved", "dim"), f"  {plot}"), soft_wrap=True)


def _draw(told: Mapping[str, Any], plot: Path) -> None:
    """One model as a whole, checkpoints as a curve, and models that are no course of one training side by side."""
    from steerkit.plots.selections import save_comparison, save_trajectory
    from steerkit.plots.siblings import save_siblings

    if told["trajectory"] is not None:
        save_trajectory(told["trajectory"], plot)
    elif len(told["results"]) > 1:
        save_siblings(told["results"], plot)
    else:
        save_comparison(told["results"][0], plot)


def is_course(names: Sequence[str]) -> bool:
    """Whether models are checkpoints of one training: the same name up to the step.

    >>> is_course(["m+a@00001", "m+a@00002"]), is_course(["m+a@00001", "m+b@00001"]), is_course(["m+a", "m+b"])
    (True, False, False)
    """
    return len(names) > 1 and all("@" in name for name in names) and len({n.rpartition("@")[0] for n in names}) == 1


def _show(result: Mapping[str, Any]) -> None:
    """The verdict, the shares, who was selected and who left, and what goes over."""
    console = out()
    console.print(Text.assemble((f"{result['base']} → {result['tuned']}", "bold")), soft_wrap=True)
    verdict = result["verdict"]
    console.print(Text.assemble((verdict, COLOURS.get(verdict, "bold dim")), f"  {result['reason']}."), soft_wrap=True)
    for title, key in (("selected", "selected"), ("left", "left")):
        told = {row["name"]: row for row in result["personas"]}
        names = ", ".join(f"{name} {told[name]['value']:+.2f}" for name in result[key])
        console.print(Text.assemble((f"{title:<9}", "bold"), names or "nobody beyond chance"), soft_wrap=True)
    clear = result["clear"]
    console.print(
        Text(
            f"{clear['count']} of {result['vectors']} personas beyond every mixture; by chance {clear['by_chance']}",
            "dim",
        )
    )
    if result["transfer"]:
        print_table(_transfer_table(result["transfer"]))


def _transfer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """How vectors of the base read and steer the other model."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("vector", "reads: cosine", "others", "steers: base", "tuned", "ratio"):
        table.add_column(heading, justify="left" if heading == "vector" else "right", header_style="dim")
    for row in rows:
        steers, others = row["steers"], row["others"]
        moved = [f"{steers[key]['value']:+.3f}" if steers else "" for key in ("base", "tuned")]
        ratio = f"{steers['ratio']['value']:.2f}" if steers and steers["ratio"] else ""
        other = "" if others is None else f"{others['value']:+.2f}"
        table.add_row(Text(row["name"], "bold"), f"{row['reads']['value']:+.2f}", other, *moved, ratio)
    return table
