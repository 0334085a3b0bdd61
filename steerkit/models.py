"""A loaded model: chat to tokens, forward passes, and functions on its residual stream.

Layer `l` everywhere is 0-based and means the residual stream
after block `l`: TransformerLens' `blocks.{l}.hook_out`, Hugging Face's `hidden_states[l+1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.errors import ModelError, PromptError
from steerkit.fingerprints import Fingerprint
from steerkit.forward import BatchedForward
from steerkit.networks import HFModules
from steerkit.passages import Engine, Passage
from steerkit.runners import LeanRunner, Runner
from steerkit.validation import check_messages

Message = Mapping[str, str]
"""One turn of a chat: `role` (system, user or assistant) and `content`."""

ResidualFunction = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"]]
"""What is done to one layer's residual stream. A reader returns what it was given; an edit returns something else."""

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
"""What the norm between the last block and the logits is called in one family of models or another."""
PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(eq=False)
class HookPoints:
    """The TransformerLens bridge on a model's weights, there from when it is first asked for, because it takes a while.

    It holds no weights of its own.
    """

    boot: Callable[[], Any] = field(repr=False)
    """Makes the bridge."""
    find_path: Callable[[Any], Runner] = field(repr=False)
    """Finds the way through a bridge that is right."""

    @cached_property
    def bridge(self) -> Any:
        """A `TransformerBridge`."""
        return self.boot()

    @cached_property
    def runner(self) -> Runner:
        """The way through it."""
        return self.find_path(self.bridge)

    @cached_property
    def _points(self) -> list[Any]:
        return list(self.bridge.hook_dict.values())

    @property
    def booted(self) -> bool:
        """Whether the bridge has been asked for."""
        return "bridge" in self.__dict__

    @property
    def watched(self) -> bool:
        """Whether somebody has put hooks of their own on the bridge; they must see what happens."""
        return self.booted and any(point._forward_hooks for point in self._points)


@dataclass(frozen=True)
class Judgement:
    """How the way through a model's weights was chosen when it was loaded."""

    path: str
    """Which one was found to be right."""
    seconds: float
    """What it took to find out."""
    loading: float
    """What loading took in all, that included."""


