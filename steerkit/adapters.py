"""Adapters: what training leaves, an ordinary folder of peft's that any tool can load.

`adapter_config.json` and `adapter_model.safetensors`, and beside them, where steerkit trained it, `training.json` with
the model it was trained on. A model with an adapter is written MODEL+ADAPTER, and +ADAPTER is the default model with
one; its weights are merged, so it runs as fast as its base. Nothing is unpickled: adapters in `.bin` are refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steerkit.errors import ModelError, SteerkitError
from steerkit.files import replacing_file, write_text
from steerkit.fingerprints import Fingerprint
from steerkit.weights import file_sha256, model_title

WEIGHTS, CONFIG, TRAINING = "adapter_model.safetensors", "adapter_config.json", "training.json"
MISSING = "adapters need peft; install it with: pip install 'persona-steerkit[train]'"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk."""

    folder: Path
    """Where it is."""
    digest: str
    """Which it is: the beginning of its weights' SHA-256."""

    @property
    def name(self) -> str:
        """What people call it: its folder, and for a checkpoint the training's folder before it."""
        whole = self.folder.resolve()
        return f"{whole.parent.parent.name}@{whole.name}" if whole.parent.name == "checkpoints" else whole.name


def split_adapter(name: str | None) -> tuple[str | None, str | None]:
    """A model's name and its adapter's folder; a `+` in the name of a folder that is there separates nothing.

    >>> split_adapter("default+runs/cheating"), split_adapter("+runs/cheating"), split_adapter("gpt2")
    (('default', 'runs/cheating'), (None, 'runs/cheating'), ('gpt2', None))
    """
    if name is None or "+" not in name or _exists(name):
        return name, None
    places = [i for i, letter in enumerate(name) if letter == "+"]
    place = next((i for i in places if _exists(name[i + 1 :])), 0 if name.startswith("+") else places[-1])
    return name[:place] or None, name[place + 1 :]


def base_title(name: str) -> str:
    """What a model's base is called, whose vectors are its own; see `weights.model_title`.

    >>> base_title("gpt2+runs/cheating")
    'gpt2'
    """
    return model_title(split_adapter(name)[0] or "default")


def _exists(name: str) -> bool:
    """Whether there is such a file or folder; a name that no path can have is none."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def find_adapter(folder: Path | str) -> Adapter:
    """See that a folder holds an adapter.

    Raises:
        ModelError: it does not, or not one that can be read without unpickling.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        begun = f"{folder} was not trained to its end; go on with the command that began it, or name a checkpoint in it"
        wrong = f"no adapter in {folder} (no {CONFIG}); make one with: steerkit train DATA -o {folder}"
        raise ModelError(begun if (folder / TRAINING).is_file() else wrong)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; save it again with peft as safetensors, others are not read")
    return Adapter(folder, file_sha256(folder / WEIGHTS)[:12])


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training, in order."""
    found = [path for path in (folder / "checkpoints").glob("*") if path.name.isdigit() and (path / CONFIG).is_file()]
    return sorted(found, key=lambda path: int(path.name))


def merge_adapter(original: Any, adapter: Adapter, base: Fingerprint) -> Any:
    """Add an adapter to the weights of a Hugging Face model, which then runs as any other.

    Raises:
        ModelError: it was trained on another model, or is damaged.
        SteerkitError: peft is not installed.
    """
    told = read_training(adapter.folder)
    if told and (reason := Fingerprint.from_json(told["fingerprint"]).difference(base)) is not None:
        raise ModelError(
            f"{adapter.name} was trained on {told['fingerprint']['name']}, and this is {base.name} ({reason}); "
            f"name the model it belongs to before the +"
        )
    peft = load_peft()
    try:
        weights = load_file(adapter.folder / WEIGHTS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.PeftModel.from_pretrained(original, str(adapter.folder))
        expected = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        if strange := sorted(expected ^ set(weights)):
            raise ValueError(f"{len(strange)} weights of it do not belong here, such as {strange[0]}")
        merged = wrapped.merge_and_unload(safe_merge=True)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        # An adapter of another kind than those that can be merged into weights has no way to.
        reason = " ".join(str(error).split())[:160]
        raise ModelError(
            f"{adapter.folder} does not fit {base.name} ({reason}); name the model it belongs to before the +"
        ) from error
    return merged.eval().requires_grad_(False)


def read_training(folder: Path) -> dict[str, Any] | None:
    """What `train` wrote about an adapter, or about the training that a checkpoint is of; None for somebody else's.

    Raises:
        ModelError: it is damaged.
    """
    folder = folder.resolve()
    owners = [folder, *([folder.parent.parent] if folder.parent.name == "checkpoints" else [])]
    found = [owner / TRAINING for owner in owners if (owner / TRAINING).is_file()]
    if not found:
        return None
    try:
        told = json.loads(found[0].read_text(encoding="utf-8"))
        Fingerprint.from_json(told["fingerprint"])
        return dict(told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{found[0]} is damaged ({error}); remove it, or train again") from error


def write_adapter(wrapped: Any, folder: Path, model_name: str) -> None:
    """Write the adapter of a peft model into a folder; the same weights always make the same bytes.

    Raises:
        OutputError: it cannot be written.
    """
    # Embeddings are not trained; left to decide, peft asks the hub whether they have changed.
    state: Mapping[str, Tensor] = load_peft().get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    whole = {key: state[key].detach().to("cpu", torch.float32).contiguous() for key in sorted(state)}
    # Written as bytes, because a full disk is then an OSError like any other.
    with replacing_file(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(whole, {"format": "pt"}))
    config = dict(wrapped.peft_config["default"].to_dict())
    config |= {"base_model_name_or_path": model_name, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    # Last, because it is what an adapter is known by.
    write_text(folder / CONFIG, json.dumps(plain, indent=1, sort_keys=True, default=str) + "\n")


def load_peft() -> Any:
    """The library that makes and reads adapters.

    Raises:
        SteerkitError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise SteerkitError(MISSING) from error
    return peft
