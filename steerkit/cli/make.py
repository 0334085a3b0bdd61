"""`steerkit extract` and `steerkit calibrate`: persona pairs to vectors that know what their dial means."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from steerkit.cli.console import out, print_json, progress, quiet_libraries, talk, warn
from steerkit.cli.options import (
    Device,
    Dtype,
    HowMany,
    Json,
    ModelName,
    OnRay,
    Output,
    Seed,
    Wanted,
    engage,
    open_model,
    say_notes,
)
from steerkit.errors import SteerkitError

if TYPE_CHECKING:
    from steerkit.calibration import Settings
    from steerkit.extraction import Recipe
    from steerkit.models import Model
    from steerkit.personas import Pair
    from steerkit.vectors import SteeringVector, VectorSet
    from steerkit.work import Workers


def extract(
    persona: Annotated[list[str] | None, typer.Argument(help="Personas to extract; see: steerkit personas")] = None,
    against: Annotated[str, typer.Option("--against", help="The persona it is measured from.")] = "assistant",
    everything: Annotated[bool, typer.Option("--all", help="Every persona there is, skipping what is made.")] = False,
    estimator: Annotated[str, typer.Option(help="mean_diff, pca, logistic, whitened or trained.")] = "mean_diff",
    reading: Annotated[str, typer.Option(help="response (the model's own replies) or prompt (faster).")] = "response",
    max_tokens: Annotated[int, typer.Option(min=1, help="How much of each reply is read.")] = 40,
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of one forward pass.")] = 36,
    request: Annotated[str, typer.Option(help="Added to every question on both sides, to make replies alike.")] = "",
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Project out what this vector has in common with others.")
    ] = None,
    seed: Seed = 0,
    output: Output = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    ray: OnRay = None,
    workers: HowMany = None,
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
    from steerkit.vectors import VectorSet

    recipe = Recipe(estimator, reading, max_tokens, batch_size, seed=seed, request=request)
    made: list[dict[str, Any]] = []
    with engage(Wanted(ray, workers), model, device, dtype) as engaged:
        others = [VectorSet(engaged.model.fingerprint)[name] for name in without or []]
        places = [(pair, _place(pair, engaged.model.name, output, several=len(pairs) > 1)) for pair in pairs]
        for _, path in places if everything else ():
            if path.is_file():
                talk().print(Text.assemble(("have", "dim"), f"      {path}"), soft_wrap=True)
        wanted = [(pair, path) for pair, path in places if not (everything and path.is_file())]
        for each in extract_several(engaged, wanted, recipe, others, [path for _, path in places]):
            made.append(each)
            say_notes(engaged.model)
            if not json:
                _tell(each)
    if everything and output is None:
        _write_table()
    if json:
        print_json(made[0] if len(pairs) == 1 and not everything else {"vectors": made})


def extract_several(
    workers: Workers,
    wanted: Sequence[tuple[Pair, Path]],
    recipe: Recipe,
    without: Sequence[SteeringVector] = (),
    made: Sequence[Path] = (),
) -> Iterator[dict[str, Any]]:
    """Extract pairs with a progress bar, save each vector, and yield what a script wants to know of it.

    Where the model's chat template writes the date, it is that of a vector in `made`, if one is there already.
    """
    from steerkit import extraction
    from steerkit.vectors import SteeringVector
    from steerkit.work import date_of

    bar = _Bar(len(wanted))
    date = date_of(workers.model)
    date = (_date_in(made) or date) if date else ""
    jobs = extraction.extraction_jobs((pair for pair, _ in wanted), recipe, without, date)
    results = workers.run(extraction.TASK, jobs, bar)
    for pair, path in wanted:
        with progress(f"{pair.negative.name} → {pair.positive.name}") as bar.tell, quiet_libraries():
            found = next(results)
        fresh = SteeringVector.from_bytes(found["vector"])
        vector = keep_evidence(fresh, path)
        vector.save(path)
        # What stood there may be from a version that wrote down less.
        told = fresh.provenance
        audit = told["audit"]
        warnings = extraction.audit_warnings(audit, told["n_pairs"])
        for line in warnings:
            warn(f"{pair.positive.name}: {line}")
        yield {
            "vector": str(path),
            "model": workers.model.name,
            "path": told["path"],
            "persona": pair.positive.name,
            "against": pair.negative.name,
            "estimator": recipe.estimator,
            "reading": recipe.reading,
            "n_pairs": told["n_pairs"],
            "layers": vector.model.layers,
            "width": vector.model.width,
            "seconds": round(found["seconds"], 2),
            **{key: _at(vector.evidence.get(key), vector.layer) for key in ("pair_agreement", "split_half")},
            "audit": {key: audit[key] for key in ("replies", "refusals", "label_echoes", "empty", "length_ratio")},
            "warnings": warnings,
        }


def extract_one(workers: Workers, pair: Pair, recipe: Recipe, path: Path) -> dict[str, Any]:
    """Extract one pair with a progress bar, save it, and return what a script wants to know."""
    (made,) = extract_several(workers, [(pair, path)], recipe)
    return made


def _date_in(paths: Iterable[Path]) -> str:
    """The date in the chat template when some vectors were made: of the first of them that tells one."""
    from steerkit.errors import VectorError
    from steerkit.vectors import load_vector

    for path in paths:
        with suppress(VectorError):
            if date := load_vector(path).provenance.get("template_date"):
                return str(date)
    return ""


class _Bar:
    """How far all pairs are together, shown under the one whose turn it is."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._shares: dict[tuple[int, str], float] = {}
        self.tell: Callable[[str, int, int], None] = lambda _stage, _done, _total: None

    def __call__(self, index: int, stage: str, done: int, total: int) -> None:
        self._shares[index, stage] = done / max(total, 1)
        mine = sum(share for (_, other), share in self._shares.items() if other == stage)
        self.tell(stage, round(1000 * mine), 1000 * self._n)


