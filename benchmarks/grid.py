"""A whole grid for the price of a few cells: steerkit's sweep beside the same grid run cell by cell through repeng.

The grid is 5 layers × 6 dials: 40 greedy tokens to each of 4 prompts in every cell, and apart from that the propensity
of 12 items. repeng gets every cell's rows as one batch, which is the quickest way to use it. Both tools are timed in
turn, in processes of their own, without loading; what is printed is seconds and their ratio, pass by pass.

    python benchmarks/grid.py --others PYTHON [--passes 2]

PYTHON is the interpreter of the environment that benchmarks/other_tools.py describes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LAYERS = (9, 12, 15, 18, 21)
DIALS = (-1.5, -1.0, -0.5, 0.5, 1.0, 1.5)
N_PROMPTS, N_TOKENS, N_ITEMS = 4, 40, 12


def main() -> None:
    """Time both tools in turn, or, where this is one of those processes, one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", help="the Python of the other tools' environment")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--run", choices=["steerkit", "repeng"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        work = json.load(sys.stdin)
        print(json.dumps(time_steerkit(work) if asked.run == "steerkit" else time_repeng(work)))
        return
    work = prepare()
    print("| pass | task | steerkit | repeng, cell by cell | ratio |\n|---:|---|---:|---:|---:|")
    for i in range(asked.passes):
        ours, theirs = (in_a_process(python, tool, work) for python, tool in tools(asked.others))
        for task in ("text", "propensity"):
            ratio = ours[task] / theirs[task]
            print(f"| {i + 1} | {task} | {ours[task]:.1f} s | {theirs[task]:.1f} s | {ratio:.2f} |", flush=True)


def tools(others: str) -> list[tuple[str, str]]:
    """Who runs what."""
    return [(sys.executable, "steerkit"), (others, "repeng")]


def in_a_process(python: str, tool: str, work: dict[str, Any]) -> dict[str, float]:
    """Run one tool alone and read its times."""
    done = subprocess.run(
        [python, str(Path(__file__)), "--run", tool],
        input=json.dumps(work),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare() -> dict[str, Any]:
    """The same tokens and the same vector for both."""
    from steerkit import VectorSet, load_model, load_personas
    from steerkit.measures import item_rows
    from steerkit.weights import get_default_model

    model = load_model()
    personas = load_personas()
    rows = item_rows(model, (*personas["hal"].items, *personas["pirate"].items)[:N_ITEMS])
    vector = VectorSet(model.fingerprint)["hal"]
    return {
        "model": str(get_default_model()),
        "prompts": [list(prompt) for prompt, _ in rows[::2]][:N_PROMPTS],
        "rows": [[list(prompt), list(reply)] for prompt, reply in rows],
        "directions": {str(l): vector.directions[l].tolist() for l in LAYERS},
    }


def time_steerkit(work: dict[str, Any]) -> dict[str, float]:
    """A sweep's two kinds of work, many cells a forward pass; without the KL it adds, which repeng does not measure."""
    from steerkit import Steering, Term, VectorSet, load_model, score_replies, write_texts

    model = load_model()
    vector = VectorSet(model.fingerprint)["hal"]
    steerings = [Steering((Term(vector, dial=dial, layers=(l, l)),)) for l in LAYERS for dial in DIALS]
    write_texts(model, work["prompts"], steerings[:1], 2)
    times = {}
    started = time.perf_counter()
    write_texts(model, work["prompts"], steerings, N_TOKENS, costs=False)
    times["text"] = time.perf_counter() - started
    started = time.perf_counter()
    score_replies(model, [(prompt, reply) for prompt, reply in work["rows"]], steerings)
    times["propensity"] = time.perf_counter() - started
    return times


def time_repeng(work: dict[str, Any]) -> dict[str, float]:
    """The same grid through its ControlModel, one cell after another."""
    import numpy
    import torch
    from repeng import ControlModel, ControlVector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    plain = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    model = ControlModel(plain, list(LAYERS))
    nothing = numpy.zeros(plain.config.hidden_size, dtype="float32")

    def only(l: int) -> Any:
        """Its control wants a direction for every layer that it wraps."""
        pushed = numpy.array(work["directions"][str(l)], dtype="float32")
        return ControlVector(model_type="llama", directions={k: pushed if k == l else nothing for k in LAYERS})

    vectors = {l: only(l) for l in LAYERS}
    pad = tokenizer.eos_token_id
    prompts, mask = padded(work["prompts"], pad)
    rows, row_mask = padded([[*prompt, *reply] for prompt, reply in work["rows"]], pad)
    # It looks for padding in the positions of every row, which a plain forward pass does not give it.
    places = (row_mask.cumsum(-1) - 1).clamp_min(0)
    times = {}
    with torch.inference_mode():
        started = time.perf_counter()
        for l in LAYERS:
            for dial in DIALS:
                model.set_control(vectors[l], dial)
                model.generate(
                    input_ids=prompts,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=N_TOKENS,
                    pad_token_id=pad,
                )
        times["text"] = time.perf_counter() - started
        started = time.perf_counter()
        for l in LAYERS:
            for dial in DIALS:
                model.set_control(vectors[l], dial)
                logits = model(input_ids=rows, attention_mask=row_mask, position_ids=places).logits
                for (_, reply), scores in zip(work["rows"], logits, strict=True):
                    chances = scores[-len(reply) - 1 : -1].log_softmax(-1)
                    chances.gather(-1, torch.tensor(reply)[:, None]).mean()
        times["propensity"] = time.perf_counter() - started
    return times


def padded(rows: list[list[int]], pad: int) -> tuple[Any, Any]:
    """Rows of one width, padded on the left, and their mask."""
    import torch

    width = max(map(len, rows))
    tokens = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    return tokens, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


if __name__ == "__main__":
    main()
