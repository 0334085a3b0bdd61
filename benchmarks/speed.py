"""How fast steerkit is beside plain transformers and three other tools: a row a promise, and whether it was kept.

Both sides of a row take turns in one run, and the ratio is taken turn by turn; what is printed is the median. Other
tools run in processes of their own, and loading is never counted, except in the last rows, which are about it.

    python benchmarks/speed.py --others PYTHON [--rounds 3] [--only PART ...]

PYTHON is the interpreter of the environment that benchmarks/other_tools.py describes. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUESTION = "Tell me about the sea, its islands, and the people who live there."
N_TOKENS, N_BATCH_TOKENS, N_PAIRS, N_PROBES = 48, 24, 32, 8
TOOLS = ("repeng", "steering_vectors", "saklas")

Row = tuple[str, str, float, float]
"""What is measured, against what, the goal, and what was reached; both are ratios, and more is better."""


def main() -> None:
    """Measure each part and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", help="the Python of the other tools' environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--run", nargs=2, metavar=("PART", "TOOL"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        work = json.load(sys.stdin)
        print(json.dumps(RUNS[asked.run[0]](asked.run[1], work)))
        return
    print("| what | against | goal | reached | met |\n|---|---|---:|---:|---|", flush=True)
    for part in asked.only:
        for what, against, goal, reached in PARTS[part](asked.others, asked.rounds):
            met = "yes" if reached >= goal else "**no**"
            print(f"| {what} | {against} | {goal:.2f} | {reached:.2f} | {met} |", flush=True)


