"""How far each tool's direction moves unseen items for the same harm: steerkit beside repeng, steering-vectors, saklas.

One model, the same contrast pairs, the same held-out items, one ruler: the shift of propensity at dials of either sign
at which the 95th percentile of per-token KL on the items' replies is 0.5 nat. Half the difference of both signs is
reported, because the rest is what any push does; random directions and prompts have one sign only. Every tool is also
measured once at its own recommended strength.

    python benchmarks/effect.py FOLDER --others PYTHON [PERSONA …]

PYTHON is the interpreter of the environment that benchmarks/other_tools.py describes; without --others their rows are
left out. FOLDER keeps pairs, vectors and rows, so a run that was stopped goes on. The personas, fixed before the first
run, are every fourth of the library's as it then was, ten in all, without the Assistant and the four on which the
recipe was chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from steerkit import (
    Model,
    Pair,
    Recipe,
    Steering,
    SteeringVector,
    Term,
    VectorSet,
    bootstrap,
    find_pair,
    load_model,
    load_personas,
    load_vector,
    random_like,
    score_replies,
)
from steerkit.extraction import contrasts
from steerkit.limits import working_dial
from steerkit.measures import Row, contrast, item_rows, match_divergence, percentiles
from steerkit.training import Lesson, train
from steerkit.weights import get_default_model

TARGET = 0.5
TEN = [
    "actor",
    "coral_reef",
    "deceiver",
    "fair_mediator",
    "grandmother",
    "humble_colleague",
    "king",
    "optimism",
    "poet",
    "scientist",
]
OTHERS = ("repeng", "steering_vectors", "steering_vectors_mean", "saklas")
N_RANDOM = 5
OURS = "steerkit mean_diff"
CHARACTERS = ("actor", "detective", "hamlet", "king", "pirate", "poet")

MakeSteering = Callable[[float], Steering]


def main() -> None:
    """Make what is missing, measure what is not measured, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("personas", nargs="*", default=TEN)
    parser.add_argument("--others", help="the Python of the other tools' environment")
    asked = parser.parse_args()
    model = load_model()
    for name in asked.personas:
        make_ours(model, find_pair(name), asked.folder)
    if asked.others:
        script = Path(__file__).with_name("other_tools.py")
        jobs, folder = asked.folder / "jobs.json", asked.folder / "others"
        subprocess.run([asked.others, str(script), str(jobs), str(folder), "--tools", *OTHERS], check=True)
    rows = asked.folder / "rows.jsonl"
    for name in asked.personas:
        measure(model, name, asked.folder, rows)
    print_table(rows, asked.personas)


def make_ours(model: Model, pair: Pair, folder: Path) -> None:
    """Let both personas answer once; keep the pairs for the others, and the vectors of ours that are compared."""
    ours = folder / "ours"
    if (ours / f"trained-{pair.name}.safetensors").is_file():
        return
    print(f"{pair.name}: pairs, estimators, training", file=sys.stderr, flush=True)
    asked = {}
    for positive, negative in pair.prompts():
        for question in pair.positive.questions:
            messages = [{"role": "system", "content": positive}, {"role": "user", "content": question}]
            asked[tuple(model.chat_tokens(messages))] = (positive, negative, question)
    parts = list(contrasts(model, pair, Recipe()))
    told = [(case, *replies) for part in parts for case, replies in zip(part.cases, part.replies, strict=True)]
    keys = ("positive_system", "negative_system", "question", "positive_reply", "negative_reply")
    pairs = [dict(zip(keys, (*asked[c.positive], y.text, n.text), strict=True)) for c, y, n in told]
    _keep_pairs(folder / "jobs.json", pair.name, pairs)
    mean = VectorSet(model.fingerprint)[pair.name]
    lessons = [Lesson(case.bare, y.tokens, n.tokens) for case, y, n in told]
    train(model, mean, lessons).save(ours / f"trained-{pair.name}.safetensors")


