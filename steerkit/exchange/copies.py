"""The weights of a model with constants or a held direction in them, and the folder they go into.

What can be held and why is told in `baking`, which decides, compares and puts the folder in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import ExpressionError, ModelError
from steerkit.models import Model
from steerkit.runners import LEAN
from steerkit.steering import Term


@dataclass(frozen=True)
class Copy:
    """What goes into the folder."""

    config: Any
    """Its configuration, a Hugging Face one."""
    state: dict[str, Tensor]
    """Its weights, by name."""


def course(term: Term, plain: Any) -> tuple[Float[Tensor, " d"], list[float]]:
    """The unit direction that is held, and where: in the embedding at the mean of all words, then at each baseline.

    Raises:
        ExpressionError: the vector has no direction there.
    """
    l = term.layers[0] if term.layers else term.vector.layer
    unit = torch.nn.functional.normalize(term.vector.directions[l].double(), dim=0)
    if not unit.any():
        raise ExpressionError(f"{term.vector.name} has no direction at layer {l}; choose another with @")
    words = plain.get_input_embeddings().weight.detach().double().mean(0).cpu()
    return unit, [float(words @ unit), *(term.vector.baseline.double() @ unit).tolist()]


def _llama(model: Model, plain: Any) -> Copy:
    """The same model as a Llama that has every bias a Llama may have."""
    from transformers import LlamaConfig

    old = plain.config
    kept = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_parameters",
        "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout",
    )  # fmt: skip
    state = {name: tensor.detach() for name, tensor in plain.state_dict().items()}
    attends = any(name.endswith("q_proj.bias") for name in state)
    size = plain.model.layers[0].self_attn.head_dim
    options = {key: getattr(old, key) for key in kept}
    config = LlamaConfig(**options, head_dim=size, attention_bias=attends, mlp_bias=True)
    config.architectures, config.dtype = ["LlamaForCausalLM"], model.dtype
    for l in range(model.n_layers):
        ends = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
        ends += [f"self_attn.{name}_proj" for name in "qkvo"] if attends else []
        for end in ends:
            weight = state[f"model.layers.{l}.{end}.weight"]
            state.setdefault(f"model.layers.{l}.{end}.bias", weight.new_zeros(len(weight)))
    return Copy(config, state)


def biased(model: Model, plain: Any, rows: Mapping[int, Float[Tensor, " d"]]) -> Copy:
    """The weights with a constant on the last matrix of each steered block."""
    from steerkit.whole import read_config

    if plain.config.model_type in LEAN:
        copy = _llama(model, plain)
        names = {l: f"model.layers.{l}.mlp.down_proj.bias" for l in rows}
    else:
        config = read_config(model.source)
        config.dtype = model.dtype
        copy = Copy(config, {name: tensor.detach() for name, tensor in plain.state_dict().items()})
        names = _last_biases(model, plain, rows)
    for l, row in rows.items():
        old = copy.state[names[l]]
        copy.state[names[l]] = (old.float() + row.to(old.device)).to(old.dtype)
    return copy


def _last_biases(model: Model, plain: Any, layers: Iterable[int]) -> dict[int, str]:
    """By layer, the bias of the last matrix of the block that is as wide as the stream."""
    names = {id(module): name for name, module in plain.named_modules()}
    found = {}
    for l in layers:
        modules = model.blocks[l].named_modules()
        last = [
            name
            for name, module in modules
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2
            and getattr(module, "bias", None) is not None
            and tuple(module.bias.shape) == (model.width,)
        ]
        if not last:
            raise ModelError(
                f"the blocks of {model.name} ({plain.config.model_type}) have no bias that reaches the stream, so "
                "nothing can be baked into them; steer it live with -s"
            )
        found[l] = f"{names[id(model.blocks[l])]}.{last[-1]}.bias"
    return found


def projected(model: Model, plain: Any, term: Term) -> Copy:
    """The weights with one direction taken out of everything that writes, and the way of its baselines put in."""
    copy = _llama(model, plain)
    unit, stands = course(term, plain)
    words, state = "model.embed_tokens.weight", copy.state
    # What reads the stream at its end stays, also where it was the embedding.
    state["lm_head.weight"] = plain.lm_head.weight.detach()
    copy.config.tie_word_embeddings = False
    state[words] = _hold(state[words], unit, stands[0])
    for l in range(model.n_layers):
        for end, step in (("self_attn.o_proj", 0.0), ("mlp.down_proj", stands[l + 1] - stands[l])):
            name = f"model.layers.{l}.{end}"
            state[f"{name}.weight"] = _hold(state[f"{name}.weight"].mT, unit, 0.0).mT
            if f"{name}.bias" in state:
                state[f"{name}.bias"] = _hold(state[f"{name}.bias"], unit, step)
    return copy


def require_llama(model: Model, plain: Any) -> None:
    """See that it is known what writes to a model's stream.

    Raises:
        ModelError: it is of another family than Llama's.
    """
    if plain.config.model_type not in LEAN:
        raise ModelError(
            f"--project knows what writes to the stream in {', '.join(LEAN)}, and {model.name} is "
            f"{plain.config.model_type}; steer it live with -s"
        )


def _hold(x: Tensor, unit: Float[Tensor, " d"], stands: float) -> Tensor:
    """States [… d] with their component along a direction replaced by a number."""
    wide, unit = x.double(), unit.to(x.device)
    return (wide + (stands - wide @ unit)[..., None] * unit).to(x.dtype)


@contextmanager
def held(plain: Any, unit: Float[Tensor, " d"], stands: Sequence[float]) -> Iterator[None]:
    """Hold a direction in the whole stream of a live model of Llama's family: what `--project` bakes.

    Args:
        plain: a Hugging Face model
        unit: the direction, of length 1 [d]
        stands: what its component is held at, in the embedding and behind every block
    """

    def hold(to: float) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return _hold(output[0], unit, to), *output[1:]
            return _hold(output, unit, to)

        return hook

    handles = [plain.model.embed_tokens.register_forward_hook(hold(stands[0]))]
    for block, before, after in zip(plain.model.layers, stands, stands[1:], strict=False):
        handles.append(block.self_attn.register_forward_hook(hold(0.0)))
        handles.append(block.mlp.register_forward_hook(hold(after - before)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write_copy(model: Model, copy: Copy, folder: Path) -> None:
    """A folder that transformers loads."""
    from huggingface_hub import save_torch_state_dict
    from transformers import AutoTokenizer

    state = {}
    for name, tensor in copy.state.items():
        if name == "lm_head.weight" and getattr(copy.config, "tie_word_embeddings", False):
            continue
        # Matrices that lie side by side in memory are views, and a file has each of them once.
        state[name] = tensor.clone().contiguous().cpu()
    save_torch_state_dict(state, folder)
    copy.config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model.source, trust_remote_code=False).save_pretrained(folder)
    if getattr(model.original, "generation_config", None) is not None:
        model.original.generation_config.save_pretrained(folder)
