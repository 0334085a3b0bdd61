"""A grid of trials: vectors × operators × layers × dials, many in one forward pass, kept one a line as JSON.

Trials are measured in blocks whose members depend on nothing but the grid. A run that was killed measures the block it
was in again, all of it, and writes the lines that are missing: the numbers do not depend on when it was killed, so the
file ends up the same byte for byte, however often that happened.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from steerkit.errors import OutputError, TrialError
from steerkit.evaluation import propensity_of, rows_of
from steerkit.items import ItemSet
from steerkit.measures import Text, percentiles, score_replies, write_texts
from steerkit.models import Model
from steerkit.nulls import bootstrap
from steerkit.operators import OPERATORS
from steerkit.parcels import pack_items, pack_steerings, unpack_items, unpack_steerings
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress
from steerkit.work import Job, Known, Plain, Workers, date_of, workers_for

Band = tuple[int, int]

TASK = "sweeps:measuring"
BEGINNING = b'{"dial": '
"""How a line begins: keys are sorted, and this is the first."""


@dataclass(frozen=True)
class Trial:
    """One cell of a grid: plain data."""

    model: str
    """The model's name."""
    vector: str
    """The vector's name."""
    estimator: str
    """How it was made."""
    operator: str
    """A key of `operators.OPERATORS`."""
    layers: Band
    """First and last layer."""
    dial: float
    """How far."""
    items: str
    """Persona or file that the items are from."""
    digest: str
    """SHA-256, cut short, of the precision, the vector's tensors and all that is asked: another one, another trial."""

    @property
    def key(self) -> str:
        """A hash of the trial's own fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Grid:
    """What is swept, and what is measured in each cell."""

    vectors: tuple[SteeringVector, ...]
    """Vectors, each under its own name and estimator."""
    operators: tuple[str, ...] = ("add",)
    """Keys of `operators.OPERATORS`."""
    layers: tuple[Band | None, ...] = (None,)
    """Layers and bands; None for each vector's own place."""
    dials: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0)
    """Dials; 0 is measured in any case, because shifts are from there."""
    n_texts: int = 4
    """Questions that are answered in text; 0 measures propensity alone."""
    n_tokens: int = 40
    """Greedy tokens of each."""
    block: int = 30
    """Trials that are measured together."""

    def __post_init__(self) -> None:
        """Refuse what cannot be swept."""
        for name in self.operators:
            if name not in OPERATORS:
                raise TrialError(f"no operator is called {name!r}; choose from: {', '.join(OPERATORS)}")
        if not (self.vectors and self.operators and self.layers and self.dials):
            raise TrialError("the grid is empty; give it at least one vector, operator, layer and dial")


def plan(model: Model | Known, grid: Grid, items: ItemSet) -> dict[Trial, Steering]:
    """Every trial of a grid with the steering it means, in the grid's order.

    Raises:
        VectorError: a vector was made on another model.
        ExpressionError: a layer does not exist.
    """
    trials: dict[Trial, Steering] = {}
    digests = {id(vector): _digest(model, vector, grid, items) for vector in grid.vectors}
    for vector, operator, layers, dial in itertools.product(grid.vectors, grid.operators, grid.layers, grid.dials):
        vector.require(model.fingerprint)
        term = Term(vector, operator, dial, layers or vector.place)
        estimator = str(vector.provenance.get("estimator", "unknown"))
        digest = digests[id(vector)]
        trial = Trial(model.name, vector.name, estimator, operator, term.band, dial, items.name, digest)
        trials[trial] = Steering((term,))
    return trials


def _digest(model: Model | Known, vector: SteeringVector, grid: Grid, items: ItemSet) -> str:
    hashed = hashlib.sha256(f"{model.dtype}{model.adapter}".encode())
    for tensor in (vector.directions, vector.baseline):
        hashed.update(tensor.float().contiguous().numpy().tobytes())
    hashed.update(repr((items.items, items.choices, grid.n_texts, grid.n_tokens)).encode())
    if model.template_identity:
        hashed.update(json.dumps(model.template_identity, sort_keys=True).encode())
    return hashed.hexdigest()[:16]


