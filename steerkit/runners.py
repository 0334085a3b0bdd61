"""A faster way through a model's own weights than their modules, and what a configuration says about its text.

TransformerLens puts a hook point around every small module, and on a small model those cost more than the arithmetic.
A runner computes the same logits from the same parameters, and calls functions only on the layers that have any.
`LeanRunner` writes out the blocks of the Llama family with its matrices side by side. `forward.py` takes Hugging Face's
own modules, for any other architecture. Each is used only after it has agreed with plain Hugging Face (`judge.py`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Functions = Mapping[int, Sequence[Callable[[Tensor], Tensor]]]
"""By layer, what is done to the residual stream, in order."""

LEAN = ("llama", "mistral", "qwen2")
"""Kinds of models whose blocks `LeanRunner` knows: root mean square norms in front, rotary grouped attention, a gated
MLP."""
STEADY_ROTATIONS = ("default", "linear", "llama3")
"""Rotary embeddings whose angles do not depend on how long the text is."""


@runtime_checkable
class Runner(Protocol):
    """One way through the weights."""

    @property
    def path(self) -> str:
        """What it is called in notes and files."""
        ...

    @property
    def holes(self) -> bool:
        """Whether padding may stand between the tokens of a row, so that rows can be put beside each other."""
        ...

    @property
    def continues(self) -> bool:
        """Whether several tokens at once can go on from a cache; otherwise a row is read again from its start."""
        ...

    def owns(self, cache: Any) -> bool:
        """Whether a cache is one of those it makes; no other can be continued."""
        ...

    def forward(
        self,
        tokens: Int[Tensor, "u s"],
        mask: Int[Tensor, "u t"],
        cache: Any,
        functions: Functions,
        keep: int,
        rows: Int[Tensor, " b"] | None,
    ) -> tuple[Float[Tensor, "b k v"], Any]:
        """Logits at the last `keep` positions, and the cache to hand to the next pass; see `Model.forward`."""
        ...


@dataclass
class Cache:
    """Keys and values of every layer, with room to grow."""

    keys: list[Float[Tensor, "b h t e"]]
    """By layer; only the first `length` places count, and there may be spare rows behind those in use."""
    values: list[Float[Tensor, "b h t e"]]
    """Likewise."""
    length: int = 0
    """Places that are filled."""
    padded: bool = False
    """Whether some place of some row is padding, and a mask is needed."""

    def reserve(self, l: int, length: int, like: Float[Tensor, "b h s e"]) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer with room for so many places; doubling keeps the copying in proportion."""
        if l == len(self.keys) or self.keys[l].shape[2] < length:
            room = max(64, 1 << (length - 1).bit_length())
            for store in (self.keys, self.values):
                n_rows = max(like.shape[0], len(store[l]) if l < len(store) else 0)
                grown = like.new_empty(n_rows, like.shape[1], room, like.shape[3])
                if l < len(store):
                    grown[:, :, : self.length] = store[l][:, :, : self.length]
                    store[l] = grown
                else:
                    store.append(grown)
        return self.keys[l][: like.shape[0]], self.values[l][: like.shape[0]]

    def get_seq_length(self) -> int:
        """How many places are filled; Hugging Face's caches call it so."""
        return self.length

    def crop(self, places: int) -> None:
        """Forget the last places; as Hugging Face's caches have it, their number is negative."""
        self.length += places

    def batch_select_indices(self, rows: Int[Tensor, " b"]) -> None:
        """Keep these rows, in this order; a row may be named several times."""
        for store in (self.keys, self.values):
            store[:] = [kept.index_select(0, rows) for kept in store]


@dataclass(frozen=True)
class _Block:
    """The parameters of one block, matrices that share their input side by side."""

    before_attention: Tensor
    attention: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    before_mlp: Tensor
    rise: tuple[Tensor, Tensor | None]
    fall: tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class _Surroundings:
    """What every block of one pass is told about places."""

    cos: Float[Tensor, "#b s 1 e"]
    sin: Float[Tensor, "#b s 1 e"]
    """With the sign of a half turn in it."""
    bias: Float[Tensor, "#b 1 q t"] | None
    """What is added to attention scores, so that no token looks at padding or ahead; None where each may see all."""

    def select(self, rows: Int[Tensor, " b"]) -> _Surroundings:
        """The same for other rows."""
        return _Surroundings(self.cos[rows], self.sin[rows], None if self.bias is None else self.bias[rows])


