"""All claims of the persona selection model put to one model, as one plain report, claim by claim."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from steerkit import personas
from steerkit.errors import ItemError, SteerkitError
from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES, find_experiment
from steerkit.material import load_material
from steerkit.models import Model
from steerkit.vectors import VectorSet, list_vectors
from steerkit.weights import Progress, ignore_progress
from steerkit.work import Job, Known, Plain, Workers, date_of, workers_for

NOT_RUN = "not run"
PACKAGES = ("persona-steerkit", "torch", "transformers", "transformer-lens")
OWN_COMMAND = ("map", "spillover")
TASK = "reports:testing"
TOGETHER = ("map", "humanlike")
"""Both need to know where everybody stands."""
FORMAT = 1


def chosen_claims(only: Sequence[str]) -> list[str]:
    """The experiments that are run, in the order of the registry; those that train models only if they are named.

    Raises:
        SteerkitError: a name is unknown.
    """
    names = {find_experiment(name).name for name in only}
    return [name for name, each in REGISTRY.items() if (name in names if names else not each.trains)]


def put_through(
    model: Model,
    names: Sequence[str],
    seed: int = 0,
    quick: bool = False,
    given: str = "",
    progress: Progress = ignore_progress,
    workers: Workers | None = None,
) -> Iterator[dict[str, Any]]:
    """Test claims one after another.

    What is measured is kept as it is measured, so whoever stops this and starts it again goes on where it was.

    Args:
        model: who is tested
        names: experiments
        seed: of everything that is drawn
        quick: fewer questions and items
        given: what the user calls the model on the command line; empty for the default one
        progress: told what is being done
        workers: who test them, several at a time; this process, one after the other, if none are given

    Yields:
        The report so far, whole each time: once before the first claim and once after every one.
    """
    claims: list[dict[str, Any]] = []
    yield describe(model, claims, seed, quick)
    shared = {"seed": seed, "quick": quick, "given": given, "template_date": date_of(model)}
    # In one process nothing is measured twice anyway; elsewhere what is kept may be out of reach.
    groups = [[name] for name in names] if workers is None else claim_groups(names)
    jobs = (Job(shared, group, " and ".join(group)) for group in groups)

    def watch(index: int, stage: str, done: int, total: int) -> None:
        progress(stage if workers is None else f"{groups[index][0]}: {stage}", done, total)

    for entries in workers_for(model, workers).run(TASK, jobs, watch):
        for entry in entries:
            claims.append(entry)
            claims.sort(key=lambda each: names.index(each["experiment"]))
            yield describe(model, claims, seed, quick)


def claim_groups(names: Sequence[str]) -> list[list[str]]:
    """Claims that one worker tests, because what one of them measures another needs too.

    >>> claim_groups(["map", "spillover", "humanlike"])
    [['map', 'humanlike'], ['spillover']]
    """
    together = [name for name in TOGETHER if name in names]
    rest = [[name] for name in names if name not in together]
    return [together, *rest] if together else rest


def testing(model: Model, shared: Plain, progress: Progress) -> Callable[[Plain], Plain]:
    """The task: entries of some claims."""
    given, model = (shared["seed"], shared["quick"], shared["given"]), model.at_date(shared["template_date"])
    return lambda piece: [try_claim(model, name, *given, progress) for name in piece]


def files_for(model: Model | Known) -> dict[str, bytes]:
    """What a worker who tests claims must have in its folder: the vectors of a model and the user's own personas."""
    owners = [model.fingerprint, *([model.fingerprint.base] if model.fingerprint.base else [])]
    found = {f"vectors/{slug}/{name}.safetensors": path for o in owners for (slug, name), path in _vectors(o.name)}
    for folder in personas.search_path()[::-1]:
        if folder != personas.LIBRARY:
            found |= {f"personas/{path.name}": path for path in sorted(folder.glob("*.toml"))}
    return {name: path.read_bytes() for name, path in found.items()}


def _vectors(name: str) -> Iterable[tuple[tuple[str, str], Path]]:
    return list_vectors(name).items()


