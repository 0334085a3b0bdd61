"""Texts at which a reply ends, found although they come in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from steerkit.thinking import overlap


class Stopper:
    """Lets a reply through up to the first stop text; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece, and return what may be shown and whether the reply ends here.

        >>> stopper = Stopper(["END"])
        >>> [stopper.push(piece) for piece in ("the E", "N", "d. E", "ND of it")]
        [('the ', False), ('', False), ('ENd. ', False), ('', True)]
        """
        whole = self._held + text
        found = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if found:
            self._held = ""
            return whole[: min(found)], True
        kept = max((overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept], False

    def rest(self) -> str:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        return held
