"""A model that counts through its tokens, and loops from a known dial on, late in its reply or at once."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import VOCABULARY, save_tokenizer

from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.vectors import SteeringVector

WIDTH, LAYERS, FIRST = 512, 2, 3
LATE, EARLY = 0.5, 1.0
"""From the first of these dials on the reply loops once it comes to a certain token; from the second on at once."""
PERIOD = 10
STEPS = 120
"""Tokens before the one where the late loop begins."""


def save_counter(folder: Path) -> Path:
    """A Llama whose blocks do nothing: what follows a token is written in its two matrices alone."""
    import transformers as hf

    tokenizer = save_tokenizer(folder)
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    states = torch.eye(WIDTH)
    # Every reply begins after the last token of the template, and counts on from there, without end.
    start = tokenizer("assistant\n").input_ids[-1]
    after = {t: t + 1 if t + 1 < VOCABULARY else FIRST for t in range(FIRST, VOCABULARY)} | dict.fromkeys(
        range(3), FIRST
    )
    late = start
    for _ in range(STEPS):
        late = after[late]
    back = late
    for _ in range(VOCABULARY - FIRST - PERIOD + 1):
        back = after[back]
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(states[:VOCABULARY])
        model.lm_head.weight.zero_()
        for token, follower in after.items():
            model.lm_head.weight[follower] += 0.3 * states[token]
        # The direction speaks for a token that stands `PERIOD` before the late one, which half leads back to it.
        model.lm_head.weight[back] += 0.3 * (states[VOCABULARY] + (1 - LATE) * states[late])
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


def load_counter(folder: Path) -> tuple[Model, SteeringVector]:
    """The model, and the direction that makes it loop."""
    model = load_model(str(save_counter(folder)), device="cpu")
    directions = torch.eye(WIDTH)[VOCABULARY].repeat(LAYERS, 1)
    evidence = {"place": [1, 1], "best_layer": 1}
    return model, SteeringVector("circle", model.fingerprint, directions, torch.zeros(LAYERS, WIDTH), evidence=evidence)