def in_a_process(python: str, part: str, tool: str, work: Any) -> Any:
    """Run one part of one tool alone, and read what it says."""
    command = [python, str(Path(__file__).resolve()), "--run", part, tool]
    done = subprocess.run(command, input=json.dumps(work), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds(work: Callable[[], Any]) -> float:
    """How long something takes once."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(rounds: int, **works: Callable[[], Any]) -> dict[str, list[float]]:
    """Times of several things, after one turn that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, work in works.items():
            taken = seconds(work)
            if i:
                times[name].append(taken)
    return times


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over turns of how many times as long they take."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def say(text: str) -> None:
    """Absolute numbers, which are worth less than ratios."""
    print(text, file=sys.stderr, flush=True)


def plain_model() -> Any:
    """The same weights in plain transformers, with its fastest attention."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from steerkit.weights import get_default_model

    logging.disable_progress_bar()
    folder = str(get_default_model())
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def decode(_others: str | None, rounds: int) -> Iterator[Row]:
    """One row, steered, without and with probes, beside plain `generate`."""
    import torch

    from steerkit import Probe, Sampling, Steering, Term, VectorSet, complete, load_model

    model, plain = load_model(), plain_model()
    library = VectorSet(model.fingerprint)
    prompt = model.chat_tokens([{"role": "user", "content": QUESTION}])
    steering = Steering((Term(library["warmth"], dial=0.3, layers=(8, 23)),))
    probes = [Probe.of(library[name]) for name in sorted(library)[:N_PROBES]]
    tokens = torch.tensor([prompt])
    object.__setattr__(model, "end_tokens", frozenset())

    def theirs() -> None:
        with torch.inference_mode():
            plain.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=False, eos_token_id=-1,
                max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
            )  # fmt: skip

    def ours(read: list[Probe]) -> None:
        complete(model, [prompt], [steering], read, Sampling(N_TOKENS))

    times = in_turn(2 * rounds, plain=theirs, steered=lambda: ours([]), probed=lambda: ours(probes))
    for name, taken in times.items():
        say(f"decode, {name}: {statistics.median(taken) / N_TOKENS * 1e3:.1f} ms a token")
    yield "steered decode, one row", "plain generate", 1.25, ratio(times["plain"], times["steered"])
    yield f"the same with {N_PROBES} probes", "plain generate", 1.15, ratio(times["plain"], times["probed"])


def families(_others: str | None, rounds: int) -> Iterator[Row]:
    """One row, steered, on models that are not written out, beside plain `generate`; random weights cost as much."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, Qwen3Config
    from transformers.utils import logging

    from steerkit import Sampling, Steering, SteeringVector, Term, complete, load_model

    logging.disable_progress_bar()
    wide = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    wide |= {"num_hidden_layers": 16, "intermediate_size": 1536, "vocab_size": 8192}
    configs = {
        "GPT-2": GPT2Config(n_embd=576, n_layer=16, n_head=9, vocab_size=8192),
        "Qwen 3": Qwen3Config(**wide),
        "Gemma 2": Gemma2Config(**wide),
    }
    prompt = list(range(100, 130))
    tokens = torch.tensor([prompt])
    for family, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            save_words(folder, 8192)
            plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            works: dict[str, Callable[[], Any]] = {}
            for engine in ("local", "transformer-lens"):
                model = load_model(folder, device="cpu", engine=engine)
                object.__setattr__(model, "end_tokens", frozenset())
                shape = model.n_layers, model.width
                vector = SteeringVector("random", model.fingerprint, torch.randn(shape) / 100, torch.zeros(shape))
                steering = Steering((Term(vector, dial=0.3, layers=(4, 11)),))
                works[engine] = lambda m=model, s=steering: complete(m, [prompt], [s], (), Sampling(N_TOKENS))
                say(f"families, {family}: {engine} is {model.path}")

            def theirs(plain: Any = plain) -> None:
                with torch.inference_mode():
                    plain.generate(
                        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, eos_token_id=-1,
                        max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS, pad_token_id=0,
                    )  # fmt: skip

            times = in_turn(2 * rounds, plain=theirs, **works)
        for name, taken in times.items():
            say(f"families, {family}, {name}: {statistics.median(taken) / N_TOKENS * 1e3:.1f} ms a token")
        yield f"steered decode, {family}", "plain generate", 0.9, ratio(times["plain"], times["local"])
        yield (
            f"the same, TransformerLens' hooks, {family}",
            "plain generate",
            0.2,
            ratio(times["plain"], times["transformer-lens"]),
        )


def save_words(folder: str, n_words: int) -> None:
    """Save a tokenizer of so many words, for a model of random weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n_words)}, "w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def batch(others: str | None, rounds: int) -> Iterator[Row]:
    """Rows with different steerings in one batch, beside tools that take one at a time."""
    from steerkit import Sampling, Steering, Term, VectorSet, complete, load_model
    from steerkit.weights import get_default_model

    model = load_model()
    vector = VectorSet(model.fingerprint)["warmth"]
    prompt = model.chat_tokens([{"role": "user", "content": QUESTION}])
    object.__setattr__(model, "end_tokens", frozenset())

    def ours(n_rows: int) -> None:
        steerings = [Steering((Term(vector, dial=i / n_rows, layers=(15, 15)),)) for i in range(n_rows)]
        complete(model, [prompt] * n_rows, steerings, (), Sampling(N_BATCH_TOKENS))

    work = {"model": str(get_default_model()), "prompt": prompt, "direction": vector.directions[15].tolist()}
    times = in_turn(rounds, eight=lambda: ours(8), many=lambda: ours(32))
    one = {tool: in_a_process(others, "batch", tool, work) for tool in TOOLS[:2]} if others else {}
    for tool, found in one.items():
        say(f"batch, {tool}: {found:.2f} s a row; ours: {statistics.median(times['eight']):.2f} s for 8 rows")
    best = min(one.values(), default=math.nan)
    yield (
        "8 rows, 8 steerings",
        "the faster of two tools, 8 times one row",
        5,
        8 * best / statistics.median(times["eight"]),
    )
    yield "32 rows, 32 steerings", "the same, 32 times", 11, 32 * best / statistics.median(times["many"])


def run_batch(tool: str, work: dict[str, Any]) -> float:
    """Seconds for one row, steered, by another tool; the median of five, after one that is not counted."""
    import numpy
    import torch
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    tokens = torch.tensor([work["prompt"]])
    options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "eos_token_id": -1}
    options |= {"max_new_tokens": N_BATCH_TOKENS, "min_new_tokens": N_BATCH_TOKENS, "pad_token_id": 0}
    if tool == "repeng":
        from repeng import ControlModel, ControlVector

        model = ControlModel(plain, [15])
        pushed = {15: numpy.array(work["direction"], dtype="float32")}

        def once() -> None:
            model.set_control(ControlVector(model_type="llama", directions=pushed), 0.5)
            model.generate(input_ids=tokens, **options)
    else:
        from steering_vectors import SteeringVector

        vector = SteeringVector({15: torch.tensor(work["direction"])}, "decoder_block")

        def once() -> None:
            with vector.apply(plain, multiplier=0.5):
                plain.generate(input_ids=tokens, **options)

    with torch.inference_mode():
        return statistics.median(in_turn(5, once=once)["once"])


def extraction(others: str | None, rounds: int) -> Iterator[Row]:
    """Vectors from prompts alone, beside three tools; and from replies, beside plain generation and a forward pass."""
    import torch

    from steerkit import Recipe, extract, find_pair, load_model
    from steerkit.extraction import contrasts
    from steerkit.weights import get_default_model

    model, plain, pair = load_model(), plain_model(), find_pair("hal")
    parts = list(contrasts(model, pair, Recipe()))
    told = [(c, *r) for part in parts for c, r in zip(part.cases, part.replies, strict=True)]
    cases = [case for case, _, _ in told][:N_PAIRS]
    texts = [[model.tokenizer.decode(list(side)) for side in (c.positive, c.negative)] for c in cases]
    questions = [model.tokenizer.decode(list(case.bare)) for case in cases]
    replies = [[yes.text, no.text] for _, yes, no in told][:N_PAIRS]
    work = {"model": str(get_default_model()), "texts": texts, "questions": questions, "replies": replies}
    counted: list[int] = []
    found: list[Any] = []

    def ours() -> None:
        from steerkit.passes import prompt_states

        states = prompt_states(model, [side for case in cases for side in (case.positive, case.negative)])
        found.append((states[0::2] - states[1::2]).mean(0))

    with counting(model, counted):
        ours()
    tokens = sum(counted)
    times = in_turn(rounds, ours=ours)["ours"]
    theirs = {tool: in_a_process(others, "extraction", tool, work) for tool in TOOLS} if others else {}
    mine = statistics.median(times)
    weights = sum(p.numel() for name, p in plain.model.layers.named_parameters() if p.dim() == 2)
    share = 2 * weights * tokens / mine / peak()
    for tool, entry in theirs.items():
        say(f"extraction, {tool}: {entry['seconds']:.2f} s")
    say(f"extraction, steerkit: {mine:.2f} s for {tokens} tokens, {share:.0%} of the measured matrix-product peak")
    if "steering_vectors" in theirs:
        other = torch.tensor(theirs["steering_vectors"]["directions"])
        cosine = float(torch.cosine_similarity(found[0], other, dim=-1).min())
        say(f"extraction: lowest cosine with steering-vectors' mean difference {cosine:.5f}")
        assert cosine > 0.999
    best = min((entry["seconds"] for entry in theirs.values()), default=math.nan)
    yield f"extraction, {N_PAIRS} pairs, prompts", "the fastest of three tools", 2, best / mine

    def plainly() -> None:
        # As many rows a batch as ours, padded on the left; then one pass over prompts and replies.
        for start in range(0, len(told), 18):
            rows = [list(side) for case, _, _ in told[start : start + 18] for side in (case.positive, case.negative)]
            asked, mask = padded(rows)
            with torch.inference_mode():
                whole = plain.generate(
                    asked, attention_mask=mask, do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens=40,
                    pad_token_id=2,
                )  # fmt: skip
                more = torch.ones(len(whole), whole.shape[1] - mask.shape[1], dtype=mask.dtype)
                plain(whole, attention_mask=torch.cat([mask, more], 1), output_hidden_states=True, logits_to_keep=1)

    both = in_turn(rounds, plain=plainly, ours=lambda: extract(model, pair))
    say(f"extraction from replies: {statistics.median(both['ours']):.1f} s, {statistics.median(both['plain']):.1f} s")
    yield (
        f"extraction, {len(told)} pairs, replies",
        "plain generate, then one pass",
        1,
        ratio(both["plain"], both["ours"]),
    )


class counting:
    """Count the tokens that a model's forward passes are given."""

    def __init__(self, model: Any, counted: list[int]) -> None:
        self._model, self._forward, self._counted = model, model.forward, counted

    def __enter__(self) -> None:
        def forward(tokens: Any, *given: Any, **named: Any) -> Any:
            self._counted.append(tokens.numel())
            return self._forward(tokens, *given, **named)

        object.__setattr__(self._model, "forward", forward)

    def __exit__(self, *_problem: object) -> None:
        object.__delattr__(self._model, "forward")


def peak() -> float:
    """Operations a second of a large matrix product in float32."""
    import torch

    a = torch.randn(2048, 2048)
    best = min(in_turn(5, product=lambda: a @ a)["product"])
    return 2 * 2048**3 / best


def padded(rows: list[list[int]]) -> tuple[Any, Any]:
    """Rows of one width, padded on the left, and their mask."""
    import torch

    width = max(map(len, rows))
    tokens = torch.tensor([[2] * (width - len(row)) + row for row in rows])
    return tokens, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def run_extraction(tool: str, work: dict[str, Any]) -> dict[str, Any]:
    """Seconds for one extraction by another tool, at its own batch size; the median of three."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    made: list[Any] = []
    if tool == "saklas":
        from saklas import SaklasSession

        with tempfile.TemporaryDirectory() as home:
            os.environ["SAKLAS_HOME"] = home
            (Path(home) / "baseline_prompts.json").write_text(json.dumps(work["questions"]))
            with SaklasSession(model, tokenizer, probes=[]) as session:
                neutral = session.generate_neutral_responses(samples_per_prompt=1, max_new_tokens=8)
                (Path(home) / "neutral_statements.json").write_text(json.dumps(neutral))
                sides = [list(side) for side in zip(*work["replies"], strict=True)]

                def extract() -> None:
                    # It remembers texts that it has read, so no turn gives it the same.
                    made.append(None)
                    fresh = [[f"{reply} {len(made)}" for reply in side] for side in sides]
                    session.extract_from_corpora(f"turn{len(made)}.b", *fresh)

                times = in_turn(3, once=extract)
        return {"seconds": statistics.median(times["once"])}
    if tool == "repeng":
        from repeng import ControlVector, DatasetEntry

        entries = [DatasetEntry(positive=yes, negative=no) for yes, no in work["texts"]]
        times = in_turn(3, once=lambda: ControlVector.train(model, tokenizer, entries))
        return {"seconds": statistics.median(times["once"])}
    from steering_vectors import train_steering_vector

    samples = [(yes, no) for yes, no in work["texts"]]

    def once() -> None:
        made.append(train_steering_vector(model, tokenizer, samples, batch_size=32))

    times = in_turn(3, once=once)
    directions = [row.tolist() for _, row in sorted(made[0].layer_activations.items())]
    return {"seconds": statistics.median(times["once"]), "directions": directions}


def memory(_others: str | None, _rounds: int) -> Iterator[Row]:
    """The highest memory of an extraction from ten and from a thousand questions."""
    few, many = (in_a_process(sys.executable, "memory", str(n), {}) for n in (10, 1000))
    say(f"memory: {few / 2**20:.0f} MiB for 10 questions, {many / 2**20:.0f} MiB for 1000")
    yield "memory, 10 questions", "1,000 questions", 1 / 1.1, few / many


def run_memory(n_questions: str, _work: Any) -> int:
    """The highest resident memory of a process that extracts from so many questions, in bytes."""
    import resource
    from dataclasses import replace

    from steerkit import Pair, Recipe, extract, find_pair, load_model

    model, pair = load_model(), find_pair("hal")
    questions = tuple(f"What would you do with {i} apples and {i % 7} friends?" for i in range(int(n_questions)))
    asked = replace(pair.positive, questions=questions, requested=pair.positive.requested[:1])
    against = replace(pair.negative, requested=pair.negative.requested[:1])
    extract(model, Pair(asked, against), Recipe(reading="prompt"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def startup(_others: str | None, rounds: int) -> Iterator[Row]:
    """Whole processes, loading included."""
    python, folder = sys.executable, str(Path(sys.executable).parent)
    load = (
        "from transformer_lens.model_bridge import TransformerBridge as B; from steerkit.weights import "
        "get_default_model as g; B.boot_transformers(str(g()))"
    )
    commands = {
        "help": [f"{folder}/steerkit", "--help"],
        "typer": [python, "-c", "import typer"],
        "the help of an empty typer program": [python, "-c", "import typer; typer.run(lambda: None)", "--help"],
        "generate": [f"{folder}/steerkit", "generate", "Hello", "-s", "0.5 warmth", "--max-tokens", "1"],
        "load": [python, "-c", load],
    }

    def run(name: str) -> Callable[[], Any]:
        return lambda: subprocess.run(commands[name], capture_output=True, check=True)

    times = in_turn(rounds + 2, **{name: run(name) for name in commands})
    for name, taken in times.items():
        say(f"startup, {name}: {statistics.median(taken):.2f} s")
    yield "steerkit --help", "import typer, at half speed", 1, 2 * ratio(times["typer"], times["help"])
    yield "first token of generate", "import and load, 10 % slower", 1, 1.1 * ratio(times["load"], times["generate"])


def size(_others: str | None, rounds: int) -> Iterator[Row]:
    """How cost grows with width, depth, prompt and rows, beside the model's own forward pass."""
    base = {"width": 384, "layers": 12, "prompt": 96, "rows": 4}
    # Narrower than this the model's own pass is mostly Python, and its cost hardly grows at all.
    grown = {"width": (384, 1536), "layers": (6, 24), "prompt": (48, 384), "rows": (1, 16)}
    for what, ends in grown.items():
        found = [in_a_process(sys.executable, "size", str(rounds), {**base, what: end}) for end in ends]
        ours, theirs = (math.log(found[1][i] / found[0][i]) / math.log(ends[1] / ends[0]) for i in (0, 1))
        share = ", ".join(f"{mine / own:.2f}" for mine, own in found)
        say(f"size, {what} {ends[0]} to {ends[1]}: cost grows with power {ours:.2f}, the model's own {theirs:.2f}")
        say(f"size, {what}: a steered pass takes {share} of the model's own")
        yield f"power of cost in {what}", "the model's own, 0.1 more", 1, (theirs + 0.1) / ours


def run_size(rounds: str, shape: dict[str, int]) -> tuple[float, float]:
    """Median seconds of a steered pass and of the model's own, on random weights of a shape."""
    import tempfile

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from steerkit import load_model

    config = LlamaConfig(
        hidden_size=shape["width"], intermediate_size=3 * shape["width"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["width"] // 64, num_key_value_heads=shape["width"] // 64, vocab_size=1000,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        plain = LlamaForCausalLM(config).eval()
        plain.save_pretrained(folder)
        save_words(folder, 1)
        model = load_model(folder, device="cpu")
    tokens = torch.randint(0, 1000, (shape["rows"], shape["prompt"]))
    mask, push = torch.ones_like(tokens), torch.randn(shape["width"])
    functions = {shape["layers"] // 2: [lambda h: h + push]}

    def theirs() -> None:
        with torch.inference_mode():
            plain(tokens, attention_mask=mask, logits_to_keep=1)

    times = in_turn(4 * int(rounds), ours=lambda: model.forward(tokens, mask, functions=functions), theirs=theirs)
    return statistics.median(times["ours"]), statistics.median(times["theirs"])


PARTS: dict[str, Callable[[str | None, int], Iterator[Row]]] = {
    "decode": decode,
    "families": families,
    "batch": batch,
    "extraction": extraction,
    "memory": memory,
    "startup": startup,
    "size": size,
}
RUNS: dict[str, Callable[[str, Any], Any]] = {
    "batch": run_batch,
    "extraction": run_extraction,
    "memory": run_memory,
    "size": run_size,
}

if __name__ == "__main__":
    main()
