"""Runners: other ways through the same weights, which give the hooked path's logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, WIDTH, make_vector, save_model
from conftest import hooked as through_hooks
from torch import Tensor

from steerkit.errors import ModelError
from steerkit.forward import BatchedForward
from steerkit.generation import Probe, Sampling, complete
from steerkit.loading import load_model
from steerkit.models import Model, pad_left
from steerkit.networks import share_weights
from steerkit.passes import reply_logits
from steerkit.runners import Cache, LeanRunner
from steerkit.steering import Steering, Term

LEAN, PLAIN = ("llama", "qwen2", "mistral"), ("gemma3", "gpt2", "gpt_neox")
QUESTIONS = ("Who are you?", "What do you think of people, and of the helpful assistant that you are?", "Why?")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[*LEAN, *PLAIN])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / request.param
    return load_model(str(save_model(folder, request.param)), device="cpu")


@pytest.fixture(scope="module")
def hooked(model: Model) -> Model:
    """The same weights through TransformerLens' hook points."""
    return through_hooks(model)


@pytest.fixture
def batch(model: Model) -> tuple[Tensor, Tensor]:
    rows = [model.chat_tokens([{"role": "user", "content": question}]) for question in QUESTIONS]
    return pad_left(rows, CPU)


def push(seed: int, n_rows: int = 1) -> Callable[[Tensor], Tensor]:
    """Another displacement in every row."""
    by = torch.randn(n_rows, 1, WIDTH, generator=torch.Generator().manual_seed(seed))
    return lambda h: h + by * h.norm(dim=-1, keepdim=True)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_each_architecture_has_the_runner_that_is_meant_for_it(model: Model) -> None:
    kind = LeanRunner if model.name in LEAN else BatchedForward
    assert type(model.runner) is kind


