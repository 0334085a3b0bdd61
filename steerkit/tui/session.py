"""One conversation with one model: what is said, how it is steered, where it is kept. No widgets here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steerkit.chats import Chat, Said, load_chat, markdown
from steerkit.errors import OutputError, SteerkitError
from steerkit.files import write_text
from steerkit.generation import Probe, Sampling
from steerkit.models import Model
from steerkit.personas import load_personas
from steerkit.steering import Steering, Term
from steerkit.thinking import unfinished_note
from steerkit.tui import speaker as say
from steerkit.tui.desk import Desk, Dial
from steerkit.tui.live import Live
from steerkit.vectors import VectorSet

LATEST = 8
"""Tokens whose mean is the current reading."""


@dataclass
class Plan:
    """What the command line asked for."""

    load: Callable[[Any], Model]
    """Opens the model, told how far it is."""
    steer: str = ""
    """An expression to begin with."""
    probes: tuple[str, ...] = ()
    """Vectors to read that no dial turns."""
    system: str = ""
    """A system prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    """How tokens are chosen."""
    named: bool = False
    """Whether the user named a model."""
    kept: Path = Path("chat.jsonl")
    """Where the chat is kept, turn by turn."""
    chat: Chat | None = None
    """A chat to go on with."""
    notice: str = ""
    """What to say about it."""


