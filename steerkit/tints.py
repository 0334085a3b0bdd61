"""The colours of scores, the same on every surface.

Blue and orange stay apart for colour-blind eyes; the nearer to zero, the paler.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.text import Text

BLUE = (59, 119, 188)
ORANGE = (224, 123, 32)
PAPER = (250, 250, 248)
FULL = 2.0
SILENT = 0.15


def tint(score: float) -> tuple[str, str]:
    """Background and ink for a score, as hex colours; the background is empty where the score is near zero.

    >>> tint(0.0)
    ('', '')
    >>> tint(3.0)
    ('#e07b20', '#000000')
    """
    if not abs(score) >= SILENT:
        return "", ""
    strength = min(abs(score), FULL) / FULL
    target = ORANGE if score > 0 else BLUE
    mixed = tuple(round(p + (t - p) * strength) for p, t in zip(PAPER, target, strict=True))
    dark = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2] < 112
    return "#{:02x}{:02x}{:02x}".format(*mixed), "#ffffff" if dark else "#000000"


def tinted(pieces: Sequence[str], scores: Sequence[float]) -> Text:
    """Words, each on the colour of its score, without the white space around the whole.

    >>> tinted([" so", " be it "], [0.0, 3.0]).plain
    'so be it'
    """
    text = Text()
    for piece, score in zip(pieces, scores, strict=True):
        background, ink = tint(score)
        # A reply must not drive the terminal: control characters are shown as a mark.
        piece = re.sub("[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", piece)
        text.append(piece, f"{ink} on {background}" if background else "")
    start = len(text.plain) - len(text.plain.lstrip())
    return text[start : max(len(text.plain.rstrip()), start)]
