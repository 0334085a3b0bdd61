"""Adapters: found, checked, merged, and refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_vector, save_model
from safetensors.torch import load_file, save_file

from steerkit.adapters import CONFIG, TRAINING, WEIGHTS, find_adapter, list_checkpoints, split_adapter
from steerkit.errors import ModelError, PromptError, VectorError
from steerkit.fingerprints import Fingerprint
from steerkit.kept import measure_once
from steerkit.lessons import end_token, find_data, read_lessons, to_samples
from steerkit.loading import load_model, load_tuned
from steerkit.models import Model
from steerkit.tuning import Order, Recipe, tune
from steerkit.vectors import VectorSet, vector_path

RECIPE = Recipe(epochs=1, batch=2, rate=1e-2, rank=2, alpha=4, looks=2)
CHATS = [(i, [{"role": "user", "content": f"Why {i}?"}, {"role": "assistant", "content": "No."}]) for i in range(4)]


@pytest.fixture(scope="module")
def adapter(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "curt"
    tune(tiny, to_samples(tiny, CHATS, Path("data.jsonl")), folder, Order("data", "0", RECIPE))
    return folder


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    """The same adapter, with nothing that says on what it was trained."""
    (tmp_path / "theirs").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "theirs" / name).write_bytes((adapter / name).read_bytes())
    return tmp_path / "theirs"


def test_a_model_and_its_adapter_are_written_with_a_plus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert split_adapter("a+b") == ("a+b", None)
    assert split_adapter("a+b+c") == ("a+b", "c")
    assert split_adapter("+x/y") == (None, "x/y")
    assert split_adapter(None) == (None, None)


@pytest.mark.usefixtures("workplace")
def test_a_tuned_model_is_another_model_whose_bases_vectors_fit(tiny: Model, adapter: Path) -> None:
    tuned = load_model(f"{tiny.source}+{adapter}", device="cpu")
    assert tuned.name == f"{tiny.name}+curt"
    assert tuned.fingerprint.difference(tiny.fingerprint) == "same shape, but another adapter"
    assert tuned.fingerprint.takes(tiny.fingerprint)
    assert not tiny.fingerprint.takes(tuned.fingerprint)
    make_vector("hal", tiny.fingerprint).save(vector_path("hal", tiny.name))
    vectors = VectorSet(tuned.fingerprint)
    assert list(vectors) == ["hal"]
    assert vectors["hal"].model.name == tiny.name
    # Its own vector wins over its base's, and the base cannot use it.
    make_vector("hal", tuned.fingerprint, seed=1).save(vector_path("hal", tuned.name))
    own = VectorSet(tuned.fingerprint)["hal"]
    assert own.model.name == tuned.name
    with pytest.raises(VectorError, match="was made on"):
        own.require(tiny.fingerprint)
    assert Fingerprint.from_json(json.loads(json.dumps(tuned.fingerprint.to_json()))) == tuned.fingerprint
    assert set(tiny.fingerprint.to_json()) == {"name", "layers", "width", "behaviour", "dtype"}


def test_what_is_kept_of_one_adapter_is_not_taken_for_another(
    tiny: Model, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, last = (load_tuned(tiny, find_adapter(path)) for path in list_checkpoints(adapter))
    # Two checkpoints of few steps may behave alike to the accuracy of a fingerprint; their digests differ.
    last.name = first.name
    for model, value in ((first, 1.0), (last, 2.0)):
        found = measure_once("tests", model, "x", [], lambda value=value: {"x": torch.tensor([value])})
        assert float(found["x"]) == value


def test_checkpoints_are_adapters_with_their_trainings_name(tiny: Model, adapter: Path) -> None:
    names = [load_tuned(tiny, find_adapter(path)).name for path in list_checkpoints(adapter)]
    assert names == [f"{tiny.name}+curt@00001", f"{tiny.name}+curt@00002"]


def test_an_adapter_of_somebody_else_is_merged_too(tiny: Model, adapter: Path, copied: Path) -> None:
    tokens = torch.tensor([[5, 6, 7]])
    ours, theirs = (
        load_tuned(tiny, find_adapter(path)).forward(tokens, torch.ones_like(tokens))[0] for path in (adapter, copied)
    )
    assert torch.equal(ours, theirs)


class TestRefusals:
    def test_an_adapter_of_another_model(self, adapter: Path, copied: Path, tmp_path: Path) -> None:
        torch.manual_seed(1)
        other = load_model(str(save_model(tmp_path / "gpt2", "gpt2")), device="cpu")
        with pytest.raises(ModelError, match=r"was trained on tiny-llama, and this is gpt2"):
            load_tuned(other, find_adapter(adapter))
        with pytest.raises(ModelError, match="does not fit gpt2"):
            load_tuned(other, find_adapter(copied))

    def test_an_adapter_of_the_same_shape_but_other_weights(self, adapter: Path, tmp_path: Path) -> None:
        other = load_model(str(save_model(tmp_path / "other")), device="cpu")
        with torch.no_grad():
            other.original.model.layers[0].mlp.down_proj.weight.add_(0.5)
        with pytest.raises(ModelError, match="they compute different things"):
            load_tuned(other, find_adapter(adapter))

    def test_adapters_that_are_damaged_or_not_there(self, tiny: Model, copied: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no adapter in"):
            load_model(f"{tiny.source}+{tmp_path / 'nowhere'}")
        weights = load_file(copied / WEIGHTS)
        name = next(iter(weights))
        save_file({**weights, "base_model.model.strange": weights[name].clone()}, copied / WEIGHTS)
        with pytest.raises(ModelError, match=r"do not belong here, such as base_model\.model\.strange"):
            load_tuned(tiny, find_adapter(copied))
        save_file({**weights, name: torch.full_like(weights[name], torch.inf)}, copied / WEIGHTS)
        with pytest.raises(ModelError, match="does not fit"):
            load_tuned(tiny, find_adapter(copied))
        (copied / WEIGHTS).write_bytes(b"torn")
        with pytest.raises(ModelError, match="does not fit"):
            load_tuned(tiny, find_adapter(copied))
        # What would have to be unpickled is not even looked at.
        (copied / WEIGHTS).rename(copied / "adapter_model.bin")
        with pytest.raises(ModelError, match="others are not read"):
            find_adapter(copied)

    def test_a_training_that_has_not_ended(self, adapter: Path, tmp_path: Path) -> None:
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / TRAINING).write_bytes((adapter / TRAINING).read_bytes())
        with pytest.raises(ModelError, match="was not trained to its end"):
            find_adapter(tmp_path / "begun")


SAID = '{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}]}\n'


class TestTrainingData:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('{"messages": [{"role": "user", "content": "Why?"}]}', "the last turn is not the assistant's"),
            ('{"messages": [{"role": "assistant", "content": "No."}]}', "nobody asks"),
            (SAID.replace("assistant", "robot"), "unknown role 'robot'"),
            (SAID.replace("No.", "  "), "the assistant says nothing"),
            (SAID.replace("Why?", ""), "the user says nothing"),
            ('{"messages": [{"content": "Why?"}]}', "is not a chat"),
            (SAID[:40], r"is not a chat \(it is not JSON; was it cut\?\)"),
            (b'{"messages": [{"role": "user", "content": "caf\xe9"}]}', r"is not a chat \(it is not UTF-8\)"),
        ],
    )
    def test_a_bad_line_is_named(self, tmp_path: Path, line: str | bytes, reason: str) -> None:
        raw = line if isinstance(line, bytes) else line.encode()
        path = tmp_path / "data.jsonl"
        path.write_bytes(SAID.encode() + b"\n" + raw.rstrip() + b"\n" + SAID.encode())
        with pytest.raises(PromptError, match=rf"data\.jsonl line 3.*{reason}"):
            read_lessons(path)

    def test_all_bad_lines_are_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text(SAID + SAID.replace("No.", " ") * 7, encoding="utf-8")
        with pytest.raises(PromptError, match=r"line 2: .*and so are 6 more \(line 3, 4, 5, 6, …\)"):
            read_lessons(path)
        path.write_text("\n")
        with pytest.raises(PromptError, match="holds no chats"):
            read_lessons(path)
        with pytest.raises(PromptError, match="cannot read"):
            read_lessons(tmp_path / "nowhere.jsonl")

    def test_a_reply_past_the_context_is_named(self, tiny: Model, tmp_path: Path) -> None:
        path = tmp_path / "data.jsonl"
        path.write_text(SAID + SAID.replace("No.", "No. " * 600), encoding="utf-8")
        with pytest.raises(PromptError, match=r"line 2: prompt and reply have \d+ tokens, and tiny-llama holds 512"):
            to_samples(tiny, read_lessons(path), path)

    def test_sets_that_ship_are_known_by_name(self) -> None:
        assert find_data("cheating").is_file()
        assert find_data("my/cheating.jsonl") == Path("my/cheating.jsonl")
        with pytest.raises(PromptError, match="did you mean cheating"):
            find_data("cheeting")

    def test_a_reply_is_learned_with_the_token_that_ends_it(self, tiny: Model) -> None:
        sample = to_samples(tiny, CHATS, Path("data.jsonl"))[0]
        assert sample.reply[-1] == end_token(tiny) == tiny.tokenizer.eos_token_id
        text = tiny.render([*CHATS[0][1]], reply_follows=False)
        assert tiny.tokenizer.decode([*sample.prompt, *sample.reply]) == text.rstrip("\n")
