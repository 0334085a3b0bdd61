"""Every claim of the workbench: verdicts come out right where the truth is planted, at the declared rate.

`python tests/test_claims.py` prints the table, and writes it where reports find it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from steerkit.experiments import NO, REGISTRY, UNKNOWN, YES
from steerkit.files import write_text
from steerkit.material import load_material

PAIRED = ("map", "spillover", "humanlike")
"""These have more to show than rows of numbers, and share one file of planted spaces."""
CLAIMS = tuple(REGISTRY)
RATES = Path(__file__).parent.parent / "steerkit" / "data" / "experiments" / "rates.toml"
SEEDS = 100
"""As reports have it; the tests look at the first few."""
FEW = 6
RIGHT = 0.95
"""The declared rate: so many of the planted truths are recognised."""
WRONG = 0.05
"""And at most so many that are not true are called so."""


Examine = Callable[[int], dict[str, Any]]


def planted(name: str) -> dict[str, tuple[Examine, str]]:
    """A sentence for each planted truth or falsehood, what examines it, and the right verdict."""
    if name in PAIRED:
        return import_module("planted_spaces").CASES[name]
    return import_module(f"planted_{name}").CASES


def cases(names: Sequence[str] = CLAIMS) -> list[tuple[str, str]]:
    return [(name, case) for name in names for case in planted(name)]


def rate(name: str, case: str, n: int) -> tuple[str, Counter[str]]:
    """What is right, and how often each verdict was given."""
    examine, right = planted(name)[case]
    return right, Counter(str(examine(seed)["verdict"]) for seed in range(n))


@pytest.mark.parametrize(
    "entry", load_material("rates")["cases"], ids=lambda entry: f"{entry['experiment']}: {entry['case']}"
)
def test_verdicts_are_right_at_the_declared_rate(entry: dict[str, Any]) -> None:
    found = {YES: entry["yes"], NO: entry["no"], UNKNOWN: entry["unknown"]}
    assert sum(found.values()) == entry["n"] == SEEDS
    if entry["right"] != UNKNOWN:
        assert found[entry["right"]] >= RIGHT * SEEDS, found
    if entry["right"] != YES:
        assert found[YES] <= WRONG * SEEDS, found


@pytest.mark.parametrize(("name", "case"), cases())
def test_the_written_rates_are_those_of_the_code(name: str, case: str) -> None:
    entry = next(each for each in load_material("rates")["cases"] if (each["experiment"], each["case"]) == (name, case))
    right, found = rate(name, case, FEW)
    assert right == entry["right"]
    # The first few are among the hundred, so none of their verdicts can be commoner here than there.
    for verdict, count in ((YES, entry["yes"]), (NO, entry["no"]), (UNKNOWN, entry["unknown"])):
        assert found[verdict] <= count, (verdict, found, entry)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_a_planted_truth_a_planted_falsehood_and_a_premise_that_fails(name: str) -> None:
    assert {right for _, right in planted(name).values()} == {YES, NO, UNKNOWN}


KEYS = {"unit", "statistic", "rows", "curves", "null", "thresholds", "parts", "verdict", "reason", "needed"}


@pytest.mark.parametrize(("name", "case"), cases([name for name in CLAIMS if name not in PAIRED]))
def test_a_result_is_plain_data_that_is_the_same_again(name: str, case: str) -> None:
    examine, _ = planted(name)[case]
    result: dict[str, Any] = examine(0)
    assert set(result) >= KEYS
    assert json.dumps(result, allow_nan=False) == json.dumps(examine(0), allow_nan=False)
    assert {line["group"] for line in result["rows"]} == {"claim", "control", "null"}
    assert bool(result["needed"]) == (result["verdict"] == UNKNOWN)


def test_the_rates_that_reports_show_are_of_these_cases() -> None:
    written = load_material("rates")["cases"]
    assert [(entry["experiment"], entry["case"]) for entry in written] == cases()


def told(asked: tuple[str, str, int]) -> dict[str, Any]:
    """One case's line of the table."""
    torch.set_num_threads(1)
    name, case, n = asked
    right, found = rate(name, case, n)
    counts = {"yes": found[YES], "no": found[NO], "unknown": found[UNKNOWN]}
    return {"experiment": name, "case": case, "right": right, **counts, "n": n}


def main(n: int) -> None:
    """Print how often each verdict was given, as a table, and write it where reports find it."""
    print(f"of {n} seeds\n\n| experiment | planted | right | yes | no | cannot tell |\n|---|---|---|---:|---:|---:|")
    lines = ["# How often verdicts are right where the truth is planted. Written by tests/test_claims.py.\n"]
    with ProcessPoolExecutor() as pool:
        for line in pool.map(told, [(*each, n) for each in cases()]):
            print(f"| {' | '.join(str(x) for x in list(line.values())[:-1])} |", flush=True)
            lines += ["[[cases]]", *(f"{key} = {json.dumps(value)}" for key, value in line.items()), ""]
    write_text(RATES, "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
