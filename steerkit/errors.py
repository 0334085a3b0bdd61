"""Every error that a user can cause, as one tree.

    SteerkitError
    ├── PersonaError       a persona that is unknown or badly written
    ├── ModelError         a model that cannot be found, fetched, checked or read
    │   └── PromptError    a prompt that this model cannot take
    │       └── TemplateError  a chat that its chat template refuses
    ├── VectorError        a vector that is unknown, damaged or made on another model
    ├── ExpressionError    a steering expression that does not parse
    ├── ItemError          a file of items that cannot be read
    ├── TrialError         a sweep whose file is of another sweep, or whose grid is empty
    └── OutputError        a result that cannot be written

The command line prints a `SteerkitError` as one line and exits with 1. Anything else that escapes is a bug of ours,
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SteerkitError(Exception):
    """A problem the user can act on: what happened; what is nearby; what to do."""


class PersonaError(SteerkitError):
    """A persona is unknown or its file is badly written."""


class ModelError(SteerkitError):
    """A model cannot be found, fetched, checked or read."""


class PromptError(ModelError):
    """A prompt is empty or longer than the model's context."""


class TemplateError(PromptError):
    """A model's chat template refuses a chat, or fails on it."""


class VectorError(SteerkitError):
    """A vector is unknown, damaged, or was made on another model."""


class ExpressionError(SteerkitError):
    """A steering expression does not parse, or asks for something that does not exist."""


class ItemError(SteerkitError):
    """Items are unknown, or their file is badly written."""


class TrialError(SteerkitError):
    """A sweep's grid is empty, or its file belongs to another sweep."""


class OutputError(SteerkitError):
    """A result cannot be written; what stood there before is untouched."""


def nearest(name: object, candidates: Iterable[str], otherwise: str = "") -> str:
    """Say which candidates `name` may have meant; what is no text is like none of them.

    >>> nearest("hall", ["hal", "pirate"])
    'did you mean hal?'
    >>> nearest("zzz", ["hal", "pirate"], otherwise="see: steerkit personas")
    'see: steerkit personas'
    """
    written = name.lower() if isinstance(name, str) else ""
    matches = difflib.get_close_matches(written, sorted(candidates), n=3, cutoff=0.5)
    # Of many candidates some are always a little alike; beside one that is nearly the name they are noise.
    likeness = [difflib.SequenceMatcher(None, written, match).ratio() for match in matches]
    matches = [match for match, alike in zip(matches, likeness, strict=True) if alike > max(likeness) - 0.2]
    return f"did you mean {' or '.join(matches)}?" if matches else otherwise
