"""The screen: a transcript, a line to write in, and dials that act on the next word."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from steerkit.errors import ExpressionError, SteerkitError
from steerkit.expressions import parse_layers
from steerkit.personas import load_personas
from steerkit.tui import speaker as say
from steerkit.tui.colours import Colourless
from steerkit.tui.desk import Desk, changed, turned
from steerkit.tui.dials import DialView, Readings
from steerkit.tui.frames import FASTEST, Frames
from steerkit.tui.keys import BINDINGS, COMMANDS
from steerkit.tui.screens import AskPersona, AskText, AskYes, Choice, Help, Message
from steerkit.tui.session import Plan, Session
from steerkit.tui.transcript import Transcript

READINGS = 3
"""At every how many of these frames numbers change."""
SMALLEST = (60, 16)
"""Cells across and down below which nothing can be read."""
NARROW = 90
"""Cells across below which the panel is slimmer."""


class ChatApp(App[None]):
    """A chat with dials."""

    CSS_PATH = "chat.tcss"
    TITLE = "steerkit"
    BINDINGS = BINDINGS

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        if self.no_color:
            self._filters[:] = [Colourless()]
        self.session = Session(plan, self._tell)  # type: ignore[arg-type]
        self._interrupted = 0.0
        self._frames = Frames()
        self._title = Text()

    def compose(self) -> ComposeResult:
        """Title, transcript and message on the left, dials on the right, keys at the bottom."""
        yield Static(id="title", markup=False)
        with Horizontal(id="all"):
            with Vertical(id="left"):
                yield Transcript(id="transcript")
                yield Message(placeholder="say something", id="message")
            with Vertical(id="panel"):
                yield VerticalScroll(id="dials", can_focus=False)
                yield Static("+ add a dial (F4)", id="add", markup=False)
                yield Static(id="held", markup=False)
                yield Readings(id="readings")
        yield Footer(show_command_palette=False, compact=True)
        yield Static(f"make the terminal at least {SMALLEST[0]}×{SMALLEST[1]}", id="small", markup=False)

    def on_mount(self) -> None:
        """Load the model while the first message is being written."""
        message = self.query_one("#message", Input)
        message.cursor_blink = False  # Each blink is a frame that the model would pay for.
        message.focus()
        self.draw()
        self.session.speaker.start()
        self.set_interval(1 / FASTEST, self._listen)
        if self.session.plan.notice:
            self._tell(self.session.plan.notice, "warning")

    def on_resize(self, event: events.Resize) -> None:
        """Say so when there is no room."""
        ours = self.screen_stack[0]  # Whatever stands above it for now.
        ours.set_class(event.size.width < SMALLEST[0] or event.size.height < SMALLEST[1], "tiny")
        ours.set_class(event.size.width < NARROW, "narrow")

    def on_unmount(self) -> None:
        """However one leaves, what was said is kept."""
        self.session.leave()

    def draw(self, streaming: bool = False) -> None:
        """Everything that is not a dial; while text streams, what one cannot read that fast is drawn less often."""
        session = self.session
        transcript = self.query_one(Transcript)
        transcript.probe = session.probe
        transcript.show(session.said, session.chat.forgotten)
        if streaming and self._frames.drawn % READINGS:
            return
        self.query_one(Readings).show(session.readings(), session.probe, session.drift())
        title = Text(" · ".join(part for part in (self.TITLE, session.chat.model, session.status) if part))
        for chip in ["compare"] * session.comparing + ["floor"] * session.desk.floor:
            title.append("  ").append(f" {chip} ", "reverse")
        if title != self._title:
            self._title = title
            self.query_one("#title", Static).update(title, layout=False)

    async def put(self, desk: Desk) -> None:
        """Another state of the dials. Views that are there already only change."""
        self.session.put(desk)
        holder = self.query_one("#dials")
        views = {view.called: view for view in holder.query(DialView)}
        for name in views.keys() - set(desk.names):
            await views[name].remove()
        for dial in desk.dials:
            if dial.name in views:
                views[dial.name].dial, views[dial.name].solo = dial, desk.solo
            else:
                await holder.mount(DialView(dial, desk.solo))
        held = "\n".join(f"held: {term}" for term in desk.held) if desk.floor else ""
        self.query_one("#held", Static).update(held)
        self.draw()

    # What the thread tells -------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Take what has happened since the last frame, and draw it once."""
        if not (self.session.speaker.events and self._frames.due(self.session.live is not None)):
            return
        while self.session.speaker.events:
            event = self.session.speaker.events.popleft()
            self.session.take(event)
            match event:
                case say.Loaded():
                    await self._lay_out()
                case say.Extracted(name):
                    await (self._add(name) if self.session.laid_out else self._lay_out())
                case say.Failed(message, fatal=True):
                    self._give_up(message)
                case say.Ended() | say.Failed():
                    self._give_back()
                    if self.session.model is not None and not self.session.laid_out:
                        await self._do_without()
        self.draw(streaming=self.session.live is not None)

    async def _lay_out(self) -> None:
        """Make the dials of the command line, or offer to make the vectors that they lack."""
        session = self.session
        if missing := session.missing():
            question = f"There is no vector of {missing} for this model yet. Make it? It takes a minute or two."

            async def answered(yes: str | None) -> None:
                if yes:
                    session.extract(missing)
                else:
                    await self._do_without()

            self.push_screen(AskYes(question), answered)
            return
        try:
            session.lay_out()
        except SteerkitError as error:
            self._give_up(str(error))
            return
        await self.put(session.desk)
        self._give_back()
        session.send_what_waits()

    async def _do_without(self) -> None:
        """Begin without the dials that cannot be."""
        self.session.do_without()
        await self._lay_out()

    def _give_back(self) -> None:
        """A message that was not answered comes back, to be sent again or changed."""
        message = self.query_one("#message", Input)
        if (text := self.session.unread()) and not message.value:
            message.value = text
        elif text:
            self._tell(f"not answered: {text}")

    def _give_up(self, message: str) -> None:
        self.exit(return_code=1, message=Text(message))  # What files are called is no markup.

    def _tell(self, text: str, severity: str = "information") -> None:
        self.notify(text, severity=severity, timeout=8, markup=False)  # type: ignore[arg-type]

    # Talking ---------------------------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Send a message."""
        text = event.value.strip()
        if event.input.id == "message" and text and self.session.send(text):
            event.input.value = ""
            self.query_one(Transcript).action_leave()
            self.draw()

    def action_again(self) -> None:
        """Say the chosen reply again, or the last one."""
        transcript = self.query_one(Transcript)
        self.session.again(transcript.chosen)
        transcript.action_leave()
        self.draw()

    def action_stop(self) -> None:
        """Stop a reply or an extraction; otherwise go back to the message."""
        if self.session.busy:
            self.session.speaker.stop()
        else:
            self.query_one("#message").focus()

    def action_interrupt(self) -> None:
        """Ctrl-C stops what is going on, and leaves when pressed twice."""
        if self.session.busy:
            self.session.speaker.stop()
        elif time.monotonic() - self._interrupted < 2:
            self.exit()
        else:
            self.notify("press ctrl+c again to leave; the chat is kept")
            self._interrupted = time.monotonic()

    def action_compare(self) -> None:
        """Show the unsteered reply beside the steered one, or stop doing so."""
        self.session.compare()
        self.draw()

    # Dials -----------------------------------------------------------------------------------------------------------

    async def on_dial_view_turned(self, event: DialView.Turned) -> None:
        """A dial was moved, if it is still there."""
        if event.name not in self.session.desk.names:
            return
        dial = self.session.desk[event.name]
        dial = turned(dial, event.by) if event.by is not None else replace(dial, value=event.to or 0.0)
        await self.put(self.session.desk.with_dial(dial))

    async def on_dial_view_changed(self, event: DialView.Changed) -> None:
        """Something else about a dial, if it is still there."""
        if event.name not in self.session.desk.names:
            return
        if event.what != "layers":
            await self.put(changed(self.session.desk, event.name, event.what))
            return
        dial = self.session.desk[event.name]
        first, last = dial.layers or dial.vector.place
        question = f"Where does {dial.name} work? A layer or a band; nothing means its own place."
        self.push_screen(AskText(question, f"{first}-{last}"), lambda text: self._place(dial.name, text))

    async def _place(self, name: str, text: str | None) -> None:
        if text is None or name not in self.session.desk.names:
            return
        dial = self.session.desk[name]
        try:
            moved = replace(dial, layers=parse_layers(text) if text else None)
            _ = moved.term
        except ExpressionError as error:
            self._tell(str(error), "error")
            return
        await self.put(self.session.desk.with_dial(moved))

    def on_dial_view_focused(self, event: DialView.Focused) -> None:
        """Words are tinted by the dial that is being turned."""
        if event.name in self.session.reads and self.session.probe != event.name:
            self.session.probe = event.name
            self.draw()

    async def action_nudge(self, by: float) -> None:
        """Turn the dial whose score is shown, wherever the cursor is."""
        if self.session.probe in self.session.desk.names:
            await self.put(self.session.desk.with_dial(turned(self.session.desk[self.session.probe], by)))

    def action_probe(self) -> None:
        """Tint words by the next probe."""
        names = list(self.session.reads)
        if names:
            self.session.probe = names[(names.index(self.session.probe) + 1) % len(names)]
            self.draw()

    async def action_floor(self) -> None:
        """Hold the model at the Assistant, or let it go."""
        if not self.session.desk.dials:
            self.notify("the floor holds what has a dial; add one with F4")
            return
        await self.put(replace(self.session.desk, floor=not self.session.desk.floor))

    def action_add(self) -> None:
        """Choose a persona and give it a dial."""
        if self.session.model is None:
            self.notify("the model is still loading")
            return
        here, library = set(self.session.vectors), load_personas()
        names = sorted((here | set(library)) - set(self.session.desk.names) - {"assistant"})
        said = {name: persona.summary for name, persona in library.items()}
        choices = [Choice(name, said.get(name, "a vector of yours"), name in here) for name in names]
        self.push_screen(AskPersona(choices), self._chosen)

    async def _chosen(self, name: str | None) -> None:
        if name is not None and name in set(self.session.vectors):
            await self._add(name)
        elif name is not None:
            self.session.extract(name)
            self.draw()

    async def _add(self, name: str) -> None:
        try:
            self.session.add(name)
        except SteerkitError as error:
            self._tell(str(error), "error")
            return
        await self.put(self.session.desk)
        message = self.query_one("#message", Input)
        for view in self.query(DialView):
            # Who is writing goes on writing.
            if view.called == name and not (message.has_focus and message.value):
                view.focus()

    def on_click(self, event: events.Click) -> None:
        """The line under the dials is a button."""
        if event.widget is not None and event.widget.id == "add":
            self.action_add()

    # Looks and files -------------------------------------------------------------------------------------------------

    def action_plain(self) -> None:
        """Tints, or none."""
        transcript = self.query_one(Transcript)
        transcript.plain = not transcript.plain
        transcript.redraw()

    def action_thoughts(self) -> None:
        """Show what was thought before replies, or fold it."""
        transcript = self.query_one(Transcript)
        transcript.unfolded = not transcript.unfolded
        transcript.redraw()

    def action_light(self) -> None:
        """Light or dark."""
        self.theme = "textual-light" if self.current_theme.dark else "textual-dark"
        self.query_one(Transcript).redraw()

    def action_help(self) -> None:
        """Every key."""
        self.push_screen(Help())

    def action_new(self) -> None:
        """Begin again; what was said is kept in its file."""
        if self._idle():
            self.session.new()
            self.query_one(Transcript).action_leave()
            self.draw()

    def action_copy(self, command: bool = False) -> None:
        """Copy the steering as an expression, or the last message under it as a command."""
        text = self.session.command() if command else str(self.session.desk.steering)
        self.copy_to_clipboard(text)
        self._tell(f"copied: {text}" if text else "nothing steers")

    def action_save(self) -> None:
        """Ask where to, and save there; the ending says as what."""
        question = "Save as? .jsonl can be loaded and read again, .md and .html are to share."
        self.push_screen(AskText(question, "chat.html"), self._save)

    def _save(self, name: str | None) -> None:
        if not name:
            return
        path = Path(os.path.expanduser(name))
        try:
            if self.is_web:
                # The person who asked sits at the browser, and so do the files.
                self.deliver_text(io.StringIO(self.session.written(path.suffix)), save_filename=path.name)
            else:
                self.session.save(path)
                self._tell(f"saved {path}")
        except SteerkitError as error:
            self._tell(str(error), "error")

    def action_load(self) -> None:
        """Ask for a chat and go on with it."""
        if self._idle():
            question = "Load which chat? A .jsonl file that was saved here."
            self.push_screen(AskText(question, str(self.session.plan.kept)), self._load)

    async def _load(self, name: str | None) -> None:
        if not name:
            return
        try:
            self.session.load(Path(os.path.expanduser(name)))
        except SteerkitError as error:
            self._tell(str(error), "error")
        self.query_one(Transcript).action_leave()
        await self.put(self.session.desk)
        self._give_back()

    def _idle(self) -> bool:
        if self.session.busy:
            self.notify("esc stops what is going on")
        return not self.session.busy

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette offers."""
        yield from super().get_system_commands(screen)
        for title, what, action in COMMANDS:
            yield SystemCommand(title, what, partial(self.run_action, action))
