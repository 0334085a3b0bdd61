"""A loaded model: chat to tokens, forward passes, and functions on its residual stream.

Layer `l` everywhere is 0-based and means the residual stream
after block `l`: TransformerLens' `blocks.{l}.hook_out`, Hugging Face's `hidden_states[l+1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerkit.chat_templates import (
    RULES,
    ChatTemplate,
    GivenReply,
    Message,
    RenderedChat,
    TemplateOptions,
    common_length,
    words_of,
)
from steerkit.errors import ModelError, PromptError, nearest
from steerkit.fingerprints import Fingerprint
from steerkit.forward import BatchedForward
from steerkit.networks import HFModules, input_device
from steerkit.passages import Engine, Passage
from steerkit.runners import LeanRunner, Runner
from steerkit.thinking import MODES, Thoughts
from steerkit.validation import check_messages

ResidualFunction = Callable[[Float[Tensor, "b s d"]], Float[Tensor, "b s d"]]
"""What is done to one layer's residual stream. A reader returns what it was given; an edit returns something else."""

FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
"""What the norm between the last block and the logits is called in one family of models or another."""
STAND_IN: tuple[Message, ...] = ({"role": "user", "content": "1"},)
"""What comes before a reply of which it is not known."""


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
    template_options: TemplateOptions = field(default_factory=TemplateOptions, repr=False)
    """What every rendering of a chat is given besides the messages: the date, and variables of the template's."""
    include_thoughts: bool = False
    """Whether what it thinks before a reply is steered and scored as the reply is."""

    @property
    def bridge(self) -> Any:
        """The TransformerLens bridge, for hooks of one's own; everything that follows then goes through it."""
        return self.hook_points.bridge

    @property
    def device(self) -> torch.device:
        """Where the weights are; the first of them, if they are spread."""
        return input_device(self.original)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.original.parameters()).dtype

    @property
    def path(self) -> str:
        """Which way through the weights is used, as files and `--json` have it."""
        if self.engine is not None:
            return self.engine.name
        return self.runner.path if self.runner is not None else "none"

    @property
    def holes(self) -> bool:
        """Whether padding may stand between the tokens of a row; otherwise only in front."""
        return self.runner is not None and self.runner.holes

    @property
    def continues(self) -> bool:
        """Whether several tokens at once can go on from a cache."""
        return self.runner is not None and self.runner.continues

    @property
    def template(self) -> ChatTemplate:
        """How chats become tokens: made anew when the tokenizer's template or the options are others."""
        source = getattr(self.tokenizer, "chat_template", None)
        known: ChatTemplate | None = self.__dict__.get("_template")
        told = (self.name, self.tokenizer, self.template_options, source)
        if known is None or (known.name, known.tokenizer, known.options, known.source) != told:
            known = ChatTemplate(self.name, self.tokenizer, self.n_embeddings, self.template_options, source)
            self.__dict__["_template"] = known
        return known

    @property
    def n_embeddings(self) -> int:
        """How many tokens it knows; its tokenizer may know fewer or, wrongly, more."""
        return int(self.original.get_input_embeddings().weight.shape[0])

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens after which a reply is over: of the template, the generation config and the tokenizer."""
        config = getattr(self.original, "generation_config", None)
        named = [getattr(config, "eos_token_id", None), self.tokenizer.eos_token_id, self.template.end_of_turn]
        listed = [end for ends in named if ends is not None for end in (ends if isinstance(ends, list) else [ends])]
        found = frozenset(int(end) for end in listed if 0 <= int(end) < self.n_embeddings)
        if not found:
            self.note("this model has no token that ends a reply; replies end by their length only")
        return found

    @property
    def end_token(self) -> int | None:
        """The token with which this model itself ends a reply; None if there is none."""
        likely = [self.template.end_of_turn, self.tokenizer.eos_token_id, *sorted(self.end_tokens)]
        return next((token for token in likely if token in self.end_tokens), None)

    @property
    def thinking(self) -> str:
        """Whether its chat template is asked for thoughts: `on` or `off`, or `auto`, which is as it does by itself."""
        switch = self.template.switch
        return "auto" if switch is None else switch.mode(self.template_options.variables)

    @cached_property
    def thoughts(self) -> Thoughts:
        """What becomes of what it thinks before a reply."""
        template, thinking = self.template, self.thinking
        if thinking == "auto" and template.switch is not None:
            thinking = template.switch.default
        expected = template.writes_thoughts and thinking != "off"
        return Thoughts(template.tags, expected, self.include_thoughts)

    def with_thinking(self, mode: str = "auto", include: bool = False) -> Model:
        """The same model, which thinks before its replies or does not.

        Args:
            mode: `on` or `off` where its chat template has a switch; `auto` leaves it as the template has it
            include: whether thoughts are steered and scored as replies are

        Raises:
            ModelError: the template has no such switch, or there is no such mode.
        """
        if mode not in MODES:
            raise ModelError(f"thinking is not {mode!r}; {nearest(mode, MODES, 'choose on, off or auto')}")
        switch, variables = self.template.switch, dict(self.template_options.variables)
        if mode != "auto" and switch is None:
            thinks = "it always thinks as it likes" if self.template.writes_thoughts else "it writes no thoughts"
            raise ModelError(f"{self.name}'s chat template has no switch for thinking, and {thinks}; leave it at auto")
        if switch is not None:
            variables.pop(switch.name, None)
            variables |= {} if mode == "auto" else {switch.name: switch.on if mode == "on" else switch.off}
        options = replace(self.template_options, variables=variables)
        return self._changed(template_options=options, include_thoughts=include)

    def for_measuring(self) -> Model:
        """The same model without thoughts where its template can do so and nobody has said what it shall do."""
        switch = self.template.switch
        if switch is None or switch.default == "off" or self.thinking != "auto" or self.include_thoughts:
            return self
        self.note(f"this model's thoughts are switched off for measuring ({switch.name}); --thinking on leaves them on")
        return self.with_thinking("off")

    def _changed(self, **fields: Any) -> Model:
        """A copy that shares the weights, the notes and what has been measured of them."""
        other = replace(self, **fields)
        other.__dict__ |= {key: self.__dict__[key] for key in ("fingerprint",) if key in self.__dict__}
        return other

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What makes this model this model; vectors carry it."""
        return Fingerprint.of(self)

    @property
    def template_date(self) -> str:
        """Where the clock of the chat template stands; empty if it has none."""
        return self.template_options.date if self.template.has_clock else ""

    def at_date(self, date: str) -> Model:
        """The same model with the clock of its chat template at a date, as in a file that was begun then.

        Nothing changes without a date, or for a template without a clock.
        """
        if not date or not self.template.has_clock or date == self.template_options.date:
            return self
        moved = self._changed(template_options=replace(self.template_options, date=date))
        self.note(f"this model's chat template writes the date; it stays {date}, as where this was begun")
        return moved

    @property
    def template_identity(self) -> dict[str, Any]:
        """What files and caches say of the chat template, for most models nothing.

        The date of one with a clock, variables that it was given, and the rules by which chats become tokens where they
        give others than those of before there were any.
        """
        options, told = self.template_options, {}
        if self.template_date:
            told["template_date"] = self.template_date
        if options.variables:
            told["template_variables"] = dict(options.variables)
        if self.include_thoughts:
            told["include_thoughts"] = True
        config = getattr(self.original, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        before = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}
        if before != self.end_tokens or not self.template.cut_apart:
            told["template_rules"] = RULES
        return told

    def render(self, messages: Sequence[Message], reply_follows: bool = True) -> str:
        """Write a chat as the text the model was trained on; see `ChatTemplate.render`.

        What the template does not take as it is, and a chat that is written as plain paragraphs, is told in `notes`.
        """
        return self.rendered(messages, reply_follows).text

    def rendered(self, messages: Sequence[Message], reply_follows: bool = True) -> RenderedChat:
        """The same, and where the words of every message stand in it."""
        found = self.template.render(messages, reply_follows)
        for note in found.notes:
            self.note(note)
        return found

    def chat_tokens(self, messages: Sequence[Message], room: int = 0) -> list[int]:
        """Tokens of a chat up to where the assistant's reply begins.

        Raises:
            PromptError: it is no list of messages, the last one is empty, or chat and `room` for a reply exceed the
                context.
        """
        check_messages(messages)
        if not messages or not words_of(messages[-1], len(messages)).strip():
            raise PromptError("the prompt is empty; say something to the model")
        tokens = self.tokenize(self.render(messages))
        self._require_room(len(tokens), room)
        return tokens

    def _require_room(self, n_tokens: int, room: int) -> None:
        if n_tokens + room > self.context:
            raise PromptError(
                f"the prompt has {n_tokens} tokens and the reply may have {room}, but {self.name} holds "
                f"{self.context}; shorten the prompt or lower --max-tokens"
            )

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a rendered chat. Only a model without a template gets its tokenizer's own special tokens."""
        return self.template.encode(text).ids

    def text_tokens(self, text: str) -> list[int]:
        """Tokens of a text that is no chat, behind the one that begins texts."""
        return self.template.encode_text(text).ids

    def given_reply(self, messages: Sequence[Message], reply: str) -> GivenReply:
        """The tokens of a chat with a reply that is given, as the template writes the whole."""
        prompt = self.tokenize(self.render(messages or STAND_IN))
        return self.template.given_reply(messages or STAND_IN, reply, prompt, self.end_tokens)

    def reply_tokens(self, text: str, messages: Sequence[Message] = ()) -> list[int]:
        """Tokens of a reply that is given, as they stand in a chat after some messages, or after any.

        The template may put something between the prompt and them: `reply_rows` gives both.
        """
        given = self.given_reply(messages, text)
        return list(given.tokens[given.start : given.end])

    def reply_rows(self, messages: Sequence[Message], replies: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of a chat and of every reply to it that is given, which together are the template's.

        The first is the same for all: `chat_tokens`, and what the template writes in front of a given reply.

        Raises:
            PromptError: the last message is empty, or a row exceeds the context.
        """
        prompt = self.chat_tokens(messages)
        given = [self.template.given_reply(messages, reply, prompt, self.end_tokens) for reply in replies]
        # A reply that begins otherwise may be cut otherwise from where it begins, and then so are all.
        start = min((min(each.start, common_length(each.tokens, given[0].tokens)) for each in given), default=0)
        self._require_room(start, max((each.end - start for each in given), default=0))
        return [(list(each.tokens[:start]), list(each.tokens[start : each.end])) for each in given]

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
        watched: Runner | None = None
        if self.hook_points.watched:
            watched = self.hook_points.runner
        elif isinstance(self.runner, LeanRunner) and self._modules_watched:
            watched = self._unwritten
        first = watched or self.runner
        if cache is None or first.owns(cache):
            return first
        if watched is not None:
            raise ModelError(
                "hooks were put on the model in the middle of a text; begin it anew, and they see all of it"
            )
        # A text that began under somebody's hooks goes on without them.
        booted = self.hook_points.booted and self.hook_points.runner.owns(cache)
        return self.hook_points.runner if booted else self._unwritten

    @cached_property
    def _unwritten(self) -> Runner:
        """The way through Hugging Face's own modules."""
        return BatchedForward(HFModules.of(self.original, self.blocks))

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


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Stack rows of tokens to one width, padded on the right, where no token looks; the mask is 0 on padding.

    >>> pad_right([[7], [8, 9]], torch.device("cpu"))[1].tolist()
    [[1, 0], [1, 1]]
    """
    width = max(len(row) for row in rows)
    tokens = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return tokens, mask


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b s"]]:
    """Stack rows of tokens to one width, padded on the left; the mask is 0 on padding.

    >>> pad_left([[7], [8, 9]], torch.device("cpu"))[0].tolist()
    [[0, 7], [8, 9]]
    """
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return tokens, mask
