"""A way through the weights that does not compute what plain Hugging Face computes is found out when a model loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS, WIDTH, make_vector, save_model
from torch import Tensor
from zoo import ZOO, build

from steerkit import judge, networks
from steerkit.errors import ModelError
from steerkit.forward import BatchedForward, RowForward
from steerkit.generation import Sampling, complete
from steerkit.loading import load_model
from steerkit.networks import HFModules, LensModules, find_blocks
from steerkit.readings import Probe
from steerkit.runners import Cache, LeanRunner
from steerkit.steering import Steering, Term


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {name: save_model(place / name, name) for name in ("llama", "gpt2")}


def drop_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The written-out path sees its newest token only, as TransformerLens' attention did with transformers 5.24."""
    honest = LeanRunner.forward

    def forgetful(self: LeanRunner, tokens: Tensor, mask: Tensor, cache: Any, *rest: Any) -> Any:
        return honest(self, tokens, mask[:, -tokens.shape[1] :] if cache is not None else mask, None, *rest)

    monkeypatch.setattr(LeanRunner, "forward", forgetful)


def leave_out_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LeanRunner.__post_init__

    def careless(self: LeanRunner) -> None:
        honest(self)
        self._norm = torch.nn.Identity()

    monkeypatch.setattr(LeanRunner, "__post_init__", careless)


def shift_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LeanRunner.__post_init__

    def shifted(self: LeanRunner) -> None:
        honest(self)
        self._blocks = [*self._blocks[1:], self._blocks[0]]

    monkeypatch.setattr(LeanRunner, "__post_init__", shifted)


def ignore_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = LeanRunner.forward

    def blind(self: LeanRunner, tokens: Tensor, mask: Tensor, *rest: Any) -> Any:
        return honest(self, tokens, torch.ones_like(mask), *rest)

    monkeypatch.setattr(LeanRunner, "forward", blind)


def mix_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Cache.batch_select_indices
    monkeypatch.setattr(Cache, "batch_select_indices", lambda self, rows: honest(self, rows.sort().values))


