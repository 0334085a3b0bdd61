"""Every example runs, as a user would run it, on the tiny model."""

from __future__ import annotations

import os
import re
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


SAID = {"07_from_question_to_verdict": ("of both sides, heads has", "without meaning", "planted 0.0 nats", ": yes")}
"""What the code of a page prints, where it has any."""
PAGES = [Path(__file__).parent.parent / "examples" / f"{name}.md" for name in SAID]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tiny_folder: Path, workplace: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    environment = {**os.environ, "STEERKIT_MODEL": str(tiny_folder), "XDG_CACHE_HOME": str(workplace / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=workplace, check=False
    )
    assert done.returncode == 0, done.stderr
    for said in SAID[page.stem]:
        assert said in done.stdout, done.stdout


def test_there_are_examples() -> None:
    assert EXAMPLES
    assert PAGES
