"""Work in pieces of plain data, which any process with the same model does with the same result.

A task is a function of this package, named `module:function`. From a model and from what pieces have in common it makes
what does one piece. Who drives the work draws up the pieces, and is the only one to write results; it needs no weights.
Here is the plain way, one piece after another in this process; `engines` has others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch

from steerkit.fingerprints import Fingerprint
from steerkit.models import Model
from steerkit.weights import Progress

Plain = Any
"""None, bool, int, float, str, bytes, and lists and dicts with names of those."""

Task = Callable[[Model, Plain, Progress], Callable[[Plain], Plain]]
"""From a model and what pieces have in common, what does a piece; told how far it is with one."""

Watch = Callable[[int, str, int, int], None]
"""Told the number of a piece, and how far it is: a stage, how much is done, of how much."""


def ignore_watch(_index: int, _stage: str, _done: int, _total: int) -> None:
    """For whoever does not want to know."""


@dataclass(frozen=True)
class Job:
    """A piece of work."""

    shared: Plain
    """What it has in common with other pieces: one object for all of them, which is sent once."""
    piece: Plain
    """What is its own."""
    name: str
    """What an error calls it."""


@dataclass(frozen=True)
class Known:
    """A model that is loaded elsewhere: what must be known of it where it is not."""

    name: str
    """What people call it."""
    fingerprint: Fingerprint
    """What makes it this model."""
    dtype: torch.dtype
    """The precision of its weights."""
    adapter: str = ""
    """The digest of the adapter that is merged into them, if one is."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how it is used."""
    template_identity: Mapping[str, Any] = field(default_factory=dict)
    """What files and caches say of its chat template; see `Model.template_identity`."""

    def at_date(self, date: str) -> Known:
        """The same with the clock of its chat template at a date; see `Model.at_date`."""
        if not date or "template_date" not in self.template_identity:
            return self
        return replace(self, template_identity={**self.template_identity, "template_date": date})

    @property
    def n_layers(self) -> int:
        """How many blocks it has."""
        return self.fingerprint.layers

    @property
    def width(self) -> int:
        """The size of its residual stream."""
        return self.fingerprint.width

    @classmethod
    def of(cls, model: Model | Known) -> Known:
        """What is known of a loaded model."""
        return cls(model.name, model.fingerprint, model.dtype, model.adapter, template_identity=model.template_identity)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        dtype = str(self.dtype).removeprefix("torch.")
        told = {"name": self.name, "fingerprint": self.fingerprint.to_json(), "dtype": dtype, "adapter": self.adapter}
        return told | ({"template": dict(self.template_identity)} if self.template_identity else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Known:
        """What `to_json` made."""
        fingerprint = Fingerprint.from_json(data["fingerprint"])
        dtype, template = getattr(torch, data["dtype"]), data.get("template", {})
        return cls(data["name"], fingerprint, dtype, data["adapter"], template_identity=template)


def date_of(model: Model | Known) -> str:
    """Where the clock of a model's chat template stands; empty if it has none."""
    return str(model.template_identity.get("template_date", ""))


@runtime_checkable
class Workers(Protocol):
    """Whoever does the work."""

    @property
    def model(self) -> Model | Known:
        """With which model."""
        ...

    def run(self, task: str, jobs: Iterable[Job], watch: Watch = ignore_watch) -> Iterator[Plain]:
        """Do jobs; their results come in the jobs' order, and jobs are drawn only a little before they are done."""
        ...


class Bench:
    """Does pieces in this process; what was prepared for them stays as long as they have the same in common."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._prepared: tuple[str, Plain] | None = None

    def do(self, task: str, shared: Plain, piece: Plain, progress: Progress) -> Plain:
        """One piece.

        Raises:
            SteerkitError: whatever the task raises.
        """
        self._progress = progress
        if self._prepared is None or self._prepared[0] != task or self._prepared[1] is not shared:
            self._do = find_task(task)(self._model, shared, self._tell)
            self._prepared = task, shared
        return self._do(piece)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)


class Here:
    """Does one piece after another in this process."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self._model

    def run(self, task: str, jobs: Iterable[Job], watch: Watch = ignore_watch) -> Iterator[Plain]:
        """Do each job when its result is asked for."""
        bench = Bench(self._model)
        for index, job in enumerate(jobs):

            def tell(stage: str, done: int, total: int, index: int = index) -> None:
                watch(index, stage, done, total)

            yield bench.do(task, job.shared, job.piece, tell)


def find_task(name: str) -> Task:
    """The function that a task's name means.

    >>> find_task("sweeps:measuring").__name__
    'measuring'
    """
    module, _, function = name.partition(":")
    found: Task = getattr(import_module(f"steerkit.{module}"), function)
    return found


def idling(_model: Model, _shared: Plain, _progress: Progress) -> Callable[[Plain], Plain]:
    """The task that gives back what it is given, to see what a piece costs by itself."""
    return lambda piece: piece


def workers_for(model: Model | Known, workers: Workers | None) -> Workers:
    """Those who were given, or this process if it has the model."""
    if workers is not None:
        return workers
    assert isinstance(model, Model), "a model that is loaded elsewhere needs workers who have it"
    return Here(model)