class Session:
    """The state behind the screen, changed by the user's wishes and by what the speaker tells."""

    def __init__(self, plan: Plan, tell: Callable[[str, str], None]) -> None:
        self.plan = plan
        self.desk = Desk()
        self.probe = ""
        """The vector by whose scores words are tinted."""
        self.comparing = False
        self.chat = plan.chat or Chat("", (Said("system", plan.system),) if plan.system else ())
        self.live: Live | None = None
        self.model: Model | None = None
        self.reads: dict[str, Probe] = {}
        """What is read at every token of the next reply."""
        self.status = "loading the model"
        self.speaker = say.Speaker(plan.load)
        self._tell = tell
        self.laid_out = False
        """Whether the dials of the command line are there."""
        self._waiting: str | None = None
        self._attempts = 0
        self._seen = _version(plan.kept) if plan.chat else None
        self._extracting = ""

    @property
    def vectors(self) -> VectorSet:
        """The vectors that fit the model; only once it is there."""
        assert self._vectors is not None
        return self._vectors

    _vectors: VectorSet | None = None

    @property
    def busy(self) -> bool:
        """Whether something is going on that Esc would stop."""
        return self.live is not None or bool(self._extracting)

    @property
    def said(self) -> tuple[Said, ...]:
        """The chat with the reply that is being made."""
        live = self.live
        return (*self.chat.said, live.said()) if live and (live.heard or live.beside) else self.chat.said

    def readings(self) -> dict[str, float | None]:
        """The mean score of the latest tokens on every probe."""
        last = next((turn for turn in reversed(self.said) if turn.role == "assistant"), None)
        found = {name: last.scores_on(name)[-LATEST:] if last else [] for name in self.reads}
        return {name: sum(scores) / len(scores) if scores else None for name, scores in found.items()}

    def drift(self) -> Sequence[float]:
        """The mean score of every reply on the probe."""
        return replace(self.chat, said=self.said).drift(self.probe)

    # What the thread tells -------------------------------------------------------------------------------------------

    def take(self, event: say.Event) -> None:
        """Change with what has happened."""
        match event:
            case say.Heard() if self.live is not None:
                (self.live.beside if event.unsteered else self.live.heard).append(event)
                self.live.first, self.live.last = self.live.first or event.at, event.at
                self.status = f"{self.live.speed:.0f} tokens/s"
            case say.Turned(place, steer) if self.live is not None:
                self.live.steer.append((place, steer))
            case say.Began(chat):
                if chat.forgotten > self.chat.forgotten:
                    gone = sum(turn.role != "system" for turn in chat.said[: chat.forgotten])
                    self._tell(f"the first {gone} turns no longer fit and are no longer read", "warning")
                self.chat = replace(self.chat, forgotten=chat.forgotten)
            case say.Busy(what, done, total):
                self.status = " ".join([BUSY.get(what, what), self._extracting, f"{done / max(total, 1):.0%}"])
            case say.Ended(stopped):
                self._end("stopped" if stopped else "")
            case say.Failed(message):
                self._fail(message)
            case say.Loaded(model):
                self._begin(model)
            case say.Extracted(_, path):
                self._extracting = self.status = ""
                self._tell(f"saved {path}", "information")

    def _begin(self, model: Model) -> None:
        """The model is there."""
        self.model, self.status = model, ""
        self._vectors = VectorSet(model.fingerprint)
        if self.chat.model not in ("", model.name):
            self._tell(f"this chat was with {self.chat.model}", "warning")
        self.chat = replace(self.chat, model=model.name, template_date=self.chat.template_date or model.template_date)

    def _end(self, why: str) -> None:
        """Keep the reply as far as it came, or the one that it was to replace if it did not come to its end."""
        self._extracting = ""
        live, self.live = self.live, None
        self.status = why
        if live is None:
            return
        if live.unfinished and not why:
            self._tell(unfinished_note(1, 1, "--max-tokens", "--thinking off"), "warning")
        if live.replaces and (why or not live.heard):
            self.chat = replace(self.chat, said=(*self.chat.said, *live.replaces))
        elif live.heard or live.beside:
            self.chat = replace(self.chat, said=(*self.chat.said, live.said()))
            self.status = why or f"{len(live.heard)} tokens, {live.speed:.0f}/s"
        else:
            self.status = why or "the model said nothing"
        self.keep()

    def leave(self) -> None:
        """Keep everything, also a reply that has not come to its end."""
        if self.live is not None:
            self._end("stopped")
        self.keep()

    def _fail(self, message: str) -> None:
        self._end("failed")
        self._tell(message, "error")

    def unread(self) -> str:
        """Take back a message that was never answered, so that it can be changed; empty if there is none."""
        last = self.chat.said[-1] if self.chat.said else None
        if self.busy or last is None or last.role != "user":
            return ""
        self.chat = replace(self.chat, said=self.chat.said[:-1])
        return last.content

    # What the user wishes --------------------------------------------------------------------------------------------

    def put(self, desk: Desk) -> None:
        """Another state of the dials: the next token is chosen under it."""
        self.desk = desk
        self.chat = replace(self.chat, steer=desk.stands, floor=desk.floor)
        self.speaker.steering = desk.steering
        named = [(dial.name, dial.vector) for dial in desk.dials]
        for name, vector in named:
            if name not in self.reads and (brought := Term(vector, name=name).spills):
                self._tell(brought, "warning")
        named += [(name, self.vectors[name]) for name in self.plan.probes]
        self.reads = {name: self.reads.get(name) or Probe.of(vector, name=name) for name, vector in named}
        if self.probe not in self.reads:
            self.probe = next(iter(self.reads), "")

    def missing(self) -> str:
        """The first persona that the command line names and that has no vector yet."""
        here, known = set(self.vectors), set(load_personas())
        without_paths = re.sub(r"\S*[/\\]\S*|\S+\.safetensors", " ", self.plan.steer)
        names = [*re.findall(r"[a-z_][a-z0-9_]*", without_paths), *self.plan.probes]
        return next((name for name in names if name in known and name not in here), "")

    def lay_out(self) -> None:
        """Make the dials that the command line asked for.

        Raises:
            SteerkitError: the expression does not parse, or a vector fits another model.
        """
        self.put(self._desk(self.plan.steer, self.chat.floor))
        self.laid_out = True

    def _desk(self, text: str, floor: bool) -> Desk:
        return replace(Desk.of(Steering.parse(text, self.vectors) if text.strip() else Steering()), floor=floor)

    def do_without(self) -> None:
        """Begin without dials, because a vector is missing and was not made."""
        name = self.missing()
        self._tell(f"no dials, since {name} has no vector for this model; F4 makes and adds one", "warning")
        self.plan.steer, self.plan.probes = "", ()

    def add(self, name: str) -> None:
        """A dial for a vector, which is the one to look at.

        Raises:
            VectorError: there is none for this model.
        """
        dial = Dial(name, self.vectors[name])
        self.probe = name
        self.put(self.desk.with_dial(dial))

    def send(self, text: str) -> bool:
        """Say something to the model, or keep it until the model is there; False where it is not the time."""
        if self.busy:
            self._tell("esc stops what is going on", "information")
            return False
        if self.model is None:
            self._waiting = text if self._waiting is None else f"{self._waiting}\n{text}"
            self._tell("it is answered as soon as the model is there", "information")
            return True
        self.chat = replace(self.chat, said=(*self.chat.said, Said("user", text)))
        self._speak()
        return True

    def send_what_waits(self) -> None:
        """Say what was written before the model was there."""
        if self._waiting is not None and self.model is not None:
            text, self._waiting = self._waiting, None
            self.send(text)

    def again(self, turn: int | None = None, anew: bool = True) -> None:
        """Say a reply again, the last one if none is named; what came after it goes.

        `anew` draws other words where words are drawn at random.
        """
        if self.busy or self.model is None or not self.chat.said:
            return
        last = len(self.chat.said) - 1
        place = last if turn is None else min(turn, last)
        place += self.chat.said[place].role == "user"
        while place > 0 and self.chat.said[place - 1].role != "user":
            place -= 1
        if place == 0:
            return
        gone = self.chat.said[place:]
        forgotten = self.chat.forgotten if self.chat.forgotten < place else 0
        self.chat = replace(self.chat, said=self.chat.said[:place], forgotten=forgotten)
        self._attempts += anew
        self._speak(gone)

    def _speak(self, replaces: tuple[Said, ...] = ()) -> None:
        sampling = replace(self.plan.sampling, seed=self.plan.sampling.seeds(1)[0] + self._attempts)
        self.live = Live(tuple(self.reads), self.comparing, replaces)
        self.status = "reading"
        self.speaker.speak(self.chat, tuple(self.reads.values()), sampling, self.comparing)

    def compare(self) -> None:
        """The unsteered reply beside the steered one: to the last message now, and to those that follow."""
        self.comparing = not self.comparing
        last = self.chat.said[-1] if self.chat.said else None
        if self.comparing and last and last.role == "assistant" and last.unsteered is None:
            self.again(anew=False)

    def extract(self, name: str) -> None:
        """Make a vector that is not there yet."""
        if self.busy:
            self._tell("esc stops what is going on; then the vector can be made", "information")
            return
        self._extracting, self.status = name, f"extracting {name}"
        self.speaker.extract(name)

    # Files -----------------------------------------------------------------------------------------------------------

    def keep(self) -> bool:
        """Write the chat where it is kept, unless a full disk, say, forbids it: that is told, and stops nothing."""
        if all(said.role == "system" for said in self.chat.said):
            return True
        if self.plan.kept.exists() and _version(self.plan.kept) != self._seen:
            self.plan.kept = new_name(self.plan.kept)
            self._tell(f"somebody else goes on with this chat too; yours is kept in {self.plan.kept.name}", "warning")
        try:
            self.chat.save(self.plan.kept)
        except SteerkitError as error:
            self._tell(str(error), "error")
            return False
        self._seen = _version(self.plan.kept)
        return True

    def new(self, chat: Chat | None = None) -> bool:
        """Another chat; what was said before is kept in its file, and where that fails nothing happens."""
        if not self.keep():
            return False
        if self.plan.kept.exists():
            self.plan.kept = new_name(self.plan.kept)
        system = tuple(said for said in self.chat.said if said.role == "system")
        name = self.model.name if self.model else ""
        if chat and chat.model != name:
            self._tell(f"this chat was with {chat.model}", "warning")
        date = (chat.template_date if chat else "") or (self.model.template_date if self.model else "")
        chat = chat or Chat("", system, self.desk.stands, self.desk.floor)
        self.chat = replace(chat, model=name, template_date=date)
        return True

    def load(self, path: Path) -> None:
        """Go on with a chat that was saved.

        Raises:
            PromptError: it cannot be read.
        """
        chat, notice = load_chat(path)
        if not self.new(chat):
            return
        try:
            self.put(self._desk(chat.steer, chat.floor) if chat.steer else self.desk)
        except SteerkitError as error:
            self._tell(f"the dials stay as they are: {error}", "warning")
            self.put(self.desk)
        self._tell(notice or f"{len(chat.said)} turns", "warning" if notice else "information")

    def save(self, path: Path) -> None:
        """Write the chat to a place; the ending says as what.

        Raises:
            OutputError: another ending, or a place that cannot be written.
        """
        write_text(path, self.written(path.suffix))

    def written(self, suffix: str) -> str:
        """The chat as a file of a kind.

        Raises:
            OutputError: there is no such kind.
        """
        from steerkit.plots.pages import chat_html

        match suffix:
            case ".jsonl":
                return self.chat.written()
            case ".md":
                return markdown(self.chat, self.probe)
            case ".html":
                return chat_html(self.chat, self.probe)
        raise OutputError(f"cannot write a {suffix or 'nameless'} file; end it in .jsonl, .md or .html")

    def command(self) -> str:
        """The last message under this steering, as a command."""
        asked = next((said.content for said in reversed(self.chat.said) if said.role == "user"), "Who are you?")
        steer = ["-s", str(self.desk.steering)] if self.desk.steering else []
        model = ["-m", self.chat.model] if self.plan.named else []
        return shlex.join(["steerkit", "generate", asked, *steer, *model])


BUSY = {
    "read": "reading",
    "extract": "extracting",
    "fetch": "fetching the model",
    "unpack": "unpacking the model",
    "convert": "converting the model, once",
}


def _version(path: Path) -> tuple[int, int] | None:
    """What changes when somebody writes a file."""
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None


def new_name(path: Path) -> Path:
    """The first name like this one that is free."""
    stem = path.stem.split("+")[0]
    names = (path.with_name(f"{stem}+{i}{path.suffix}") for i in range(1, 10_000))
    return next(name for name in names if not name.exists())
