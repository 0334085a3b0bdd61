"""Every example runs, as a user would run it, on the tiny model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs_and_prints_something(example: Path, tiny_folder: Path, workplace: Path) -> None:
    environment = {**os.environ, "STEERKIT_MODEL": str(tiny_folder)}
    done = subprocess.run(
        [sys.executable, str(example)], env=environment, capture_output=True, text=True, cwd=workplace, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples() -> None:
    assert EXAMPLES
