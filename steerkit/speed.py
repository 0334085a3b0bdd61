"""How fast a model speaks, is steered and is read on this machine, beside what its memory would allow."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from steerkit.generation import Probe, Sampling, complete
from steerkit.measures import neutral, score_replies
from steerkit.models import Model
from steerkit.nulls import rounded
from steerkit.passes import prompt_states
from steerkit.personas import Pair
from steerkit.steering import Steering, Term
from steerkit.training import middle_band
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress

N_PROBES = 8
N_ROWS = 8
BUFFER = 1 << 28
"""Bytes that are read to learn how fast memory is; more than any cache holds."""


@dataclass(frozen=True)
class Speed:
    """Medians of a few interleaved turns. Timings are as noisy as the machine is busy."""

    model: str
    """Which model."""
    device: str
    """Where it ran."""
    dtype: str
    """In which precision."""
    unsteered: float
    """Tokens a second of one reply."""
    steered: float
    """The same, steered over the middle band."""
    probed: float
    """The same, with eight probes read at every token."""
    batch: float
    """Tokens a second of eight replies together, each steered differently."""
    pairs: float
    """Contrast pairs a second, read at the last token of their prompts."""
    memory: int
    """The most memory that the process, or the accelerator, has held so far, in bytes."""
    weights: int
    """Bytes of the weights."""
    bandwidth: float
    """Bytes a second that this device reads from its memory."""
    path: str
    """Which way through the weights is used."""
    judging: float
    """Seconds that it took to see that this way computes what plain Hugging Face computes, when it was loaded."""
    loading: float
    """Seconds that loading took, that included."""

    @property
    def ceiling(self) -> float:
        """Tokens a second that one reply cannot exceed, because every weight is read for every token."""
        return self.bandwidth / self.weights

    def to_json(self) -> dict[str, Any]:
        """Plain data with the keys that scripts rely on."""
        return rounded({**asdict(self), "ceiling": self.ceiling})


def measure_speed(
    model: Model, pair: Pair, turns: int = 3, n_tokens: int = 24, progress: Progress = ignore_progress
) -> Speed:
    """Time what people wait for, each in turn, so that a busy moment falls on all alike.

    Args:
        model: who is timed
        pair: personas whose prompts are read
        turns: how often each is timed, after once that is not counted
        n_tokens: the longest reply; it is as long as the model makes it
        progress: told how many turns of how many are done
    """
    draw = torch.Generator().manual_seed(0)
    shape = (model.n_layers, model.width)
    vector = SteeringVector("random", model.fingerprint, torch.randn(shape, generator=draw) / 100, torch.zeros(shape))
    band = middle_band(model.n_layers)
    steered = [Steering((Term(vector, dial=i / N_ROWS, layers=band),)) for i in range(1, N_ROWS + 1)]
    prompt = model.chat_tokens([{"role": "user", "content": neutral("questions")[0]}], n_tokens)
    probes = [Probe.of(vector)] * N_PROBES
    sides = [
        model.chat_tokens([{"role": "system", "content": system}, {"role": "user", "content": question}])
        for both in pair.prompts()
        for question in dict.fromkeys(pair.positive.questions)
        for system in both
    ]

    def speak(steerings: list[Steering], read: list[Probe]) -> int:
        replies = complete(model, [prompt] * len(steerings), steerings, read, Sampling(n_tokens))
        return sum(len(reply.tokens) for reply in replies)

    works: dict[str, Callable[[], int]] = {
        "unsteered": lambda: speak([Steering()], []),
        "steered": lambda: speak(steered[:1], []),
        "probed": lambda: speak(steered[:1], probes),
        "batch": lambda: speak(steered, []),
        "pairs": lambda: len(prompt_states(model, sides)) // 2,
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for i, (name, work) in enumerate(works.items()):
            started = _now(model.device)
            done = work()
            if turn:
                rates[name].append(done / (_now(model.device) - started))
            progress("time", turn * len(works) + i + 1, (turns + 1) * len(works))
    tensors = {id(p): p for p in model.original.parameters()}.values()
    return Speed(
        model=model.name,
        device=_device_name(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        **{name: statistics.median(found) for name, found in rates.items()},
        memory=_memory(model.device),
        weights=sum(p.numel() * p.element_size() for p in tensors),
        bandwidth=_bandwidth(model.device),
        path=model.path,
        judging=model.judgement.seconds if model.judgement else 0.0,
        loading=model.judgement.loading if model.judgement else 0.0,
    )


@dataclass(frozen=True)
class Rates:
    """Tokens a second of what experiments do most, for a guess of how long one takes."""

    read: float
    """Long texts, of which only states are wanted."""
    scored: float
    """Given replies, whose probability is wanted."""
    written: float
    """Replies of a batch, all rows together."""

    @property
    def trained(self) -> float:
        """Samples that are learned: the way back costs twice the way there, and adapters nearly as much again."""
        return self.read / 4


def measure_rates(model: Model, n_rows: int = 16, looks: int = 2) -> Rates:
    """The best of a few short looks, because others may be using the machine just now."""
    asked = [{"role": "user", "content": neutral("questions")[0]}]
    prompt = model.chat_tokens(asked)
    given = [model.given_reply(asked, text) for text in neutral("texts")[:n_rows]]
    few = [(each.tokens[: each.start], each.tokens[each.start : each.end][:24]) for each in given]
    rows = (few * n_rows)[:n_rows]
    texts = [text for _, text in rows]
    long = torch.tensor([texts[0][:1] * 128] * 4, device=model.device)

    def write() -> int:
        replies = complete(model, [prompt] * n_rows, sampling=Sampling(8))
        return max(sum(len(reply.tokens) for reply in replies), 1)

    def read() -> int:
        if model.engine is not None:
            prompt_states(model, long.tolist())
        else:
            model.forward(long, torch.ones_like(long), keep=0)
        return long.numel()

    def score() -> int:
        score_replies(model, rows, [Steering()], divergence=True)
        return sum(map(len, texts))

    def rate(work: Callable[[], int]) -> float:
        found = []
        for _ in range(looks):
            started = _now(model.device)
            found.append(work() / (_now(model.device) - started))
        return max(found)

    return Rates(read=rate(read), scored=rate(score), written=rate(write))


def _now(device: torch.device) -> float:
    """Seconds, when all that was begun is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The one number whose unit differs between systems.
    return int(most if sys.platform == "darwin" else most * 1024)


def _bandwidth(device: torch.device) -> float:
    """The fastest of a few sums over a buffer."""
    buffer = torch.ones(BUFFER // 4, device=device)
    best = float("inf")
    for _ in range(5):
        started = _now(device)
        buffer.sum()
        best = min(best, _now(device) - started)
    return BUFFER / best
