"""The page that describes a folder of vectors: what is known of each, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerkit.vectors import SteeringVector


def _precisions(vectors: Sequence[SteeringVector]) -> str:
    """A sentence about the precisions in which vectors were calibrated, where they are not all the same."""
    known = [str(vector.evidence["dtype"]) for vector in vectors if "dtype" in vector.evidence]
    counts = {name: known.count(name) for name in sorted(set(known))}
    if len(counts) < 2:
        return ""
    return f" Evidence was measured in {' and in '.join(f'{name} ({n})' for name, n in counts.items())}."


def describe_vectors(vectors: Sequence[SteeringVector]) -> str:
    """A Markdown page that lists vectors with what is known of each; what nobody has measured shows as –."""
    reliable = sum(bool(vector.evidence.get("reliable")) for vector in vectors)
    looped = [sum(v.evidence.get(f"limited_by{end}") == "repetition" for v in vectors) for end in ("", "_below")]
    tested = sum("reliable" in vector.evidence for vector in vectors)
    lines = [
        "# Vectors",
        "",
        "Made by `steerkit extract --all` and `steerkit calibrate --all`; this page too.",
        f"Of {tested} tested vectors {reliable} are reliable.{_precisions(vectors)}",
        "",
        "- **place**: the layer or band that moves the model's own held-out replies most for the same KL",
        "- **limit**: the dials, down and up, at which the 95th percentile of per-token KL reaches 1 nat, or, marked",
        "  ↻, before that a fifth more of the greedy replies of 200 tokens loop than do unsteered; loops set",
        f"  {looped[0]} of the upper limits and {looped[1]} of the lower ones, which are right to about a fifth",
        "- **shift**: of propensity on unseen items, nats a token, with its 95 % interval, up and down, at the dials",
        "  where KL on them is half a nat (measured near there, and corrected by the square law)",
        "- **random**, **shuffled**: the smallest and largest shift of random and of shuffled-label directions at",
        "  the same KL (20 and 10 of them, unless calibration was told otherwise)",
        "- **wrong way**: the share of items that move against the dial",
        "- **agree**: mean cosine of the pairs' differences with their mean; **halves**: cosine of the two halves'",
        "  directions; **d′**: separation on held-out questions. They are known before anything is steered",
        "- **reliable**: both shifts are beyond every null, their intervals exclude zero, and at most a fifth of the",
        "  items move the wrong way",
        "",
        "| vector | against | reliable | place | limit | shift up | shift down | random | shuffled | wrong way | agree "
        "| halves | d′ |",
        "|---|---|---|---|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    models = dict.fromkeys(vector.model.name for vector in vectors)
    for model in models:
        if len(models) > 1:
            lines.append(f"| **{model}** |" + " |" * 12)
        lines += [f"| {' | '.join(_cells(vector))} |" for vector in vectors if vector.model.name == model]
    return "\n".join(lines) + "\n"


def _cells(vector: SteeringVector) -> list[str]:
    """One vector's line of the table."""
    known = vector.evidence
    known_layers = [_at(known.get(key), vector.layer) for key in ("pair_agreement", "split_half", "d_prime")]
    head = [vector.name, str(vector.provenance.get("against", "–"))]
    if "test" not in known:
        return [*head, *["–"] * 8, *known_layers]
    first, last = vector.place
    test, nulls = known["test"], known["nulls"]
    return [
        *head,
        "yes" if known["reliable"] else "**no**",
        str(first) if first == last else f"{first}–{last}",
        f"{known['limit_below']:.2f}{_mark(known, '_below')} … {known['limit']:.2f}{_mark(known, '')}",
        *(f"{test[way]['shift']:+.2f} [{test[way]['low']:+.2f}, {test[way]['high']:+.2f}]" for way in ("up", "down")),
        *(f"{null['least']:+.2f} … {null['most']:+.2f}" if null else "–" for null in nulls.values()),
        f"{test['anti_steerable']:.0%}",
        *known_layers,
    ]


def _mark(known: Mapping[str, Any], end: str) -> str:
    """What tells a limit that loops set from one that KL did."""
    return " ↻" if known.get(f"limited_by{end}") == "repetition" else ""


def _at(values: Sequence[float] | None, layer: int) -> str:
    return f"{values[layer]:.2f}" if values else "–"