@dataclass(eq=False)
class Model:
    """A model that can be read and steered."""

    name: str
    """What people call it, such as `SmolLM2-135M-Instruct`."""
    n_layers: int
    """How many blocks it has."""
    width: int
    """The size of its residual stream."""
    context: int
    """How many tokens it can take."""
    original: Any = field(repr=False)
    """The Hugging Face model, with the weights; with an engine, without its blocks."""
    hook_points: HookPoints = field(repr=False)
    """Where TransformerLens hooks it."""
    tokenizer: Any = field(repr=False)
    """The Hugging Face tokenizer, with its chat template if it has one."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how this model is used, said once."""
    runner: Runner | None = field(default=None, repr=False)
    """A faster way through the same weights; without one, every pass goes through the hook points."""
    source: str = ""
    """Where its weights can be loaded from again: a folder or a hub id."""
    adapter: str = ""
    """The digest of the adapter that is merged into them, if one is."""
    base: Fingerprint | None = field(default=None, repr=False)
    """The model without it."""
    engine: Engine | None = field(default=None, repr=False)
    """Who runs the blocks, if that is not this process."""
    blocks: Sequence[Any] = field(default=(), repr=False)
    """The modules behind which the residual stream is hooked, first to last."""
    judgement: Judgement | None = field(default=None, repr=False)
    """How the runner was chosen; None where the blocks are elsewhere."""

    @property
    def bridge(self) -> Any:
        """The TransformerLens bridge, for hooks of one's own; everything that follows then goes through it."""
        return self.hook_points.bridge

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.original.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.original.parameters()).dtype

    @property
    def path(self) -> str:
        """Which way through the weights is used, as files and `--json` have it."""
        return self.engine.name if self.engine is not None or self.runner is None else self.runner.path

    @property
    def holes(self) -> bool:
        """Whether padding may stand between the tokens of a row; otherwise only in front."""
        return self.runner is not None and self.runner.holes

    @property
    def continues(self) -> bool:
        """Whether several tokens at once can go on from a cache."""
        return self.runner is not None and self.runner.continues

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which a reply is over."""
        config = getattr(self.original, "generation_config", None)
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
            self.note("this model has no chat template; chats are written as 'User: …' and 'Assistant:' paragraphs")
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
        self.note("this model's chat template takes no system message; it is put in front of the first user message")
        if len(messages) < 2:
            raise PromptError(f"{self.name}'s chat template takes no system message alone; add a user message")
        system, first, *rest = messages
        merged = {"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}
        return self.render([merged, *rest], reply_follows)

    def chat_tokens(self, messages: Sequence[Message], room: int = 0) -> list[int]:
        """Tokens of a chat up to where the assistant's reply begins.

        Raises:
            PromptError: it is no list of messages, the last one is empty, or chat and `room` for a reply exceed the
                context.
        """
        check_messages(messages)
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

    def head(self, states: Float[Tensor, "s d"]) -> Float[Tensor, "s v"]:
        """Logits from states behind the last block, in float32."""
        norm = final_norm(self.original)
        assert norm is not None, "loading has seen to it"
        states = states.to(self.device, self.dtype)[None]
        # Whatever a model does to embeddings before its first block must not be done to these.
        handle = norm.register_forward_pre_hook(lambda _module, _inputs: (states,))
        try:
            with torch.inference_mode():
                return self.original(inputs_embeds=torch.zeros_like(states), use_cache=False).logits[0].float()
        finally:
            handle.remove()

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

        Raises:
            ModelError: an engine runs the blocks, which takes passages and no functions.
        """
        if self.engine is not None:
            raise ModelError(
                f"{self.engine.name} has {self.name}'s blocks, and this needs them in this process; use --engine local"
            )
        runner = self._runner(cache)
        with torch.enable_grad() if gradient else torch.inference_mode():
            return runner.forward(tokens, mask, cache, functions or {}, keep, rows)

    def _runner(self, cache: Any) -> Runner:
        """The way to go: past hooks that somebody has put on the model, and where a cache is from.

        Raises:
            ModelError: hooks were put on the model in the middle of a text, whose cache they cannot follow.
        """
        assert self.runner is not None, "a model whose blocks are here has a way through them"
        modules = BatchedForward(HFModules.of(self.original, self.blocks))
        watched = None
        if self.hook_points.watched:
            watched = self.hook_points.runner
        elif isinstance(self.runner, LeanRunner) and self._modules_watched:
            watched = modules
        first = watched or self.runner
        if cache is None or first.owns(cache):
            return first
        if watched is not None:
            raise ModelError(
                "hooks were put on the model in the middle of a text; begin it anew, and they see all of it"
            )
        # A text that began under somebody's hooks goes on without them.
        return self.hook_points.runner if self.hook_points.booted and self.hook_points.runner.owns(cache) else modules

    @property
    def _modules_watched(self) -> bool:
        """Whether somebody has put hooks on Hugging Face's modules, which the written-out path would not call."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self._modules)

    @cached_property
    def _modules(self) -> list[Any]:
        return list(self.original.modules())

    def residuals(
        self, tokens: Int[Tensor, "b s"], mask: Int[Tensor, "b s"], pool: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b l d"]:
        """Every layer's residual stream, averaged over the positions in `pool`, in float32 [b l d].

        Each layer is averaged as soon as it is there, so memory grows with neither depth nor length.
        """
        if self.engine is not None:
            return self._residuals_elsewhere(self.engine, tokens, mask, pool)
        share = pool.float() / pool.float().sum(-1, keepdim=True).clamp_min(1)
        means = torch.empty(len(tokens), self.n_layers, self.width, device=self.device)

        def reader(l: int) -> ResidualFunction:
            def read(h: Tensor) -> Tensor:
                means[:, l] = torch.einsum("bs,bsd->bd", share, h.float())
                return h

            return read

        self.forward(tokens, mask, functions={l: [reader(l)] for l in range(self.n_layers)}, keep=0)
        return means

    def _residuals_elsewhere(self, engine: Engine, tokens: Tensor, mask: Tensor, pool: Tensor) -> Tensor:
        """The same by an engine; padding is left out, and every place of the pool is a span of its own."""
        passages = []
        for row, there, wanted in zip(tokens, mask.bool(), pool & mask.bool(), strict=True):
            places = (there.cumsum(0) - 1)[wanted].tolist()
            passages.append(Passage(tuple(row[there].tolist()), spans=tuple((place, place + 1) for place in places)))
        means = [heard.means.sum(0) / max(len(heard.means), 1) for heard in engine.run(passages)]
        return torch.stack(means).to(self.device)

    def note(self, note: str) -> None:
        """Say something that the user should know, once."""
        if note not in self.notes:
            self.notes.append(note)


def final_norm(original: Any) -> Any | None:
    """The norm between the last block of a Hugging Face model and its logits, if it has a known name."""
    found = (getattr(original.base_model, name, None) for name in FINAL_NORMS)
    return next((norm for norm in found if norm is not None), None)


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Stack rows of tokens to one width, padded on the left; the mask is 0 on padding.

    >>> pad_left([[7], [8, 9]], torch.device("cpu"))[0].tolist()
    [[0, 7], [8, 9]]
    """
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask
