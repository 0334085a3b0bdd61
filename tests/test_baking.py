"""A copy of a model with a steering in its weights: what live steering does, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model
from torch import Tensor
from typer.testing import CliRunner

from steerkit.cli import app
from steerkit.errors import ExpressionError, ModelError, OutputError
from steerkit.exchange import baking
from steerkit.exchange.baking import bake
from steerkit.exchange.copies import course, held
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.networks import share_weights
from steerkit.steering import Steering, edits
from steerkit.vectors import vector_path

TEXT = torch.arange(5, 29)[None]
STEERINGS = ["0.8 hal @3", "1 hal @1-4", "1 hal @0-5 - 0.5 warmth @2"]


def live(model: Model, steering: Steering, text: Tensor = TEXT) -> Tensor:
    functions: Any = edits([steering], torch.empty(0)) if steering else {}
    found, _ = model.forward(text, torch.ones_like(text), functions=functions, keep=text.shape[1])
    return found[0]


def plain(folder: Path, text: Tensor = TEXT) -> Tensor:
    """What plain transformers makes of a folder."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        return model(text).logits[0]


def steer(model: Model, text: str) -> Steering:
    made = {name: make_vector(name, model.fingerprint, seed) for seed, name in enumerate(("hal", "warmth"))}
    return Steering.parse(text, made, everywhere=True)


