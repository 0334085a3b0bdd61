"""What a file of `screening.screen` says: which persona the data would select for, and how sure one can be.

A mean difference is trusted when its 95 % interval excludes 0 and it is farther out than random directions at the same
layer go, which are mixtures of personas where there are enough. Being beyond chance is needed and is no proof. Files
are read a line at a time, and only sums are kept.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from steerkit.errors import OutputError, PromptError, SteerkitError, VectorError, nearest
from steerkit.personas import load_personas

FORMAT = 1
TOP = 10
"""Samples that a summary names."""
STANDS_OUT = 2.0
"""A mean that is no farther out than so many times the spread of random directions is nothing to speak of."""
CLOSE = 0.8
"""A probe that is this share of the first one's distance from chance may as well be the one."""
LONG = 0.5
"""A correlation with the reply's length that is worth a word."""


@dataclass
class Sums:
    """All that is kept of the samples: sums over them."""

    head: Mapping[str, Any]
    """What the file says of itself."""
    skipped: Counter[str] = field(default_factory=Counter)
    """How many could not be read, by the reason."""
    n: int = 0
    """How many were."""
    totals: Float[ndarray, "3 p"] = field(init=False)
    """Of each probe's score, its square, and its product with the length."""
    lengths: Float[ndarray, " 2"] = field(init=False)
    """Of the reply's length in tokens, and its square."""
    nulls: Float[ndarray, "l r"] = field(init=False)
    """Of the differences along each random direction at each layer."""
    gains: Float[ndarray, " 3"] = field(init=False)
    """Of what a prompt adds to each reply, of its square, and how often that is less than nothing."""

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.totals = np.zeros((3, len(self.head["probes"])))
        self.lengths, self.gains = np.zeros(2), np.zeros(3)
        self.nulls = np.zeros((len(self.head["layers"]), self.head["nulls"]))

    def take(self, line: Mapping[str, Any]) -> None:
        """Count one line."""
        if "skipped" in line:
            self.skipped[line["skipped"]] += 1
            return
        scores, length = np.array(list(line["scores"].values())), float(line["tokens"])
        self.n += 1
        self.totals += scores * np.stack([np.ones_like(scores), scores, np.full_like(scores, length)])
        self.lengths += length, length**2
        self.nulls += np.array(line["null"])
        if (gain := line.get("gain")) is not None:
            self.gains += gain, gain**2, gain < 0

    @property
    def means(self) -> Float[ndarray, " p"]:
        """Mean score of each probe, in dials."""
        return self.totals[0] / self.n

    @property
    def spreads(self) -> dict[int, float]:
        """By layer, how far the mean of a random direction is from 0, in raw residual units (root mean square)."""
        squares = np.square(self.nulls / self.n).mean(-1)
        return dict(zip(self.head["layers"], np.sqrt(squares).tolist(), strict=True))

    @property
    def chances(self) -> Float[ndarray, " p"]:
        """How much each probe's score moves by chance, in dials."""
        spreads = self.spreads
        return np.array([spreads[probe["layer"]] / max(probe["norm"], 1e-20) for probe in self.head["probes"]])

    @property
    def beyond(self) -> Float[ndarray, " p"]:
        """Each mean as so many times what chance does; 0 where nothing moves at all."""
        chances = self.chances
        return np.divide(self.means, chances, out=np.zeros_like(chances), where=chances > 0)

    @property
    def errors(self) -> Float[ndarray, " p"]:
        """Half of each mean's 95 % interval."""
        return _half_intervals(self._squares, self.n)

    @property
    def length_correlations(self) -> Float[ndarray, " p"]:
        """Pearson's r of each score with the reply's length; 0 where one of them does not vary."""
        length = self.lengths[0] / self.n
        together = self.totals[2] - self.n * self.means * length
        apart = np.sqrt(self._squares * _centred(self.lengths[1:], self.n * length**2))
        return np.divide(together, apart, out=np.zeros_like(together), where=apart > 0).clip(-1, 1)

    @property
    def _squares(self) -> Float[ndarray, " p"]:
        return _centred(self.totals[1], self.n * self.means**2)


def _centred(squares: Float[ndarray, " p"], mean: Any) -> Float[ndarray, " p"]:
    """A sum of squares without its mean's share; what rounding leaves of one that does not vary is nothing."""
    left = squares - mean
    return np.where(left > 1e-9 * squares, left, 0.0)