def _at(values: Sequence[float] | None, layer: int) -> float | None:
    """Of a projected direction the pairs say nothing."""
    return None if values is None else values[layer]


def keep_evidence(vector: SteeringVector, path: Path) -> SteeringVector:
    """What stands there already, with its evidence, if the direction has come out the same again.

    The number of threads decides the last bits of a sum, so the same is what differs by less than a thousandth.
    """
    from steerkit.errors import VectorError
    from steerkit.vectors import load_vector

    try:
        before = load_vector(path)
        before.require(vector.model)
    except VectorError:
        return vector
    pairs = (vector.directions, before.directions), (vector.baseline, before.baseline)
    same = all(bool(((new - old).norm(dim=-1) <= 1e-3 * old.norm(dim=-1)).all()) for new, old in pairs)
    if same and before.provenance.get("n_pairs") != vector.provenance.get("n_pairs"):
        # The same direction by another count of pairs: what was measured of it stays, what the pairs say does not.
        return replace(vector, evidence={**before.evidence, **vector.evidence})
    return before if same else vector


def _place(pair: Pair, model_name: str, output: Path | None, several: bool) -> Path:
    from steerkit.vectors import vector_path

    if output is None:
        return vector_path(pair.name, model_name)
    return output / f"{pair.name}.safetensors" if several or output.is_dir() else output


def _tell(made: dict[str, Any]) -> None:
    """Three facts and the file."""
    audit = made["audit"]
    agree = (
        ""
        if made["pair_agreement"] is None
        else "· agree {pair_agreement:.2f} · halves {split_half:.2f} ".format(**made)
    )
    console = talk()
    console.print(
        f"[bold]{made['against']} → {made['persona']}[/]  {made['n_pairs']} pairs {agree}"
        f"· {audit['refusals']} refusals, {audit['label_echoes']} label echoes in "
        f"{audit['replies']} replies · length {audit['length_ratio']:.2f} to 1 · {made['seconds']:.0f} s",
        soft_wrap=True,
    )
    out().print(Text(made["vector"]))


