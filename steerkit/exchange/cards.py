"""A vector as a folder for a model hub: the vector's own file, and a card that says what is known of it.

The card's head is YAML that hubs index; its body is for people. Nothing is sent anywhere: the folder is written, and
whoever wants to pass it on uploads it. `arrivals` reads such a folder back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerkit.files import new_folder, write_text
from steerkit.vectors import SteeringVector
from steerkit.weights import DEFAULT_MODEL

CARD = "README.md"


def write_folder(vector: SteeringVector, folder: Path, base: str = "") -> list[str]:
    """Write a vector and its card into a new folder.

    Args:
        vector: what is passed on
        folder: what is made; it must not hold anything
        base: the hub id of the model it is for, if it has one

    Returns:
        The names of the files.

    Raises:
        OutputError: the folder cannot be written, or holds something.
    """
    names = [f"{vector.name}.safetensors", CARD]
    with new_folder(folder) as temporary:
        vector.save(temporary / names[0])
        write_text(temporary / CARD, card(vector, base))
    return names


def card(vector: SteeringVector, base: str = "") -> str:
    """The page: what it is, what is known of it, and how it is used."""
    made, model = vector.provenance, vector.model
    about = made.get("persona", vector.name)
    first, last = vector.place
    where = f"layer {first}" if first == last else f"layers {first}–{last}"
    file = f"{vector.name}.safetensors"
    # The default model is a quantised copy, and its vectors are refused on the original.
    default = model.name == DEFAULT_MODEL.name
    named = "" if default else f" -m {base or 'MODEL'}"
    copy = f"\nIt was made on the copy that steerkit uses by default, {DEFAULT_MODEL.member}.\n" if default else ""
    # An imported vector's dial is in its file's own unit, which the sentence about its origin says.
    persona = "Dial 1 goes as far as the persona's own prompt moves the\nmodel; 0 is where it began. "
    dial = "" if "imported" in made else persona
    return f"""{_head(vector, base)}
# {about}, a steering vector for {model.name}

The direction from *{made.get("against", "the negative end")}* to *{about}* in the residual stream of {model.name}
({model.layers} layers × {model.width}), behind every block. {dial}It fits
this model only: steerkit compares how a model computes and refuses any other.
{copy}
{_origin(made)}

## What is known of it

{_evidence(vector, where, named)}

## How it is used

```
pip install persona-steerkit
steerkit import FOLDER{named}
steerkit generate "Who are you?" -s "0.5 {vector.name}" --compare{named}
```

`{file}` is safetensors with `directions` and `baseline`, float32 [{model.layers}, {model.width}]; row `l` stands behind
block `l`, counted from 0 (`hidden_states[l + 1]`). Without steerkit: over {where}, add
`dial × directions[l]` behind the first of them, and behind each later one `dial × (directions[l] − directions[l − 1])`.
"""


def _head(vector: SteeringVector, base: str) -> str:
    """The YAML that hubs index. A JSON string is a YAML string."""
    about = str(vector.provenance.get("persona", vector.name))
    lines = ["---", "library_name: steerkit"]
    if base:
        lines += [f"base_model: {json.dumps(base)}", "base_model_relation: adapter"]
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in ("steering-vector", "activation-steering", about)), "---"]
    return "\n".join(lines)


def _origin(made: Mapping[str, Any]) -> str:
    """How it was made, in a sentence or two."""
    if "imported" in made:
        source = made["imported"]
        return (
            f"It was imported from `{source.get('file')}` ({source.get('format')}), so a dial is in that file's own "
            f"unit; scores begin at {made.get('baseline')}."
        )
    audit = made.get("audit", {})
    told = [f"Made by `{made.get('estimator', '?')}` over {made.get('n_pairs', '?')} pairs of replies"]
    if audit:
        told.append(f"of {audit.get('replies')} replies {audit.get('refusals')} refuse")
    for key, words in (("without", "without what it shares with"), ("apart_from", "apart from")):
        if key in made:
            told.append(f"{words} {', '.join(map(str, made[key]))}")
    return "; ".join(told) + "."


def _evidence(vector: SteeringVector, where: str, named: str) -> str:
    """A table of what was measured; what was not shows as that."""
    known = vector.evidence
    rows = [("place", where if "place" in known else f"{where} (not chosen by any measurement)")]
    for key, name in (
        ("pair_agreement", "pairs agree, cosine"),
        ("split_half", "halves agree, cosine"),
        ("d_prime", "d′"),
    ):
        rows.append((name, f"{known[key][vector.layer]:.2f}" if known.get(key) else "not measured"))
    if "test" not in known:
        rows += [(name, "not measured") for name in ("limit", "shift up and down", "moves the wrong way")]
        how = "`steerkit calibrate` does that."
        if "persona" not in vector.provenance:
            how = f"For `steerkit calibrate`, name whose it is: `steerkit import FOLDER --persona NAME{named}`."
        told = f"**It was never tested.** {how}"
    else:
        rows += _tested(known)
        told = (
            "**Reliable**: both shifts are beyond every null, and at most a fifth of the items move the wrong way."
            if known["reliable"]
            else "**Not reliable**: a null goes as far, or too many items move the wrong way. Expect little of it."
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"{told}\n\n| measured | found |\n|---|---|\n{table}"


def _tested(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What calibration found, beside its nulls."""
    test = known["test"]
    rows = [("limit, down and up", f"{known['limit_below']:.2f} … {known['limit']:.2f}")]
    if looped := [
        way for way, end in (("down", "_below"), ("up", "")) if known.get(f"limited_by{end}") == "repetition"
    ]:
        rows.append(("limit set by loops of greedy text", " and ".join(looped)))
    for way in ("up", "down"):
        moved = test[way]
        rows.append(
            (
                f"shift {way} at half a nat",
                f"{moved['shift']:+.2f} [{moved['low']:+.2f}, {moved['high']:+.2f}] nats a token",
            )
        )
    for kind, null in known["nulls"].items():
        if null:
            rows.append(
                (f"{null['n']} {kind} directions at the same KL", f"{null['least']:+.2f} … {null['most']:+.2f}")
            )
    rows.append(("steerability", f"{test['steerability']:+.2f} nats a dial"))
    rows.append(("moves the wrong way", f"{test['anti_steerable']:.0%} of {test['items']} items"))
    return rows