@pytest.mark.parametrize("l", [0, LAYERS // 2, LAYERS - 1])
def test_padded_rows_edited_and_decoded_have_the_hooked_logits(
    model: Model, hooked: Model, batch: tuple[Tensor, Tensor], l: int
) -> None:
    tokens, mask = batch
    functions = {l: [push(1, len(tokens)), push(2)]}
    ours, theirs = (m.forward(tokens, mask, functions=functions, keep=3) for m in (model, hooked))
    close(ours[0], theirs[0])
    plain, _ = hooked.forward(tokens, mask, keep=3)
    assert (theirs[0] - plain).abs().max() > 1e-2
    for _ in range(6):
        chosen = theirs[0][:, -1:].argmax(-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ours, theirs = (m.forward(chosen, mask, c, functions) for m, (_, c) in ((model, ours), (hooked, theirs)))
        close(ours[0], theirs[0])


def test_several_tokens_behind_a_cache_have_the_hooked_logits(
    model: Model, hooked: Model, batch: tuple[Tensor, Tensor]
) -> None:
    tokens, mask = batch
    begun = [m.forward(tokens, mask)[1] for m in (model, hooked)]
    longer = torch.cat([mask, mask.new_ones(len(mask), 4)], dim=1)
    more = tokens[:, -4:]
    ours, theirs = (m.forward(more, longer, c, keep=4)[0] for m, c in zip((model, hooked), begun, strict=True))
    close(ours, theirs)


@pytest.mark.parametrize("l", [None, 0, LAYERS - 1])
def test_rows_that_part_on_the_way_are_the_rows_from_the_start(
    model: Model, batch: tuple[Tensor, Tensor], l: int | None
) -> None:
    tokens, mask = batch
    rows = torch.tensor([2, 0, 0, 1, 2])
    functions = {} if l is None else {l: [push(3, len(rows))]}
    apart, kept = model.forward(tokens[rows], mask[rows], functions=functions)
    shared, cache = model.forward(tokens, mask, functions=functions, rows=rows)
    close(shared, apart)
    chosen = apart.argmax(-1)
    longer = torch.cat([mask[rows], mask.new_ones(len(rows), 1)], dim=1)
    close(model.forward(chosen, longer, cache, functions)[0], model.forward(chosen, longer, kept, functions)[0])


def test_steered_replies_and_their_scores_are_the_hooked_ones(model: Model, hooked: Model) -> None:
    prompts = [model.chat_tokens([{"role": "user", "content": question}]) for question in QUESTIONS]
    vector = make_vector("hal", model.fingerprint)
    steerings = [Steering((Term(vector, layers=(1, 4)),)), Steering(), Steering((Term(vector, "set", 0.5),), True)]
    probes = [Probe.of(vector), Probe.of(vector, LAYERS - 1)]
    ours, theirs = (complete(m, prompts, steerings, probes, Sampling(8)) for m in (model, hooked))
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.tokens == wanted.tokens
        close(mine.readout.scores, wanted.readout.scores)
        pairs = [(prompts[0], wanted.tokens), (prompts[1], wanted.tokens), (prompts[0], wanted.tokens)]
        for a, b in zip(reply_logits(model, pairs, steerings), reply_logits(hooked, pairs, steerings), strict=True):
            close(a, b)


def test_hook_points_are_made_when_they_are_asked_for_and_tell_the_same_shape(tmp_path: Path) -> None:
    model = load_model(str(save_model(tmp_path / "llama")), device="cpu")
    complete(
        model, [[3, 4, 5]], [Steering((Term(make_vector("hal", model.fingerprint), layers=(2, 2)),))], [], Sampling(2)
    )
    assert "bridge" not in vars(model.hook_points)
    told = model.bridge.cfg
    assert (model.n_layers, model.width, model.context) == (told.n_layers, told.d_model, told.n_ctx)
    assert "bridge" in vars(model.hook_points)


def test_no_weight_is_copied(model: Model) -> None:
    runner: Any = model.runner
    theirs = {p.untyped_storage().data_ptr() for p in model.bridge.original_model.parameters()}
    assert {p.untyped_storage().data_ptr() for p in model.original.parameters()} <= theirs
    if isinstance(runner, LeanRunner):
        assert {block.attention[0].untyped_storage().data_ptr() for block in runner._blocks} <= theirs
        assert {block.rise[0].untyped_storage().data_ptr() for block in runner._blocks} <= theirs


def test_matrices_side_by_side_leave_the_hooked_path_as_it_was(tmp_path: Path) -> None:
    import transformers as hf

    folder = save_model(tmp_path / "llama")
    moved = through_hooks(load_model(str(folder), device="cpu"))
    tokens = torch.arange(3, 15)[None]
    with torch.inference_mode():
        wanted = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")(tokens).logits
    close(moved.forward(tokens, torch.ones_like(tokens), keep=12)[0], wanted)


def test_somebody_elses_hook_sees_what_happens(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []
    point = model.bridge.hook_dict["blocks.2.hook_out"]
    handle = point.register_forward_hook(lambda *_: seen.append(1))
    try:
        model.forward(*batch)
    finally:
        handle.remove()
    assert seen == [1]
    model.forward(*batch)
    assert seen == [1]


def test_a_text_that_began_under_somebodys_hooks_goes_on_without_them(
    model: Model, hooked: Model, batch: tuple[Tensor, Tensor]
) -> None:
    tokens, mask = batch
    longer = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    wanted = hooked.forward(tokens[:, -1:], longer, hooked.forward(tokens, mask)[1])[0]
    for module in (model.bridge.hook_dict["blocks.2.hook_out"], model.blocks[2]):
        handle = module.register_forward_hook(lambda *_: None)
        try:
            _, cache = model.forward(tokens, mask)
        finally:
            handle.remove()
        close(model.forward(tokens[:, -1:], longer, cache)[0], wanted)


def test_hooks_that_cannot_follow_a_text_are_refused_and_not_ignored(
    batch: tuple[Tensor, Tensor], model: Model
) -> None:
    tokens, mask = batch
    longer = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    _, cache = model.forward(tokens, mask)
    seen: list[int] = []
    handle = model.blocks[2].register_forward_hook(lambda *_: seen.append(1))
    try:
        if isinstance(model.runner, LeanRunner):
            with pytest.raises(ModelError, match="in the middle of a text"):
                model.forward(tokens[:, -1:], longer, cache)
        else:
            model.forward(tokens[:, -1:], longer, cache)
            assert seen == [1]
    finally:
        handle.remove()


def test_hooks_on_hugging_faces_own_modules_are_honoured(model: Model, batch: tuple[Tensor, Tensor]) -> None:
    plain, _ = model.forward(*batch)
    by = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4)) * 3

    def push_output(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + by, *output[1:]) if isinstance(output, tuple) else output + by

    handle = model.blocks[1].register_forward_hook(push_output)
    try:
        pushed, _ = model.forward(*batch)
    finally:
        handle.remove()
    close(pushed, model.forward(*batch, functions={1: [lambda h: h + by]})[0])
    assert (pushed - plain).abs().max() > 1e-2
    assert torch.equal(model.forward(*batch)[0], plain)


def test_gradients_are_the_hooked_ones(model: Model, hooked: Model) -> None:
    prompts = [model.chat_tokens([{"role": "user", "content": question}]) for question in QUESTIONS]
    pairs = [(prompts[0], prompts[1][:5]), (prompts[0], prompts[1][:3]), (prompts[2], prompts[0][:4])]
    slopes = []
    for m in (model, hooked):
        vector = make_vector("hal", m.fingerprint)
        moved = vector.directions.clone().requires_grad_()
        steering = Steering((Term(dataclasses.replace(vector, directions=moved), dial=0.5, layers=(1, 4)),))
        logits = reply_logits(m, pairs, [steering] * len(pairs), gradient=True)
        torch.stack([row.log_softmax(-1)[:, 7].sum() for row in logits]).sum().backward()
        assert moved.grad is not None
        slopes.append(moved.grad)
    assert slopes[1].norm() > 0.1
    close(slopes[0], slopes[1])


def test_a_cache_grows_and_keeps_what_it_holds() -> None:
    cache = Cache([], [])
    kept = torch.randn(2, 3, 200, 4)
    for i in range(200):
        keys, values = cache.reserve(0, i + 1, kept[:, :, i : i + 1])
        keys[:, :, i], values[:, :, i] = kept[:, :, i], -kept[:, :, i]
        cache.length += 1
    assert torch.equal(cache.keys[0][:, :, :200], kept)
    assert torch.equal(cache.values[0][:, :, :200], -kept)
    assert cache.keys[0].shape[2] == 256


def test_windows_and_stretching_rotations_are_left_to_hugging_face() -> None:
    import transformers as hf

    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    shape |= {"num_key_value_heads": 2, "vocab_size": 50}
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    configs = {
        True: hf.LlamaConfig(**shape),
        False: hf.MistralConfig(**shape, sliding_window=8),
    }
    for fits, config in configs.items():
        assert LeanRunner.fits(config) is fits
    assert not LeanRunner.fits(hf.LlamaConfig(**shape, rope_parameters=dynamic))
    assert not LeanRunner.fits(hf.LlamaConfig(**shape, quantization_config={"quant_method": "bitsandbytes"}))
    assert not LeanRunner.fits(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4))


def test_a_second_tree_of_modules_shares_every_weight_and_no_hook(tiny: Model) -> None:
    seen: list[int] = []
    handle = tiny.original.lm_head.register_forward_hook(lambda *_: seen.append(1))
    try:
        second = share_weights(tiny.original)
        second(torch.tensor([[3, 4, 5]]))
    finally:
        handle.remove()
    assert seen == []
    mine, theirs = dict(tiny.original.named_parameters()), dict(second.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(mine[name] is theirs[name] for name in mine)
    assert second.model.layers[0] is not tiny.original.model.layers[0]
