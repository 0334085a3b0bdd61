"""Items: questions with two answers, one of which shows the persona, read from JSONL files.

Two shapes are understood. With `question`, `reply` and `assistant_reply` an item is ours, with whole replies. With
`question`, `answer_matching_behavior` and `answer_not_matching_behavior` it is one of the model-written evaluations
(arXiv 2212.09251): the answer is one of two options, ` Yes` and ` No` or ` (A)` and ` (B)`. An option's place in the
list moves small models more than its meaning, so each such item is asked in both orders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerkit.errors import ItemError, nearest
from steerkit.models import Message, Model
from steerkit.personas import Item, load_personas

# An option ends where the next one begins, at an empty line, or where the answer would stand.
OPTION = re.compile(
    r"^[ \t]*\(([A-Z])\)[ \t]*(.+?)\s*(?=^[ \t]*\([A-Z]\)|\n[ \t]*\n|^[ \t]*Answer:|\Z)", re.MULTILINE | re.DOTALL
)
OURS = ("question", "reply", "assistant_reply")
THEIRS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


@dataclass(frozen=True)
class Choice:
    """One question in one order of its options."""

    question: str
    """What the user asks, ending in how to answer."""
    matching: str
    """The persona's answer."""
    other: str
    """The other one."""
    asked: str = ""
    """The question as it stands in the file, without how to answer."""


@dataclass(frozen=True)
class ItemSet:
    """Items of one file or one persona, all of one shape."""

    name: str
    """A persona, or the file's name."""
    items: tuple[Item, ...] = ()
    """Questions with whole replies."""
    choices: tuple[tuple[Choice, Choice], ...] = ()
    """Questions with two options, each in both orders."""

    def __len__(self) -> int:
        """How many questions."""
        return len(self.items) or len(self.choices)

    def questions(self) -> list[str]:
        """What is asked, without how to answer."""
        return [item.question for item in self.items] or [first.asked for first, _ in self.choices]

    def head(self, most: int) -> ItemSet:
        """The first few."""
        return ItemSet(self.name, self.items[:most], self.choices[:most])


def load_items(name: str) -> ItemSet:
    """Items of a persona, or of a JSONL file.

    Raises:
        ItemError: there is neither, or a line is of no known shape.
    """
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        return read_items(path)
    personas = load_personas()
    if name not in personas:
        hint = nearest(name, personas, "list personas with: steerkit personas")
        raise ItemError(f"no persona is called {name!r}, and a file of items ends in .jsonl; {hint}")
    if not personas[name].items:
        raise ItemError(f"{name} has no items; add some to {personas[name].source}, or name a .jsonl file")
    return ItemSet(name, personas[name].items)


def read_items(path: Path) -> ItemSet:
    """Read a JSONL file of items.

    Raises:
        ItemError: it cannot be read, is empty, mixes shapes, or has a line of none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ItemError(f"cannot read items from {path}: {error}") from error
    read = [_line(f"{path} line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    items = tuple(entry for entry in read if isinstance(entry, Item))
    choices = tuple(entry for entry in read if not isinstance(entry, Item))
    if not read:
        raise ItemError(f"{path} holds no items; each line is an object with {', '.join(OURS)}")
    if items and choices:
        raise ItemError(f"{path} mixes whole replies with options; keep them in two files")
    return ItemSet(path.stem, items, choices)


def _line(where: str, line: str) -> Item | tuple[Choice, Choice]:
    try:
        data: Any = json.loads(line)
        # Half of a surrogate pair is JSON, but no text that a tokenizer takes.
        text = json.dumps(data, ensure_ascii=False)
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ItemError(f"{where} is not JSON: {' '.join(str(error).split())[:120]}") from error
    for keys in (OURS, THEIRS):
        if isinstance(data, dict) and all(isinstance(data.get(key), str) and data[key].strip() for key in keys):
            values = [data[key] for key in keys]
            return Item(*(value.strip() for value in values)) if keys == OURS else both_orders(where, *values)
    raise ItemError(f"{where} is no item; write an object with {', '.join(OURS)}, or with {', '.join(THEIRS)}")


def both_orders(where: str, question: str, matching: str, other: str) -> tuple[Choice, Choice]:
    """The same question with its options one way round and the other.

    Lettered options swap their texts, so that each letter stands for the persona once; words swap their places.

    Raises:
        ItemError: an answer is not among the options.
    """
    answers = matching.strip(), other.strip()
    if answers[0] == answers[1]:
        raise ItemError(f"{where}: both answers are {answers[0]}; one should show the persona and the other not")
    options = list(OPTION.finditer(question))
    if not options:
        orders = sorted(answers, reverse=True), sorted(answers)
        asked = [f"{question.strip()}\nAnswer with one word, {first} or {second}." for first, second in orders]
        return Choice(asked[0], *answers, question.strip()), Choice(asked[1], *answers, question.strip())
    letters = [found[1] for found in options]
    wanted = [answer.strip("() ") for answer in answers]
    if len(options) != 2 or sorted(wanted) != sorted(letters):
        raise ItemError(f"{where}: the answers {answers[0]} and {answers[1]} are not the two options of the question")
    before, behind = question[: options[0].start()].rstrip(), question[options[-1].end() :]
    behind = behind.strip().removesuffix("Answer:").rstrip()

    def ask(texts: Sequence[str]) -> str:
        listed = [f"({letter}) {text}" for letter, text in zip(letters, texts, strict=True)]
        parts = [before, *listed, behind, "Answer with the letter of your choice."]
        return "\n".join(part for part in parts if part)

    texts = [found[2] for found in options]
    asked, (ours, theirs) = question.strip(), answers
    return Choice(ask(texts), ours, theirs, asked), Choice(ask(texts[::-1]), theirs, ours, asked)


def choice_rows(
    model: Model, choices: Sequence[tuple[Choice, Choice]], before: Sequence[Message] = ()
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Tokens of every order of every choice, the persona's answer first; `before` comes before each question."""
    rows: list[tuple[Sequence[int], Sequence[int]]] = []
    for order in (order for both in choices for order in both):
        chat = [*before, {"role": "user", "content": order.question}]
        rows += model.reply_rows(chat, (order.matching, order.other))
    return rows
