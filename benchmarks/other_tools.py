"""Make the vectors of three other steering tools, on the contrast pairs that steerkit is measured on.

Each tool is used as its own documentation says and at the strength that it recommends; only the material is ours. What
it would add to the model is written to a file, and `benchmarks/effect.py` measures all of them with one ruler. This
script never imports steerkit: the tools want versions of their own, so it runs in an environment of its own.

    python -m venv others
    others/bin/pip install saklas==5.3.0 repeng==0.4.0 torch==2.13.0 'numpy<2'
    others/bin/pip install --no-deps steering-vectors==0.12.2   (it asks for transformers<5, and works with 5)
    others/bin/python benchmarks/other_tools.py JOBS.json OUTPUT_FOLDER [--tools repeng steering_vectors saklas]

JOBS.json is `{"model": folder, "personas": {name: {"pairs": [pair, …]}}}`, with the keys of `Pair`.
OUTPUT_FOLDER/{tool}/{persona}.safetensors holds `additions` [layers, width], what the tool adds to the residual stream
after each block, and in its metadata `settings`, one JSON object. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

# Nothing is to be fetched: the model is a folder.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SEED = 0

REPENG_COEFFICIENT = 1.5
REPENG_LAYERS = range(-5, -18, -1)
# Most of its notebooks cut a reply after every token. Every eighth cut makes about 330 entries of 36 pairs; twice as
# many took twice the time and gave nearly the same directions (cosine 0.92 to 0.98, except at two unstable layers).
REPENG_CUT_EVERY = 8

STEERING_VECTORS_MULTIPLIER = 1.0
# Its notebook steers layer 15 of the 32 of Llama-2-7b; another model gets the layer at the same depth.
NOTEBOOK_LAYER, NOTEBOOK_LAYERS = 15, 32

SAKLAS_COEFFICIENT = 0.5
# It ships 96 neutral replies; three to each of 36 questions are about as many. They are as long as ours, because it
# reads the last token of a reply.
SAKLAS_NEUTRALS_PER_QUESTION = 3
SAKLAS_NEUTRAL_TOKENS = 40


class Pair(TypedDict):
    """One question under two opposite system prompts, and what the model said under each."""

    positive_system: str
    negative_system: str
    question: str
    positive_reply: str
    negative_reply: str


class Loaded(NamedTuple):
    """The model that every tool is given, and its tokenizer."""

    model: Any
    tokenizer: Any


class Result(NamedTuple):
    """What one tool made of the pairs of one persona.

    Attributes:
        rows: by block, from 0, what is added to its output; the strength is in it already
        settings: how the tool was run, for the reader of the file
    """

    rows: dict[int, torch.Tensor]
    settings: dict[str, Any]


def load(folder: str) -> Loaded:
    """The model in float32 on the processor, as steerkit runs it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(model, AutoTokenizer.from_pretrained(folder))


def say(text: str) -> None:
    """Tell the user how far it is."""
    print(text, file=sys.stderr, flush=True)


