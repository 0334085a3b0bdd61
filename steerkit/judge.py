"""Whether a way through the weights computes what plain Hugging Face computes: asked when a model is loaded.

The judge is the model itself, in the precision that is used, on a few tokens: no cache, no mask, no positions, one
pass. A path is held against it with a batch of two rows of unequal length: a padded prefill with the stream behind
every block, then three steps from the cache. A path that disagrees is not used.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit import runners
from steerkit.errors import ModelError
from steerkit.networks import Network, find_blocks, input_device, ordinary_tokens, run_plainly, stream_of

N_STEPS = 3
"""Steps from the cache."""
LENGTHS = (6, 4)
"""Tokens of the two rows before the first step."""
SHORT = (3, 2)
"""The same on some of the blocks only, for which a few tokens are enough."""
REORDERED = [1, 0, 1]
"""The rows at the last step."""
LONG = 40
"""Tokens of a text on which an edit is tried: what builds up along a text shows on it."""
EDIT = 1.5
"""What the stream is multiplied with where an edit is tried."""
EXACT = 1e-4
"""The largest relative difference of logits or states in float32; two ways through a model differ by about 1e-6."""
ROUGH = 0.05
"""The same in half precision, for the middle one of all positions: at a few, experts chosen by a hair may differ."""
ROUGH_LARGEST = 0.5
"""And for the largest of them; a path with a fault is wrong everywhere."""
ROUNDED, ROUNDINGS = 0.01, 2.0
"""In half precision a short cut is taken where the middle difference is no more than this, or so many times what
rounding does to the model itself: what padding does to a short text may be less than `ROUGH`, and to a long one not."""


REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, NotImplementedError)
"""What a model raises on a way that is not for it."""


def versions() -> str:
    """The libraries that decide what is computed."""
    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "transformer-lens", "torch"))


@runtime_checkable
class Forward(Protocol):
    """A way through the weights, as `runners.Runner` has it."""

    def forward(
        self, tokens: Tensor, mask: Tensor, cache: Any, functions: Any, keep: int, rows: Tensor | None
    ) -> tuple[Tensor, Any]:
        """Logits at the last `keep` positions, and the cache."""
        ...


@dataclass(frozen=True, eq=False)
class Reference:
    """What plain Hugging Face computes."""

    tokens: Int[Tensor, "2 s"]
    """Two rows of tokens; of the second the last few stand for nothing, because no token looks ahead."""
    logits: Float[Tensor, "2 s v"]
    """Behind every token."""
    states: Float[Tensor, "2 l s d"]
    """The stream behind every block."""
    dtype: torch.dtype
    """The precision it was computed in."""
    lengths: tuple[int, int] = LENGTHS
    """Tokens of the two rows before the first step."""
    quantised: bool = False
    """Whether its matrices are, which may round what goes through them, too."""
    rounding: float = 0.0
    """How much the model's own logits differ between two rows and a row alone, of another length, in half precision."""

    def holds(
        self, states: dict[int, Tensor], logits: Tensor | None, ends: Sequence[int], rows: Sequence[int] = (0, 1)
    ) -> bool:
        """Whether states at the last tokens of some rows, by layer, and the logits there are the judge's.

        `ends` is how many tokens each of the judge's rows has by now.
        """
        layers = range(self.states.shape[1])
        if set(states) != set(layers):
            return False
        found = [states[l][i] for l in layers for i in range(len(rows))]
        wanted = [self.states[row, l, ends[row] - 1] for l in layers for row in rows]
        if logits is not None:
            found += list(logits)
            wanted += [self.logits[row, ends[row] - 1] for row in rows]
        return self.agrees(found, wanted)

    @property
    def exact(self) -> bool:
        """Whether so little is rounded that every difference shows."""
        return self.dtype in (torch.float32, torch.float64) and not self.quantised

    def agrees(self, logits: Sequence[Tensor], expected: Sequence[Tensor], closely: bool = False) -> bool:
        """Whether vectors [n …] are those of the judge, each for itself; `closely`, as far as rounding lets one see."""
        errors = [_error(found, wanted) for found, wanted in zip(logits, expected, strict=True)]
        largest = max(errors)
        if self.exact:
            return largest <= EXACT
        middle = min(ROUGH, max(ROUNDED, ROUNDINGS * self.rounding)) if closely else ROUGH
        return sorted(errors)[len(errors) // 2] <= middle and largest <= ROUGH_LARGEST


def _error(found: Tensor, wanted: Tensor) -> float:
    """The relative difference of two vectors; infinite where it is no number."""
    if found.shape != wanted.shape:
        return float("inf")
    found, wanted = found.float(), wanted.float()
    error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))
    return error if error == error else float("inf")


