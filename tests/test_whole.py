"""Only whole weights of causal language models load, and no code that comes with them runs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model, save_tokenizer
from safetensors.torch import load_file, save_file

from steerkit.errors import ModelError
from steerkit.exchange.baking import bake
from steerkit.generation import Probe, Sampling, complete
from steerkit.loading import load_model
from steerkit.steering import Steering, Term
from steerkit.tuning import require_trainable


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as raised:
        load_model(str(folder), device="cpu")
    line = str(raised.value)
    assert "\n" not in line
    return line


def test_a_missing_matrix_is_named(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("model.layers.2.mlp.up_proj.weight"))
    assert "lacks weights: model.layers.2.mlp.up_proj.weight" in refusal(folder)


def test_a_configuration_with_more_layers_than_the_file_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=8)
    assert "lacks weights: model.layers.6." in refusal(folder)


def test_a_configuration_with_fewer_layers_than_the_file_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=4)
    assert "has no place for: model.layers.4." in refusal(folder)


def test_a_missing_head_is_refused_by_name(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    assert "lacks weights: lm_head.weight" in refusal(folder)


def test_a_matrix_of_another_shape_is_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    assert "mlp" in refusal(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(folder: Path, bad: float) -> None:
    edit_weights(folder, lambda weights: weights["model.layers.1.self_attn.q_proj.weight"].__setitem__((0, 0), bad))
    line = refusal(folder)
    assert "1 weights in model.layers.1.self_attn.q_proj.weight" in line
    assert "no numbers" in line


def test_a_sum_that_overflows_is_no_fault_of_the_weights() -> None:
    from steerkit.whole import require_numbers

    layer = torch.nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(3e38)
    require_numbers(layer, "large")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("LlamaForSequenceClassification", "LlamaConfig"),
        ("LlamaModel", "LlamaConfig"),
        ("BertForMaskedLM", "BertConfig"),
    ],
)
def test_what_predicts_no_next_token_is_refused_when_it_is_loaded(tmp_path: Path, name: str, config: str) -> None:
    import transformers as hf

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = getattr(hf, name)(getattr(hf, config)(vocab_size=400, **shape, max_position_embeddings=64))
    model.save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    assert f"a {name}, which predicts no next token" in refusal(tmp_path / "other")


def test_an_encoder_decoder_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    import transformers as hf

    config = hf.T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=2
    )
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5")
    assert "is an encoder–decoder" in refusal(tmp_path / "t5")


def test_an_architecture_that_transformers_does_not_have_is_refused(folder: Path) -> None:
    edit_config(folder, architectures=["MarvinForCausalLM"])
    assert "a MarvinForCausalLM, which transformers does not have" in refusal(folder)


@pytest.mark.parametrize("what", ["config", "model", "tokenizer"])
def test_code_that_comes_with_a_model_never_runs(
    folder: Path, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    (folder / "marvin.py").write_text(f"open({str(ran)!r}, 'w').close()\nMarvin = object\n")
    if what == "tokenizer":
        path = folder / "tokenizer_config.json"
        told = json.loads(path.read_text()) | {"tokenizer_class": "Marvin"}
        path.write_text(json.dumps(told | {"auto_map": {"AutoTokenizer": ["marvin.Marvin", None]}}))
    else:
        auto_map = {"AutoConfig": "marvin.Marvin", "AutoModelForCausalLM": "marvin.Marvin"}
        kind = {"model_type": "marvin"} if what == "config" else {}
        edit_config(folder, architectures=["MarvinForCausalLM"], auto_map=auto_map, **kind)
    # Somebody who would say yes is not asked.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(ModelError):
        load_model(str(folder), device="cpu")
    assert not ran.exists()
    if what != "tokenizer":
        assert "code of its own" in refusal(folder)


def test_a_quantised_checkpoint_says_which_library_it_needs(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"})
    line = refusal(folder)
    assert "quantised by compressed-tensors" in line
    assert "pip install compressed-tensors" in line


def test_weights_of_one_model_on_the_devices_that_are_there_say_the_same(whole: Path) -> None:
    pytest.importorskip("accelerate")
    alone, spread = (load_model(str(whole), device=device) for device in ("cpu", "auto"))
    replies = [complete(model, [[3, 4, 5], [6, 7]], sampling=Sampling(6)) for model in (alone, spread)]
    assert [reply.tokens for reply in replies[0]] == [reply.tokens for reply in replies[1]]


def halved(plain: Any) -> dict[str, str]:
    """A device map that keeps every second block on the disk, so that it is fetched for each pass."""
    places: dict[str, str] = {}

    def walk(module: torch.nn.Module, before: str) -> None:
        for name, part in module.named_children():
            if isinstance(part, torch.nn.ModuleList):
                places.update({f"{before}{name}.{i}": ("cpu", "disk")[i % 2] for i in range(len(part))})
            elif any(isinstance(inner, torch.nn.ModuleList) for inner in part.modules()):
                walk(part, f"{before}{name}.")
            else:
                places[f"{before}{name}"] = "cpu"

    walk(plain, "")
    return places


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_that_has_room_for_half_of_its_blocks_says_and_scores_the_same(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / architecture, architecture)
    alone = load_model(str(folder), device="cpu")
    places, read = halved(alone.original), type(alone.original).from_pretrained

    def spread_out(source: str, **options: Any) -> Any:
        assert options.pop("device_map") == "auto"
        return read(source, device_map=places, offload_folder=str(tmp_path / "disk"), **options)

    monkeypatch.setattr(type(alone.original), "from_pretrained", spread_out)
    spread = load_model(str(folder), device="auto")
    assert any(parameter.device.type == "meta" for parameter in spread.original.parameters())
    assert spread.path == "transformers"
    assert [note for note in spread.notes if "is spread over cpu, disk" in note]
    assert spread.fingerprint.difference(alone.fingerprint) is None
    vector = make_vector("hal", alone.fingerprint)
    steering, probes = Steering((Term(vector, dial=0.5, layers=(1, 3)),)), [Probe.of(vector)]
    ours, theirs = (
        complete(model, [[3, 4, 5], [6, 7]], [steering] * 2, probes, Sampling(6)) for model in (alone, spread)
    )
    assert [reply.tokens for reply in ours] == [reply.tokens for reply in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.readout.scores, other.readout.scores, atol=1e-4, rtol=1e-4)
    with pytest.raises(ModelError, match="is spread over devices, and is not copied from there; use --device cpu"):
        bake(spread, steering, tmp_path / "copy")
    with pytest.raises(ModelError, match="is spread over devices, and cannot be trained there"):
        require_trainable(spread)
