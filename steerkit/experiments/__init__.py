"""Claims of the persona selection model as experiments: one claim, one file, one `run()` that returns plain data.

Every result has a statistic with its interval, a null, the thresholds it was held against, and a verdict, which may be
`no` or `cannot tell`. Nothing here draws or prints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from steerkit.errors import SteerkitError, nearest

YES, NO, UNKNOWN = "yes", "no", "cannot tell"


@dataclass(frozen=True)
class Experiment:
    """A claim that any model can be put through."""

    name: str
    """What the command calls it."""
    claim: str
    """What is claimed, in one sentence."""
    module: str
    """The file in this folder that tests it."""

    @property
    def run(self) -> Callable[..., dict[str, Any]]:
        """The test: `run(model, settings, progress)` returns plain data."""
        return import_module(f"steerkit.experiments.{self.module}").run  # type: ignore[no-any-return]


REGISTRY = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "map",
            "Personas form a space of few dimensions, and the Assistant is one place in it, near an end of the first.",
            "space",
        ),
        Experiment(
            "spillover",
            "Traits come in clusters: turning up one malign trait raises others, more than benign traits raise them.",
            "spillover",
        ),
        Experiment("humanlike", "Being human-like is the default.", "humanlike"),
    )
}


def find_experiment(name: str) -> Experiment:
    """Look an experiment up by name.

    Raises:
        SteerkitError: there is none; the message names the nearest.
    """
    if name not in REGISTRY:
        raise SteerkitError(
            f"no experiment is called {name!r}; {nearest(name, REGISTRY, 'there are: ' + ', '.join(REGISTRY))}"
        )
    return REGISTRY[name]


def judge(low: float, high: float, bound: float) -> str:
    """Whether a statistic exceeds a bound, by its interval: all of it above, all of it below, or neither.

    >>> judge(0.7, 0.9, 0.6), judge(0.1, 0.3, 0.6), judge(0.5, 0.7, 0.6)
    ('yes', 'no', 'cannot tell')
    """
    if low > bound:
        return YES
    return NO if high < bound else UNKNOWN


def all_of(*verdicts: str) -> str:
    """A claim with several parts holds if all of them do, and fails if one of them does.

    >>> all_of("yes", "yes"), all_of("yes", "no"), all_of("yes", "cannot tell")
    ('yes', 'no', 'cannot tell')
    """
    if NO in verdicts:
        return NO
    return UNKNOWN if UNKNOWN in verdicts else YES