def judge_tokens(model: Any, length: int) -> Int[Tensor, "2 s"]:
    """The tokens on which paths are held against the judge."""
    rows = [[89 + 37 * i * i + 151 * row * (i + 1) for i in range(length)] for row in (0, 1)]
    return torch.tensor([ordinary_tokens(model, row) for row in rows])


def take_reference(model: Any, lengths: tuple[int, int] = LENGTHS) -> tuple[list[Any], Reference]:
    """Run a Hugging Face model on the judge's tokens: its blocks, and the stream behind them by hooks of one's own.

    Args:
        model: a Hugging Face causal language model
        lengths: tokens of two rows before the first step

    Raises:
        ModelError: it cannot be run, has no blocks that states pass one by one, or computes what is no number.
    """
    tokens = judge_tokens(model, max(lengths) + N_STEPS).to(input_device(model))
    quantised = getattr(model.config, "quantization_config", None) is not None
    try:
        blocks, states, logits = find_blocks(model, tokens)
        reference = Reference(tokens, logits, states, model.dtype, lengths, quantised)
        if not reference.exact:
            reference = replace(reference, rounding=_rounding(model, reference))
    except REFUSALS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ModelError(
            f"{type(model).__name__} fails in plain transformers ({versions()}: {reason}); try another --dtype, or "
            "install the versions of constraints.txt"
        ) from error
    if not bool(logits.isfinite().all()):
        raise ModelError(f"{type(model).__name__} computes logits that are no numbers; its weights are damaged")
    return blocks, reference


def _rounding(model: Any, reference: Reference) -> float:
    """The largest relative difference of a model's logits between the judge's two rows and each of them, cut, alone."""
    errors = []
    with torch.inference_mode():
        for row, n in enumerate((1, min(reference.lengths))):
            alone = run_plainly(model, reference.tokens[row : row + 1, :n]).logits[0]
            errors += [_error(alone[i].to(reference.logits.device), reference.logits[row, i]) for i in range(n)]
    return max(errors)


@dataclass(eq=False)
class _Recorder:
    """The stream at the last token of each row, by layer."""

    states: dict[int, Tensor] = field(default_factory=dict)

    def functions(self, n_layers: int) -> dict[int, list[Callable[[Tensor], Tensor]]]:
        """A reader for every layer."""

        def reader(l: int) -> Callable[[Tensor], Tensor]:
            def read(h: Tensor) -> Tensor:
                self.states[l] = h[:, -1]
                return h

            return read

        return {l: [reader(l)] for l in range(n_layers)}


def agrees(reference: Reference, forward: Forward, keep: int = 1) -> bool:
    """Whether a path gives the judge's states and logits in a padded batch, in the prefill and at steps from its cache.

    Before the last step the rows of the cache are put in another order, one of them twice.

    Args:
        reference: what the judge says
        forward: the path
        keep: 0 to compare only states at the steps, where logits cost more than the blocks
    """
    rows = [0, 1]
    try:
        with torch.inference_mode():
            tokens, mask = _padded(reference.tokens, reference.lengths)
            cache = None
            for step in range(N_STEPS + 1):
                recorder, ends = _Recorder(), [n + step for n in reference.lengths]
                n_logits = keep if step else 1
                functions = recorder.functions(reference.states.shape[1])
                logits, cache = forward.forward(tokens, mask, cache, functions, n_logits, None)
                if not reference.holds(recorder.states, logits[:, -1] if n_logits else None, ends, rows):
                    return False
                if step == N_STEPS - 1:
                    rows = REORDERED
                    chosen = torch.tensor(rows, device=tokens.device)
                    runners.select_cache(cache, chosen)
                    mask = mask[chosen]
                if step < N_STEPS:
                    tokens = torch.stack([reference.tokens[row, ends[row]] for row in rows])[:, None]
                    mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            return True
    except REFUSALS:
        return False


