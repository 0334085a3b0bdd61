"""Nothing that steerkit runs installs anything.

Libraries try to: TransformerLens 4.3 runs `pip install torchvision` when a model's image processor cannot be made, and
that replaces torch on the way. `no_installs()` refuses such processes at the interpreter's own audit hook, which sees
every way of starting one. Where the package `kernels` is installed, transformers fetches compiled code from the hub
into this process; that has a switch, which is set here. Ray's is in `engines/clusters.py`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from steerkit.errors import SteerkitError

# Read when transformers is imported; what the user has set stays.
os.environ.setdefault("USE_HUB_KERNELS", "0")

INSTALLERS = {"pip", "pipx", "uv", "conda", "mamba", "micromamba", "poetry", "pdm", "apt", "apt-get", "brew", "npm"}
ALWAYS = {"ensurepip", "easy_install", "uvx"}
"""Programs and modules that do nothing but install."""
VERBS = {"install", "add", "sync", "update", "upgrade"}

# Which argument of an audit event holds the command.
_COMMAND = {"subprocess.Popen": 1, "os.system": 0, "os.exec": 1, "os.posix_spawn": 1, "os.spawn": 2}
_refused: ContextVar[list[str] | None] = ContextVar("refused", default=None)


class InstallRefused(SteerkitError):
    """A library tried to install a package."""


@contextmanager
def no_installs() -> Iterator[list[str]]:
    """Refuse every process that would install a package, in this thread and for as long as this lasts.

    Yields:
        The commands that were refused so far. Libraries often swallow the error and go on without the package.

    Raises:
        InstallRefused: from where the process would have been started.
    """
    _watch()
    refused: list[str] = []
    token = _refused.set(refused)
    try:
        yield refused
    finally:
        _refused.reset(token)


def installs(command: Sequence[Any] | str | bytes) -> bool:
    """Whether a command installs packages; downloading, as `pip download` does, is not installing.

    >>> installs(["python3.11", "-m", "pip", "install", "torchvision", "-q"]), installs("uv pip install torchvision")
    (True, True)
    >>> installs(["sh", "-c", "pip3 install x"]), installs(["python", "-m", "pip", "download", "install"])
    (True, False)
    """
    words = [word for part in _words(command) for word in part.split()]
    names = [re.sub(r"[0-9.]*(\.exe)?$", "", re.split(r"[\\/]", word)[-1].lower()) for word in words]
    for place, name in enumerate(names):
        if name in ALWAYS:
            return True
        if name in INSTALLERS:
            # The first word that is neither an option nor another installer, as in `uv pip install`, says what is done.
            verbs = [word for word in words[place + 1 :] if not word.startswith("-") and word not in INSTALLERS]
            return bool(verbs) and verbs[0] in VERBS
    return False


def _words(command: Sequence[Any] | str | bytes) -> list[str]:
    if isinstance(command, str | bytes | os.PathLike):
        return [os.fsdecode(command)]
    return [os.fsdecode(word) for word in command]


@cache
def _watch() -> None:
    """Put the hook in place, once: it cannot be taken away, and does nothing outside `no_installs`."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _COMMAND or (refused := _refused.get()) is None:
        return
    command = arguments[_COMMAND[event]]
    if installs(command):
        words = _words(command)
        refused.append(words[0] if len(words) == 1 else shlex.join(words))
        raise InstallRefused(
            f"a library tried to run `{refused[-1]}`, and nothing that steerkit runs installs anything; "
            "if you want it, run that yourself"
        )
