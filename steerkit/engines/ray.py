"""Work on Ray: a pool of actors, on this machine or a cluster, each with the model loaded once.

A worker that dies is replaced, and its piece is done again. Whoever drives the work writes all results, so workers need
nothing of it but the model under the same name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from steerkit import errors
from steerkit.adapters import split_adapter
from steerkit.engines.actors import Actor
from steerkit.engines.boards import DEATHS, Board, Turn
from steerkit.engines.clusters import ASIDE, Pool, join
from steerkit.errors import ModelError, SteerkitError
from steerkit.weights import Progress, ignore_progress
from steerkit.work import Job, Known, Plain, Watch, ignore_watch

AHEAD = 4
"""So many pieces for each worker may be out, or back before their turn."""
GLANCE = 0.5
"""Seconds between two looks at how far everybody is."""
READY = 900
"""Seconds in which one worker is ready: on a busy cluster it waits for its turn, and weights may have to be fetched."""


class RayWorkers:
    """Workers on Ray, from `with` to its end.

    A process that is connected to Ray already uses that, and leaves it as it is; the workers go in any case.
    """

    def __init__(
        self,
        pool: Pool,
        known: Known | None = None,
        files: Mapping[str, bytes] | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        """Plan.

        Args:
            pool: who is wanted
            known: the model that they must have; what the first of them has if none is given
            files: contents by relative path, for tasks that look for vectors and personas in the working folder
            progress: told how many workers of how many are ready
        """
        self._pool, self._known, self._files, self._progress = pool, known, files, progress
        self._ray: Any = None
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, Turn]] = {}
        self._failed = 0
        self._parcels = 0

    def __enter__(self) -> RayWorkers:
        """Connect, and wait for the first worker.

        Raises:
            SteerkitError: there is no Ray, no cluster, or no room in it.
            ModelError: a worker cannot load the model, or has another one.
        """
        try:
            self._room = join(self._pool)
            self._ray = self._room.ray
            self._packed = [self._ray.put(dict(self._files))] if self._files is not None else []
            deadline = time.monotonic() + READY
            self._progress("workers", 0, self.n)
            while not self._idle:
                self._fill()
                if time.monotonic() > deadline:
                    raise SteerkitError(
                        f"no worker was ready in {READY // 60} minutes; is there room at {self._room.place}?"
                    )
                self._receive(None)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Let everybody go, and leave nothing running that was started here."""
        ray = self._ray
        if ray is None or not ray.is_initialized():
            return
        try:
            self._dismiss(self._everybody())
        finally:
            self._starting, self._idle, self._running = {}, [], {}
            self._room.leave()

    @property
    def n(self) -> int:
        """How many workers there are."""
        return self._room.n

    @property
    def waiting(self) -> int:
        """How many of them are not ready yet."""
        return self.n - len(self._idle) - len(self._running)

    @property
    def model(self) -> Known:
        """The model that all of them have."""
        assert self._known is not None, "nobody has come yet"
        return self._known

    def run(self, task: str, jobs: Iterable[Job], watch: Watch = ignore_watch) -> Iterator[Plain]:
        """Do jobs; see `work.Workers`.

        Raises:
            SteerkitError: what a worker raised, or several workers died of one piece.
            ModelError: a worker that joined has another model.
        """
        board = Board(jobs, AHEAD * self.n, self._send)
        try:
            while True:
                self._fill()
                while self._idle and (turn := board.draw()) is not None:
                    actor = self._idle.pop()
                    number, reference = turn.parcel
                    asked = actor.do.remote(task, number, [reference], turn.job.piece)
                    self._running[asked] = actor, turn
                yield from board.ready()
                if board.over:
                    return
                if not self._receive(board):
                    self._look(watch)
        finally:
            # Whoever is still at a piece that nobody wants goes; a later run brings others.
            self._dismiss([actor for actor, _ in self._running.values()])
            self._running = {}

    def _dismiss(self, actors: Sequence[Any]) -> None:
        """Let some clear up what they have on their disks, and go, whatever they are at."""
        try:
            if self._files and actors:
                leaving = [actor.leave.options(concurrency_group=ASIDE).remote() for actor in actors]
                self._ray.wait(leaving, num_returns=len(leaving), timeout=1)
        except self._ray.exceptions.RayError:
            pass
        finally:
            for actor in actors:
                self._ray.kill(actor, no_restart=True)

    def _receive(self, board: Board | None) -> bool:
        """Wait a moment for whoever has something to say; whether anybody had."""
        ray = self._ray
        known = [*self._starting, *self._running]
        ready, _ = ray.wait(known, num_returns=1, timeout=GLANCE)
        for reference in ready:
            try:
                answer = ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                self._bury(reference, board, error)
                continue
            if "error" in answer:
                kind, message = answer["error"]
                raise getattr(errors, kind, SteerkitError)(message)
            if reference in self._starting:
                self._welcome(self._starting.pop(reference), answer)
            elif board is not None:
                actor, turn = self._running.pop(reference)
                self._idle.append(actor)
                self.model.notes.extend(note for note in answer["notes"] if note not in self.model.notes)
                board.take(turn, answer["result"])
        return bool(ready)

    def _welcome(self, actor: Any, told: Mapping[str, Any]) -> None:
        """Let a worker in whose model is the one that the others have."""
        theirs, ours = Known.from_json(told["known"]), self._known or Known.from_json(told["known"])
        reason = ours.fingerprint.difference(theirs.fingerprint)
        if reason is None and ours.dtype != theirs.dtype:
            reason = f"{theirs.dtype} against {ours.dtype}"
        if reason is not None:
            raise ModelError(
                f"the worker on {told['node']} has another model than {ours.name} here ({reason}); "
                "give all machines the same files"
            )
        if told["version"] != version("persona-steerkit"):
            raise SteerkitError(
                f"the worker on {told['node']} has steerkit {told['version']}, and this is "
                f"{version('persona-steerkit')}; install the same on all machines"
            )
        self._known = ours
        self._failed = 0
        self._idle.append(actor)
        self._progress("workers", self.n - len(self._starting), self.n)

    def _bury(self, reference: Any, board: Board | None, error: Exception) -> None:
        """Have the piece of a worker who died done again; somebody else comes for it."""
        if reference in self._starting:
            self._ray.kill(self._starting.pop(reference), no_restart=True)
            self._failed += 1
            if self._failed >= DEATHS:
                said = " ".join(str(error).split())[:200]
                raise SteerkitError(
                    f"{self._failed} workers died while they loaded the model; there may not be memory for "
                    f"{self.n} of them: try fewer --workers ({said})"
                ) from error
        elif board is not None:
            actor, turn = self._running.pop(reference)
            self._ray.kill(actor, no_restart=True)
            note = "a worker died; another one did its piece again"
            self.model.notes.extend([note] if note not in self.model.notes else [])
            board.again(turn)

    def _look(self, watch: Watch) -> None:
        """Ask everybody how far they are; whoever does not answer at once has other things to do."""
        if watch is ignore_watch:
            return
        ray = self._ray
        asked = {actor.look.options(concurrency_group=ASIDE).remote(): turn for actor, turn in self._running.values()}
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=GLANCE) if asked else ([], [])
        for reference in ready:
            try:
                stage, done, total = ray.get(reference)
            except ray.exceptions.RayError:
                continue
            if stage:
                watch(asked[reference].index, stage, done, total)

    def _fill(self) -> None:
        """Start workers until there are as many as were asked for."""
        kind = self._ray.remote(**self._room.options)(Actor)
        for _ in range(self.n - len(self._everybody())):
            thinking = self._pool.thinking, self._pool.include_thoughts
            place = self._room.device, self._pool.dtype, self._room.threads
            actor = kind.remote(_absolute(self._pool.model), *place, thinking)
            self._starting[actor.hello.remote(self._packed)] = actor

    def _everybody(self) -> list[Any]:
        return [*self._starting.values(), *self._idle, *(actor for actor, _ in self._running.values())]

    def _send(self, shared: Plain) -> tuple[int, Any]:
        """Put what pieces have in common where all workers find it."""
        self._parcels += 1
        return self._parcels, self._ray.put(shared)


def _absolute(model: str | None) -> str | None:
    """A model's name that means the same in any working folder."""
    name, adapter = split_adapter(model)

    def whole(part: str) -> str:
        path = Path(part).expanduser()
        return str(path.resolve()) if path.exists() else part

    if adapter is None:
        return None if name is None else whole(name)
    return f"{whole(name) if name else ''}+{whole(adapter)}"