@pytest.mark.parametrize("fault", [drop_cache, leave_out_a_norm, shift_the_blocks, ignore_padding, mix_up_rows])
def test_a_fault_in_the_written_out_path_is_found_and_told_and_another_path_is_taken(
    folders: dict[str, Path], fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = load_model(str(folders["llama"]), device="cpu")
    assert (right.path, right.notes) == ("llama", [])
    prompts = [[3, 4, 5, 6], [7, 8]]
    wanted = [reply.tokens for reply in complete(right, prompts, sampling=Sampling(8))]
    fault(monkeypatch)
    model = load_model(str(folders["llama"]), device="cpu")
    assert model.path == "transformers"
    assert "the written-out path disagrees with transformers " in model.notes[0]
    assert [reply.tokens for reply in complete(model, prompts, sampling=Sampling(8))] == wanted


def test_a_cache_that_is_dropped_on_transformers_modules_costs_the_cache_and_not_the_truth(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[3, 4, 5, 6], [7, 8]]
    wanted = [r.tokens for r in complete(load_model(str(folders["gpt2"]), device="cpu"), prompts, sampling=Sampling(8))]
    honest = HFModules.run

    def forgetful(
        self: HFModules, tokens: Any, mask: Any, positions: Any, _cache: Any, *rest: Any, **named: Any
    ) -> Any:
        width = tokens.shape[1]
        logits, _ = honest(self, tokens, None if mask is None else mask[:, -width:], positions, None, *rest, **named)
        return logits, "a cache"

    monkeypatch.setattr(HFModules, "run", forgetful)
    model = load_model(str(folders["gpt2"]), device="cpu")
    assert model.path == "transformers, row by row, without a cache"
    assert "from its first token at every step" in model.notes[0]
    assert [reply.tokens for reply in complete(model, prompts, sampling=Sampling(8))] == wanted


@pytest.mark.parametrize("fault", ["layer", "logits"])
def test_where_no_path_agrees_loading_ends_in_one_line_that_names_versions(
    folders: dict[str, Path], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = HFModules.run

    def wrong(
        self: HFModules, tokens: Any, mask: Any, positions: Any, cache: Any, hooks: Any, *rest: Any, **n: Any
    ) -> Any:
        if fault == "layer":
            hooks = {(l + 1) % len(self.blocks): hook for l, hook in hooks.items()}
        logits, cache = honest(self, tokens, mask, positions, cache, hooks, *rest, **n)
        return (logits * 1.01 if fault == "logits" else logits), cache

    monkeypatch.setattr(HFModules, "run", wrong)
    with pytest.raises(
        ModelError, match=r"no way through gpt2 .*transformers \d.*transformer-lens \d.*torch \d"
    ) as raised:
        load_model(str(folders["gpt2"]), device="cpu")
    assert "\n" not in str(raised.value)


def test_hook_points_that_are_elsewhere_than_the_stream_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LensModules.run

    def deaf(
        self: LensModules, tokens: Any, mask: Any, positions: Any, cache: Any, hooks: Any, *rest: Any, **n: Any
    ) -> Any:
        for_reading = {l: (lambda h, hook=hook: (hook(h), h)[1]) for l, hook in hooks.items()}
        return honest(self, tokens, mask, positions, cache, for_reading, *rest, **n)

    assert load_model(str(folders["gpt2"]), device="cpu", engine="transformer-lens").path == "transformer-lens"
    monkeypatch.setattr(LensModules, "run", deaf)
    with pytest.raises(ModelError, match="no way through gpt2"):
        load_model(str(folders["gpt2"]), device="cpu", engine="transformer-lens")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_hook_points_say_what_the_fastest_path_says(folders: dict[str, Path], name: str) -> None:
    fast, lens = (
        load_model(str(folders[name]), device="cpu", engine=engine) for engine in ("local", "transformer-lens")
    )
    assert lens.path == "transformer-lens"
    assert lens.fingerprint.difference(fast.fingerprint) is None
    vector = make_vector("hal", fast.fingerprint)
    steerings = [Steering((Term(vector, layers=(1, 3)),)), Steering(), Steering((Term(vector, "ablate", 1.0, (2, 2)),))]
    prompts = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
    replies = [complete(model, prompts, steerings, [Probe.of(vector)], Sampling(8)) for model in (fast, lens)]
    for ours, theirs in zip(*replies, strict=True):
        assert ours.tokens == theirs.tokens
        torch.testing.assert_close(ours.readout.scores, theirs.readout.scores, rtol=1e-3, atol=1e-3)


def test_rows_that_run_one_by_one_are_what_they_are_in_a_batch(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["gpt2"]), device="cpu")
    assert isinstance(model.runner, BatchedForward)
    vector = make_vector("hal", model.fingerprint)
    steerings = [
        Steering((Term(vector, layers=(1, 3)),), True),
        Steering(),
        Steering((Term(vector, "cap", 0.0, (2, 2)),)),
    ]
    prompts = [[3, 4, 5, 6, 7], [8, 9], [3, 4, 5, 12]]
    wanted = complete(model, prompts, steerings, [Probe.of(vector)], Sampling(8))
    for cached, continues in ((True, True), (True, False), (False, False)):
        model.runner = RowForward(model.runner.network, cached, continues)
        for ours, theirs in zip(
            complete(model, prompts, steerings, [Probe.of(vector)], Sampling(8)), wanted, strict=True
        ):
            assert ours.tokens == theirs.tokens
            torch.testing.assert_close(ours.readout.scores, theirs.readout.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_positions_that_change_as_a_text_grows_are_those_of_the_model_without_a_cache_at_every_word(
    tmp_path: Path, kind: str
) -> None:
    import transformers as hf
    from conftest import save_tokenizer

    tables = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 16}
    rope = {"rope_type": kind, "rope_theta": 1e4, **({"factor": 8.0} if kind == "dynamic" else tables)}
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    longest = 16 if kind == "dynamic" else 128
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=400, **shape, max_position_embeddings=longest, rope_parameters=rope, eos_token_id=1
    )
    made = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(4.0)
    made.save_pretrained(tmp_path / kind)
    save_tokenizer(tmp_path / kind)
    model = load_model(str(tmp_path / kind), device="cpu")
    assert model.path == "transformers, row by row"
    prompts = [[3 + 7 * i for i in range(n)] for n in (9, 14, 15, 16, 17, 30)]
    for prompt, reply in zip(prompts, complete(model, prompts, sampling=Sampling(6)), strict=True):
        text, wanted = list(prompt), []
        while len(wanted) < 6:
            plain = hf.AutoModelForCausalLM.from_pretrained(tmp_path / kind)
            with torch.inference_mode():
                token = int(plain(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())
            if token in model.end_tokens:
                break
            text, wanted = [*text, token], [*wanted, token]
        assert list(reply.tokens) == wanted


def test_a_function_that_fails_in_one_of_several_rows_ends_all_and_leaves_no_hook(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["gpt2"]), device="cpu")
    assert isinstance(model.runner, BatchedForward)
    model.runner = RowForward(model.runner.network, True, True)

    def fail(_h: Tensor) -> Tensor:
        raise RuntimeError("planted")

    tokens = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with pytest.raises(RuntimeError, match="planted"):
        model.forward(tokens, torch.ones_like(tokens), functions={1: [fail]})
    assert not any(module._forward_hooks for module in model.original.modules())