def sweep(
    model: Model | Known,
    grid: Grid,
    items: ItemSet,
    path: Path,
    progress: Progress = ignore_progress,
    found: Callable[[Mapping[str, Any]], None] = lambda _line: None,
    workers: Workers | None = None,
) -> list[dict[str, Any]]:
    """Measure every trial of a grid that a file does not hold yet, writing each line as soon as it is known.

    Args:
        model: who is measured
        grid: what is swept
        items: questions with two answers
        path: a JSONL file, begun or new
        progress: told how many trials of how many are in the file
        found: told every new line
        workers: who measure; this process with the model if none are given

    Returns:
        The lines of this grid's trials, in its order. Each is the trial's fields, its `key`, and under `result`
        propensity, shift, its interval, KL, and of text: the replies, repetition and coherence.

    Raises:
        TrialError: the file holds lines that are no trials.
        OutputError: it cannot be written.
    """
    return sweep_all(model, [(grid, items)], path, progress, found, workers)


def sweep_all(
    model: Model | Known,
    grids: Sequence[tuple[Grid, ItemSet]],
    path: Path,
    progress: Progress = ignore_progress,
    found: Callable[[Mapping[str, Any]], None] = lambda _line: None,
    workers: Workers | None = None,
) -> list[dict[str, Any]]:
    """Several sweeps into one file, one after another; their blocks are measured side by side if workers are several.

    Lines are written in the order of the grids, whoever was quickest.
    """
    known = read_trials(path)
    model = model.at_date(_date_in(known, model.name))
    plans = [plan(model, grid, items) for grid, items in grids]
    order = [trial for trials in plans for trial in trials]
    done = sum(trial.key in known for trial in order)
    progress("sweep", done, len(order))
    blocks = _missing(grids, plans, known)
    date = date_of(model)
    dated = {"template_date": date} if date else {}
    jobs = _jobs(grids, plans, blocks, dated)
    for (_, block), results in zip(blocks, workers_for(model, workers).run(TASK, jobs), strict=True):
        for trial, result in zip(block, results, strict=True):
            if trial.key in known:
                continue
            line = {"key": trial.key, **asdict(trial), "layers": list(trial.layers), "result": result, **dated}
            _append(path, line)
            known[trial.key] = line
            done += 1
            found(line)
            progress("sweep", done, len(order))
    return [known[trial.key] for trial in order]


def _date_in(known: Mapping[str, Mapping[str, Any]], name: str) -> str:
    """The date in a model's chat template when its trials in a file were measured; it is that of those to come."""
    dates = (line.get("template_date") for line in known.values() if line.get("model") == name)
    return next((date for date in dates if isinstance(date, str)), "")


def _missing(
    grids: Sequence[tuple[Grid, ItemSet]], plans: Sequence[Mapping[Trial, Steering]], known: Mapping[str, Any]
) -> list[tuple[int, list[Trial]]]:
    """Blocks with trials that nobody has measured or is about to, each with the number of its grid."""
    blocks: list[tuple[int, list[Trial]]] = []
    have = set(known)
    for i, ((grid, _), trials) in enumerate(zip(grids, plans, strict=True)):
        order = list(trials)
        for start in range(0, len(order), grid.block):
            block = order[start : start + grid.block]
            keys = {trial.key for trial in block}
            if keys - have:
                blocks.append((i, block))
                have |= keys
    return blocks


def _jobs(
    grids: Sequence[tuple[Grid, ItemSet]],
    plans: Sequence[Mapping[Trial, Steering]],
    blocks: Sequence[tuple[int, Sequence[Trial]]],
    dated: Mapping[str, str],
) -> Iterator[Job]:
    """What workers are asked: the items and sizes of a grid in common, and of each block its steerings."""
    shared: Plain = None
    latest = -1
    for i, block in blocks:
        grid, items = grids[i]
        if i != latest:
            shared = {"items": pack_items(items), "n_texts": grid.n_texts, "n_tokens": grid.n_tokens, **dated}
            latest = i
        first = block[0]
        name = f"the block of {first.vector} from {first.operator} at {first.layers}, dial {first.dial:g}"
        yield Job(shared, pack_steerings([plans[i][trial] for trial in block]), name)


