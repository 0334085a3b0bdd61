"""The panel on the right: dials under one's fingers, and what is being read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from steerkit.tints import BLUE, ORANGE
from steerkit.tui.desk import Dial

COARSE, FINE = 0.1, 0.02
BLOCKS = "▁▂▃▄▅▆▇█"


class DialView(Widget, can_focus=True):
    """One dial: its name and value, and a track with the limit drawn on it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", f"turn(-{COARSE})", "turn", show=False),
        Binding("right", f"turn({COARSE})", "turn", show=False),
        Binding("shift+left", f"turn(-{FINE})", "finely", show=False),
        Binding("shift+right", f"turn({FINE})", "finely", show=False),
        Binding("0,home", "change('reset')", "reset", show=False),
        Binding("m", "change('mute')", "mute"),
        Binding("s", "change('solo')", "solo"),
        Binding("o", "change('operator')", "operator"),
        Binding("l", "change('layers')", "layers"),
        Binding("x,delete", "change('remove')", "remove"),
        Binding("up", "app.focus_previous", show=False),
        Binding("down", "app.focus_next", show=False),
    ]

    class Turned(Message):
        """Somebody moved a dial by a step, or to a value."""

        def __init__(self, name: str, by: float | None = None, to: float | None = None) -> None:
            super().__init__()
            self.name, self.by, self.to = name, by, to

    class Changed(Message):
        """Somebody wants something else of a dial: reset, mute, solo, operator, layers, remove."""

        def __init__(self, name: str, what: str) -> None:
            super().__init__()
            self.name, self.what = name, what

    class Focused(Message):
        """A dial whose score is the one to look at."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    dial: reactive[Dial | None] = reactive(None)
    solo: reactive[str | None] = reactive(None)

    def __init__(self, dial: Dial, solo: str | None) -> None:
        super().__init__(classes="dial")
        self.set_reactive(DialView.dial, dial)
        self.set_reactive(DialView.solo, solo)

    @property
    def called(self) -> str:
        """The dial's name."""
        assert self.dial is not None
        return self.dial.name

    def render(self) -> Text:
        """Two lines."""
        assert self.dial is not None
        return Text("\n").join([heading(self.dial, self.solo, self.size.width), track(self.dial, self.size.width)])

    def action_turn(self, by: float) -> None:
        """Move a step."""
        self.post_message(self.Turned(self.called, by=by))

    def action_change(self, what: str) -> None:
        """Ask for something else."""
        self.post_message(self.Changed(self.called, what))

    def on_focus(self) -> None:
        """Look at this one."""
        self.post_message(self.Focused(self.called))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Put the handle where the mouse is, and hold it."""
        if event.y == 1:
            self.capture_mouse()
            self._point(event.x)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag."""
        if self.app.mouse_captured is self:
            self._point(event.x)

    def on_mouse_up(self) -> None:
        """Let go."""
        self.release_mouse()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """A step up."""
        event.stop()
        self.action_turn(COARSE)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """A step down."""
        event.stop()
        self.action_turn(-COARSE)

    def _point(self, x: int) -> None:
        assert self.dial is not None
        half = max((self.size.width - 1) / 2, 1)
        value = (x - half) / half * self.dial.reach
        self.post_message(
            self.Turned(self.called, to=round(max(min(value, self.dial.reach), -self.dial.reach), 1) + 0.0)
        )


def heading(dial: Dial, solo: str | None, width: int) -> Text:
    """Name, what is special about it, and value."""
    flags = [
        "" if dial.operator == "add" else dial.operator,
        "" if dial.layers is None else f"@{dial.layers[0]}-{dial.layers[1]}",
        "when" if dial.when else "",
        "solo" if solo == dial.name else "",
        "muted" if dial.muted or solo not in (None, dial.name) else "",
    ]
    value = f"{dial.value:+.2f}"
    note = " ".join(flag for flag in flags if flag)
    name = dial.name if len(dial.name) <= 14 else dial.name[:13] + "…"
    room = max(width - len(name) - len(value) - 2, 0)
    style = "bold" + (" red" if dial.past_limit else "")
    return Text.assemble((name, "bold"), " ", (note[:room].ljust(room), "dim italic"), " ", (value, style))


def track(dial: Dial, width: int) -> Text:
    """The way a dial can go: zero in the middle, ▒ past the limit, and the handle.

    >>> from types import SimpleNamespace as Like
    >>> track(Like(reach=2.0, limits=(-1.0, 1.0), value=0.5, rests=False, past_limit=False), 17).plain
    '▒▒▒▒────┼━●──▒▒▒▒'
    """
    half = max((width - 1) / 2, 1)
    low, high = dial.limits or (float("-inf"), float("inf"))
    text = Text()
    handle = round(half + dial.value / dial.reach * half)
    for x in range(width):
        value = (x - half) / half * dial.reach
        if x == handle:
            text.append("○" if dial.rests else "●", "bold red" if dial.past_limit else "bold")
        elif value < low or value > high:
            text.append("▒", "red dim")
        elif x == round(half):
            text.append("┼")
        else:
            between = min(half, handle) < x < max(half, handle)
            text.append("━" if between and not dial.rests else "─", "" if between and not dial.rests else "dim")
    return text


class Readings(Widget):
    """The current score of every probe as a bar from −2 to 2, and how each reply scored on one of them."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self._scores: Mapping[str, float | None] = {}
        self._probe = ""
        self._drift: Sequence[float] = ()

    def show(self, scores: Mapping[str, float | None], probe: str, drift: Sequence[float]) -> None:
        """Draw, if anything is new."""
        if (dict(scores), probe, list(drift)) != (self._scores, self._probe, self._drift):
            grown = len(scores) != len(self._scores)
            self._scores, self._probe, self._drift = dict(scores), probe, list(drift)
            self.refresh(layout=grown)

    def render(self) -> Text:
        """A line a probe, then the drift."""
        width = self.size.width
        lines = [_reading(name, score, width, name == self._probe) for name, score in self._scores.items()]
        shown = self._drift[-max(width - 18, 1) :]
        if self._probe:
            blocks = "".join(_block(mean) for mean in shown) or "–"
            turns = f" {len(self._drift)} replies" if len(self._drift) != 1 else " 1 reply"
            lines.append(Text.assemble(("drift ", "dim"), blocks, (turns, "dim")))
        return Text("\n").join(lines)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        """As many lines as there are probes, and one."""
        return len(self._scores) + 1


def _reading(name: str, score: float | None, width: int, chosen: bool) -> Text:
    room = max(width - 20, 4)
    score = None if score is None or not isfinite(score) else score
    value = "   –  " if score is None else f"{score:+.2f} "
    label = Text(f"{name[:11]:<12}", "bold" if chosen else "")
    half = room // 2
    length = 0 if score is None else min(round(abs(score) / 2 * half), half)
    blue, orange = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (BLUE, ORANGE))
    left = "█" * length if score is not None and score < 0 else ""
    right = "█" * length if score is not None and score > 0 else ""
    bars = Text.assemble((left.rjust(half), blue), ("│", "dim"), (right.ljust(half), orange))
    return Text.assemble(label, bars, value.rjust(width - 12 - 2 * half - 1))


def _block(mean: float) -> str:
    """A block whose height is a score from −2 to 2.

    >>> _block(-2), _block(0), _block(2)
    ('▁', '▅', '█')
    """
    if not isfinite(mean):
        return "?"
    place = (min(max(mean, -2.0), 2.0) + 2.0) / 4.0
    return BLOCKS[min(int(place * len(BLOCKS)), len(BLOCKS) - 1)]
