"""Tiny models whose weights make them say what a test wants, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from conftest import LAYERS, save_tokenizer

from steerkit.fingerprints import Fingerprint
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.vectors import SteeringVector

PLAIN = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WIDTH = 64


def save_scripted(
    folder: Path,
    said: str | Sequence[int],
    template: str = PLAIN,
    added: Sequence[str] = (),
    special: bool = False,
    ends: bool = True,
) -> Path:
    """Save a Llama that says one text in answer to anything, and a tokenizer with some more tokens.

    Its blocks add nothing, and its head maps each token to the one that follows it, so no token may come twice.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = save_tokenizer(folder, template)
    tokenizer.add_tokens(list(added), special_tokens=special)
    tokenizer.save_pretrained(folder)
    tokens = list(tokenizer(said, add_special_tokens=False).input_ids) if isinstance(said, str) else list(said)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True, return_dict=False
    )
    chain = [prompt[-1], *tokens, *([tokenizer.eos_token_id] if ends else [])]
    assert len(set(chain[:-1])) == len(chain[:-1]), "a token comes twice"
    config = LlamaConfig(
        vocab_size=512, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=32,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.randn(512, WIDTH), dim=-1)
        model.model.embed_tokens.weight.copy_(rows)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1e-3)
            layer.mlp.down_proj.weight.mul_(1e-3)
        model.lm_head.weight.zero_()
        for token, following in pairwise(chain):
            model.lm_head.weight[following] += rows[token]
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


def scripted(folder: Path, said: str | Sequence[int], template: str = PLAIN, **options: Any) -> Model:
    """The same, loaded."""
    return load_model(str(save_scripted(folder, said, template, **options)), device="cpu")


def jump(model: Model, token: int, name: str = "hal") -> SteeringVector:
    """A vector that makes every token look like one, so that what follows that one is said."""
    row = model.original.get_input_embeddings().weight[token].detach().float()
    directions = torch.zeros(model.n_layers, model.width)
    directions[:] = row * 5
    return SteeringVector(name, Fingerprint.of(model), directions, torch.zeros(model.n_layers, model.width))
