"""What is asked in front of the chat: a persona to add, a line of text, a yes or no, and the help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from steerkit.tui.keys import KEYS


class Asking(ModalScreen[str | None]):
    """A box in front of the chat that Esc closes without an answer."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "close", show=False)]


class Message(Input):
    """The line to write in. What is pasted is taken whole."""

    def on_paste(self, event: events.Paste) -> None:
        """Lines become one; the default takes only the first."""
        event.prevent_default()
        event.stop()
        self.insert_text_at_cursor(" ".join(event.text.splitlines()))


class AskText(Asking):
    """Asks for one line."""

    def __init__(self, question: str, answer: str = "") -> None:
        super().__init__()
        self._question, self._answer = question, answer

    def compose(self) -> ComposeResult:
        """A question and a line."""
        with Vertical(classes="box"):
            yield Static(self._question, markup=False)
            yield Input(self._answer, id="answer")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """That is the answer."""
        event.stop()
        self.dismiss(event.value.strip())


class AskYes(Asking):
    """Asks whether to do something."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,enter", "dismiss('yes')", "yes"),
        Binding("n", "dismiss(None)", "no"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """A question and the keys."""
        with Vertical(classes="box"):
            yield Static(self._question, markup=False)
            yield Static("enter  yes        esc  no", classes="hint")


@dataclass(frozen=True)
class Choice:
    """One persona that could get a dial."""

    name: str
    summary: str
    ready: bool
    """Whether its vector is there."""


class AskPersona(Asking):
    """A list that what one types narrows down."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "move(1)", show=False, priority=True),
        Binding("up", "move(-1)", show=False, priority=True),
    ]

    def __init__(self, choices: Sequence[Choice]) -> None:
        super().__init__()
        self._choices = choices

    def compose(self) -> ComposeResult:
        """A line to type in, and what fits."""
        with Vertical(classes="box tall"):
            yield Input(placeholder="a persona or a trait", id="answer")
            yield OptionList(id="choices")

    def on_mount(self) -> None:
        """Everything fits at first."""
        self.query_one(OptionList).can_focus = False
        self._fill("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Narrow down."""
        self._fill(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take what is highlighted."""
        event.stop()
        options = self.query_one(OptionList)
        if options.highlighted is not None:
            self.dismiss(options.get_option_at_index(options.highlighted).id)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Take what was clicked."""
        self.dismiss(event.option_id)

    def action_move(self, by: int) -> None:
        """Go through the list while the cursor stays in the line."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if by > 0 else options.action_cursor_up()

    def _fill(self, text: str) -> None:
        words = text.lower().split()
        fits = [c for c in self._choices if all(word in f"{c.name} {c.summary}".lower() for word in words)]
        if words:
            fits.sort(key=lambda choice: (not choice.name.startswith(words[0]), words[0] not in choice.name))
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(_choice(choice), id=choice.name) for choice in fits])
        if fits:
            options.highlighted = 0


def _choice(choice: Choice) -> Text:
    name = (f"{choice.name:<20}", "bold" if choice.ready else "dim")
    told = choice.summary if choice.ready else ("no vector yet; enter makes it", "dim italic")
    return Text.assemble(name, told, no_wrap=True, overflow="ellipsis")


class Help(Asking):
    """Every key."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f1,question_mark,q,enter", "dismiss(None)", show=False)]

    def compose(self) -> ComposeResult:
        """A table."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column()
        for where, keys in KEYS:
            table.add_row(Text(where, "bold"), "")
            for key, what in keys:
                table.add_row(Text(f"  {key}"), Text(what))
        with VerticalScroll(classes="box wide"):
            yield Static(table)
