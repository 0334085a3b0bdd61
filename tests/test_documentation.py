"""The README says what the command line says, and names every command."""

from __future__ import annotations

import re

import typer
from documentation import README, SECTIONS, VECTORS, commands, updated

from steerkit.cli import app
from steerkit.personas import load_personas
from steerkit.tables import describe_vectors
from steerkit.vectors import load_vector

ROOT = README.parent


def test_the_readme_holds_what_the_command_line_and_the_vectors_say_of_themselves() -> None:
    for page in SECTIONS:
        assert updated(page) == page.read_text(encoding="utf-8"), "run: python tests/documentation.py"


def test_every_command_and_option_has_a_help_text() -> None:
    for name, command in commands(typer.main.get_command(app)):
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", ""), f"{name} {parameter.opts}"


def test_the_file_map_names_files_that_exist_and_all_of_them() -> None:
    block = README.read_text(encoding="utf-8").split("## File map")[1].split("```")[1]
    named = set(re.findall(r"^\s+([a-z_]+\.py)\b", block, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "steerkit").glob("*.py")}


def test_the_table_of_vectors_has_a_row_for_every_file_and_persona() -> None:
    rows = (ROOT / "vectors" / "README.md").read_text(encoding="utf-8").splitlines()
    listed = {row.split("|")[1].strip() for row in rows if "| assistant |" in row}
    shipped = {path.stem for path in VECTORS.glob("*/*.safetensors")}
    assert listed == shipped >= set(load_personas()) - {"assistant"}


def test_the_table_of_vectors_is_what_the_files_say() -> None:
    vectors = [load_vector(path) for path in sorted(VECTORS.glob("*/*.safetensors"))]
    assert (VECTORS / "README.md").read_text(encoding="utf-8") == describe_vectors(vectors)
