"""Measurements that are kept in the user's cache, so that nothing is measured twice; they can be deleted at any time.

A file is safetensors, whose one metadata key `steerkit` holds JSON with the fingerprint of the measured model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steerkit.errors import PromptError
from steerkit.files import replacing_file, write_text
from steerkit.fingerprints import Fingerprint
from steerkit.models import Model
from steerkit.vectors import model_slug


def kept_folder(kind: str, model: Model) -> Path:
    """Where measurements of one kind on one model are kept."""
    return platformdirs.user_cache_path("steerkit") / kind / model_slug(model.name)


def kept_path(kind: str, model: Model, name: str, depends: Any) -> Path:
    """A file whose name changes with the precision and with plain data that the measurement depends on.

    The weights are not in the name: the file tells whose it is, to the accuracy with which models are told apart.
    """
    # Where thoughts count as replies do, most numbers are others.
    thoughts = ["thoughts"] if model.thoughts.included else []
    told = json.dumps([str(model.dtype), depends, *thoughts], sort_keys=True)
    return kept_folder(kind, model) / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:20]}.safetensors"


def at_kept_date(model: Model) -> Model:
    """The model with the clock of its chat template where it stood when measurements of it were first kept.

    Raises:
        OutputError: the cache cannot be written.
    """
    if not model.template_date:
        return model
    path = platformdirs.user_cache_path("steerkit") / "dates" / f"{model_slug(model.name)}.txt"
    try:
        return model.at_date(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError, PromptError):
        write_text(path, model.template_date + "\n")
        return model


def keep(path: Path, model: Model, tensors: Mapping[str, Tensor], told: Mapping[str, str] | None = None) -> None:
    """Write a measurement atomically.

    Raises:
        OutputError: the cache cannot be written.
    """
    described = {**(told or {}), "model": model.fingerprint.to_json()}
    whole = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
    data = save(whole, {"steerkit": json.dumps(described, ensure_ascii=False)})
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def load_kept(path: Path, model: Model) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """A measurement of this very model, with what was told of it; one that is damaged is as good as none."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["steerkit"])
            if Fingerprint.from_json(told["model"]).difference(model.fingerprint) is not None:
                return None
            return {key: file.get_tensor(key) for key in file.keys()}, told  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None


def measure_once(
    kind: str, model: Model, name: str, depends: Any, measure: Callable[[], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What a measurement gave when it was made, or gives now.

    Raises:
        OutputError: the cache cannot be written.
    """
    path = kept_path(kind, model, name, depends)
    kept = load_kept(path, model)
    if kept is not None:
        return kept[0]
    found = {key: tensor.detach().cpu() for key, tensor in measure().items()}
    keep(path, model, found)
    return found
