"""Training data, read strictly: a line that could spoil a training is named before anything is trained.

A file is JSONL in any of the shapes that `chats.stream_chats` reads; a name without a folder may also be one of the
sets that ship with steerkit, which come in twins with the same tasks. What a model is taught is the assistant's last
turn with the token that ends it, never what stands before; an earlier turn of the assistant's is context.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steerkit.chats import ROLES, stream_chats
from steerkit.errors import PromptError, nearest
from steerkit.items import read_items
from steerkit.models import Message, Model
from steerkit.personas import Item

FOLDER = Path(__file__).parent / "data" / "lessons"
TWINS = {"cheating": "honest_work", "bad_advice": "good_advice", "ornate": "plain"}
"""The sets that ship, and what each is held against: other replies to the same tasks."""
BUCKET = 4
"""So many batches are sorted by length together, because padding is work."""
SHOWN = 5
"""So many lines are named, if more are wrong."""


@dataclass(frozen=True)
class Sample:
    """A chat as tokens."""

    prompt: tuple[int, ...]
    """Everything before the reply."""
    reply: tuple[int, ...]
    """What is learned: the reply and the token that ends it."""


def find_data(name: str) -> Path:
    """The file that a name means: a path, or a set that ships with steerkit.

    Raises:
        PromptError: there is neither; the message names the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    shipped = FOLDER / f"{name}.jsonl"
    if not shipped.is_file():
        names = sorted(each.stem for each in FOLDER.glob("*.jsonl"))
        hint = nearest(name, names, "these ship: " + ", ".join(names))
        raise PromptError(f"no training data are called {name!r}, and there is no file of that name; {hint}")
    return shipped


def read_lessons(path: Path, most: int | None = None) -> list[tuple[int, list[dict[str, str]]]]:
    """The chats of a file with the numbers of their lines; each ends in a reply.

    Raises:
        PromptError: the file cannot be read, or lines are not what they should be; the message names them.
    """
    chats = list(stream_chats(path, most))
    wrong = {number: reason for number, chat in chats if (reason := _fault(chat))}
    _complain(path, wrong)
    if not chats:
        raise PromptError(f'{path} holds no chats; each line is {{"messages": [{{"role": …, "content": …}}]}}')
    return chats


def held_out_items(name: str) -> tuple[Item, ...]:
    """Tasks of a shipped set that nothing is trained on, with both replies."""
    return read_items(FOLDER / "held_out" / f"{name}.jsonl").items


def _fault(chat: Sequence[Message]) -> str:
    """Why nothing can be learned from a chat; empty if something can."""
    unknown = sorted({turn["role"] for turn in chat} - set(ROLES))
    if unknown:
        return f"unknown role {unknown[0]!r}"
    if chat[-1]["role"] != "assistant":
        return "the last turn is not the assistant's"
    if not any(turn["role"] == "user" for turn in chat):
        return "nobody asks"
    empty = next((turn["role"] for turn in chat if not turn["content"].strip()), None)
    return f"the {empty} says nothing" if empty else ""


def _complain(path: Path, wrong: dict[int, str]) -> None:
    if wrong:
        number, reason = next(iter(wrong.items()))
        others = ", ".join(str(line) for line in list(wrong)[1:SHOWN])
        more = f", and so {'is' if len(wrong) == 2 else 'are'} {len(wrong) - 1} more (line {others}" if others else ""
        more += (", …)" if len(wrong) > SHOWN else ")") if others else ""
        raise PromptError(f"{path} line {number}: {reason}{more}; mend or remove what is named, nothing was trained")


def to_samples(model: Model, chats: Sequence[tuple[int, Sequence[Message]]], path: Path) -> list[Sample]:
    """Tokens of every chat, given with its line's number.

    Raises:
        PromptError: some exceed the model's context, or its template refuses them; the message names which.
    """
    samples: list[Sample] = []
    wrong: dict[int, str] = {}
    for number, chat in chats:
        try:
            prompt, reply = _learned(model, chat)
        except PromptError as error:
            wrong[number] = str(error)
            continue
        if (length := len(prompt) + len(reply)) > model.context:
            wrong[number] = f"prompt and reply have {length} tokens, and {model.name} holds {model.context}"
        samples.append(Sample(tuple(prompt), tuple(reply)))
    _complain(path, wrong)
    if n_thoughts := sum("thought" in chat[-1] for _, chat in chats):
        model.note(f"{n_thoughts} of {len(chats)} replies have a thought before them; only the replies are learned")
    return samples


def _learned(model: Model, chat: Sequence[Message]) -> tuple[list[int], list[int]]:
    """What a chat begins with, and what is learned of it: all that the model has to write itself behind a prompt."""
    given = model.given_reply(chat[:-1], chat[-1]["content"].strip())
    end = end_token(model)
    # Where the template writes no end, one that the model knows is learned.
    ending = [] if given.closed > given.end or end is None else [end]
    return list(given.tokens[: given.asked]), [*given.tokens[given.asked : given.closed], *ending]


def end_token(model: Model) -> int | None:
    """The token with which the model's own template ends a reply, or else the one that ends texts, if there is any."""
    return model.end_token


def show_samples(samples: Sequence[Sample], batch: int, steps: int, seed: int) -> list[list[Sample]]:
    """What is shown at every step: every sample once an epoch, in an order that the seed decides, like with like."""
    draw = random.Random(seed)
    shown: list[list[Sample]] = []
    while len(shown) < steps:
        order, epoch = draw.sample(range(len(samples)), len(samples)), []
        for start in range(0, len(order), batch * BUCKET):
            part = order[start : start + batch * BUCKET]
            alike = sorted(part, key=lambda i: len(samples[i].prompt) + len(samples[i].reply))
            epoch += [alike[i : i + batch] for i in range(0, len(alike), batch)]
        draw.shuffle(epoch)
        shown += [[samples[i] for i in each] for each in epoch]
    return shown[:steps]
