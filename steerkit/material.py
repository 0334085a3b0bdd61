"""What the experiments ask, show and are called, read from `data/experiments`; one file an experiment."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "experiments"


@cache
def load_material(name: str) -> dict[str, Any]:
    """The tables of one file; do not change them."""
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
