"""No colour at all, for those who ask for none."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter


class Colourless(LineFilter):
    """Keeps bold, slanted, underlined and reversed, and no colour at all (NO_COLOR)."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002
        """Strip one line."""
        return [Segment(text, style and _without_colour(style), control) for text, style, control in segments]


def _without_colour(style: Style) -> Style:
    return Style(
        bold=style.bold,
        italic=style.italic,
        underline=style.underline,
        reverse=style.reverse,
        meta=style.meta,
    )
