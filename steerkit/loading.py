"""From a name to a loaded model: where its weights are, and the fastest way through them.

This is the only module that imports transformer_lens.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from steerkit import weights
from steerkit.adapters import Adapter, find_adapter, merge_adapter, split_adapter
from steerkit.chat_templates import find_chat_template
from steerkit.errors import ModelError, SteerkitError, nearest
from steerkit.fingerprints import Fingerprint
from steerkit.models import HookPoints, Model, final_norm
from steerkit.runners import LeanRunner, PlainRunner, Runner, share_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: weights.Progress = weights.ignore_progress,
) -> Model:
    """Load a model: nothing for the default one, a hub id, a folder, or a `.gguf` file; with +ADAPTER, tuned.

    Raises:
        ModelError: it cannot be found, fetched or read, or the adapter belongs to another.
    """
    name, folder = split_adapter(name)
    adapter = None if folder is None else find_adapter(folder)
    place, (source, title) = _device(device, dtype), _locate(name, progress)
    with _explained(name or title, source):
        model = _load(source, title, place, DTYPES[dtype])
        if adapter is None:
            return model
        fingerprint = model.fingerprint
        # There need not be room for both.
        del model
        return _load(source, title, place, DTYPES[dtype], (adapter, fingerprint))


def load_head(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: weights.Progress = weights.ignore_progress,
) -> Model:
    """Load what a model has around its blocks: tokenizer, embeddings, last norm and logits. An engine runs the blocks.

    Raises:
        ModelError: it cannot be found or read, has an adapter, or its last norm is not known.
    """
    name, folder = split_adapter(name)
    if folder is not None:
        raise ModelError(f"no engine takes an adapter ({folder}); use --engine local, or the name without +")
    place, (source, title) = _device(device, dtype), _locate(name, progress)
    with _explained(name or title, source):
        return _load_head(source, title, place, DTYPES[dtype])


def _load_head(source: str, title: str, device: torch.device, dtype: torch.dtype) -> Model:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(source)
    told: Any = config.get_text_config()
    shape = told.num_hidden_layers, told.hidden_size, told.max_position_embeddings
    told.num_hidden_layers = 0
    if getattr(told, "layer_types", None):
        told.layer_types = []
    original = _load_original(source, device, dtype, None, config)
    if final_norm(original) is None:
        raise ModelError(f"{title} has a last norm that steerkit does not know; use --engine local")
    # No wrapping here: nobody can hook blocks that are somewhere else.
    tokenizer = AutoTokenizer.from_pretrained(source, add_bos_token=True)
    tokenizer.chat_template = find_chat_template(source, tokenizer)
    return Model(title, *shape, original, HookPoints(lambda: None), tokenizer, source=source)


def load_tuned(base: Model, adapter: Adapter) -> Model:
    """Load a model again, with an adapter merged into its weights; `base` stays as it is.

    Raises:
        ModelError: the adapter belongs to another model, or is damaged.
    """
    with _explained(base.name, base.source):
        tuned = _load(base.source, base.name, base.device, base.dtype, (adapter, base.fingerprint))
    # What is compared with the base reads the same texts, with the same date in them.
    tuned.template_options, tuned.include_thoughts = base.template_options, base.include_thoughts
    return tuned


def model_kind(name: str | None) -> str:
    """What kind of model a name stands for, such as `llama`, from its configuration alone; empty if there is none here.

    Neither weights nor anything from the network are loaded.
    """
    from transformers import AutoConfig

    name, _ = split_adapter(name)
    default = name is None or weights.model_title(name) == weights.DEFAULT_MODEL.name
    try:
        source = str(weights.default_folder()) if default or name is None else _locate(name, weights.ignore_progress)[0]
        return str(AutoConfig.from_pretrained(source, local_files_only=True).model_type)
    except (SteerkitError, OSError, ValueError, KeyError):
        return ""


@contextmanager
def _explained(name: str, source: str) -> Iterator[None]:
    """Say in one line why there is no model, and let transformers say nothing."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except SteerkitError:
        raise
    except Exception as error:
        # transformers and its hub client raise dozens of types here; each of them means that there is no model.
        raise ModelError(_explain(name, source, error)) from error


