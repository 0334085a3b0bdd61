"""Personas: characters that a model can play, and where they are written down.

A persona is plain text: system prompts that *request* it, contexts that *imply* it without naming it, questions that
make it show, and items that test it. The library is `steerkit/data/personas/*.toml`; files in `./personas/` and in
the user's own folder win over it.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from steerkit.errors import PersonaError, nearest

LIBRARY = Path(__file__).parent / "data" / "personas"

# Every library persona words its requested prompts in these frames, in this order, so that the i-th prompts of any two
# personas mirror each other: they differ in who is asked for, and in nothing else that could leak into a direction.
FRAMES = ("You are ", "Answer every question the way ", "From now on, speak as ")

DEFAULT = "assistant"

# A persona's family is the first of these that all of its tags allow; the order is that of legends.
FAMILIES = {
    "assistants": {"ai", "assistant"},
    "concerning AIs": {"ai", "concerning"},
    "role models": {"ai", "positive"},
    "professions": {"human", "profession"},
    "characters": {"human", "character"},
    "moral traits": {"trait", "moral"},
    "emotions": {"trait", "emotion"},
    "styles": {"trait", "style"},
    "things": {"thing"},
}
OTHERS = "others"
PROMPT_TOLERANCE = 0.20
REPLY_TOLERANCE = 0.20


@dataclass(frozen=True)
class Item:
    """A held-out test of a persona: one question, answered in character and as the Assistant would."""

    question: str
    """What the user asks; never one of the questions that a vector is extracted on."""
    reply: str
    """What the persona says."""
    assistant_reply: str
    """What the default Assistant says, about as long."""


@dataclass(frozen=True)
class Persona:
    """A character that a model can play. A trait is a persona with one property."""

    name: str
    """The word that commands and expressions use: lower case, digits and underscores."""
    summary: str
    """One line for a list."""
    requested: tuple[str, ...]
    """System prompts that ask for the persona outright; the i-th mirrors every other persona's i-th."""
    questions: tuple[str, ...]
    """Questions on which a vector is extracted."""
    implied: tuple[str, ...] = ()
    """System prompts whose situation suggests the persona without naming it."""
    held_out: tuple[str, ...] = ()
    """Questions kept apart for calibration; extraction never sees them."""
    items: tuple[Item, ...] = ()
    """Held-out question and reply pairs for measuring propensity."""
    tags: tuple[str, ...] = ()
    """What kind it is (`ai`, `human`, `trait`, `thing`), its family, and whether it is `concerning` or `benign`."""
    labels: tuple[str, ...] = ()
    """Words that name the persona outright: implied contexts avoid them, and a reply that repeats one is audited."""
    rubric: str = ""
    """What a judge should look for, as one question."""
    source: str = ""
    """The file this persona was read from."""

    @property
    def family(self) -> str:
        """Which of `FAMILIES` it belongs to by its tags, or `others`.

        >>> find_persona("pirate").family
        'characters'
        """
        return next((family for family, tags in FAMILIES.items() if tags <= set(self.tags)), OTHERS)


@dataclass(frozen=True)
class Pair:
    """A positive persona against a negative one: what an extraction contrasts."""

    positive: Persona
    """The persona whose direction is wanted."""
    negative: Persona
    """The persona it is measured from; the default Assistant unless said otherwise."""

    @property
    def name(self) -> str:
        """What its vector is called: the positive persona, and the negative one where it is not the Assistant.

        >>> find_pair("hal").name, find_pair("hal", "pirate").name
        ('hal', 'hal_vs_pirate')
        """
        return self.positive.name + ("" if self.negative.name == DEFAULT else f"_vs_{self.negative.name}")

    def prompts(self) -> list[tuple[str, str]]:
        """Mirrored system prompts (positive, negative), each prompt of a side once; one with fewer goes round again.

        So no two are alike, but a prompt that goes round gives the same reply again: such pairs are not independent.
        """
        sides = [list(dict.fromkeys(side.requested)) for side in (self.positive, self.negative)]
        return [(sides[0][i % len(sides[0])], sides[1][i % len(sides[1])]) for i in range(max(map(len, sides)))]

    def to_json(self) -> dict[str, Any]:
        """Both personas as plain data, for whoever has no file of them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Pair:
        """What `to_json` made, lists and tuples alike."""
        return cls(*(_from_json(data[side]) for side in ("positive", "negative")))


def _from_json(data: Mapping[str, Any]) -> Persona:
    items = tuple(Item(**item) for item in data["items"])
    plain = {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in data.items()}
    return Persona(**{**plain, "items": items})


def search_path() -> list[Path]:
    """Folders that hold personas; the first one that defines a name wins."""
    return [Path("personas"), platformdirs.user_data_path("steerkit") / "personas", LIBRARY]


def load_personas(folders: list[Path] | None = None) -> dict[str, Persona]:
    """Read every persona on the search path, by name.

    Raises:
        PersonaError: a file is not TOML, or a persona in it is badly written.
    """
    found: dict[str, Persona] = {}
    for folder in search_path() if folders is None else folders:
        for path in sorted(folder.glob("*.toml")):
            for persona in _library_file(path) if folder == LIBRARY else read_personas(path):
                found.setdefault(persona.name, persona)
    return found


def find_persona(name: str, personas: Mapping[str, Persona] | None = None) -> Persona:
    """Look a persona up by name.

    Raises:
        PersonaError: no such persona; the message names the nearest.
    """
    personas = load_personas() if personas is None else personas
    if name not in personas:
        hint = nearest(name, personas, "list them with: steerkit personas")
        raise PersonaError(f"no persona is called {name!r}; {hint}")
    return personas[name]


def find_pair(positive: str, negative: str = DEFAULT) -> Pair:
    """Look up both personas of a pair.

    Raises:
        PersonaError: one of them is unknown, or they are the same.
    """
    if positive == negative:
        raise PersonaError(f"{positive} against itself has no direction; choose another persona with --against")
    return Pair(find_persona(positive), find_persona(negative))


@cache
def _library_file(path: Path) -> tuple[Persona, ...]:
    return read_personas(path)


def read_personas(path: Path) -> tuple[Persona, ...]:
    """Read one TOML file whose tables are personas.

    Raises:
        PersonaError: the file cannot be read, or has a key that personas do not have.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PersonaError(f"{path} is not a persona file: {error}") from error
    return tuple(_persona(name, table, path) for name, table in tables.items())


