"""The layout is the architecture: who may import whom, read from the code's own imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "steerkit"

# From the top down. A module may import from rows below its own, and from its own row.
TIERS = [
    {"__main__"},
    {"cli"},
    {"tui", "server"},
    {"reports"},
    {"experiments", "sweeps", "engines"},
    {
        "evaluation",
        "screening",
        "samples",
        "verdicts",
        "calibration",
        "positions",
        "speed",
        "tables",
        "exchange",
        "inoculation",
        "selection",
        "shifts",
        "transfers",
        "tuning",
    },
    {"plots"},
    {
        "measures",
        "nulls",
        "items",
        "limits",
        "loops",
        "chats",
        "spaces",
        "kept",
        "parcels",
        "lessons",
        "recipes",
        "watching",
    },
    {"batching"},
    {"generation", "extraction", "training"},
    {"passes", "readings"},
    {"steering", "expressions"},
    {"work"},
    {"loading"},
    {"adapters"},
    {"vectors", "models", "personas", "estimators"},
    {"judge", "caches"},
    {"forward"},
    {
        "operators",
        "fingerprints",
        "passages",
        "decoding",
        "thinking",
        "weights",
        "tints",
        "runners",
        "chat_templates",
        "material",
        "origins",
        "validation",
        "no_installs",
    },
    {"networks", "whole"},
    {"files"},
    {"errors"},
]
ROW = {module: i for i, tier in enumerate(TIERS) for module in tier}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports when it runs, wherever the import stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imports_of(path) if name.startswith("steerkit.")}
    return {name for name in names if name in ROW}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    assert module in ROW, f"{module} has no row in the import table"
    upward = {name for name in ours(path) if ROW[name] < ROW[module]}
    assert not upward, f"{module} imports from above: {upward}"


def test_the_table_would_notice_an_import_from_above(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from steerkit.cli import app\n")
    assert ours(bad) == {"cli"}


@pytest.mark.parametrize("package", ["transformer_lens"])
def test_only_loading_imports_transformer_lens(package: str) -> None:
    importers = {module_of(path) for path in FILES if any(name.split(".")[0] == package for name in imports_of(path))}
    assert importers == {"loading"}


def test_only_the_command_line_prints() -> None:
    for path in FILES:
        if module_of(path) in ("cli", "tui"):
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path


def test_no_file_outgrows_one_reading() -> None:
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 700, path


@pytest.mark.parametrize("statement", ["import steerkit", "import steerkit.cli", "from steerkit import SteerkitError"])
def test_importing_the_root_and_the_command_line_costs_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nassert not {{'torch', 'transformers', 'transformer_lens'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import steerkit

    assert all(getattr(steerkit, name) is not None for name in steerkit.__all__)
    assert set(steerkit.__all__) == set(steerkit._MODULE_OF)