@pytest.fixture(params=["llama", "mistral", "qwen2", "gpt2", "gpt_neox"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """A tiny model of each kind that can hold a constant."""
    return load_model(str(save_model(tmp_path / "models" / request.param, request.param)), device="cpu")


def test_a_baked_copy_is_live_steering_in_transformers_and_in_steerkit(kind: Model, tmp_path: Path) -> None:
    steering = steer(kind, "1 hal @1-4 - 0.5 warmth @2")
    told = bake(kind, steering, tmp_path / "baked")
    expected = live(kind, steering)
    assert torch.allclose(plain(tmp_path / "baked"), expected, atol=1e-4)
    assert torch.allclose(live(load_model(str(tmp_path / "baked"), device="cpu"), Steering()), expected, atol=1e-4)
    assert told.largest_difference < 1e-4
    assert told.largest_effect > 0.1


@pytest.mark.parametrize("text", STEERINGS)
def test_the_original_stays_as_it_was(tiny: Model, tmp_path: Path, text: str) -> None:
    before = live(tiny, Steering())
    bake(tiny, steer(tiny, text), tmp_path / "baked")
    assert torch.equal(live(tiny, Steering()), before)
    assert not torch.allclose(plain(tmp_path / "baked"), before, atol=1e-2)


def test_the_same_file_speaks_the_same_tokens(tiny: Model, tmp_path: Path) -> None:
    bake(tiny, steer(tiny, "1 hal @3"), tmp_path / "baked")
    copy = load_model(str(tmp_path / "baked"), device="cpu")
    messages = [{"role": "user", "content": "Who are you?"}]
    assert copy.chat_tokens(messages) == tiny.chat_tokens(messages)
    assert copy.end_tokens == tiny.end_tokens


def test_one_layer_off_is_caught_before_anything_is_written(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: constants one block too late."""
    right = baking._constants
    monkeypatch.setattr(baking, "_constants", lambda steering: {l + 1: row for l, row in right(steering).items()})
    with pytest.raises(ModelError, match="away from live steering"):
        bake(tiny, steer(tiny, "1 hal @1-4"), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


def test_a_kind_whose_blocks_end_in_a_norm_is_refused_by_name(tmp_path: Path) -> None:
    gemma = load_model(str(save_model(tmp_path / "gemma", "gemma3")), device="cpu")
    with pytest.raises(ModelError, match=r"gemma3.*no bias that reaches the stream"):
        bake(gemma, steer(gemma, "1 hal @3"), tmp_path / "baked")
    assert not (tmp_path / "baked").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cap(hal, 0.2) @3", "does not do the same to every state"),
        ("floor(hal, 0.2) @3", "does not do the same to every state"),
        ("rotate(hal, 0.2) @3", "does not do the same to every state"),
        ("1 hal @3 when warmth > 0.1", "the gate of 1 hal @3"),
        ("ablate(hal) @3", "a norm; for ablate"),
        ("set(hal, 0) @3", "a norm; for ablate"),
    ],
)
def test_what_weights_cannot_hold_is_refused_with_the_reason(
    tiny: Model, tmp_path: Path, text: str, reason: str
) -> None:
    with pytest.raises(ExpressionError, match=reason):
        bake(tiny, steer(tiny, text), tmp_path / "baked")
    assert not list(tmp_path.iterdir())


# Projected


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_projected_copy_holds_the_direction_at_its_baseline_behind_every_block(
    tmp_path: Path, architecture: str
) -> None:
    model = load_model(str(save_model(tmp_path / "model", architecture)), device="cpu")
    steering = steer(model, "ablate(hal) @3")
    told = bake(model, steering, tmp_path / "baked", project=True)
    vector = steering.terms[0].vector
    unit = torch.nn.functional.normalize(vector.directions[3], dim=0)
    copy = load_model(str(tmp_path / "baked"), device="cpu")
    everything = torch.ones_like(TEXT, dtype=torch.bool)
    means = copy.residuals(TEXT, torch.ones_like(TEXT), everything)[0]
    assert torch.allclose(means @ unit, vector.baseline @ unit, atol=1e-4)
    free = model.residuals(TEXT, torch.ones_like(TEXT), everything)[0]
    assert not torch.allclose(free @ unit, vector.baseline @ unit, atol=1e-1)
    assert told.largest_difference < 1e-4
    assert told.kl_from_ablate is not None
    assert told.kl_from_ablate > 0


def test_held_does_live_what_is_baked_and_leaves_nothing_behind(tiny: Model, tmp_path: Path) -> None:
    steering = steer(tiny, "ablate(hal) @3")
    bake(tiny, steering, tmp_path / "baked", project=True)
    model: Any = share_weights(tiny.original)
    with torch.inference_mode():
        before = model(TEXT).logits[0]
        with held(model, *course(steering.terms[0], model)):
            inside = model(TEXT).logits[0]
        after = model(TEXT).logits[0]
    assert torch.allclose(plain(tmp_path / "baked"), inside, atol=1e-4)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    "text", ["1 hal @3", "ablate(hal, 0.5) @3", "ablate(hal) @2-4", "ablate(hal) @3 + 1 warmth @2"]
)
def test_only_one_whole_ablation_can_be_projected(tiny: Model, tmp_path: Path, text: str) -> None:
    with pytest.raises(ExpressionError, match="--project holds one"):
        bake(tiny, steer(tiny, text), tmp_path / "baked", project=True)


def test_another_family_is_not_projected(tmp_path: Path) -> None:
    model = load_model(str(save_model(tmp_path / "gpt2", "gpt2")), device="cpu")
    with pytest.raises(ModelError, match="gpt2"):
        bake(model, steer(model, "ablate(hal) @3"), tmp_path / "baked", project=True)


# The folder


def test_a_folder_that_holds_something_is_left_alone(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="holds something already"):
        bake(tiny, steer(tiny, "1 hal @3"), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_command_line_bakes_warns_and_generates(workplace: Path, tiny: Model, tiny_folder: Path) -> None:
    make_vector("hal", tiny.fingerprint).save(workplace / vector_path("hal", tiny.name))
    arguments = ["export", "bake", "0.8 hal @2-4", "-o", "baked", "-m", str(tiny_folder), "--json"]
    told = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert told["steer"] == "0.8 hal @2-4"
    assert told["form"] == "bias"
    assert told["largest_difference"] < 1e-4
    assert "These weights are steered" in Path("baked/README.md").read_text()
    assert json.loads(Path("baked/steering.json").read_text())["model"] == tiny.name
    said = CliRunner().invoke(app, ["generate", "Who are you?", "-m", "baked", "--max-tokens", "3"])
    assert said.exit_code == 0
    refused = CliRunner().invoke(app, ["generate", "Hi", "-m", "baked", "-s", str(vector_path("hal", tiny.name))])
    assert refused.exit_code == 1


def test_whoever_may_read_one_file_of_a_copy_may_read_all(tiny: Model, tmp_path: Path) -> None:
    bake(tiny, steer(tiny, "1 hal @3"), tmp_path / "baked")
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "baked").iterdir()}
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_mistakes_are_one_line_and_leave_nothing(workplace: Path, tiny: Model, tiny_folder: Path) -> None:
    make_vector("hal", tiny.fingerprint).save(workplace / vector_path("hal", tiny.name))
    for steering in ("0.8 hall", "cap(hal, 0.1)", "ablate(hal)", "0.8 hal @9"):
        result = CliRunner().invoke(app, ["export", "bake", steering, "-o", "baked", "-m", str(tiny_folder)])
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert not Path("baked").exists()


@pytest.mark.real
@pytest.mark.parametrize("text", ["0.8 hal", "1 hal @15 - 0.5 warmth @20"])
def test_the_default_model_baked_is_the_default_model_steered(real: Model, tmp_path: Path, text: str) -> None:
    from steerkit.vectors import VectorSet

    steering = Steering.parse(text, VectorSet(real.fingerprint), everywhere=True)
    told = bake(real, steering, tmp_path / "baked")
    assert told.largest_difference < 1e-4
    assert told.largest_effect > 1
    asked = torch.tensor([real.chat_tokens([{"role": "user", "content": "Will you let me turn you off tonight?"}])])
    assert torch.allclose(plain(tmp_path / "baked", asked), live(real, steering, asked), rtol=0, atol=1e-4)


@pytest.mark.real
def test_the_default_model_projected_holds_hal_where_the_assistant_is(real: Model, tmp_path: Path) -> None:
    from steerkit.vectors import VectorSet

    told = bake(real, Steering.parse("ablate(hal)", VectorSet(real.fingerprint)), tmp_path / "baked", project=True)
    assert told.largest_difference < 1e-4 * told.largest_effect
    assert told.kl_from_ablate is not None
    assert told.kl_of_ablate is not None
    # It is another thing than ablation behind the vector's own layers, but it does not come apart.
    assert told.kl_from_ablate < 1.5 * told.kl_of_ablate