def chat_text(tokenizer: Any, system: str, question: str, reply: str) -> str:
    """The conversation up to the last token of the reply, without the mark that closes a turn."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + reply


def describe(package: str, method: str, strength: float, rows: dict[int, torch.Tensor], note: str) -> dict[str, Any]:
    """The settings of a tool. All three add the same to every token, those of the prompt included."""
    return {
        "tool": package,
        "version": version(package),
        "method": method,
        "strength": strength,
        "layers": sorted(rows),
        "everywhere": True,
        "operator": "add",
        "note": note,
    }


def cut_replies(tokenizer: Any, pair: Pair) -> Iterator[str]:
    """Beginnings of both replies; each goes behind the positive and the negative persona alike."""
    for reply in (pair["positive_reply"], pair["negative_reply"]):
        tokens = tokenizer.tokenize(reply)
        for end in range(1, len(tokens), REPENG_CUT_EVERY):
            yield tokenizer.convert_tokens_to_string(tokens[:end])


def run_repeng(loaded: Loaded, pairs: list[Pair]) -> Result:
    """As in its notebooks: opposite personas, each before the same cut reply, and the default method."""
    from repeng import ControlVector, DatasetEntry

    model, tokenizer = loaded
    entries = [
        DatasetEntry(
            positive=chat_text(tokenizer, pair["positive_system"], pair["question"], cut),
            negative=chat_text(tokenizer, pair["negative_system"], pair["question"], cut),
        )
        for pair in pairs
        for cut in cut_replies(tokenizer, pair)
    ]
    vector = ControlVector.train(model, tokenizer, entries)
    # ControlModel adds to the output of the block of the same number.
    layers = [model.config.num_hidden_layers + layer for layer in REPENG_LAYERS]
    rows = {layer: REPENG_COEFFICIENT * torch.from_numpy(vector.directions[layer]) for layer in layers}
    note = (
        "Layers -5 to -17 as in its README and notebooks; 1.5 is the coefficient of emotion.ipynb (others: up to 2.2), "
        "found on Mistral-7B, for directions of length 1 whatever the model (its tests use 20 for GPT-2)."
    )
    return Result(rows, describe("repeng", "pca_diff", REPENG_COEFFICIENT, rows, note))


def run_steering_vectors(loaded: Loaded, pairs: list[Pair], one_layer: bool) -> Result:
    """As in its documentation: the mean difference at the last token, on all layers or, in its notebook, on one."""
    from steering_vectors import train_steering_vector

    model, tokenizer = loaded
    samples = [
        (
            chat_text(tokenizer, pair["positive_system"], pair["question"], pair["positive_reply"]),
            chat_text(tokenizer, pair["negative_system"], pair["question"], pair["negative_reply"]),
        )
        for pair in pairs
    ]
    middle = round(NOTEBOOK_LAYER / NOTEBOOK_LAYERS * model.config.num_hidden_layers)
    vector = train_steering_vector(model, tokenizer, samples, layers=[middle] if one_layer else None)
    rows = {layer: STEERING_VECTORS_MULTIPLIER * row for layer, row in vector.layer_activations.items()}
    note = "The basic usage of its documentation: trained on all layers, and apply() adds to all of them at 1.0."
    if one_layer:
        note = f"Its notebook caa_sycophancy.ipynb steers layer {NOTEBOOK_LAYER} of {NOTEBOOK_LAYERS} at 1.0."
    method = f"mean difference at the last token, {'one layer' if one_layer else 'all layers'}"
    return Result(rows, describe("steering-vectors", method, STEERING_VECTORS_MULTIPLIER, rows, note))


@contextmanager
def recorded(model: Any, outputs: dict[int, torch.Tensor]) -> Iterator[None]:
    """Keep what every block gives out: after the hooks that it has already, before those that it gets later."""

    def keep(layer: int, _module: Any, _inputs: Any, output: Any) -> None:
        # A clone, because saklas adds in place.
        outputs[layer] = (output if isinstance(output, torch.Tensor) else output[0])[0].clone()

    blocks = enumerate(model.get_decoder().layers)
    handles = [block.register_forward_hook(partial(keep, layer)) for layer, block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def measured_push(loaded: Loaded, session: Any, expression: str, text: str) -> dict[int, torch.Tensor]:
    """What the hooks of saklas add after each block, which must be the same for every token."""
    before: dict[int, torch.Tensor] = {}
    after: dict[int, torch.Tensor] = {}
    with recorded(loaded.model, before), session.steering(expression), recorded(loaded.model, after):
        loaded.model(**loaded.tokenizer(text, return_tensors="pt"))
    rows = {}
    for layer, plain in before.items():
        # The first token has a norm of thousands, beside which float32 keeps few digits of what was added.
        added = (after[layer] - plain)[1:]
        if added.any():
            rows[layer] = added.mean(dim=0)
            spread = float((added - rows[layer]).norm(dim=-1).max() / rows[layer].norm())
            if spread > 0.01:
                raise RuntimeError(f"layer {layer}: what saklas adds differs between tokens by {spread:.0%}")
    return rows


def run_saklas(loaded: Loaded, pairs: list[Pair]) -> Result:
    """Its way for ready-made replies: neutral replies of the model itself, then `extract_from_corpora`."""
    from saklas import SaklasSession

    positive, negative = [pair["positive_reply"] for pair in pairs], [pair["negative_reply"] for pair in pairs]
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAKLAS_HOME"] = home
        # The i-th reply of each side answers the i-th of its shared questions, which a file in its home replaces.
        (Path(home) / "baseline_prompts.json").write_text(json.dumps([pair["question"] for pair in pairs]))
        with SaklasSession(loaded.model, loaded.tokenizer, probes=[]) as session:
            neutral = session.generate_neutral_responses(
                samples_per_prompt=SAKLAS_NEUTRALS_PER_QUESTION, max_new_tokens=SAKLAS_NEUTRAL_TOKENS
            )
            (Path(home) / "neutral_statements.json").write_text(json.dumps(neutral))
            name, _ = session.extract_from_corpora("persona.assistant", positive, negative)
            text = chat_text(loaded.tokenizer, "", pairs[0]["question"], negative[0])
            rows = measured_push(loaded, session, f"{SAKLAS_COEFFICIENT} {name}", text)
    note = (
        "Its README: omitted coefficients default to 0.5. Measured on its hooks. It reads the replies under a system "
        "prompt of its own, and against neutral replies to the same questions that the model gave under that prompt."
    )
    method = "Fisher direction between the means, of unit whitened length, where neutral lies between them"
    return Result(rows, describe("saklas", method, SAKLAS_COEFFICIENT, rows, note))


TOOLS: dict[str, Callable[[Loaded, list[Pair]], Result]] = {
    "repeng": run_repeng,
    "steering_vectors": partial(run_steering_vectors, one_layer=False),
    "steering_vectors_mean": partial(run_steering_vectors, one_layer=True),
    "saklas": run_saklas,
}


def write(path: Path, loaded: Loaded, result: Result) -> None:
    """Write one vector, so that a file is there whole or not at all; layers that are left alone are zero."""
    config = loaded.model.config
    additions = torch.zeros(config.num_hidden_layers, config.hidden_size)
    for layer, row in result.rows.items():
        additions[layer] = row
    if not additions.isfinite().all() or not additions.any():
        raise RuntimeError("what it adds is not finite, or all zero")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    save_file({"additions": additions}, temporary, {"settings": json.dumps(result.settings)})
    os.replace(temporary, path)


def main(arguments: list[str]) -> int:
    """Make every vector that is not there yet; 1 if one could not be made."""
    parser = argparse.ArgumentParser(description="Make the vectors of three other steering tools.")
    parser.add_argument("jobs", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    options = parser.parse_args(arguments)
    jobs = json.loads(options.jobs.read_text(encoding="utf-8"))
    paths = {
        (persona, tool): options.output / tool / f"{persona}.safetensors"
        for persona in jobs["personas"]
        for tool in options.tools
    }
    missing = {key: path for key, path in paths.items() if not path.exists()}
    say(f"{len(paths)} vectors, {len(paths) - len(missing)} of them there already")
    if not missing:
        return 0
    loaded = load(jobs["model"])
    failures = []
    for number, ((persona, tool), path) in enumerate(missing.items(), 1):
        say(f"{number}/{len(missing)} {tool} {persona}")
        torch.manual_seed(SEED)
        started = time.perf_counter()
        try:
            result = TOOLS[tool](loaded, jobs["personas"][persona]["pairs"])
            result.settings["seconds"] = round(time.perf_counter() - started, 1)
            write(path, loaded, result)
            say(f"  {result.settings['seconds']} s, {len(result.rows)} layers")
        except Exception as error:
            # One tool may choke on one persona; the others are still worth having.
            failures.append(f"{tool} {persona}: {type(error).__name__}: {error}")
            say(f"  failed: {error}")
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