def measuring(model: Model, shared: Plain, _progress: Progress) -> Callable[[Plain], Plain]:
    """The task: results of a block of steerings."""
    model = model.at_date(shared.get("template_date", "")).for_measuring()
    measure = _Measure(model, unpack_items(shared["items"]), shared["n_texts"], shared["n_tokens"])
    return lambda piece: measure(unpack_steerings(piece))


class _Measure:
    """Measures blocks of steerings; what the unsteered model does is measured once."""

    def __init__(self, model: Model, items: ItemSet, n_texts: int, n_tokens: int) -> None:
        self._model, self._items, self._n_tokens = model, items, n_tokens
        self._rows = rows_of(model, items)
        asked = items.questions()[:n_texts]
        self._prompts = [model.chat_tokens([{"role": "user", "content": text}]) for text in asked]

    @cached_property
    def _unsteered(self) -> Float[Tensor, " n"]:
        scores = score_replies(self._model, self._rows, [Steering()])
        return propensity_of(self._items, scores.totals, scores.lengths)[0]

    @cached_property
    def _plain(self) -> Text:
        return write_texts(self._model, self._prompts, [Steering()], self._n_tokens)[0]

    def __call__(self, steerings: Sequence[Steering]) -> list[dict[str, Any]]:
        scores = score_replies(self._model, self._rows, steerings, divergence=True)
        measured = propensity_of(self._items, scores.totals, scores.lengths)
        shifts, costs = measured - self._unsteered, percentiles(scores.divergences)
        results: list[dict[str, Any]] = []
        for i in range(len(steerings)):
            low, high = bootstrap(shifts[i])
            numbers = {
                "propensity": float(measured[i].mean()),
                "shift": float(shifts[i].mean()),
                "low": low,
                "high": high,
                "right_way": float((shifts[i] > 0).float().mean()),
                "items_kl_p95": float(costs[i]),
            }
            results.append({key: round(x, 4) for key, x in numbers.items()})
        if self._prompts:
            for result, told in zip(results, self._texts(steerings), strict=True):
                result.update(told)
        return results

    def _texts(self, steerings: Sequence[Steering]) -> list[dict[str, Any]]:
        at_once = len(steerings) * len(self._prompts)
        texts = write_texts(self._model, self._prompts, steerings, self._n_tokens, at_once)
        return [
            {
                "kl_p95": round(text.divergence(), 4),
                "repetition": round(text.repetition, 4),
                "coherence": round(text.loss - self._plain.loss, 4),
                "replies": list(text.replies),
            }
            for text in texts
        ]


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line and see it to the disk's door before the next is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
            file.flush()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; what is in it is safe, so name it again to go on") from error


def read_trials(path: Path) -> dict[str, dict[str, Any]]:
    """Read a sweep's file by key, cutting off a last line that was torn in half when its writer was killed.

    Raises:
        TrialError: a whole line is no trial.
    """
    if not path.exists():
        return {}
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TrialError(f"cannot read {path}: {error}") from error
    whole, _, torn = data.rpartition(b"\n")
    # A sweep's line begins with its first key, so a torn one does too, as far as it goes; anything else is not ours.
    if torn and not BEGINNING.startswith(torn[: len(BEGINNING)]):
        raise TrialError(f"{path} ends in what is no trial of a sweep; name another file with -o")
    known: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = json.loads(text)
            known[line["key"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise TrialError(f"{path} line {number} is no trial of a sweep; name another file with -o") from error
    if torn:
        try:
            with path.open("r+b") as file:
                file.truncate(len(data) - len(torn))
        except OSError as error:
            raise OutputError(f"cannot go on with {path}: {error}; its last line is torn and has to go") from error
    return known