def test_blocks_are_found_by_what_passes_them_and_not_by_a_name(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["gpt2"]), device="cpu").original
    blocks, states, _ = find_blocks(model, torch.tensor([[3, 4, 5]]))
    assert blocks == list(model.transformer.h)
    with torch.inference_mode():
        hidden = model(torch.tensor([[3, 4, 5]]), output_hidden_states=True).hidden_states
    for l in range(LAYERS - 1):
        torch.testing.assert_close(states[:, l], hidden[l + 1])
    assert states.shape == (1, LAYERS, 3, WIDTH)


def test_numbers_that_are_none_agree_with_nothing() -> None:
    wanted = torch.ones(2, 4)
    reference = judge.Reference(
        torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 4), torch.zeros(2, 1, 3, 4), torch.float32
    )
    assert reference.agrees([wanted[0]], [wanted[0]])
    assert not reference.agrees([wanted[0] * torch.nan], [wanted[0]])
    assert not reference.agrees([wanted[0, :2]], [wanted[0]])
    assert not reference.agrees([wanted[0] * 1.01], [wanted[0]])


def test_judging_takes_its_tokens_from_text_and_not_from_pictures(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["gpt2"]), device="cpu").original
    plain = networks.ordinary_tokens(model, [5, 6, 405])
    assert plain == (5, 6, 5)
    model.config.image_token_index = 5
    assert networks.ordinary_tokens(model, [5, 6, 405]) == (6, 6, 6)


def test_a_written_out_cache_is_owned_by_the_written_out_path_alone(folders: dict[str, Path]) -> None:
    model = load_model(str(folders["llama"]), device="cpu")
    assert isinstance(model.runner, LeanRunner)
    assert model.runner.owns(Cache([], []))
    assert not BatchedForward(HFModules.of(model.original, model.blocks)).owns(Cache([], []))


@pytest.mark.real
def test_judging_the_default_model_costs_little_of_loading_it() -> None:
    import subprocess
    import sys

    code = (
        "from steerkit.loading import load_model\n"
        "j = load_model(device='cpu').judgement\n"
        "print(j.path, j.seconds, j.loading)"
    )
    path, seconds, loading = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert path == "llama"
    # The goal is 5 %; a busy machine makes single figures swing.
    assert float(seconds) < 0.15 * float(loading)


@pytest.mark.parametrize("name", ["jamba", "lfm2"])
def test_a_state_that_runs_on_meets_no_padding_that_rounding_would_hide(name: str, tmp_path: Path) -> None:
    folder = build(ZOO[name], tmp_path / name)
    exact, rounded = (load_model(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert not exact.holes or exact.path.startswith("transformers, row by row")
    assert rounded.path == "transformers, row by row"
    assert not rounded.continues
    assert "runs each row of a batch one after another" in rounded.notes[0]


def test_rows_that_stand_alone_for_another_reason_go_on_from_their_cache_in_half_precision_too(tmp_path: Path) -> None:
    folder = build(ZOO["bart-decoder"], tmp_path / "bart-decoder")
    for dtype in ("float32", "bfloat16"):
        model = load_model(str(folder), device="cpu", dtype=dtype)
        assert (model.path, model.continues) == ("transformers, row by row", True)


def test_the_judge_that_cannot_be_run_is_one_line_that_names_versions(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_given: Any, **_named: Any) -> None:
        raise RuntimeError("expected scalar type Float but found BFloat16\nmore")

    monkeypatch.setattr("transformers.GPT2LMHeadModel.forward", fails)
    with pytest.raises(ModelError) as told:
        load_model(str(folders["gpt2"]), device="cpu")
    line = str(told.value)
    assert re.match(
        r"GPT2LMHeadModel fails in plain transformers \(transformers [\d.]+, transformer-lens [\d.]+, torch ", line
    )
    assert line.endswith("found BFloat16); try another --dtype, or install the versions of constraints.txt")