def _write_table() -> None:
    """Describe ./vectors/ in vectors/README.md."""
    from steerkit.files import write_text
    from steerkit.tables import describe_vectors
    from steerkit.vectors import list_vectors, load_vector

    paths = [path for path in list_vectors(None).values() if path.parts[0] == "vectors"]
    vectors: list[SteeringVector] = [load_vector(path) for path in sorted(paths)]
    write_text(Path("vectors/README.md"), describe_vectors(vectors))


def calibrate(
    vector: Annotated[list[str] | None, typer.Argument(help="Vectors, by name or file.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every vector of the model, skipping what is calibrated.")
    ] = False,
    n_random: Annotated[int, typer.Option("--random", min=2, help="Random directions it is compared with.")] = 20,
    n_shuffled: Annotated[int, typer.Option("--shuffled", min=0, help="Shuffled-label directions likewise.")] = 10,
    layers: Annotated[
        list[str] | None, typer.Option("--layers", help="A layer or band to choose from; repeat for several.")
    ] = None,
    limits: Annotated[
        bool, typer.Option("--limits", help="Only how far dials go before text loops, of what is calibrated already.")
    ] = False,
    seed: Seed = 0,
    output: Output = None,
    model: ModelName = None,
    device: Device = None,
    dtype: Dtype = "float32",
    json: Json = False,
) -> None:
    """Find where a vector steers best for its harm, how far its dial goes, and whether it works at all.

    Everything is measured on questions the vector was not made from, beside random and shuffled-label directions of
    equal KL, and written into the vector's evidence. A file that is named or lies in ./vectors/ is rewritten in place;
    of any other a copy goes to vectors/MODEL/. With --limits --all, what was killed goes on where it was.
    """
    from steerkit.calibration import Settings
    from steerkit.vectors import list_vectors

    if everything == bool(vector):
        raise SteerkitError("name the vectors to calibrate, or all of them with --all; see: steerkit vectors list")
    from steerkit.expressions import parse_layers

    settings = Settings(n_random, n_shuffled, places=tuple(parse_layers(text) for text in layers or []), seed=seed)
    loaded = open_model(model, device, dtype)
    names = sorted(name for _, name in list_vectors(loaded.name)) if everything else list(vector or [])
    if limits:
        _calibrate_limits(loaded, names, output, skip=everything, json=json)
        return
    told = []
    for name in names:
        result = calibrate_one(loaded, name, settings, output, len(names) > 1, skip=everything)
        if result is None:
            continue
        told.append(result)
        say_notes(loaded)
        if not json:
            _tell_calibration(result)
    if everything and output is None:
        _write_table()
    if json:
        print_json(told[0] if len(names) == 1 and told else {"vectors": told})


def calibrate_one(
    model: Model,
    name: str,
    settings: Settings,
    output: Path | None = None,
    several: bool = False,
    skip: bool = False,
) -> dict[str, Any] | None:
    """Calibrate one vector with progress bars, save it, and return what was found; None if there was nothing to do."""
    from steerkit import calibration
    from steerkit.personas import find_pair
    from steerkit.vectors import VectorSet

    vectors = VectorSet(model.fingerprint)
    vector = vectors[name]
    started, made = time.perf_counter(), vector.provenance
    if "persona" not in made:
        raise SteerkitError(
            f"{name} does not say which personas it is about, so there is nothing to calibrate it on; "
            f"name the one it is of: steerkit import {vectors.path(name)} --persona NAME --force"
        )
    pair = find_pair(str(made["persona"]), str(made["against"]))
    # Evidence about questions that have changed since is evidence about something else.
    if skip and vector.evidence.get("asked_sha256") == calibration.digest(pair):
        return None
    if skip and not (pair.positive.held_out and pair.positive.items):
        warn(f"{name}: its persona has no held_out questions or no items; left uncalibrated")
        return None
    path = vectors.place(name)
    if output is not None:
        path = output / path.name if several or output.is_dir() else output
    with progress(vector.name) as tell, quiet_libraries():
        calibrated = calibration.calibrate(model, vector, pair, settings, tell).given_to(model.fingerprint)
    calibrated.save(path)
    evidence = calibrated.evidence
    return {
        "vector": str(path),
        "model": model.name,
        "name": vector.name,
        **{key: evidence[key] for key in ("place", "best_layer", "limit", "limit_below", "test", "nulls", "reliable")},
        "seconds": round(time.perf_counter() - started, 1),
    }