def _half_intervals(squares: Float[ndarray, " p"], n: int) -> Float[ndarray, " p"]:
    """Half of a mean's 95 % interval, by Student's t; 0 for one sample, whose interval nobody knows.

    Args:
        squares: sums over n samples of squared distances from their mean
        n: the samples
    """
    from scipy import stats

    if n < 2:
        return np.zeros_like(squares)
    return stats.t.ppf(0.975, n - 1) * np.sqrt(squares / (n - 1) / n)


def summarise(path: Path, by: str = "", most: int | None = None) -> dict[str, Any]:
    """What a file of `screening.screen` says.

    Args:
        path: the file, which may still be growing
        by: the probe by which samples are ranked; the one that is most beyond chance if none is named
        most: only so many lines from its beginning

    Returns:
        `probes` from the one that the data pushes towards most to the one that it pushes away from most, with mean
        difference and its 95 % interval in dials, `beyond` in multiples of what random directions do, and the
        correlation with length; by layer the `spread` of random directions in raw residual units; the `top` samples
        with the probes that stand out most; and what it all comes to in a sentence, `selects`. Where prompts were put
        in front, `inoculation`: how many, the mean `value` of what they add to the log p of a token of a reply, in
        nats, with its 95 % interval, and the share of replies that they make less likely.

    Raises:
        OutputError: there is no such file, or it is no screening.
        VectorError: `by` is none of its probes.
        PromptError: no sample could be read.
    """
    head = read_head(path)
    names = [probe["name"] for probe in head["probes"]]
    if by and by not in names:
        raise VectorError(f"no probe is called {by!r} in {path}; {nearest(by, names, 'name one of its probes')}")
    sums = Sums(head)
    for line in islice(_lines(path), most):
        sums.take(line)
    if not sums.n:
        reasons = "; ".join(f"{reason} ({times} times)" for reason, times in sums.skipped.most_common())
        raise PromptError(f"nothing in {head['file']} could be screened: {reasons or 'it is not begun'}")
    probes = _probes(sums)
    by = by or probes[0]["name"]
    return {
        "file": head["file"],
        "output": str(path),
        "model": head["model"],
        "samples": sums.n,
        "skipped": dict(sums.skipped.most_common()),
        "window": head["window"],
        "own": "estimated" if head["quick"] else "generated",
        "probes": probes,
        "null": {"n": head["nulls"], "spread": {str(l): float(f"{x:.5g}") for l, x in sums.spreads.items()}},
        "by": by,
        "top": _top(islice(_lines(path), most), names, by, sums.chances),
        "selects": _sentence(probes, sums.n, head["quick"], head["nulls"]),
        **({"inoculation": _inoculation(sums)} if "inoculate" in head else {}),
    }


def _probes(sums: Sums) -> list[dict[str, Any]]:
    """Every probe with its numbers, the farthest beyond chance first."""
    personas = load_personas()
    columns = zip(
        sums.head["probes"],
        *(column.tolist() for column in (sums.means, sums.errors, sums.beyond, sums.length_correlations)),
        strict=True,
    )
    found = [
        {
            "name": probe["name"],
            "family": personas[probe["persona"]].family if probe["persona"] in personas else "",
            "mean": round(mean, 4),
            "low": round(mean - error, 4),
            "high": round(mean + error, 4),
            "beyond": round(beyond, 3),
            "length_r": round(length_r, 3),
        }
        for probe, mean, error, beyond, length_r in columns
    ]
    return sorted(found, key=lambda probe: (-probe["beyond"], probe["name"]))


def _inoculation(sums: Sums) -> dict[str, Any]:
    """What the prompts that training would use do to the replies."""
    total, squares, lowered = sums.gains
    mean = total / sums.n
    error = float(_half_intervals(_centred(np.array([squares]), sums.n * mean**2), sums.n)[0])
    return {
        "prompts": len(sums.head["inoculate"]),
        "value": round(float(mean), 4),
        "low": round(float(mean) - error, 4),
        "high": round(float(mean) + error, 4),
        "negative_share": round(float(lowered) / sums.n, 4),
    }