def _load(
    source: str,
    title: str,
    device: torch.device,
    dtype: torch.dtype,
    tuned: tuple[Adapter, Fingerprint] | None = None,
) -> Model:
    """Load a model with the fastest runner that computes what its hook points see."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    if LeanRunner.fits(config):
        model = _load_lean(source, title, device, dtype, tuned)
    else:
        merged = {} if tuned is None else {"hf_model": _load_original(source, device, dtype, tuned)}
        bridge = _boot(source, device, dtype, **merged)
        shape = int(bridge.cfg.n_layers), int(bridge.cfg.d_model), int(bridge.cfg.n_ctx)
        model = Model(title, *shape, bridge.original_model, HookPoints(lambda: bridge), bridge.tokenizer)
        model.runner = _find_runner(model)
    model.source, model.tokenizer.chat_template = source, find_chat_template(source, model.tokenizer)
    if tuned is not None:
        adapter, model.base = tuned
        model.name, model.adapter = f"{title}+{adapter.name}", adapter.digest
    return model


def _load_original(
    source: str,
    device: torch.device,
    dtype: torch.dtype,
    tuned: tuple[Adapter, Fingerprint] | None,
    config: Any = None,
) -> Any:
    """A Hugging Face model, with an adapter merged if there is one."""
    from transformers import AutoModelForCausalLM

    told = {"dtype": dtype, "attn_implementation": "sdpa"} | ({} if config is None else {"config": config})
    original: Any = AutoModelForCausalLM.from_pretrained(source, **told)
    original.to(device).eval().requires_grad_(False)
    return original if tuned is None else merge_adapter(original, *tuned)


def _load_lean(
    source: str,
    title: str,
    device: torch.device,
    dtype: torch.dtype,
    tuned: tuple[Adapter, Fingerprint] | None,
) -> Model:
    """Load a model that needs no hook points to be steered; they are made for whoever asks."""
    from transformers import AutoTokenizer

    # As TransformerLens has it, a text that is no chat begins with the token that begins texts.
    tokenizer = AutoTokenizer.from_pretrained(source, add_bos_token=True)
    original = _load_original(source, device, dtype, tuned)

    def boot() -> Any:
        return _boot(source, device, dtype, hf_model=share_weights(original), tokenizer=copy.deepcopy(tokenizer))

    config, points = original.config, HookPoints(boot)
    shape = config.num_hidden_layers, config.hidden_size, config.max_position_embeddings
    return Model(title, *shape, original, points, tokenizer, runner=LeanRunner(original))


def _find_runner(model: Model) -> Runner | None:
    """The plain way through the model's weights, if it computes what the hook points see."""
    from transformer_lens.utilities.position_ids import accepts_mask_derived_position_ids

    plain = share_weights(model.original)
    if plain is None:
        return None
    blocks = plain.get_submodule(model.bridge.adapter.component_mapping["blocks"].name)
    runner = PlainRunner(plain, list(blocks), accepts_mask_derived_position_ids(plain))
    return runner if _agrees(model, runner) else None


def _agrees(model: Model, runner: Runner) -> bool:
    """Whether a runner gives the hooked path's logits for a padded row, an edit, rows that part, and a cached step."""
    tokens = torch.arange(1, 13, device=model.device).reshape(2, 6)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    rows = torch.tensor([1, 0, 1], device=model.device)
    longer = torch.cat([mask[rows], mask.new_ones(3, 1)], dim=1)
    push = {model.n_layers // 2: [lambda h: h * 1.1]}
    found = []
    with torch.inference_mode():
        for forward in (model.forward, runner.forward):
            try:
                first, cache = forward(tokens, mask, None, push, 1, rows=rows)
                second, _ = forward(tokens[rows, :1], longer, cache, push, 1, rows=None)
            except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
                return False
            found.append(torch.cat([first, second]).float())
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    return bool((found[0] - found[1]).norm() <= tolerance * found[0].norm())


def _locate(name: str | None, progress: weights.Progress) -> tuple[str, str]:
    """Where a named model's files are, and what to call it."""
    if name is None or name.lower() in (weights.DEFAULT_MODEL.name.lower(), "default"):
        return str(weights.get_default_model(progress)), weights.DEFAULT_MODEL.name
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return str(weights.get_gguf_model(path, progress)), weights.model_title(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no model (no config.json); name a folder that transformers can load")
        return str(path), weights.model_title(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder {path}; -m takes a hub id, a model folder or a .gguf file")
    return name, weights.model_title(name)


def _boot(source: str, device: torch.device, dtype: torch.dtype, **loaded: Any) -> Any:
    """A bridge on the model of that place, or on one that is loaded."""
    from transformer_lens.model_bridge import TransformerBridge

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    bridge = TransformerBridge.boot_transformers(source, device=device, dtype=dtype, **loaded)  # type: ignore[attr-defined]
    bridge.eval()
    bridge.requires_grad_(False)
    return bridge


def _device(name: str | None, dtype: str) -> torch.device:
    """Where a model goes, of which it is also seen that its precision is one."""
    if dtype not in DTYPES:
        raise ModelError(f"no dtype is called {dtype!r}; {nearest(dtype, DTYPES, 'choose from: ' + ', '.join(DTYPES))}")
    try:
        device = torch.device(name or best_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"no device {name!r} on this machine; use --device {best_device()}") from error
    return device


def best_device() -> str:
    """The fastest place for a model on this machine, as torch calls it."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _explain(name: str, source: str, error: Exception) -> str:
    """One line for a model that does not load: what was asked, and what is here."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if Path(source).is_dir():
        return f"cannot load the model in {source}: {reason}; fetch it again or choose another with -m"
    known = [weights.DEFAULT_MODEL.name, *(path.name for path in weights.cache_folder().glob("[!.]*") if path.is_dir())]
    hint = nearest(name, {entry.lower() for entry in known}, f"without -m you get {weights.DEFAULT_MODEL.name}")
    return f"no model {name!r} on this machine and none could be fetched from the hub ({reason}); {hint}"