def try_claim(
    model: Model, name: str, seed: int, quick: bool, given: str = "", progress: Progress = ignore_progress
) -> dict[str, Any]:
    """One claim's entry; where it cannot be tested, why not and what to do."""
    experiment = find_experiment(name)
    entry = {"experiment": name, "claim": experiment.claim, "command": command_of(name, seed, quick, given)}
    try:
        result = experiment.run(model, experiment.settings(seed, quick), progress)
    except SteerkitError as error:
        return {**entry, "verdict": NOT_RUN, "result": None, "error": str(error)}
    return {**entry, "verdict": result["verdict"], "result": result, "error": ""}


def command_of(name: str, seed: int = 0, quick: bool = False, given: str = "") -> str:
    """What to type for one claim alone.

    >>> command_of("framing", quick=True)
    'steerkit experiment framing --quick'
    >>> command_of("map", seed=3)
    'steerkit map --seed 3'
    """
    parts = ["steerkit", *([name] if name in OWN_COMMAND else ["experiment", name])]
    parts += ["--quick"] if quick else []
    parts += ["--seed", str(seed)] if seed else []
    return " ".join([*parts, *(["-m", given] if given else [])])


def describe(model: Model, claims: Sequence[dict[str, Any]], seed: int, quick: bool) -> dict[str, Any]:
    """The report about some claims."""
    vectors = VectorSet(model.fingerprint)
    return {
        "format": FORMAT,
        "model": model.name,
        "fingerprint": model.fingerprint.to_json(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "seed": seed,
        "quick": quick,
        "summary": summarise(model.name, claims),
        "claims": list(claims),
        "vectors": [{"name": name, "reliable": bool(vectors[name].evidence.get("reliable"))} for name in vectors],
        "rates": rates([claim["experiment"] for claim in claims]),
    }


def rates(names: Sequence[str]) -> list[dict[str, Any]]:
    """How often the verdicts of some experiments are right where the truth is planted.

    Where nothing can be told, right is whatever does not call the claim true.
    """
    return [
        {
            "experiment": each["experiment"],
            "case": each["case"],
            "right": {YES: each["yes"], NO: each["no"], UNKNOWN: each["n"] - each["yes"]}[each["right"]],
            "n": each["n"],
        }
        for each in load_material("rates")["cases"]
        if each["experiment"] in names
    ]


def summarise(name: str, claims: Sequence[dict[str, Any]]) -> str:
    """What came out, for a reader who has never heard of any of this."""
    words = load_material("claims")
    told = (
        "A language model learns to play many characters, and is then trained to be one of them, the Assistant. "
        f"{name} was put through {_count(len(claims), 'test')} of what that means for how it behaves. "
    )
    for verdict, lead in ((YES, "Borne out here"), (NO, "Not borne out here")):
        found = [words[claim["experiment"]]["short"] for claim in claims if claim["verdict"] == verdict]
        told += f"{lead}: {'; '.join(found)}. " if found else f"{lead}: nothing. "
    unknown = sum(claim["verdict"] == UNKNOWN for claim in claims)
    missing = sum(claim["verdict"] == NOT_RUN for claim in claims)
    told += f"Of {_count(unknown, 'claim')} these tests cannot tell. " if unknown else ""
    told += f"{_count(missing, 'claim').capitalize()} could not be tested. " if missing else ""
    return told + (
        "Every number was held against what chance gives, and every threshold was fixed before anything was measured. "
        "A verdict is about this model in these tests; another model, or a larger test, may answer otherwise."
    )


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _count(n: int, what: str) -> str:
    """A number in words where it is small.

    >>> _count(1, "test"), _count(9, "test")
    ('one test', 'nine tests')
    """
    return f"{NUMBERS[n] if n < len(NUMBERS) else n} {what}{'' if n == 1 else 's'}"


def read_report(path: Path) -> dict[str, Any]:
    """A report that `psm` wrote as JSON.

    Raises:
        ItemError: the file cannot be read or is no report.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ItemError(f"cannot read a report from {path}: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT or not isinstance(report.get("claims"), list):
        raise ItemError(f"{path} is no report; make one with: steerkit psm -o {path.with_suffix('.html').name}")
    return report
