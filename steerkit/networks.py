"""One pass through a model's own modules: Hugging Face's, or TransformerLens' hook points on them.

A network takes tokens, a cache of its own making and hooks on the residual stream behind blocks, and returns logits.
How rows of a batch share a pass is decided above it, in `forward.py`.
"""

from __future__ import annotations

import copy
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import ModelError

Hook = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"]]
"""What is done to one layer's residual stream."""

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What a model calls the argument that carries its cache: transformers since 5.24, before it, and recurrent models."""


@runtime_checkable
class Network(Protocol):
    """Something that computes logits and lets hooks at the residual stream."""

    @property
    def name(self) -> str:
        """What it is called in notes and files."""
        ...

    @property
    def has_cache(self) -> bool:
        """Whether a pass can go on where another ended."""
        ...

    @property
    def takes_positions(self) -> bool:
        """Whether positions can be given, so that padding does not shift them."""
        ...

    @property
    def device(self) -> torch.device:
        """Where tokens go and hooks run."""
        ...

    def run(
        self,
        tokens: Int[Tensor, "b s"],
        mask: Int[Tensor, "b t"] | None,
        positions: Int[Tensor, "b s"] | None,
        cache: Any,
        hooks: Mapping[int, Hook],
        keep: int,
        use_cache: bool = True,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """Logits at the last `keep` positions, and the cache to go on with; None where none is made.

        Args:
            tokens: what is new, [b s]
            mask: 1 where a token counts, over cached and new tokens; None where all do
            positions: of the new tokens; None to let the model count
            cache: what the previous pass returned, or None; it is used up
            hooks: by layer, one function on the stream behind that block
            keep: at how many of the last positions logits are wanted
            use_cache: whether a cache is wanted
        """
        ...


@dataclass(frozen=True, eq=False)
class HFModules:
    """Hugging Face's own modules, with hooks only on the blocks that have any."""

    model: Any
    """A Hugging Face causal language model."""
    blocks: Sequence[Any]
    """Its blocks, first to last."""
    cache_name: str | None
    """The argument that carries its cache; None where it has none."""
    takes_positions: bool
    """Whether it has an argument for positions."""
    keeps_logits: bool
    """Whether it can spare logits that are not wanted."""
    switches_cache: bool
    """Whether it can be told to make no cache."""
    device: torch.device
    """Where its embeddings are."""
    name: str = "transformers"

    @classmethod
    def of(cls, model: Any, blocks: Sequence[Any], takes_positions: bool | None = None) -> HFModules:
        """Read off a model's signature what it takes."""
        names = inspect.signature(model.forward).parameters
        cache_name = next((name for name in CACHE_NAMES if name in names), None)
        positions = "position_ids" in names if takes_positions is None else takes_positions
        device = input_device(model)
        return cls(model, blocks, cache_name, positions, "logits_to_keep" in names, "use_cache" in names, device)

    @property
    def has_cache(self) -> bool:
        """Whether it has an argument for a cache."""
        return self.cache_name is not None

    def run(
        self,
        tokens: Int[Tensor, "b s"],
        mask: Int[Tensor, "b t"] | None,
        positions: Int[Tensor, "b s"] | None,
        cache: Any,
        hooks: Mapping[int, Hook],
        keep: int,
        use_cache: bool = True,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """See `Network`."""
        options: dict[str, Any] = {}
        if mask is not None:
            options["attention_mask"] = mask
        if positions is not None:
            options["position_ids"] = positions
        if self.cache_name is not None:
            options[self.cache_name] = cache
        if self.switches_cache:
            options["use_cache"] = use_cache and self.has_cache
        if self.keeps_logits:
            # Asked for the last none, it gives all.
            options["logits_to_keep"] = max(keep, 1)
        if cache is None:
            self._reset_positions()
        with hooked({self.blocks[l]: hook for l, hook in hooks.items()}, self.device):
            output = self.model(tokens, **options)
        made = getattr(output, self.cache_name, None) if self.cache_name is not None and use_cache else None
        return output.logits[:, output.logits.shape[1] - keep :], made

    def _reset_positions(self) -> None:
        """Forget the longest text so far: dynamic rotary positions would stay stretched for shorter ones."""
        for module in self.model.modules():
            if "max_seq_len_cached" in vars(module) and "dynamic" in str(getattr(module, "rope_type", "")):
                module.max_seq_len_cached = module.original_max_seq_len
                module.register_buffer("inv_freq", module.original_inv_freq.clone(), persistent=False)


@dataclass(frozen=True, eq=False)
class LensModules:
    """TransformerLens' hook points, `blocks.L.hook_out`, on the same weights."""

    bridge: Any
    """A `TransformerBridge`."""
    device: torch.device
    """Where its embeddings are."""
    has_cache: bool = True
    takes_positions: bool = False
    name: str = "transformer-lens"

    def run(
        self,
        tokens: Int[Tensor, "b s"],
        mask: Int[Tensor, "b t"] | None,
        positions: Int[Tensor, "b s"] | None,
        cache: Any,
        hooks: Mapping[int, Hook],
        keep: int,
        use_cache: bool = True,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """See `Network`; the bridge counts positions from the mask itself."""
        assert positions is None, "the bridge derives positions from the mask"
        points = {self.bridge.hook_dict[f"blocks.{l}.hook_out"]: hook for l, hook in hooks.items()}
        options: dict[str, Any] = {"use_cache": use_cache, "return_type": "logits_and_cache" if use_cache else "logits"}
        if mask is not None:
            options["attention_mask"] = mask
        if cache is not None:
            options["past_key_values"] = cache
        with hooked(points, self.device):
            output = self.bridge(tokens, **options)
        logits, made = output if use_cache else (output, None)
        return logits[:, logits.shape[1] - keep :], made


def input_device(model: Any) -> torch.device:
    """Where a Hugging Face model wants its tokens."""
    embeddings = model.get_input_embeddings()
    if embeddings.weight.device.type != "meta":
        return embeddings.weight.device
    # Weights that there is no room for are fetched for each pass, to where the hook of accelerate says.
    return torch.device(getattr(getattr(embeddings, "_hf_hook", None), "execution_device", "cpu"))


def is_spread(model: Any) -> bool:
    """Whether a model's weights are on several devices, or some of them are fetched for each pass."""
    devices = {parameter.device for parameter in model.parameters()}
    return len(devices) > 1 or any(device.type == "meta" for device in devices)


@contextmanager
def hooked(hooks: Mapping[Any, Hook], device: torch.device) -> Iterator[None]:
    """Put hooks on the outputs of modules; their handles are removed whatever happens.

    A hook runs on `device`: blocks of a model that is spread out may be elsewhere.
    """
    handles = []
    try:
        for module, hook in hooks.items():
            handles.append(module.register_forward_hook(_on_output(hook, device)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_output(hook: Hook, device: torch.device) -> Callable[..., Any]:
    """A hook on a block, whose output is a tensor or a tuple that begins with one.

    It is for the thread that puts it there: rows that run one by one share the modules, and not their hooks.
    """
    owner = threading.get_ident()

    def apply(_module: Any, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return output
        h = stream_of(output)
        edited = _on_streams(hook, h.to(device)).to(h.device)
        return edited if h is output else type(output)((edited, *output[1:]))

    return apply


def stream_of(output: Any) -> Any:
    """The residual stream in what a block returns: a tensor, or a tuple or list that begins with one."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def _on_streams(hook: Hook, h: Tensor) -> Tensor:
    """Gemma 3n carries several predictions of the stream; each is edited alike, the active one last, which is read."""
    if h.ndim == 3:
        return hook(h)
    return torch.stack([hook(stream) for stream in h.flip(0)]).flip(0)


PLACEHOLDERS = re.compile(r"(image|video|audio|vision|boi|eoi|boa|eoa).*token_(id|index)$")
"""What configurations call tokens that stand for something else than text."""


def ordinary_tokens(model: Any, numbers: Sequence[int]) -> tuple[int, ...]:
    """Numbers as tokens of a model's vocabulary, none of which stands for a picture or a sound."""
    size = int(model.get_input_embeddings().weight.shape[0])
    configs = [model.config.to_dict(), model.config.get_text_config().to_dict()]
    taken = {x for config in configs for name, x in config.items() if PLACEHOLDERS.search(name) and isinstance(x, int)}

    def ordinary(token: int) -> int:
        while token in taken:
            token = (token + 1) % size
        return token

    return tuple(ordinary(number % size) for number in numbers)


def run_plainly(model: Any, tokens: Int[Tensor, "b s"], **options: Any) -> Any:
    """What a Hugging Face model returns for whole texts of one length: without a cache, a mask or positions."""
    if "use_cache" in inspect.signature(model.forward).parameters:
        options["use_cache"] = False
    return model(tokens, **options)


@dataclass(eq=False)
class _Stack:
    """A list of modules, and what went through each of them in one pass."""

    modules: Any
    order: list[int] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def watch(self) -> list[Any]:
        """Hooks that note what goes through; their handles."""
        handles = []
        for place, module in enumerate(self.modules):

            def enter(_module: Any, given: Any, named: Any, place: int = place) -> None:
                self.order.append(place)
                self.inputs.append(given[0] if given else named.get("hidden_states"))

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _m, _i, output: self.outputs.append(stream_of(output))))
        return handles

    def is_stream(self, shape: torch.Size) -> bool:
        """Whether states of tokens [b s] pass the modules once each and in order, mostly from one right to the next.

        Some models rescale the stream here and there between two blocks.
        """
        states = [h for h in self.outputs if isinstance(h, Tensor) and h.ndim in (3, 4) and h.shape[-3:-1] == shape]
        if self.order != list(range(len(self.modules))) or len(states) != len(self.modules):
            return False
        if len({h.shape for h in states}) != 1:
            return False
        links = [
            isinstance(entered, Tensor) and entered.shape == left.shape and torch.equal(entered, left)
            for left, entered in zip(self.outputs, self.inputs[1:], strict=False)
        ]
        return 2 * sum(links) >= len(links)


def find_blocks(
    model: Any, tokens: Int[Tensor, "b s"]
) -> tuple[list[Any], Float[Tensor, "b l s d"], Float[Tensor, "b s v"]]:
    """A model's blocks, first to last: the longest list of modules through which the states pass one by one.

    States are [b s d] of one width, or a stack of such. It needs no list of names.

    Args:
        model: a Hugging Face causal language model
        tokens: a few tokens to run it on

    Returns:
        The blocks, the stream behind each of them, and the logits.

    Raises:
        ModelError: it has no such list.
    """
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    watched = [_Stack(part) for part in lists]
    handles = [handle for stack in watched for handle in stack.watch()]
    try:
        with torch.inference_mode():
            logits = run_plainly(model, tokens).logits
    finally:
        for handle in handles:
            handle.remove()
    streams = [stack for stack in watched if stack.is_stream(tokens.shape)]
    if not streams:
        raise ModelError(
            f"{type(model).__name__} has no row of blocks that its states pass one by one, so no layer can be steered; "
            "choose another model with -m"
        )
    blocks = max(streams, key=lambda stack: len(stack.modules))
    planes = [h if h.ndim == 3 else h[0] for h in blocks.outputs]
    states = torch.stack([h.to(tokens.device) for h in planes], dim=1)
    return list(blocks.modules), states, logits.to(tokens.device)


def share_weights(model: Any) -> Any:
    """A second tree of modules on the very tensors of a model; nothing of them is copied."""
    tensors = [*model.parameters(), *model.buffers()]
    hooks = [(module, dict(module._forward_hooks)) for module in model.modules() if module._forward_hooks]
    try:
        for module, _ in hooks:
            module._forward_hooks.clear()
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    finally:
        for module, there in hooks:
            module._forward_hooks.update(there)
