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
from steerkit.steering import Steering
from steerkit.tui import speaker as say
from steerkit.tui.desk import Desk, Dial
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


@dataclass
class Live:
    """A reply while it is being made."""

    probes: tuple[str, ...]
    compare: bool
    replaces: tuple[Said, ...] = ()
    """What stood where it will stand, to go back to if nothing comes."""
    first: float = 0.0
    """When its first token came, by the speaker's clock."""
    last: float = 0.0
    """When its latest token came."""
    heard: list[say.Heard] = field(default_factory=list)
    beside: list[say.Heard] = field(default_factory=list)
    steer: list[tuple[int, str]] = field(default_factory=list)

    def said(self) -> Said:
        """The reply as far as it is."""
        said = _said(self.heard, self.probes, tuple(self.steer))
        return replace(said, unsteered=_said(self.beside, self.probes, ((0, ""),))) if self.compare else said

    @property
    def speed(self) -> float:
        """Tokens a second since the first one."""
        return (len(self.heard) - 1) / max(self.last - self.first, 1e-6)


def _said(heard: list[say.Heard], probes: tuple[str, ...], steer: tuple[tuple[int, str], ...]) -> Said:
    text = "".join(token.text for token in heard).strip()
    tokens, scores = tuple(token.text for token in heard), tuple(token.scores for token in heard)
    return Said("assistant", text, steer, probes, tokens, scores)


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
        self._waiting: str | None = None
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
                    self._tell(f"the first {chat.forgotten} turns no longer fit and are no longer read", "warning")
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
        self.chat = replace(self.chat, model=model.name)

    def _end(self, why: str) -> None:
        """Keep the reply as far as it came."""
        self._extracting = ""
        live, self.live = self.live, None
        self.status = why
        if live is None:
            return
        if live.heard:
            self.chat = replace(self.chat, said=(*self.chat.said, live.said()), steer=str(self.desk.steering))
            self.status = why or f"{len(live.heard)} tokens, {live.speed:.0f}/s"
        elif live.replaces:
            self.chat = replace(self.chat, said=(*self.chat.said, *live.replaces))
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
        self.speaker.steering = desk.steering
        named = [(dial.name, dial.vector) for dial in desk.dials]
        named += [(name, self.vectors[name]) for name in self.plan.probes]
        self.reads = {name: self.reads.get(name) or Probe.of(vector, name=name) for name, vector in named}
        if self.probe not in self.reads:
            self.probe = next(iter(self.reads), "")

    def missing(self) -> str:
        """The first persona that the command line names and that has no vector yet."""
        here, known = set(self.vectors), set(load_personas())
        names = [*re.findall(r"[a-z_][a-z0-9_]*", self.plan.steer), *self.plan.probes]
        return next((name for name in names if name in known and name not in here), "")

    def lay_out(self) -> None:
        """Make the dials that the command line asked for.

        Raises:
            SteerkitError: the expression does not parse, or a vector fits another model.
        """
        text = self.plan.steer
        self.put(Desk.of(Steering.parse(text, self.vectors) if text.strip() else Steering()))

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
            self._waiting = text
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

    def again(self, turn: int | None = None) -> None:
        """Say a reply again, the last one if none is named; what came after it goes."""
        if self.busy or self.model is None or not self.chat.said:
            return
        place = len(self.chat.said) - 1 if turn is None else turn
        place += self.chat.said[place].role == "user"
        while place > 0 and self.chat.said[place - 1].role != "user":
            place -= 1
        if place == 0:
            return
        gone = self.chat.said[place:]
        forgotten = self.chat.forgotten if self.chat.forgotten < place else 0
        self.chat = replace(self.chat, said=self.chat.said[:place], forgotten=forgotten)
        self._speak(gone)

    def _speak(self, replaces: tuple[Said, ...] = ()) -> None:
        self.live = Live(tuple(self.reads), self.comparing, replaces)
        self.status = "reading"
        self.speaker.speak(self.chat, tuple(self.reads.values()), self.plan.sampling, self.comparing)

    def compare(self) -> None:
        """The unsteered reply beside the steered one: to the last message now, and to those that follow."""
        self.comparing = not self.comparing
        last = self.chat.said[-1] if self.chat.said else None
        if self.comparing and last and last.role == "assistant" and last.unsteered is None:
            self.again()

    def extract(self, name: str) -> None:
        """Make a vector that is not there yet."""
        if self.busy:
            self._tell("esc stops what is going on; then the vector can be made", "information")
            return
        self._extracting, self.status = name, f"extracting {name}"
        self.speaker.extract(name)

    # Files -----------------------------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Write the chat where it is kept; a full disk is told, and stops nothing."""
        if any(said.role == "assistant" for said in self.chat.said):
            try:
                self.chat.save(self.plan.kept)
            except SteerkitError as error:
                self._tell(str(error), "error")

    def new(self, chat: Chat | None = None) -> None:
        """Another chat; what was said before is kept in its file."""
        self.keep()
        if self.plan.kept.exists():
            self.plan.kept = new_name(self.plan.kept)
        system = tuple(said for said in self.chat.said if said.role == "system")
        self.chat = replace(chat or Chat("", system), model=self.model.name if self.model else "")

    def load(self, path: Path) -> None:
        """Go on with a chat that was saved.

        Raises:
            PromptError: it cannot be read.
        """
        chat, notice = load_chat(path)
        self.new(chat)
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
        from steerkit.plots import chat_html

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


def new_name(path: Path) -> Path:
    """The first name like this one that is free."""
    stem = path.stem.split("+")[0]
    names = (path.with_name(f"{stem}+{i}{path.suffix}") for i in range(1, 10_000))
    return next(name for name in names if not name.exists())