def edits_agree(model: Any, reference: Reference, block: Any, l: int, forward: Forward) -> bool:
    """Whether an edit behind a block does in a path what a hook by hand does in the model."""

    def grow(_module: Any, _inputs: Any, output: Any) -> Any:
        h = stream_of(output) * EDIT
        return h if isinstance(output, Tensor) else type(output)((h, *output[1:]))

    tokens = judge_tokens(model, LONG).to(reference.tokens.device)
    handle = block.register_forward_hook(grow)
    try:
        with torch.inference_mode():
            wanted = run_plainly(model, tokens).logits[:, -1]
    finally:
        handle.remove()
    try:
        with torch.inference_mode():
            functions = {l: [lambda h: h * EDIT]}
            found, _ = forward.forward(tokens, torch.ones_like(tokens), None, functions, 1, None)
        return reference.agrees(list(found[:, -1]), list(wanted.to(found.device)))
    except REFUSALS:
        return False


def _steps_agree(reference: Reference, forward: Forward, mask: Tensor, cache: Any, lengths: Sequence[int]) -> bool:
    found, wanted = [], []
    for step in range(N_STEPS):
        places = [n + step for n in lengths]
        tokens = torch.stack([reference.tokens[row, place] for row, place in enumerate(places)])[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits, cache = forward.forward(tokens, mask, cache, {}, 1, None)
        found += [logits[row, -1] for row in (0, 1)]
        wanted += [reference.logits[row, place] for row, place in enumerate(places)]
    return reference.agrees(found, wanted, closely=True)


def keeps_every_token(reference: Reference, network: Network) -> bool:
    """Whether the cache that modules make is of nothing but the keys and values of single tokens; see `runners`."""
    try:
        with torch.inference_mode():
            return runners.keeps_every_token(network.run(reference.tokens[:1], None, None, None, {}, 1)[1])
    except REFUSALS:
        return False


def continues(reference: Reference, forward: Forward, lengths: Sequence[int] = (2, 2), inside: bool = False) -> bool:
    """Whether several tokens can be read behind a cache at once; with `inside`, behind padding inside a row."""
    firsts = lengths if inside else (min(lengths),) * len(lengths)
    rests = [n - first for n, first in zip(LENGTHS, firsts, strict=True)]
    try:
        with torch.inference_mode():
            head, before = _padded(reference.tokens, firsts)
            _, cache = forward.forward(head, before, None, {}, 1, None)
            rest, mask = _padded(
                torch.stack([row.roll(-first) for row, first in zip(reference.tokens, firsts, strict=True)]),
                rests if inside else (min(rests),) * len(rests),
            )
            logits, cache = forward.forward(rest, torch.cat([before, mask], dim=1), cache, {}, 1, None)
            ends = [first + n for first, n in zip(firsts, rests if inside else (min(rests),) * 2, strict=True)]
            found = [logits[row, -1] for row in (0, 1)]
            wanted = [reference.logits[row, end - 1] for row, end in enumerate(ends)]
            if not reference.agrees(found, wanted, closely=True):
                return False
            return _steps_agree(reference, forward, torch.cat([before, mask], dim=1), cache, ends)
    except REFUSALS:
        return False


def _padded(tokens: Int[Tensor, "2 s"], lengths: Sequence[int]) -> tuple[Int[Tensor, "2 t"], Int[Tensor, "2 t"]]:
    """The beginnings of two rows, the shorter padded on the left."""
    width = max(lengths)
    padded, mask = tokens.new_zeros(2, width), tokens.new_zeros(2, width)
    for row, n in enumerate(lengths):
        padded[row, width - n :] = tokens[row, :n]
        mask[row, width - n :] = 1
    return padded, mask


@dataclass
class Timer:
    """Seconds that judging took."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def only(model: Any, kept: Sequence[int]) -> Any:
    """A Hugging Face model of Llama's shape with some of its blocks, sharing all weights."""
    smaller = copy.copy(model)
    smaller._modules = dict(model._modules)
    inner = copy.copy(model.model)
    inner._modules = dict(model.model._modules)
    inner._modules["layers"] = torch.nn.ModuleList([model.model.layers[l] for l in kept])
    inner.config = copy.copy(model.config)
    inner.config.num_hidden_layers = len(kept)
    smaller._modules["model"] = inner
    return smaller