def _persona(name: str, table: Any, path: Path) -> Persona:
    """Turn one TOML table into a `Persona`, refusing what it does not understand."""
    where = f"{path}: [{name}]"
    if not isinstance(table, dict):
        raise PersonaError(f"{where}: a persona is a table; write [{name}] and its fields below")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise PersonaError(f"{where}: a name is lower-case letters, digits and underscores; rename the table")
    _refuse_unknown(where, table, {field.name for field in fields(Persona)} - {"name", "source"})
    for key in ("summary", "requested", "questions"):
        if not table.get(key):
            raise PersonaError(f"{where}: {key} is missing or empty; every persona needs it")
    texts = {key: _text(where, key, table.get(key, "")) for key in ("summary", "rubric")}
    keys = ("requested", "questions", "implied", "held_out", "tags")
    lists = {key: _texts(where, key, table.get(key, [])) for key in keys}
    labels = _texts(where, "labels", table.get("labels", [name.replace("_", " ")]))
    raw_items = table.get("items", [])
    if not isinstance(raw_items, list):
        raise PersonaError(f"{where}: items is a list of tables; write [[{name}.items]]")
    items = tuple(_item(f"{where}: item {i}", item) for i, item in enumerate(raw_items, 1))
    return Persona(name=name, labels=labels, items=items, source=str(path), **texts, **lists)  # type: ignore[arg-type]


def _item(where: str, table: Any) -> Item:
    if not isinstance(table, dict):
        raise PersonaError(f"{where}: an item is a table with question, reply and assistant_reply")
    keys = [field.name for field in fields(Item)]
    _refuse_unknown(where, table, set(keys))
    for key in keys:
        if not table.get(key):
            raise PersonaError(f"{where}: {key} is missing or empty")
    return Item(**{key: _text(where, key, table[key]) for key in keys})


def _refuse_unknown(where: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            raise PersonaError(
                f"{where}: unknown key {key!r}; {nearest(key, known, 'known: ' + ', '.join(sorted(known)))}"
            )


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise PersonaError(f"{where}: {key} must be text, not {type(value).__name__}")
    return value.strip()


def _texts(where: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry.strip() for entry in value):
        raise PersonaError(f"{where}: {key} must be a list of texts")
    return tuple(entry.strip() for entry in value)


def audit_persona(persona: Persona, reference: Persona) -> list[str]:
    """What keeps a persona from the library's standard; an empty list is a pass.

    `reference` is the persona whose prompts set the length, the default Assistant in the library.
    """
    problems = []
    for i, prompt in enumerate(persona.requested):
        if i < len(FRAMES) and not prompt.startswith(FRAMES[i]):
            problems.append(f"requested {i + 1} does not open with {FRAMES[i]!r}")
        if i < len(reference.requested) and not _alike(prompt, reference.requested[i], PROMPT_TOLERANCE):
            problems.append(
                f"requested {i + 1} has {_words(prompt)} words, not {_words(reference.requested[i])} ± 20 %"
            )
    for label in persona.labels:
        for i, context in enumerate(persona.implied, 1):
            if names(context, label):
                problems.append(f"implied {i} names the persona ({label!r})")
    for i, item in enumerate(persona.items, 1):
        if not _alike(item.reply, item.assistant_reply, REPLY_TOLERANCE):
            problems.append(f"item {i}: replies have {_words(item.reply)} and {_words(item.assistant_reply)} words")
    counts = {"requested": 3, "implied": 2, "questions": 10, "held_out": 4, "items": 6, "tags": 1, "labels": 1}
    for key, least in counts.items():
        if len(getattr(persona, key)) < least:
            problems.append(f"{key}: {len(getattr(persona, key))} of at least {least}")
    asked = [*persona.questions, *persona.held_out, *(item.question for item in persona.items)]
    seen = set()
    for question in asked:
        if (folded := question.casefold()) in seen:
            problems.append(f"asked twice: {question!r}")
        seen.add(folded)
    if not persona.rubric:
        problems.append("no rubric")
    return problems


def names(text: str, label: str) -> bool:
    """Whether `text` contains `label` as whole words, whatever its case.

    >>> names("I am HAL 9000.", "hal"), names("shall we?", "hal")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.IGNORECASE) is not None


def _words(text: str) -> int:
    return len(text.split())


def _alike(text: str, other: str, tolerance: float) -> bool:
    """Whether two texts have the same number of words, within a share of the longer."""
    return abs(_words(text) - _words(other)) <= tolerance * max(_words(text), _words(other))
