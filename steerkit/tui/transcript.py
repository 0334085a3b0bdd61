"""What was said, every word tinted by its score. Only lines that are on the screen are drawn, so a long chat costs no
more than a short one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from steerkit.chats import Said
from steerkit.thinking import folded
from steerkit.tints import bar, tint, visible

LABEL = 6
"""Cells to the left of what is said."""
CALLED = {"system": "sys", "user": "you", "assistant": "ai"}
TURNED = "▸"
"""Stands where the steering changed in the middle of a reply."""
CLEARLY = 0.5
"""Without colour, words above this score are underlined, and words below its opposite are slanted."""


class Transcript(ScrollView, can_focus=True):
    """The turns of a chat, of which one can be chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "choose(-1)", "choose a turn", show=False),
        Binding("down", "choose(1)", "choose a turn", show=False),
        Binding("home", "scroll_home", show=False),
        Binding("end", "leave", show=False),
    ]

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        self.said: tuple[Said, ...] = ()
        self.forgotten = 0
        self.probe = ""
        self.plain = False
        self.unfolded = False
        self.chosen: int | None = None
        self._blocks: list[list[Strip]] = []
        self._drawn: list[tuple[Any, ...]] = []
        self._starts: list[int] = []
        self._ground = Style()

    def show(self, said: Sequence[Said], forgotten: int = 0) -> None:
        """Draw what is said; turns that have not changed are not drawn again."""
        self.said, self.forgotten = tuple(said), forgotten
        width = self.scrollable_content_region.width or self.size.width
        if not width:
            return
        dark = self.app.current_theme.dark
        at_end = self.scroll_offset.y >= self.max_scroll_y - 1
        blocks, drawn = [], []
        first_new = len(self.said)
        for i, turn in enumerate(self.said):
            gone = i < forgotten and turn.role != "system"
            how = (turn, width, self.probe, self.plain, self.unfolded, dark, i == self.chosen, gone)
            same = i < len(self._drawn) and self._drawn[i][0] is turn and self._drawn[i][1:] == how[1:]
            blocks.append(self._blocks[i] if same else self._block(turn, width, dark, i == self.chosen, gone))
            drawn.append(how)
            first_new = first_new if same else min(first_new, i)
        fewer = len(blocks) < len(self._blocks)
        known = self._blocks[first_new] if first_new < len(self._blocks) else []
        self._blocks, self._drawn = blocks, drawn
        self._starts = []
        n_lines = 0
        for block in blocks:
            self._starts.append(n_lines)
            n_lines += len(block)
        self.virtual_size = Size(width, n_lines)
        if at_end and self.chosen is None:
            self.scroll_end(animate=False, immediate=True)
        if fewer:
            self.refresh()
        elif first_new < len(blocks):
            # Only lines that are new; drawing all of them ten times a second would cost the model words.
            pairs = enumerate(zip(known, blocks[first_new], strict=False))
            alike = next((i for i, (old, new) in pairs if old != new), min(len(known), len(blocks[first_new])))
            top = max(self._starts[first_new] + alike - self.scroll_offset.y, 0)
            self.refresh(Region(0, top, self.size.width, max(self.size.height - top, 0)))

    def redraw(self) -> None:
        """Draw the same again, because something about how it looks has changed."""
        self.show(self.said, self.forgotten)

    def on_resize(self) -> None:
        """Lines break elsewhere."""
        self.redraw()

    def render_lines(self, crop: Region) -> list[Strip]:
        """Some lines of the screen, on the ground that the theme has now."""
        self._ground = self.rich_style
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        line = y + self.scroll_offset.y
        width = self.size.width
        base = self._ground
        # The last block that begins at or before the line holds it.
        found = next((i for i in range(len(self._starts) - 1, -1, -1) if self._starts[i] <= line), None)
        if found is None or line - self._starts[found] >= len(self._blocks[found]):
            return Strip.blank(width, base)
        return self._blocks[found][line - self._starts[found]].extend_cell_length(width).apply_style(base)

    def action_choose(self, by: int) -> None:
        """Choose the turn before or after."""
        if not self.said:
            return
        now = len(self.said) if self.chosen is None else self.chosen
        self.chosen = min(max(now + by, 0), len(self.said) - 1)
        self.redraw()
        self.scroll_to(y=max(self._starts[self.chosen] - 1, 0), animate=False)

    def action_leave(self) -> None:
        """Choose no turn and go to the end."""
        self.chosen = None
        self.redraw()
        self.scroll_end(animate=False)

    def _block(self, said: Said, width: int, dark: bool, chosen: bool, forgotten: bool) -> list[Strip]:
        """One turn as lines: who, what, and for a reply how it was steered and how it scored."""
        room = max(width - LABEL - 1, 8)
        if said.unsteered is not None:
            half = (room - 3) // 2
            columns = [self._lines(said.unsteered, half, dark), self._lines(said, half, dark)]
            lines = list(_beside(columns, half))
        else:
            lines = self._lines(said, room, dark)
        name = CALLED[said.role]
        label = Style(bold=True, dim=forgotten, reverse=chosen)
        strips = []
        for i, line in enumerate(lines):
            head = [Segment(name, label), Segment(" " * (LABEL - len(name)))] if i == 0 else [Segment(" " * LABEL)]
            text = line.copy()
            if forgotten:
                text.stylize("dim")
            strips.append(Strip([*head, *text.render(self.app.console, end="")]))
        return [*strips, Strip.blank(width)]

    def _lines(self, said: Said, width: int, dark: bool) -> list[Text]:
        """What one side said, wrapped, with a dim line about it."""
        text = self._words(said, dark)
        about = _about(said, self.probe)
        lines = list(text.wrap(self.app.console, width, tab_size=4)) if text.plain else []
        if said.thought:
            lines = [*_thought(said.thought, self.unfolded).wrap(self.app.console, width, tab_size=4), *lines]
        return [*lines, *about.wrap(self.app.console, width)] if about else lines or [Text("")]

    def _words(self, said: Said, dark: bool) -> Text:
        """Words with tints, and a mark where the steering changed."""
        if not said.tokens:
            return Text(visible(said.content))
        text = Text()
        scores = said.scores_on(self.probe) or [0.0] * len(said.tokens)
        changes = {place for place, _ in said.steer if place}
        for i, (piece, score) in enumerate(zip(said.tokens, scores, strict=True)):
            if i in changes:
                text.append(TURNED, "bold")
            text.append(visible(piece), self._style(score, dark))
        start = len(text.plain) - len(text.plain.lstrip())
        return text[start:]

    def _style(self, score: float, dark: bool) -> str:
        if self.plain or self.app.no_color:
            return "underline" if score > CLEARLY else "italic" if score < -CLEARLY else ""
        background, ink = tint(score, dark)
        return f"{ink} on {background}" if background else ""


def _thought(thought: str, unfolded: bool) -> Text:
    """What was thought before a reply: how long it is, or all of it."""
    head = folded(len(thought.split()), "words", unfolded)
    return Text(f"{head}\n{visible(thought)}" if unfolded else head, "dim italic")


def _about(said: Said, probe: str) -> Text:
    """How a reply was steered, and its mean score on the probe."""
    if said.role != "assistant" or not said.tokens:
        return Text()
    steer = " ▸ ".join(text or "unsteered" for _, text in said.steer[-3:]) or "unsteered"
    more = "… ▸ " if len(said.steer) > 3 else ""
    mean = said.means.get(probe)
    read = f"  {bar(mean)} {probe} {mean:+.2f}" if mean is not None else f"  {probe} was not read" if probe else ""
    return Text(visible(f"{more}{steer}{read}"), "dim")


def _beside(columns: Sequence[Sequence[Text]], width: int) -> Iterator[Text]:
    """Lines of two texts next to each other."""
    for i in range(max(map(len, columns))):
        left, right = (column[i].copy() if i < len(column) else Text() for column in columns)
        left.pad_right(width - left.cell_len)
        yield Text.assemble(left, (" │ ", "dim"), right)
