"""What runs in a worker's own process: a model that is loaded once, and pieces of work that it does.

Everything that comes and goes is plain data. Errors of ours go back as data too, so that they are the same one line.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from steerkit.errors import SteerkitError

FOLDER = "steerkit-worker-"
"""How a worker's own folder is called, with the number of its process behind."""


class Actor:
    """A worker with one model. Importing and making it costs nothing; `hello` loads."""

    def __init__(
        self, model: str | None, device: str | None, dtype: str, threads: int, thinking: tuple[str, bool]
    ) -> None:
        self._named = model, device, dtype
        self._thinking = thinking
        self._threads = threads
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._told: list[Any] = ["", 0, 0]
        self._parcel = 0
        self._shared: Any = None

    def hello(self, files: Sequence[Any]) -> dict[str, Any]:
        """Load the model, and tell what it is.

        Args:
            files: nothing, or where a mapping of paths to contents lies, which this worker then works beside
        """
        try:
            self._settle(files)
            import torch

            torch.set_num_threads(self._threads)
            from steerkit.loading import load_model
            from steerkit.work import Bench, Known

            self._model = load_model(*self._named)
            if self._thinking != ("auto", False):
                self._model = self._model.with_thinking(*self._thinking)
            self._bench = Bench(self._model)
            known = Known.of(self._model).to_json()
        except SteerkitError as error:
            return _refusal(error)
        return {"known": known, "node": socket.gethostname(), "version": version("persona-steerkit")}

    def do(self, task: str, parcel: int, shared: Sequence[Any], piece: Any) -> dict[str, Any]:
        """One piece of work.

        Args:
            task: `module:function`
            parcel: the number of what it has in common with others, which is fetched when it changes
            shared: where that lies
            piece: its own data
        """
        if parcel != self._parcel:
            self._parcel, self._shared = parcel, _fetch(shared[0])
        self._told = ["", 0, 0]
        try:
            result = self._bench.do(task, self._shared, piece, self._tell)
        except SteerkitError as error:
            return _refusal(error)
        notes = list(self._model.notes)
        self._model.notes.clear()
        return {"result": result, "notes": notes}

    def look(self) -> list[Any]:
        """How far it is with its piece: a stage, how much is done, of how much."""
        return self._told

    def leave(self) -> None:
        """Take away the folder it worked in."""
        if self._folder is not None:
            os.chdir(tempfile.gettempdir())
            self._folder.cleanup()

    def _settle(self, files: Sequence[Any]) -> None:
        """Work in a folder of its own, in which lie the files of whoever drives the work, and nothing else."""
        if not files or self._folder is not None:
            return
        contents: Mapping[str, bytes] = _fetch(files[0])
        clear_up()
        self._folder = tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-")
        for name, data in contents.items():
            path = Path(self._folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        os.chdir(self._folder.name)

    def _tell(self, stage: str, done: int, total: int) -> None:
        self._told = [stage, done, total]


def clear_up() -> None:
    """Take away folders of workers who were killed and could not do so themselves."""
    for path in Path(tempfile.gettempdir()).glob(f"{FOLDER}[0-9]*-*"):
        process = int(path.name.removeprefix(FOLDER).split("-")[0])
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            # It is somebody else's, and alive.
            continue


def _fetch(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def _refusal(error: SteerkitError) -> dict[str, Any]:
    return {"error": [type(error).__name__, str(error)]}
