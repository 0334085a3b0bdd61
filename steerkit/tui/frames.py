"""When to draw: often enough to be read, and so seldom that the model hardly waits for it."""

from __future__ import annotations

import time

FASTEST = 8
"""How often a second what was heard is drawn, at most."""
SLOWEST = 2
"""How often at least."""
SHARE = 0.04
"""Of the time, how much drawing may take: Python runs one thread at a time, so the model waits meanwhile."""


class Frames:
    """Counts what the thread that draws has cost since the last frame; a slow machine draws fewer."""

    def __init__(self) -> None:
        self.drawn = 0
        """How many there were."""
        self._at = 0.0
        self._used = 0.0

    def due(self, streaming: bool) -> bool:
        """Whether the last frame has been paid for; one is always due while nothing streams."""
        now, used = time.perf_counter(), time.thread_time()
        waited, cost = now - self._at, used - self._used
        if streaming and waited < 1 / SLOWEST and cost > SHARE * waited:
            return False
        self.drawn += 1
        self._at, self._used = now, used
        return True
