"""A loaded model: chat to tokens, forward passes, and functions on its residual stream.

This is the only module that imports transformer_lens. Layer `l` everywhere is 0-based and means the residual stream
after block `l`: TransformerLens' `blocks.{l}.hook_out`, Hugging Face's `hidden_states[l+1]`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit import weights
from steerkit.errors import ModelError, PromptError, nearest
from steerkit.fingerprints import Fingerprint
from steerkit.runners import (
    Cache,
    LeanRunner,
    PlainRunner,
    Runner,
    chain,
    sees_everything,
    select_rows,
    share_weights,
    trimmed,
)

Message = Mapping[str, str]
"""One turn of a chat: `role` (system, user or assistant) and `content`."""

ResidualFunction = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"]]
"""What is done to one layer's residual stream. A reader returns what it was given; an edit returns something else."""

PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(eq=False)
class Model:
    """A model that can be read and steered."""

    name: str
    """What people call it, such as `SmolLM2-135M-Instruct`."""
    bridge: Any = field(repr=False)
    """The TransformerLens bridge that holds the weights and the hook points."""
    tokenizer: Any = field(repr=False)
    """The Hugging Face tokenizer, with its chat template if it has one."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how this model is used, said once."""
    runner: Runner | None = field(default=None, repr=False)
    """A faster way through the same weights; without one, every pass goes through the hook points."""

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return int(self.bridge.cfg.n_layers)

    @property
    def width(self) -> int:
        """The size of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def context(self) -> int:
        """How many tokens the model can take."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.bridge.original_model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.bridge.original_model.parameters()).dtype

    @property
    def sees_everything(self) -> bool:
        """Whether every layer attends to the whole text; otherwise padding may only stand in front."""
        return sees_everything(self.bridge.original_model.config)

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which a reply is over."""
        config = getattr(self.bridge.original_model, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        listed = ends if isinstance(ends, list) else [ends]
        return frozenset(end for end in [*listed, self.tokenizer.eos_token_id] if end is not None)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What makes this model this model; vectors carry it."""
        return Fingerprint.of(self)

    def render(self, messages: Sequence[Message], reply_follows: bool = True) -> str:
        """Write a chat as the text the model was trained on.

        A system message that the template rejects or drops goes in front of the first user message. A model without a
        template gets `User: …` and `Assistant:` paragraphs, and says so once in `notes`.
        """
        if self.tokenizer.chat_template is None:
            self._note("this model has no chat template; chats are written as 'User: …' and 'Assistant:' paragraphs")
            turns = [f"{PLAIN_NAMES[message['role']]}: {message['content']}" for message in messages]
            return "\n\n".join([*turns, "Assistant:"] if reply_follows else turns)
        from jinja2 import TemplateError

        def apply(turns: Sequence[Message]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=reply_follows
                )
            )

        try:
            text = apply(messages)
            if messages[0]["role"] != "system" or messages[0]["content"].strip() in text:
                return text
        except TemplateError as error:
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise PromptError(f"{self.name}'s chat template refuses this chat: {error}") from error
        self._note("this model's chat template takes no system message; it is put in front of the first user message")
        if len(messages) < 2:
            raise PromptError(f"{self.name}'s chat template takes no system message alone; add a user message")
        system, first, *rest = messages
        merged = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
        return self.render([merged, *rest], reply_follows)

    def chat_tokens(self, messages: Sequence[Message], room: int = 0) -> list[int]:
        """Tokens of a chat up to where the assistant's reply begins.

        Raises:
            PromptError: the last message is empty, or chat and `room` for a reply exceed the context.
        """
        if not messages or not messages[-1]["content"].strip():
            raise PromptError("the prompt is empty; say something to the model")
        tokens = self.tokenize(self.render(messages))
        if len(tokens) + room > self.context:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens and the reply may have {room}, but {self.name} holds "
                f"{self.context}; shorten the prompt or lower --max-tokens"
            )
        return tokens

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a rendered chat. Only a model without a template gets its tokenizer's own special tokens."""
        plain = self.tokenizer.chat_template is None
        return list(self.tokenizer(text, add_special_tokens=plain).input_ids)

    def reply_tokens(self, text: str) -> list[int]:
        """Tokens of a reply that is given, as they stand after `chat_tokens`."""
        lead = " " if self.tokenizer.chat_template is None else ""
        return list(self.tokenizer(lead + text, add_special_tokens=False).input_ids)

    def forward(
        self,
        tokens: Int[Tensor, "u s"],
        mask: Int[Tensor, "u t"],
        cache: Any = None,
        functions: Mapping[int, Sequence[ResidualFunction]] | None = None,
        keep: int = 1,
        gradient: bool = False,
        rows: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """One forward pass, by the runner if there is one and nobody else has hooked the model.

        Args:
            tokens: what is new, [u s]
            mask: 1 where a token counts, over the cached tokens and the new ones, [u t]
            cache: what the previous pass returned, or None for a fresh start; it is used up
            functions: by layer, what is done to the residual stream of the b rows, in order
            keep: at how many of the last positions logits are wanted; 0 where only the functions matter
            gradient: whether the functions can be differentiated; the weights never are
            rows: for each of b rows the row of `tokens` that it continues, where several are steered differently; what
                they share is computed once

        Returns:
            Logits [b keep v] and the cache to hand to the next pass, of b rows.
        """
        differentiable = torch.enable_grad() if gradient else torch.inference_mode()
        # Whoever began a text goes on with it, because the caches are not alike.
        fits = cache is None or isinstance(cache, Cache) == isinstance(self.runner, LeanRunner)
        if self.runner is not None and fits and (isinstance(cache, Cache) or not self._watched):
            with differentiable:
                return self.runner.forward(tokens, mask, cache, functions or {}, keep, rows)
        tokens, mask = select_rows(tokens, mask, cache, rows)
        with differentiable, self._hooks(functions or {}):
            logits, cache = self.bridge(
                tokens,
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                return_type="logits_and_cache",
                **trimmed(self.bridge.original_model, keep),
            )
        return logits[:, logits.shape[1] - keep :], cache

    def residuals(
        self, tokens: Int[Tensor, "b s"], mask: Int[Tensor, "b s"], pool: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b l d"]:
        """Every layer's residual stream, averaged over the positions in `pool`, in float32 [b l d].

        Each layer is averaged as soon as it is there, so memory grows with neither depth nor length.
        """
        share = pool.float() / pool.float().sum(-1, keepdim=True).clamp_min(1)
        means = torch.empty(len(tokens), self.n_layers, self.width, device=self.device)

        def reader(l: int) -> ResidualFunction:
            def read(h: Tensor) -> Tensor:
                means[:, l] = torch.einsum("bs,bsd->bd", share, h.float())
                return h

            return read

        self.forward(tokens, mask, functions={l: [reader(l)] for l in range(self.n_layers)}, keep=0)
        return means

    @contextmanager
    def _hooks(self, functions: Mapping[int, Sequence[ResidualFunction]]) -> Iterator[None]:
        """Install functions on layers; the handles are removed whatever happens."""
        handles = []
        try:
            for l, steps in functions.items():
                handles.append(self.bridge.hook_dict[f"blocks.{l}.hook_out"].register_forward_hook(chain(steps)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @cached_property
    def _points(self) -> list[Any]:
        return list(self.bridge.hook_dict.values())

    @property
    def _watched(self) -> bool:
        """Whether somebody has put hooks of their own on the bridge; they must see what happens."""
        return any(point._forward_hooks for point in self._points)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Stack rows of tokens to one width, padded on the left; the mask is 0 on padding.

    >>> pad_left([[7], [8, 9]], torch.device("cpu"))[0].tolist()
    [[0, 7], [8, 9]]
    """
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask


def load_model(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: weights.Progress = weights.ignore_progress,
) -> Model:
    """Load a model: nothing for the default one, a hub id, a folder, or a `.gguf` file.

    Raises:
        ModelError: it cannot be found, fetched or read.
    """
    if dtype not in DTYPES:
        raise ModelError(f"no dtype is called {dtype!r}; {nearest(dtype, DTYPES, 'choose from: ' + ', '.join(DTYPES))}")
    if name is None or name.lower() in (weights.DEFAULT_MODEL.name.lower(), "default"):
        source, title = str(weights.get_default_model(progress)), weights.DEFAULT_MODEL.name
    else:
        source, title = _locate(name, progress)
    place = _device(device)
    try:
        bridge = _boot(source, place, DTYPES[dtype])
    except Exception as error:
        # transformers and its hub client raise dozens of types here; each of them means that there is no model.
        raise ModelError(_explain(name or title, source, error)) from error
    model = Model(title, bridge, bridge.tokenizer)
    model.runner = _find_runner(model)
    return model


def _find_runner(model: Model) -> Runner | None:
    """The fastest way through the model's weights that computes what the hook points see."""
    from transformer_lens.utilities.position_ids import accepts_mask_derived_position_ids

    plain = share_weights(model.bridge.original_model)
    if plain is None:
        return None
    if LeanRunner.fits(plain):
        return LeanRunner(plain)
    blocks = plain.get_submodule(model.bridge.adapter.component_mapping["blocks"].name)
    runner = PlainRunner(plain, list(blocks), accepts_mask_derived_position_ids(plain))
    return runner if _agrees(model, runner) else None


def _agrees(model: Model, runner: Runner) -> bool:
    """Whether a runner gives the hooked path's logits for a padded row, an edit, rows that part, and a cached step."""
    tokens = torch.arange(1, 13, device=model.device).reshape(2, 6)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    rows = torch.tensor([1, 0, 1], device=model.device)
    longer = torch.cat([mask[rows], mask.new_ones(3, 1)], dim=1)
    push = {model.n_layers // 2: [lambda h: h * 1.1]}
    found = []
    with torch.inference_mode():
        for forward in (model.forward, runner.forward):
            try:
                first, cache = forward(tokens, mask, None, push, 1, rows=rows)
                second, _ = forward(tokens[rows, :1], longer, cache, push, 1, rows=None)
            except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
                return False
            found.append(torch.cat([first, second]).float())
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((found[0] - found[1]).norm() <= tolerance * found[0].norm())


def _locate(name: str, progress: weights.Progress) -> tuple[str, str]:
    """Where a named model's files are, and what to call it."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return str(weights.get_gguf_model(path, progress)), weights.model_title(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no model (no config.json); name a folder that transformers can load")
        return str(path), weights.model_title(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder {path}; -m takes a hub id, a model folder or a .gguf file")
    return name, weights.model_title(name)


def _boot(source: str, device: torch.device, dtype: torch.dtype) -> Any:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    bridge = TransformerBridge.boot_transformers(source, device=device, dtype=dtype)  # type: ignore[attr-defined]
    bridge.eval()
    bridge.requires_grad_(False)
    return bridge


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or _best_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"no device {name!r} on this machine; use --device {_best_device()}") from error
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _explain(name: str, source: str, error: Exception) -> str:
    """One line for a model that does not load: what was asked, and what is here."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if Path(source).is_dir():
        return f"cannot load the model in {source}: {reason}; fetch it again or choose another with -m"
    known = [weights.DEFAULT_MODEL.name, *(path.name for path in weights.cache_folder().glob("[!.]*") if path.is_dir())]
    hint = nearest(name, {entry.lower() for entry in known}, f"without -m you get {weights.DEFAULT_MODEL.name}")
    return f"no model {name!r} on this machine and none could be fetched from the hub ({reason}); {hint}"
