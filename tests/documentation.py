"""Copies what the command line says of itself into the README, between its two markers.

python tests/documentation.py        rewrites README.md; a test fails while it would change anything
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- commands: written by tests/documentation.py -->", "<!-- end of commands -->"


def commands(command: Any, name: str = "steerkit") -> list[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    children = getattr(command, "commands", None)
    if not children:
        return [(name, command)]
    return [found for key, child in children.items() for found in commands(child, f"{name} {key}")]


def describe(name: str, command: Any) -> str:
    """One command: how it is called, what it does, what it takes."""
    arguments = [str(p.name).upper() for p in command.params if p.param_type_name == "argument"]
    help_text = " ".join((command.help or "").split())
    lines = [f"**`{' '.join([name, *arguments])}`** {help_text}", ""]
    for parameter in command.params:
        if parameter.param_type_name != "option" or "--help" in parameter.opts:
            continue
        flags = ", ".join(f"`{flag}`" for flag in sorted(parameter.opts, key=len))
        default = parameter.default
        plain = isinstance(default, (str, int, float)) and default not in ("", False)
        shown = f" *(default {default})*" if plain else ""
        lines.append(f"- {flags}: {parameter.help}{shown}")
    return "\n".join(lines)


def section() -> str:
    """The whole section."""
    from steerkit.cli import app

    described = [describe(name, command) for name, command in commands(typer.main.get_command(app))]
    return f"{START}\n\n" + "\n\n".join(described) + f"\n\n{END}"


def updated(text: str) -> str:
    """The README with the section as it should be."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + section() + after


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
