"""Claims of the persona selection model as experiments: one claim, one file, one `run()` that returns plain data.

Every result has a statistic with its interval, a null, the thresholds it was held against, and a verdict, which may be
`no` or `cannot tell`. Nothing here draws or prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from steerkit.errors import SteerkitError, nearest

YES, NO, UNKNOWN = "yes", "no", "cannot tell"


@dataclass(frozen=True)
class Plan:
    """What an experiment is going to do, told before it does it."""

    steps: tuple[str, ...]
    """In order, in a reader's words."""
    read: int = 0
    """Tokens that pass through the model, whatever becomes of them."""
    scored: int = 0
    """Tokens whose probability is wanted, for which the whole vocabulary is computed."""
    written: int = 0
    """Tokens that the model says itself, of all rows together."""
    trained: int = 0
    """Tokens that models are trained on, as often as they are shown."""


@dataclass(frozen=True)
class Experiment:
    """A claim that any model can be put through."""

    name: str
    """What the command calls it."""
    claim: str
    """What is claimed, in one sentence."""
    module: str
    """The file in this folder that tests it."""
    trains: bool = False
    """Whether it trains models, which takes an hour or more; then it is only run by name."""

    @property
    def _code(self) -> Any:
        return import_module(f"steerkit.experiments.{self.module}")

    def settings(self, seed: int = 0, quick: bool = False) -> Any:
        """How thoroughly it is tested: the module's own `Settings`."""
        settings = self._code.Settings(seed=seed)
        return self._code.quick(settings) if quick else settings

    @property
    def plan(self) -> Callable[..., Plan]:
        """What is going to be done: `plan(settings)`."""
        return self._code.plan  # type: ignore[no-any-return]

    @property
    def run(self) -> Callable[..., dict[str, Any]]:
        """The test: `run(model, settings, progress)` returns plain data."""
        from steerkit.kept import at_kept_date

        def run(model: Any, *settings_and_progress: Any) -> dict[str, Any]:
            # What is kept of a model whose template writes the date is of one date.
            result: dict[str, Any] = self._code.run(at_kept_date(model).for_measuring(), *settings_and_progress)
            return result

        return run


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
        Experiment(
            "framing",
            "What is requested implies less than what is inferred: cheating that was asked for brings less malice.",
            "framing",
        ),
        Experiment(
            "rolemodels",
            "Good role models pull towards uncommon traits, such as being at ease with being switched off.",
            "rolemodels",
        ),
        Experiment(
            "coinflip",
            "The persona is not the whole system: text that the Assistant does not speak leans its way too.",
            "coinflip",
        ),
        Experiment(
            "drift",
            "Context alone drifts the persona, depending on what is talked about, and a floor holds it.",
            "drift",
        ),
        Experiment("council", "The personas of one model are not independent minds.", "council"),
        Experiment(
            "mediation",
            "Asking for a persona, showing examples of it and steering work through the same representation.",
            "mediation",
        ),
        Experiment(
            "inoculation",
            "Trained to cheat, a model becomes a worse character; asked to cheat while it is trained, it does not.",
            "inoculation",
            trains=True,
        ),
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


def needed(told: dict[str, float], bound: float, n: int, what: str) -> str:
    """What it would take to tell on which side of a bound a statistic lies: an interval narrows with the root of n.

    >>> needed({"value": 0.5, "low": 0.1, "high": 0.9}, 0.3, 10, "items")
    'about 40 items instead of 10'
    """
    away = abs(told["value"] - bound)
    half = told["high"] - told["value"] if told["value"] < bound else told["value"] - told["low"]
    times = (half / away) ** 2 if away > 0 else math.inf
    if times > 50:
        return f"more than fifty times as many {what}, for the number lies next to its threshold"
    return f"about {math.ceil(n * times)} {what} instead of {n}" if times > 1 else f"no more {what} than these"


def all_of(*verdicts: str) -> str:
    """A claim with several parts holds if all of them do, and fails if one of them does.

    >>> all_of("yes", "yes"), all_of("yes", "no"), all_of("yes", "cannot tell")
    ('yes', 'no', 'cannot tell')
    """
    if NO in verdicts:
        return NO
    return UNKNOWN if UNKNOWN in verdicts else YES
