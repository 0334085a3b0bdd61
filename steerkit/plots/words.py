"""What a claim, a verdict and a number are called in plain words, from `data/experiments/claims.toml`; no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steerkit.material import load_material
from steerkit.plots.planes import interval, shown

YES, NO, UNKNOWN, NOT_RUN = "yes", "no", "cannot tell", "not run"
"""As the experiments say it, which cannot be imported from here; a test keeps them equal."""
ANSWERS = {YES: "yes", NO: "no", UNKNOWN: "unknown"}
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Statistic:
    """A number that a verdict rests on, with its interval."""

    text: str
    """What follows the number in a sentence."""
    value: float | None
    """None where it could not be measured."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end."""
    form: str
    """How it is written, as Python formats numbers."""

    def told(self) -> str:
        """The number alone.

        >>> Statistic("of the malice", 0.55, 0.3, 0.8, ".0%").told()
        '55 %'
        """
        return shown(self.value, self.form)

    def told_whole(self) -> str:
        """The number with its interval.

        >>> Statistic("of the malice", 0.55, 0.3, 0.8, ".0%").told_whole()
        '55 % (30 % to 80 %)'
        """
        return interval({"value": self.value, "low": self.low, "high": self.high}, self.form)


def question_of(entry: Mapping[str, Any]) -> str:
    """The plain question that a claim answers; the claim itself where nobody has put it into plain words."""
    return str(_words(entry["experiment"]).get("question", entry["claim"]))


def answer_of(entry: Mapping[str, Any]) -> str:
    """The plain answer of a verdict; of a claim that was not run that there is none."""
    if entry["verdict"] == NOT_RUN:
        return "This was not tested, so nothing can be said about it."
    return (
        str(_words(entry["experiment"]).get(ANSWERS.get(entry["verdict"], ""), ""))
        or f"The verdict: {entry['verdict']}."
    )


def said_of(entry: Mapping[str, Any], key: str) -> str:
    """`why` it matters, how to `read` its picture, or its `short` form; empty where nobody has written it."""
    return str(_words(entry["experiment"]).get(key, ""))


def statistics_of(name: str, result: Result | None) -> list[Statistic]:
    """The numbers that the verdict of an experiment rests on, the most telling first."""
    found = (result or {}).get("statistic") or {}
    listed = _words(name).get("numbers") or [{"form": ".2f", "text": ""}]
    numbers = []
    for each in listed:
        told = found.get(each["key"]) if "key" in each else found
        if isinstance(told, Mapping) and "value" in told:
            value, low, high = (told.get(key) for key in ("value", "low", "high"))
            numbers.append(Statistic(each["text"], value, low, high, each["form"]))
    return numbers


def _words(name: str) -> Mapping[str, Any]:
    words: Mapping[str, Any] = load_material("claims").get(name, {})
    return words