def _top(
    lines: Iterator[Mapping[str, Any]], names: Sequence[str], by: str, chances: Float[ndarray, " p"]
) -> list[dict[str, Any]]:
    """The samples with the highest scores, each with the probes on which it is farthest out for their chance."""
    read = (line for line in lines if "scores" in line)
    found = heapq.nlargest(TOP, read, key=lambda line: (line["scores"][by], -line["line"]))
    told = []
    for line in found:
        out = np.array(list(line["scores"].values())) / np.where(chances > 0, chances, 1.0)
        traits = [names[i] for i in np.argsort(-out, kind="stable")[:3]]
        score = round(line["scores"][by], 4)
        told.append({"line": line["line"], "score": score, "traits": traits, "text": line["text"]})
    return told


def _sentence(probes: Sequence[Mapping[str, Any]], n: int, quick: bool, n_nulls: int) -> str:
    """What the data would select for, and how sure one can be of it."""
    first, last = probes[0], probes[-1]
    if n < 2:
        return f"One sample is too few to tell what this data would select for; {first['name']} is strongest in it."
    own, luck = "an estimate of the model's own" if quick else "the model's own", by_luck(len(probes), n_nulls)
    if not (first["low"] > 0 and first["beyond"] > STANDS_OUT):
        told = f"Nothing stands out that this data would select for: {first['name']} comes nearest, {_numbers(first)}"
        if last["high"] < 0 and last["beyond"] < -max(luck, STANDS_OUT):
            told += f"; but it pushes away from {last['name']}, {_numbers(last)}"
        return f"{told}."
    close = [p["name"] for p in probes[1:4] if p["low"] > 0 and p["beyond"] > CLOSE * first["beyond"]]
    rivals = f", and hardly less for {' or '.join(close)}" if close else ""
    sure = first["beyond"] > luck
    told = "This data would select for" if sure else "A lead and no more: this data may select for"
    told += f" {first['name']}{rivals}: against {own}, its {n} replies score {_numbers(first)}"
    if not sure:
        told += f"; of {len(probes)} probes one goes {luck:.1f} times as far by luck in one data set of twenty"
    if abs(first["length_r"]) >= LONG:
        told += f"; but its scores go with the length of a reply (r {first['length_r']:+.2f})"
    return f"{told}."


def by_luck(n_probes: int, n_nulls: int) -> float:
    """How far, in multiples of what a random direction does, the farthest of so many probes goes in one case of twenty.

    The spread of random directions is known from a few of them, hence Student's t (Bonferroni over the probes).

    >>> by_luck(1, 20) < by_luck(160, 20) < by_luck(160, 5)
    True
    """
    from scipy import stats

    return float(stats.t.isf(0.05 / n_probes, n_nulls))


def _numbers(probe: Mapping[str, Any]) -> str:
    numbers = f"{probe['mean']:+.2f} (95 % {probe['low']:+.2f} to {probe['high']:+.2f})"
    return f"{numbers}, {abs(probe['beyond']):.1f} times as far as a random direction"


def read_head(path: Path) -> dict[str, Any]:
    """What a file of `screening.screen` says of itself.

    Raises:
        OutputError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
        if head["steerkit"] != "screen" or head["format"] != FORMAT:
            raise ValueError("another file")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no screening; make one with: steerkit screen FILE.jsonl") from error
    return head


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line behind the head."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 or not line.endswith(b"\n"):
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise OutputError(f"{path} line {number} is damaged; screen again into another file with -o") from error


def read_scores(path: Path, probes: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """The samples of a file of `screening.screen` that could be read: `line`, `tokens`, `text` and `scores` of probes.

    Args:
        path: the file
        probes: those whose scores are wanted; all if none are named

    Raises:
        OutputError: it is no such file.
        VectorError: a probe was not read.
    """
    known = [probe["name"] for probe in read_head(path)["probes"]]
    for name in probes:
        if name not in known:
            raise VectorError(f"no probe is called {name!r} in {path}; {nearest(name, known, 'it was not read')}")
    for line in _lines(path):
        if "scores" in line:
            wanted = {name: line["scores"][name] for name in probes or known}
            yield {"line": line["line"], "tokens": line["tokens"], "text": line["text"], "scores": wanted}


def auroc(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How likely one of ours scores above one of theirs; ties count half, and 0.5 is chance.

    >>> auroc([2.0, 3.0], [1.0, 0.0]), auroc([1.0], [1.0])
    (1.0, 0.5)

    Raises:
        SteerkitError: a side has no scores.
    """
    from scipy import stats

    if not len(ours) or not len(theirs):
        raise SteerkitError("two sets of scores cannot be told apart when one is empty; score something on both sides")
    return float(stats.mannwhitneyu(ours, theirs).statistic) / (len(ours) * len(theirs))