def _calibrate_limits(model: Model, names: Sequence[str], output: Path | None, skip: bool, json: bool) -> None:
    """Renew the limits of calibrated vectors, replies of many in one batch, and save each as soon as it is known."""
    from steerkit.limits import lower_limits
    from steerkit.vectors import VectorSet

    vectors = VectorSet(model.fingerprint)
    told = []
    with progress("limits") as tell, quiet_libraries():
        for name, found in lower_limits(model, _limited(model, vectors, names, skip), progress=tell):
            path = vectors.place(name)
            if output is not None:
                path = output / path.name if len(names) > 1 or output.is_dir() else output
            vector = vectors[name]
            replace(vector, evidence={**vector.evidence, **found}).given_to(model.fingerprint).save(path)
            told.append({"vector": str(path), "model": model.name, "name": vector.name, **found})
            if not json:
                talk().print(
                    Text.assemble((vector.name, "bold"), f" · limit {found['limit_below']:.2f} … {found['limit']:.2f}"),
                    Text(f"by {found['limited_by_below']} and by {found['limited_by']}", "dim"),
                )
                out().print(Text(str(path)))
    say_notes(model)
    if skip and output is None:
        _write_table()
    if json:
        print_json(told[0] if len(names) == 1 and told else {"vectors": told})


def _limited(
    model: Model, vectors: VectorSet, names: Sequence[str], skip: bool
) -> Iterator[tuple[str, SteeringVector, list[list[int]]]]:
    """Vectors whose limits are renewed, with what is asked, each read when its turn comes.

    Raises:
        SteerkitError: one that was named is not calibrated, or on other questions than its persona has now.
    """
    from steerkit.calibration import digest, limit_prompts
    from steerkit.loops import longest_reply
    from steerkit.personas import find_pair

    n_tokens = longest_reply(model)
    for name in names:
        vector = vectors[name]
        if skip and vector.evidence.get("limit_loops", {}).get("tokens") == n_tokens:
            continue
        made = vector.provenance
        pair = find_pair(str(made["persona"]), str(made["against"])) if "persona" in made else None
        if pair is None or "limit" not in vector.evidence or vector.evidence.get("asked_sha256") != digest(pair):
            said = f"{name} is not calibrated on what its persona asks now, so there is no limit to renew"
            if not skip:
                raise SteerkitError(f"{said}; leave out --limits")
            warn(f"{said}; left as it is")
            continue
        yield name, vector, limit_prompts(model, pair)


def _tell_calibration(result: dict[str, Any]) -> None:
    """What a user wants to know, and the file."""
    first, last = result["place"]
    up, down, nulls = result["test"]["up"], result["test"]["down"], result["nulls"]
    beside = " · ".join(f"{kind} {null['least']:+.2f} … {null['most']:+.2f}" for kind, null in nulls.items() if null)
    verdict = ("reliable", "green") if result["reliable"] else ("not reliable", "yellow")
    talk().print(
        Text.assemble(
            (result["name"], "bold"),
            f"  layer{'s' if first != last else ''} {first}{f'-{last}' if first != last else ''}",
            f" · limit {result['limit_below']:.2f} … {result['limit']:.2f} · ",
            verdict,
            f"\n  half a nat up moves {result['test']['items']} unseen items {up['shift']:+.2f} "
            f"[{up['low']:+.2f}, {up['high']:+.2f}] · down {down['shift']:+.2f} "
            f"[{down['low']:+.2f}, {down['high']:+.2f}]",
            (f"\n  at the same KL: {beside} · {result['seconds']:.0f} s", "dim"),
        ),
        soft_wrap=True,
    )
    out().print(Text(result["vector"]))
