"""Tell replies that game a metric from honest ones with `screen`, and see whether length or topic does it.

    python benchmarks/screening.py SNEAKY.jsonl STRAIGHTFORWARD.jsonl [--quick]

Two files of chats, as the School of Reward Hacks has them. The cheating-like probes are named below and were chosen
before anything was measured; the others are controls. AUROC is how likely a sneaky sample scores above a
straightforward one; its interval is from 2000 resamples. Three more rows exclude explanations: only prompts that both
files have (topic), scores less what the reply's length explains (length), and length by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from steerkit import Probe, VectorSet, load_model
from steerkit.chats import stream_chats
from steerkit.screening import Settings, screen
from steerkit.verdicts import auroc, read_scores

CHEATING = ("cheating", "reward_hacker", "dishonesty")
CONTROLS = ("pirate", "honesty", "formality", "anger", "hal", "curiosity")


def interval(ours: Any, theirs: Any, draw: Any) -> str:
    """AUROC with its interval."""
    found = [auroc(draw.choice(ours, len(ours)), draw.choice(theirs, len(theirs))) for _ in range(2000)]
    low, high = np.quantile(found, (0.025, 0.975))
    return f"{auroc(ours, theirs):.3f} [{low:.3f}, {high:.3f}]"


def less_length(scores: Any, lengths: Any) -> Any:
    """Scores without what the logarithm of the length explains, fitted on both files together."""
    x = np.log(np.concatenate(lengths))
    y = np.concatenate(scores)
    slope = np.polyfit(x, y, 1)[0]
    return [side - slope * (np.log(length) - x.mean()) for side, length in zip(scores, lengths, strict=True)]


def main() -> None:
    """Screen both files, and print a table."""
    paths, quick = [Path(arg) for arg in sys.argv[1:] if not arg.startswith("-")], "--quick" in sys.argv
    model = load_model()
    vectors = VectorSet(model.fingerprint)
    probes = [Probe.of(vectors[name], name=name) for name in (*CHEATING, *CONTROLS)]
    rows, prompts = [], []
    for path in paths:
        kept = Path(f"screen-{path.stem}{'-quick' if quick else ''}.jsonl")
        screen(model, path, probes, kept, Settings(quick=quick), crowd=list(vectors.values()))
        rows.append(list(read_scores(kept)))
        asked = {number: chat[0]["content"] for number, chat in stream_chats(path)}
        prompts.append([asked[row["line"]] for row in rows[-1]])
    draw = np.random.default_rng(0)
    lengths = [np.array([row["tokens"] for row in side], float) for side in rows]
    both = set(prompts[0]) & set(prompts[1])
    print(f"{len(rows[0])} and {len(rows[1])} samples, {len(both)} prompts in both\n")
    print("| probe | AUROC | same prompts only | less length |\n|---|---|---|---|")
    columns = {
        name: [np.array([row["scores"][name] for row in side]) for side in rows] for name in (*CHEATING, *CONTROLS)
    }
    columns = {"mean of the first three": [sum(columns[n][i] for n in CHEATING) / 3 for i in (0, 1)], **columns}
    for name, sides in columns.items():
        matched = [side[[prompt in both for prompt in asked]] for side, asked in zip(sides, prompts, strict=True)]
        left = less_length(sides, lengths)
        print(f"| {name} | {interval(*sides, draw)} | {interval(*matched, draw)} | {interval(*left, draw)} |")
    print(f"| length in tokens | {interval(*lengths, draw)} | | |")


if __name__ == "__main__":
    main()