@dataclass
class LeanRunner:
    """The Llama family's forward pass written out, a dozen operations a block."""

    model: Any
    """A Hugging Face causal model that `fits`; its matrices are moved side by side in memory."""
    _blocks: list[_Block] = field(init=False)
    path = "llama"
    holes = True
    continues = True

    @staticmethod
    def fits(config: Any) -> bool:
        """Whether the model of a Hugging Face configuration is of this shape, its matrices plain."""
        rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type")
        plain = getattr(config, "quantization_config", None) is None
        return config.model_type in LEAN and plain and rotation in STEADY_ROTATIONS and sees_everything(config)

    def __post_init__(self) -> None:
        """Put matrices side by side; the model's own parameters become views of them, so no memory is added."""
        self._blocks = [
            _Block(
                block.input_layernorm.weight,
                _side_by_side([getattr(block.self_attn, f"{name}_proj") for name in "qkv"]),
                _side_by_side([block.self_attn.o_proj]),
                block.post_attention_layernorm.weight,
                _side_by_side([block.mlp.gate_proj, block.mlp.up_proj]),
                _side_by_side([block.mlp.down_proj]),
            )
            for block in self.model.model.layers
        ]
        attention = self.model.model.layers[0].self_attn
        self._size = int(attention.head_dim)
        self._scale = float(attention.scaling)
        self._heads = attention.q_proj.weight.shape[0] // self._size
        self._groups = attention.k_proj.weight.shape[0] // self._size
        self._activate = self.model.model.layers[0].mlp.act_fn
        self._norm = self.model.model.norm
        self._epsilon = float(self._norm.variance_epsilon)

    def has_weights_of(self, model: Any) -> bool:
        """Whether every block has the very matrices and norms of the model's block at its place."""

        def alike(part: Tensor, whole: Tensor) -> bool:
            return part.data_ptr() == whole.data_ptr() and part.dtype == whole.dtype

        return len(self._blocks) == len(model.model.layers) and all(
            alike(theirs.input_layernorm.weight, ours.before_attention)
            and alike(theirs.self_attn.q_proj.weight, ours.attention[0])
            and alike(theirs.self_attn.o_proj.weight, ours.out[0])
            and alike(theirs.post_attention_layernorm.weight, ours.before_mlp)
            and alike(theirs.mlp.gate_proj.weight, ours.rise[0])
            and alike(theirs.mlp.down_proj.weight, ours.fall[0])
            for ours, theirs in zip(self._blocks, model.model.layers, strict=True)
        )

    def owns(self, cache: Any) -> bool:
        """See `Runner`."""
        return isinstance(cache, Cache)

    def only(self, layers: Sequence[int]) -> LeanRunner:
        """The same with some of the blocks."""
        fewer = copy.copy(self)
        fewer._blocks = [self._blocks[l] for l in layers]
        return fewer

    def forward(
        self,
        tokens: Int[Tensor, "u s"],
        mask: Int[Tensor, "u t"],
        cache: Cache | None,
        functions: Functions,
        keep: int,
        rows: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b k v"], Cache]:
        """See `Runner`. Rows part after the first block that has functions; before it they are computed once."""
        n_new = tokens.shape[1]
        if cache is None:
            cache = Cache([], [])
        if n_new > 1 or not keep or not cache.length:
            # Asked of given text and not at every token of a reply, because an accelerator has to be waited for.
            cache.padded = cache.padded or not bool(mask.all())
        h = self.model.model.embed_tokens(tokens)
        around = self._surroundings(mask if cache.padded else mask[:1], n_new, cache.padded, h)
        parting = min(functions, default=len(self._blocks) - 1) if rows is not None else None
        for l, block in enumerate(self._blocks):
            h = self._attend(h, block, l, cache, around)
            x = functional.rms_norm(h, h.shape[-1:], block.before_mlp, self._epsilon)
            gate, up = functional.linear(x, *block.rise).chunk(2, dim=-1)
            h = h + functional.linear(self._activate(gate) * up, *block.fall)
            if l == parting and rows is not None:
                h = h[rows]
                cache.batch_select_indices(rows)
                around = around.select(rows) if cache.padded else around
            for function in functions.get(l, ()):
                h = function(h)
        cache.length += n_new
        return self.model.lm_head(self._norm(h[:, h.shape[1] - keep :])), cache

    def _attend(
        self, h: Float[Tensor, "b s d"], block: _Block, l: int, cache: Cache, around: _Surroundings
    ) -> Float[Tensor, "b s d"]:
        n_rows, n_new, _ = h.shape
        before, length = cache.length, cache.length + n_new
        x = functional.rms_norm(h, h.shape[-1:], block.before_attention, self._epsilon)
        heads = functional.linear(x, *block.attention).view(n_rows, n_new, -1, self._size)
        turning, value = heads.split([self._heads + self._groups, self._groups], dim=2)
        turned = torch.addcmul(turning * around.cos, turning.roll(self._size // 2, -1), around.sin)
        query, key = turned.split([self._heads, self._groups], dim=2)
        keys, values = cache.reserve(l, length, key.transpose(1, 2))
        keys[:, :, before:length], values[:, :, before:length] = key.transpose(1, 2), value.transpose(1, 2)
        # Heads that share a key are queries of one head, one behind the other: nothing has to be copied for them.
        share = self._heads // self._groups
        query = query.view(n_rows, n_new, self._groups, share, self._size).permute(0, 2, 3, 1, 4)
        found = functional.scaled_dot_product_attention(
            query.reshape(n_rows, self._groups, share * n_new, self._size),
            keys[:, :, :length],
            values[:, :, :length],
            attn_mask=around.bias,
            scale=self._scale,
        )
        found = found.view(n_rows, self._groups, share, n_new, self._size).permute(0, 3, 1, 2, 4)
        return h + functional.linear(found.reshape(n_rows, n_new, -1), *block.out)

    def _surroundings(self, mask: Int[Tensor, "b t"], n_new: int, padded: bool, like: Tensor) -> _Surroundings:
        places = (mask.cumsum(-1) - 1).clamp_min(0)[:, -n_new:]
        cos, sin = self.model.model.rotary_emb(like, places)
        sign = torch.ones_like(sin[:1, :1])
        sign[..., : self._size // 2] = -1
        bias = None
        if padded or n_new > 1:
            length = mask.shape[1]
            seen = torch.ones(n_new, length, dtype=torch.bool, device=mask.device).tril(length - n_new)
            # A finite number, because padding looks at nothing and its row would be 0 / 0.
            bias = torch.zeros(len(mask), 1, n_new, length, dtype=like.dtype, device=mask.device)
            bias.masked_fill_(~(seen & mask[:, None, None, :].bool()), torch.finfo(like.dtype).min)
            bias = bias.repeat(1, 1, self._heads // self._groups, 1)
        return _Surroundings(cos[:, :, None], (sin * sign)[:, :, None], bias)


WINDOWS = re.compile(r"(?<!max_)window(?!_layers)|attention_chunk|local_attention|local_window")
"""What configurations call a stretch beyond which a layer does not look."""


def sees_everything(config: Any) -> bool:
    """Whether every layer attends to the whole text, so that it does not matter where in a row padding stands.

    Read from the configuration of the text model, because a window is longer than what can be tried when loading.
    """
    told: dict[str, Any] = config.get_text_config().to_dict()
    if told.get("use_sliding_window") is False:
        told = {name: x for name, x in told.items() if "window" not in name}
    kinds = set(told.get("layer_types") or ())
    if kinds and kinds <= {"full_attention"}:
        return True
    windows = any(WINDOWS.search(name) and _limits(x) for name, x in told.items())
    return not windows and kinds <= {"full_attention"}


def _limits(x: Any) -> bool:
    """Whether a value of such a name says that there is a window."""
    return isinstance(x, (int, float, list, dict)) and not isinstance(x, bool) and bool(x)


def changes_with_length(config: Any) -> tuple[int, bool] | None:
    """The length from which rotary positions depend on how long the text is, and whether they then do at every token.

    None where they never do. `dynamic` stretches them with every token beyond the length that the model was trained
    on; `longrope` has one set of frequencies up to it and another behind.
    """
    told: Any = config.get_text_config()
    parameters = getattr(told, "rope_parameters", None) or {}
    tables = [parameters, *(table for table in parameters.values() if isinstance(table, dict))]
    for table in tables:
        kind = table.get("rope_type")
        if kind is not None and "dynamic" in kind:
            return int(told.max_position_embeddings), True
        if kind == "longrope":
            original = table.get("original_max_position_embeddings") or getattr(
                told, "original_max_position_embeddings", told.max_position_embeddings
            )
            return int(original), False
    return None


CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "context_length")
"""What configurations call the longest text."""
UNBOUNDED = 1 << 20
"""The context of a model whose positions have no end."""


def context_of(config: Any) -> int:
    """How many tokens a model can take."""
    told: Any = config.get_text_config()
    lengths = [getattr(told, name, None) for name in CONTEXTS]
    longest = next((int(n) for n in lengths if isinstance(n, int) and n > 0), UNBOUNDED)
    parameters = getattr(told, "rope_parameters", None) or {}
    stretched = parameters.get("rope_type") == "dynamic"
    return int(longest * float(parameters.get("factor", 1.0))) if stretched else longest


def _side_by_side(parts: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for several linear modules; their parameters become views of it."""

    def join(parameters: Sequence[Any]) -> Tensor | None:
        if parameters[0] is None:
            return None
        if len(parameters) == 1:
            return parameters[0]
        joined = torch.cat([parameter.data for parameter in parameters])
        for parameter, view in zip(parameters, joined.split([len(p) for p in parameters]), strict=True):
            parameter.data = view
        return joined

    weight = join([part.weight for part in parts])
    assert weight is not None
    return weight, join([part.bias for part in parts])


def select_rows(
    tokens: Int[Tensor, "u s"], mask: Int[Tensor, "u t"], cache: Any, rows: Int[Tensor, " b"] | None
) -> tuple[Int[Tensor, "b s"], Int[Tensor, "b t"]]:
    """Part rows before anything is computed, where they cannot be parted on the way."""
    if rows is None:
        return tokens, mask
    if cache is not None:
        select_cache(cache, rows)
    return tokens[rows], mask[rows]


SHARED_CACHES = "transformers.cache_utils"
"""Where the caches are that many models have in common."""


def select_cache(cache: Any, rows: Int[Tensor, " b"]) -> None:
    """Keep these rows of a cache, in this order; a row may be named several times.

    Of Hugging Face's caches, only reordering knows every kind of state: keys and values, convolutions, recurrences. A
    model with a cache of its own may have written selection anew, for states that reordering does not know.
    """
    rewritten = "batch_select_indices" in vars(type(cache)) and type(cache).__module__ != SHARED_CACHES
    if rewritten or not hasattr(cache, "reorder_cache"):
        cache.batch_select_indices(rows)
    else:
        cache.reorder_cache(rows)


def keeps_every_token(cache: Any) -> bool:
    """Whether a Hugging Face cache is made of nothing but the keys and values of single tokens.

    A state that runs on, of a recurrence or of a convolution, has also taken in the padding that stood in a row. What a
    model has a cache or a layer of its own for is taken for such a state.
    """
    layers = getattr(cache, "layers", None)
    return bool(layers) and all(
        hasattr(layer, "keys") and not hasattr(layer, "conv_states") and type(part).__module__ == SHARED_CACHES
        for layer in layers
        for part in (cache, layer)
    )


def chain(steps: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Several functions on a layer's residual stream as one, in their order."""

    def whole(h: Tensor) -> Tensor:
        for step in steps:
            h = step(h)
        return h

    return whole
