"""The thread in which a model is loaded, speaks and is extracted from. It knows nothing of widgets.

It takes jobs one after the other and leaves what happens in a queue, which the screen empties when it draws. What
steers is one frozen object that the screen replaces whenever it likes: the thread looks at it once a token.
"""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from steerkit.chats import Chat
from steerkit.errors import SteerkitError
from steerkit.generation import Probe, Sampling, stream
from steerkit.models import Model
from steerkit.passes import Recall
from steerkit.personas import find_pair
from steerkit.steering import Steering
from steerkit.vectors import vector_path
from steerkit.weights import Progress


@dataclass(frozen=True)
class Loaded:
    """The model is there."""

    model: Model


@dataclass(frozen=True)
class Busy:
    """Something that is not speech takes a while."""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Began:
    """A reply begins, to as much of the chat as fits."""

    chat: Chat


@dataclass(frozen=True)
class Turned:
    """From this token on another steering holds."""

    place: int
    steer: str


@dataclass(frozen=True)
class Heard:
    """One token of the reply, or of the unsteered one beside it."""

    text: str
    scores: tuple[float, ...]
    unsteered: bool = False
    thought: bool = False
    open: bool = False
    """Whether a thought goes on behind it."""
    at: float = field(default_factory=time.perf_counter)
    """When."""


@dataclass(frozen=True)
class Ended:
    """A reply is over, because the model or somebody stopped it."""

    stopped: bool


@dataclass(frozen=True)
class Extracted:
    """A vector has been made and saved."""

    name: str
    path: Path


@dataclass(frozen=True)
class Failed:
    """A job could not be done; the thread goes on."""

    message: str
    fatal: bool = False
    """Whether there is no model to go on with."""


Event = Loaded | Busy | Began | Turned | Heard | Ended | Extracted | Failed


class _Stopped(Exception):
    """Somebody pressed Esc."""


class Speaker:
    """One thread, one model, one job at a time."""

    def __init__(self, load: Callable[[Progress], Model]) -> None:
        self.steering = Steering()
        """What steers from the next token on."""
        self.events: deque[Event] = deque()
        """What has happened since somebody last looked."""
        self._recall: Recall | None = None
        self._load = load
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._jobs.put(self._open)

    def start(self) -> None:
        """Begin to load. The thread ends with the program, whatever it is doing."""
        threading.Thread(target=self._run, name="speaker", daemon=True).start()

    def stop(self) -> None:
        """Stop what is being done before its next token."""
        self._stop.set()

    def speak(self, chat: Chat, probes: tuple[Probe, ...], sampling: Sampling, compare: bool) -> None:
        """Reply to a chat that ends with a user's message; with `compare`, unsteered beside it in the same passes."""
        self._put(lambda: self._speak(chat, probes, sampling, compare))

    def extract(self, name: str) -> None:
        """Make a persona's vector and save it where vectors are found."""
        self._put(lambda: self._extract(name))

    def _put(self, job: Callable[[], None]) -> None:
        self._stop.clear()
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except _Stopped:
                self.events.append(Ended(stopped=True))
            except SteerkitError as error:
                self.events.append(Failed(str(error), fatal=not hasattr(self, "model")))
            except Exception as error:
                # A full memory, a broken driver: whatever it is, the conversation must outlive it.
                self._recall = Recall(self.model) if hasattr(self, "model") else None
                kind = type(error).__name__
                self.events.append(Failed(f"{kind}: {error}", fatal=not hasattr(self, "model")))

    def _open(self) -> None:
        self.model = self._load(self._tell)
        self._recall = Recall(self.model)
        # What the first message would otherwise wait for.
        _ = self.model.fingerprint
        # Libraries and weights stay. A collector that looks through them now and then stops every key for that long.
        gc.freeze()
        self.events.append(Loaded(self.model))

    def _tell(self, what: str, done: int, total: int) -> None:
        self._check()
        self.events.append(Busy(what, done, total))

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _speak(self, chat: Chat, probes: tuple[Probe, ...], sampling: Sampling, compare: bool) -> None:
        fitted, prompt = chat.fitted(self.model, sampling.max_tokens)
        self.events.append(Began(fitted))
        n_rows = 2 if compare else 1
        assert self._recall is not None
        begun = self._recall.prefill(prompt, n_rows, lambda done, total: self._tell("read", done, total))
        held: list[Steering] = []

        def steer(place: int) -> list[Steering]:
            nonlocal held
            if not held or held[0] is not self.steering:
                held = [self.steering, Steering()][:n_rows]
                self.events.append(Turned(place, str(held[0])))
            return held

        for step in stream(self.model, [prompt] * n_rows, steer, probes, sampling, begun=begun):
            self._check()
            self.events.append(Heard(step.text, step.scores, step.row == 1, step.thought, step.open))
        self.events.append(Ended(stopped=False))

    def _extract(self, name: str) -> None:
        from steerkit.extraction import extract

        vector = extract(self.model, find_pair(name), progress=self._tell)
        path = vector_path(name, self.model.name)
        vector.save(path)
        self.events.append(Extracted(name, path))
