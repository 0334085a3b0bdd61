"""steerkit: find a persona's direction in a language model, turn it, and measure what moved.

The public names load when they are first used, so `import steerkit` costs nothing; torch comes with the first of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerkit.calibration import calibrate
    from steerkit.errors import SteerkitError
    from steerkit.estimators import logistic, mean_diff, pca, whitened
    from steerkit.evaluation import Evaluation, evaluate, measure_shifts
    from steerkit.extraction import Recipe, extract
    from steerkit.generation import Probe, Readout, Reply, Sampling, complete, read_chat, read_tokens, stream
    from steerkit.items import ItemSet, load_items
    from steerkit.loading import load_model
    from steerkit.measures import capability, propensities, repetition, score_replies, write_texts
    from steerkit.models import Model
    from steerkit.nulls import bootstrap, random_like, shuffled_like
    from steerkit.personas import Item, Pair, Persona, find_pair, find_persona, load_personas
    from steerkit.steering import Gate, Steering, Term
    from steerkit.vectors import SteeringVector, VectorSet, find_vector, load_vector

_HOMES = {
    "errors": ("SteerkitError",),
    "estimators": ("logistic", "mean_diff", "pca", "whitened"),
    "calibration": ("calibrate",),
    "evaluation": ("Evaluation", "evaluate", "measure_shifts"),
    "extraction": ("Recipe", "extract"),
    "generation": ("Probe", "Readout", "Reply", "Sampling", "complete", "read_chat", "read_tokens", "stream"),
    "items": ("ItemSet", "load_items"),
    "measures": ("capability", "propensities", "repetition", "score_replies", "write_texts"),
    "loading": ("load_model",),
    "models": ("Model",),
    "nulls": ("bootstrap", "random_like", "shuffled_like"),
    "personas": ("Item", "Pair", "Persona", "find_pair", "find_persona", "load_personas"),
    "steering": ("Gate", "Steering", "Term"),
    "vectors": ("SteeringVector", "VectorSet", "find_vector", "load_vector"),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - grouped as a reader meets them
    "load_model", "Model", "find_pair", "find_persona", "load_personas", "Persona", "Pair", "Item",
    "extract", "Recipe", "SteeringVector", "VectorSet", "find_vector", "load_vector",
    "mean_diff", "pca", "logistic", "whitened",
    "Steering", "Term", "Gate", "stream", "complete", "Sampling", "Reply", "Probe", "Readout",
    "read_chat", "read_tokens",
    "calibrate", "evaluate", "Evaluation", "ItemSet", "load_items",
    "propensities", "score_replies", "write_texts", "repetition", "capability",
    "measure_shifts", "random_like", "shuffled_like", "bootstrap", "SteerkitError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _MODULE_OF:
        raise AttributeError(f"steerkit has no {name!r}")
    return getattr(import_module(f"steerkit.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
