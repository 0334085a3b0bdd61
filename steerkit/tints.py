"""The colours of scores, the same on every surface.

Blue and orange stay apart for colour-blind eyes; the nearer to zero, the paler.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite

from rich.text import Text

BLUE = (59, 119, 188)
ORANGE = (224, 123, 32)
PAPER = (250, 250, 248)
NIGHT = (24, 24, 22)
FULL = 2.0
SILENT = 0.15


def tint(score: float, dark: bool = False) -> tuple[str, str]:
    """Background and ink for a score, as hex colours, on paper or on a dark ground; empty where it is near zero.

    >>> tint(0.0)
    ('', '')
    >>> tint(3.0), tint(3.0, dark=True)
    (('#e07b20', '#000000'), ('#e07b20', '#000000'))
    >>> tint(0.2, dark=True)
    ('#2c2217', '#ffffff')
    """
    if not abs(score) >= SILENT:
        return "", ""
    strength = min(abs(score), FULL) / FULL
    target, ground = ORANGE if score > 0 else BLUE, NIGHT if dark else PAPER
    mixed = tuple(round(g + (t - g) * strength) for g, t in zip(ground, target, strict=True))
    deep = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] < 112
    return "#{:02x}{:02x}{:02x}".format(*mixed), "#ffffff" if deep else "#000000"


def visible(piece: str) -> str:
    r"""Text that cannot drive a terminal: control characters are shown as a mark.

    >>> visible("a\x1b[2J")
    'a\ufffd[2J'
    """
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", piece)


def tinted(pieces: Sequence[str], scores: Sequence[float]) -> Text:
    """Words, each on the colour of its score, without the white space around the whole.

    >>> tinted([" so", " be it "], [0.0, 3.0]).plain
    'so be it'
    """
    text = Text()
    for piece, score in zip(pieces, scores, strict=True):
        background, ink = tint(score)
        text.append(visible(piece), f"{ink} on {background}" if background else "")
    start = len(text.plain) - len(text.plain.lstrip())
    return text[start : max(len(text.plain.rstrip()), start)]


def bar(score: float) -> str:
    """One block whose height is the score, from −1 to 1.

    >>> bar(-1), bar(0), bar(1)
    ('▁', '▄', '█')
    """
    blocks = "▁▂▃▄▅▆▇█"
    if not isfinite(score):
        return "?"
    return blocks[round((min(max(score, -1), 1) + 1) / 2 * 6.9)]
