"""`steerkit extract`: persona pairs to vectors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.cli.console import out, print_json, progress, quiet_libraries, talk, warn
from steerkit.cli.options import Device, Dtype, Json, ModelName, Output, Seed, open_model, say_notes
from steerkit.errors import SteerkitError

if TYPE_CHECKING:
    from steerkit.extraction import Recipe
    from steerkit.models import Model
    from steerkit.personas import Pair
    from steerkit.vectors import SteeringVector


def extract(
    persona: Annotated[list[str] | None, typer.Argument(help="Personas to extract; see: steerkit personas")] = None,
    against: Annotated[str, typer.Option("--against", help="The persona it is measured from.")] = "assistant",
    everything: Annotated[bool, typer.Option("--all", help="Every persona there is, skipping what is made.")] = False,
    estimator: Annotated[str, typer.Option(help="mean_diff, pca, logistic or whitened.")] = "mean_diff",
    reading: Annotated[str, typer.Option(help="response (the model's own replies) or prompt (faster).")] = "response",
    max_tokens: Annotated[int, typer.Option(min=1, help="How much of each reply is read.")] = 40,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of one forward pass.")] = 36,
    request: Annotated[str, typer.Option(help="Added to every question on both sides, to make replies alike.")] = "",
    seed: Seed = 0,
    output: Output = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Extract steering vectors: the model answers as the persona and as the Assistant, and the difference is kept.

    Vectors go to vectors/MODEL/PERSONA.safetensors. -o names another file, or a folder for several.
    """
    from steerkit.personas import find_pair, find_persona, load_personas

    if everything == bool(persona):
        raise SteerkitError("name the personas to extract, or all of them with --all; see: steerkit personas")
    find_persona(against)
    chosen = [name for name in load_personas() if name != against] if everything else list(persona or [])
    pairs = [find_pair(name, against) for name in chosen]
    from steerkit.extraction import Recipe

    recipe = Recipe(estimator, reading, max_tokens, batch_size, seed=seed, request=request)
    loaded = open_model(model, device, dtype)
    made = []
    for pair in pairs:
        path = _place(pair, loaded.name, output, several=len(pairs) > 1)
        if everything and path.is_file():
            talk().print(Text.assemble(("have", "dim"), f"      {path}"), soft_wrap=True)
            continue
        made.append(extract_one(loaded, pair, recipe, path))
        say_notes(loaded)
        if not json:
            _tell(made[-1])
    if everything and output is None:
        _write_table()
    if json:
        print_json(made[0] if len(pairs) == 1 and not everything else {"vectors": made})


def extract_one(model: Model, pair: Pair, recipe: Recipe, path: Path) -> dict[str, Any]:
    """Extract one pair with a progress bar, save it, and return what a script wants to know."""
    from steerkit import extraction

    started = time.perf_counter()
    with progress(f"{pair.negative.name} → {pair.positive.name}") as tell, quiet_libraries():
        vector = extraction.extract(model, pair, recipe, tell)
    vector.save(path)
    audit = vector.provenance["audit"]
    for line in extraction.audit_warnings(audit):
        warn(f"{pair.positive.name}: {line}")
    return {
        "vector": str(path),
        "model": model.name,
        "persona": pair.positive.name,
        "against": pair.negative.name,
        "estimator": recipe.estimator,
        "reading": recipe.reading,
        "n_pairs": vector.provenance["n_pairs"],
        "layers": vector.model.layers,
        "width": vector.model.width,
        "seconds": round(time.perf_counter() - started, 2),
        "pair_agreement": vector.evidence["pair_agreement"][vector.layer],
        "split_half": vector.evidence["split_half"][vector.layer],
        "audit": {key: audit[key] for key in ("replies", "refusals", "label_echoes", "empty", "length_ratio")},
    }


def _place(pair: Pair, model_name: str, output: Path | None, several: bool) -> Path:
    from steerkit.vectors import vector_path

    name = pair.positive.name
    if pair.negative.name != "assistant":
        name += f"_vs_{pair.negative.name}"
    if output is None:
        return vector_path(name, model_name)
    return output / f"{name}.safetensors" if several or output.is_dir() else output


def _tell(made: dict[str, Any]) -> None:
    """Three facts and the file."""
    audit = made["audit"]
    console = talk()
    console.print(
        f"[bold]{made['against']} → {made['persona']}[/]  {made['n_pairs']} pairs · agree {made['pair_agreement']:.2f} "
        f"· halves {made['split_half']:.2f} · {audit['refusals']} refusals, {audit['label_echoes']} label echoes in "
        f"{audit['replies']} replies · length {audit['length_ratio']:.2f} to 1 · {made['seconds']:.0f} s",
        soft_wrap=True,
    )
    out().print(Text(made["vector"]))


def _write_table() -> None:
    """Describe ./vectors/ in vectors/README.md."""
    from steerkit.files import write_text
    from steerkit.vectors import describe_vectors, list_vectors, load_vector

    paths = [path for path in list_vectors(None).values() if path.parts[0] == "vectors"]
    vectors: list[SteeringVector] = [load_vector(path) for path in sorted(paths)]
    write_text(Path("vectors/README.md"), describe_vectors(vectors))