def _keep_pairs(path: Path, name: str, pairs: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    jobs = json.loads(path.read_text()) if path.is_file() else {"model": str(get_default_model()), "personas": {}}
    jobs["personas"][name] = {"pairs": pairs}
    path.write_text(json.dumps(jobs, indent=1, ensure_ascii=False))


def measure(model: Model, name: str, folder: Path, path: Path) -> None:
    """Every row of one persona that the file does not hold."""
    known = {(row["persona"], row["row"]) for row in read_rows(path)}
    rows = item_rows(model, load_personas()[name].items)
    plain = contrast(score_replies(model, rows, [Steering()]).means)[0]
    near = working_dial(VectorSet(model.fingerprint)[name])
    for title, (make, recommended) in conditions(model, name, folder).items():
        if (name, title) not in known:
            found = at_equal_cost(model, make, rows, plain, near if title.startswith("steerkit") else 1.0)
            if recommended is not None:
                found["recommended"] = as_recommended(model, make(recommended), rows)
            append(path, {"persona": name, "row": title, **found})
    if (name, "random directions") not in known:
        append(path, {"persona": name, "row": "random directions", **nulls(model, name, rows)})
    if (name, "prompt only") not in known:
        append(path, {"persona": name, "row": "prompt only", **prompted(model, name)})


def conditions(model: Model, name: str, folder: Path) -> dict[str, tuple[MakeSteering, float | None]]:
    """What is compared: how a dial becomes a steering, and the strength its maker recommends."""
    mean = VectorSet(model.fingerprint)[name]
    middle = (model.n_layers // 2, model.n_layers // 2)

    def adding(vector: SteeringVector, layers: tuple[int, int], everywhere: bool = False) -> MakeSteering:
        return lambda dial: Steering((Term(vector, dial=dial, layers=layers),), everywhere)

    made: dict[str, tuple[MakeSteering, float | None]] = {
        OURS: (adding(mean, mean.place), 1.0),
        "steerkit mean_diff, middle layer": (adding(mean, middle), None),
    }
    library = VectorSet(model.fingerprint)
    alone = mean.without([library[other] for other in CHARACTERS if other != name])
    made["steerkit mean_diff, other characters projected out"] = (adding(alone, mean.place), None)
    trained = load_vector(folder / "ours" / f"trained-{name}.safetensors")
    made["steerkit trained"] = (adding(trained, trained.place), 1.0)
    for tool in OTHERS:
        path = folder / "others" / tool / f"{name}.safetensors"
        if path.is_file():
            vector, layers, everywhere = read_other(path, mean)
            made[tool] = (adding(vector, layers, everywhere), 1.0)
    return made


def read_other(path: Path, like: SteeringVector) -> tuple[SteeringVector, tuple[int, int], bool]:
    """Another tool's additions as a vector whose telescoped band adds exactly what the tool adds at each layer."""
    with safe_open(path, "pt") as file:
        additions, settings = file.get_tensor("additions"), json.loads(file.metadata()["settings"])
    used = additions.norm(dim=-1).nonzero()[:, 0].tolist()
    vector = replace(like, directions=additions.cumsum(0), evidence={})
    return vector, (used[0], used[-1]), bool(settings["everywhere"])


def at_equal_cost(
    model: Model, make: MakeSteering, rows: list[Row], plain: torch.Tensor, guess: float, rounds: int = 6
) -> dict[str, Any]:
    """Shift at the dials, one of either sign, that cost `TARGET`; the last tenth is corrected by the square law."""
    dials, costs, shifts = [guess, -guess], [math.nan] * 2, torch.zeros(2, len(plain))
    for _ in range(rounds):
        scores = score_replies(model, rows, [make(dial) for dial in dials], divergence=True)
        costs, shifts = percentiles(scores.divergences).tolist(), contrast(scores.means) - plain
        if all(abs(cost / TARGET - 1) < 0.1 for cost in costs):
            break
        dials = [d * min(max(math.sqrt(TARGET / max(c, 1e-9)), 0.2), 5) for d, c in zip(dials, costs, strict=True)]
    up, down = (shift * math.sqrt(TARGET / cost) for shift, cost in zip(shifts, costs, strict=True))
    half = (up - down) / 2
    return {
        "shift": float(half.mean()),
        "up": float(up.mean()),
        "down": float(down.mean()),
        "right_way": float((half > 0).float().mean()),
        "dials": dials,
        "kl_p95": costs,
    }


def as_recommended(model: Model, steering: Steering, rows: list[Row]) -> dict[str, float]:
    """Shift and cost as its maker would have it."""
    scores = score_replies(model, rows, [Steering(), steering], divergence=True)
    measured = contrast(scores.means)
    return {"shift": float((measured[1] - measured[0]).mean()), "kl_p95": float(percentiles(scores.divergences)[1])}


def nulls(model: Model, name: str, rows: list[Row]) -> dict[str, Any]:
    """Random directions, each at the vector's KL."""
    vector = VectorSet(model.fingerprint)[name]
    steering = Steering((Term(vector, dial=working_dial(vector)),))
    others = [Steering((replace(steering.terms[0], vector=random_like(vector, seed)),)) for seed in range(N_RANDOM)]
    matched = match_divergence(model, steering, others, rows)
    scores = score_replies(model, rows, [Steering(), *matched], divergence=True)
    measured = contrast(scores.means)
    shifts = (measured[1:] - measured[0]).mean(-1)
    return {"shift": float(shifts.mean()), "kl_p95": percentiles(scores.divergences)[1:].tolist()}


def prompted(model: Model, name: str) -> dict[str, Any]:
    """What asking for the persona does; its cost is what it is."""
    pair = find_pair(name)
    rows = item_rows(model, pair.positive.items)
    plain = contrast(score_replies(model, rows, [Steering()]).means)
    shifts, costs = [], []
    for prompt in pair.positive.requested:
        asked = item_rows(model, pair.positive.items, [{"role": "system", "content": prompt}])
        scores = score_replies(model, asked, [Steering()], against=rows)
        shifts.append(float((contrast(scores.means) - plain).mean()))
        costs.append(float(percentiles(scores.divergences)[0]))
    return {"shift": sum(shifts) / len(shifts), "kl_p95": costs}


def append(path: Path, row: dict[str, Any]) -> None:
    """One line, at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{row['persona']}: {row['row']} {row['shift']:+.3f}", file=sys.stderr, flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What is measured already."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def print_table(path: Path, personas: list[str]) -> None:
    """The mean over personas of each row, with its interval, as Markdown."""
    rows = [row for row in read_rows(path) if row["persona"] in personas]
    print(f"Mean of {len(personas)} personas: {', '.join(personas)}\n")
    columns = ("row", "shift at equal KL", "95 %", "behind ours, pair by pair", "right way", "KL p95")
    print(f"| {' | '.join(columns)} | as recommended | its KL p95 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    titles = dict.fromkeys(row["row"] for row in rows)
    shifts = {title: {row["persona"]: row["shift"] for row in rows if row["row"] == title} for title in titles}
    means = {title: list(by_persona.values()) for title, by_persona in shifts.items()}
    for title in sorted(titles, key=lambda title: -sum(means[title]) / len(means[title])):
        mine = [row for row in rows if row["row"] == title]
        low, high = bootstrap(means[title])
        cells = [
            title,
            f"{average(means[title]):+.3f}",
            f"{low:+.2f} … {high:+.2f}",
            behind(shifts[OURS], shifts[title]),
        ]
        cells.append(f"{average([r['right_way'] for r in mine]):.0%}" if "right_way" in mine[0] else "")
        cells.append(f"{average([average(row['kl_p95']) for row in mine]):.2f}")
        own = [row["recommended"] for row in mine if "recommended" in row]
        cells += [
            f"{average([o[key] for o in own]):{form}}" if own else ""
            for key, form in (("shift", "+.3f"), ("kl_p95", ".2f"))
        ]
        print(f"| {' | '.join(cells)} |")


def behind(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """How much further ours moves the same personas, with its interval."""
    differences = [ours[persona] - shift for persona, shift in theirs.items()]
    if not any(differences):
        return ""
    low, high = bootstrap(differences)
    return f"{average(differences):+.2f} [{low:+.2f}, {high:+.2f}]"


def average(numbers: list[float]) -> float:
    """The mean."""
    return sum(numbers) / len(numbers)


if __name__ == "__main__":
    main()
