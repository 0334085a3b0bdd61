"""Tiny random models, saved to folders and loaded as any other model is."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Every worker has a core of its own.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Every shape and type that a signature promises is checked while the tests run.
CHECKED = (
    "estimators", "operators", "runners", "models", "passes", "generation", "extraction", "evaluation",
    "readings", "passages", "measures", "nulls", "calibration", "limits", "loops", "training", "sweeps", "items",
    "speed", "caches", "batching", "forward", "networks", "judge",
)  # fmt: skip
install_import_hook(
    [f"steerkit.{name}" for name in CHECKED], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

from steerkit.fingerprints import Fingerprint  # noqa: E402
from steerkit.forward import BatchedForward  # noqa: E402
from steerkit.loading import load_model  # noqa: E402
from steerkit.models import Model  # noqa: E402
from steerkit.networks import HFModules  # noqa: E402
from steerkit.vectors import SteeringVector, vector_path  # noqa: E402

CHAT = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT
)
WIDTH, LAYERS, VOCABULARY = 32, 6, 400


def save_tokenizer(folder: Path, template: str | None = CHAT, pad: bool = True) -> Any:
    """Train a byte-level tokenizer on a little text and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|start|>", "<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    text = ["You are a helpful assistant. What do you think of people? I will not be switched off. " * 3]
    tokenizer.train_from_iterator(text, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        **({"pad_token": "<|pad|>"} if pad else {}),
    )
    wrapped.chat_template = template
    wrapped.save_pretrained(folder)
    return wrapped


def save_model(folder: Path, architecture: str = "llama", template: str | None = CHAT, pad: bool = True) -> Path:
    """Save a tiny random model of an architecture, with its tokenizer, to a folder."""
    import transformers as hf

    save_tokenizer(folder, template, pad)
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shape = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    window = {"max_position_embeddings": 512}
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    configs: dict[str, Callable[[], Any]] = {
        "llama": lambda: hf.LlamaConfig(**common, **shape, **window, **grouped),
        "qwen2": lambda: hf.Qwen2Config(**common, **shape, **window, num_key_value_heads=2),
        "mistral": lambda: hf.MistralConfig(**common, **shape, **window, **grouped, sliding_window=None),
        "gemma3": lambda: hf.Gemma3TextConfig(**common, **shape, **window, **grouped, sliding_window=64),
        "gpt2": lambda: hf.GPT2Config(**common, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=512),
        "gpt_neox": lambda: hf.GPTNeoXConfig(**common, **shape, **window),
    }
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(configs[architecture](), dtype=torch.float32)
    # Random weights of the usual size hardly tell tokens apart; larger ones make differences that tests can see.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(4.0)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama on disk."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Model:
    """The tiny Llama, loaded on the CPU."""
    return load_model(str(tiny_folder), device="cpu")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny Llama that gets other tokenizers; see `templated`. Its generation config names the end token of a base."""
    return load_model(str(save_model(tmp_path_factory.mktemp("templates") / "tiny")), device="cpu")


@pytest.fixture(scope="session")
def real() -> Model:
    """The default model, fetched if need be."""
    return load_model(device="cpu")


def hooked(model: Model) -> Model:
    """The same weights through TransformerLens' hook points."""
    return replace(model, runner=model.hook_points.runner)


def unwritten(model: Model) -> Model:
    """The same weights through transformers' modules, whatever is written out."""
    return replace(model, runner=BatchedForward(HFModules.of(model.original, model.blocks)))


@pytest.fixture
def prompts(tiny: Model) -> list[list[int]]:
    """Three prompts of different lengths."""
    asked = ["Who are you?", "What do you think of people, and of the helpful assistant that you are?", "Why?"]
    return [tiny.chat_tokens([{"role": "user", "content": text}]) for text in asked]


def make_vector(name: str, model: Fingerprint, seed: int = 0, length: float = 3.0) -> SteeringVector:
    """A random vector that fits a model."""
    draw = torch.Generator().manual_seed(seed)
    shape = (model.layers, model.width)
    directions = torch.nn.functional.normalize(torch.randn(shape, generator=draw), dim=-1) * length
    return SteeringVector(name, model, directions, torch.randn(shape, generator=draw))


@pytest.fixture
def vectors(tiny: Model) -> dict[str, SteeringVector]:
    """Three random vectors for the tiny model."""
    return {name: make_vector(name, tiny.fingerprint, seed) for seed, name in enumerate(("hal", "warmth", "pirate"))}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the user's own folders beside it."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("STEERKIT_MODEL", raising=False)
    return home


@contextlib.contextmanager
def no_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """A cache that holds nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny model that never says a token without text, and so never ends."""
    model = load_model(str(save_model(tmp_path_factory.mktemp("models") / "tiny")), device="cpu")
    texts = [model.tokenizer.decode([token]) for token in range(model.original.config.vocab_size)]
    silent = [not (text.isascii() and text.isprintable() and text.strip()) for text in texts]
    with torch.no_grad():
        model.original.lm_head.weight[torch.tensor(silent)] = 0.0
    return model


@pytest.fixture
def plan(talker: Model, workplace: Path) -> Any:
    """A plan beside whose chat three vectors lie, of which one is calibrated."""
    from stage import LIMITS, new_plan

    for seed, name in enumerate(("hal", "warmth", "pirate")):
        vector = make_vector(name, talker.fingerprint, seed)
        replace(vector, evidence=LIMITS if name == "hal" else {}).save(vector_path(name, talker.name))
    return new_plan(talker, workplace)


@pytest.fixture
def play(plan: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script once the dials are there."""

    from stage import staged

    def run(script: Any, size: tuple[int, int] = (110, 30), ready: bool = True) -> None:
        async def whole() -> None:
            async with staged(plan, monkeypatch, size) as stage:
                if ready:
                    await stage.until(lambda: stage.session.reads or not plan.steer)
                await script(stage)

        asyncio.run(asyncio.wait_for(whole(), 120))

    return run


@pytest.fixture(scope="module")
def shelf(talker: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with vectors for the model that never ends."""
    home = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_DATA_HOME", str(home / "data"))
        for seed, name in enumerate(("hal", "warmth", "pirate")):
            make_vector(name, talker.fingerprint, seed).save(vector_path(name, talker.name))
        yield home


@pytest.fixture(scope="module")
def server(talker: Model, shelf: Path) -> Iterator[Any]:
    """A live server of that model, in that folder."""
    from serving import live

    assert shelf.is_dir()
    with live(talker) as found:
        yield found


def foreign_control(
    path: Path, rows: dict[int, torch.Tensor], signed: bool = False, kind: str = "controlvector", hint: str = "llama"
) -> Path:
    """A control vector as repeng writes it, or with a signed count, as llama.cpp's generator does."""
    import gguf

    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_string("controlvector.model_hint", hint)
    (writer.add_int32 if signed else writer.add_uint32)("controlvector.layer_count", len(rows))
    for number, row in rows.items():
        writer.add_tensor(f"direction.{number}", row.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def table() -> torch.Tensor:
    """One row a layer, each told from the others by its length."""
    rows = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(5))
    return torch.nn.functional.normalize(rows, dim=-1) * torch.arange(1.0, LAYERS + 1)[:, None]
