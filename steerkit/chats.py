"""Chats: what was said, under which steering and with which scores; files of them, and what still fits a context."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerkit.errors import PromptError
from steerkit.files import write_text
from steerkit.thinking import folded, split_thought

if TYPE_CHECKING:
    from steerkit.models import Model

FORMAT = 1
ROLES = ("system", "user", "assistant")
SPEAKERS = {"human": "user", "gpt": "assistant", "model": "assistant", "developer": "system"}
"""What others call these roles."""
KEPT = 0.75
"""The share of the context that a chat may fill after its oldest turns have gone, so that they do not go one by one."""


@dataclass(frozen=True)
class Said:
    """One turn of a chat."""

    role: str
    """Who spoke: system, user or assistant."""
    content: str
    """What was said."""
    steer: tuple[tuple[int, str], ...] = ()
    """Which steering held from which token of a reply on, as expressions."""
    probes: tuple[str, ...] = ()
    """What was read."""
    tokens: tuple[str, ...] = ()
    """The text that each token of a reply added."""
    scores: tuple[tuple[float, ...], ...] = ()
    """One score a probe for each of them."""
    unsteered: Said | None = None
    """What the model would have said without steering, where that was asked for."""
    thought: str = ""
    """What was thought before it was said, which the model does not read again."""

    def scores_on(self, probe: str) -> list[float]:
        """The score of every token; empty where the probe was not read."""
        if probe not in self.probes:
            return []
        column = self.probes.index(probe)
        return [row[column] for row in self.scores]

    @cached_property
    def means(self) -> dict[str, float]:
        """The mean score of each probe over the tokens."""
        columns = zip(self.probes, zip(*self.scores, strict=True), strict=True) if self.scores else ()
        return {name: sum(column) / len(column) for name, column in columns}

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file: a message, and what is known of it."""
        data: dict[str, Any] = {"role": self.role, "content": self.content}
        data |= {"thought": self.thought} if self.thought else {}
        if self.tokens:
            scores = [[round(score, 4) for score in row] for row in self.scores]
            data |= {"steer": list(self.steer), "probes": list(self.probes), "tokens": list(self.tokens)}
            data |= {"scores": scores}
        return data | ({"unsteered": self.unsteered.to_json()} if self.unsteered else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Said:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if data["role"] not in ROLES:
            raise ValueError(f"unknown role {data['role']!r}")
        thought, content = thought_apart(data, str(data["content"]))
        said = cls(
            data["role"],
            content,
            tuple((int(place), str(text)) for place, text in data.get("steer", ())),
            tuple(map(str, data.get("probes", ()))),
            tuple(map(str, data.get("tokens", ()))),
            tuple(tuple(map(float, row)) for row in data.get("scores", ())),
            cls.from_json(data["unsteered"]) if "unsteered" in data else None,
            thought,
        )
        if len(said.tokens) != len(said.scores) or any(len(row) != len(said.probes) for row in said.scores):
            raise ValueError("scores and tokens do not match")
        return said


@dataclass(frozen=True)
class Chat:
    """A conversation, and how it was steered."""

    model: str
    """What the model is called."""
    said: tuple[Said, ...] = ()
    """Its turns."""
    steer: str = ""
    """Where the dials stand, as an expression."""
    floor: bool = False
    """Whether the model was held at the Assistant."""
    forgotten: int = field(default=0, compare=False)
    """How many of its oldest turns the model no longer reads, because they do not fit its context."""
    template_date: str = ""
    """The date that the model's chat template writes into it, if it writes one."""

    def messages(self) -> list[dict[str, str]]:
        """The chat as the model reads it: without what is forgotten, but always with the system message."""
        rest = self.said[self.forgotten :]
        if self.forgotten and self.said[0].role == "system":
            rest = (self.said[0], *rest)
        return [{"role": said.role, "content": said.content} for said in rest]

    def fitted(self, model: Model, room: int) -> tuple[Chat, list[int]]:
        """The chat with its oldest turns forgotten if they do not fit, and its tokens.

        Raises:
            PromptError: not even the last message fits.
        """
        model = model.at_date(self.template_date)
        n_tokens = len(model.tokenize(model.render(self.messages())))
        if n_tokens + room <= model.context:
            return self, model.chat_tokens(self.messages(), room)
        users = [i for i, said in enumerate(self.said) if said.role == "user" and i > self.forgotten]
        for place in users:
            shorter = replace(self, forgotten=place)
            n_tokens = len(model.tokenize(model.render(shorter.messages())))
            if n_tokens + room <= KEPT * model.context or place == users[-1]:
                return shorter, model.chat_tokens(shorter.messages(), room)
        return self, model.chat_tokens(self.messages(), room)

    def drift(self, probe: str) -> list[float]:
        """The mean score of every reply on a probe; replies that were not read are left out."""
        return [said.means[probe] for said in self.said if probe in said.means]

    def save(self, path: Path) -> None:
        """Write a JSONL file atomically: a line that says what it is, and a message a line.

        Raises:
            OutputError: the place cannot be written; what stood there is untouched.
        """
        write_text(path, self.written())

    def written(self) -> str:
        """The lines that `save` writes."""
        head = {"steerkit": "chat", "format": FORMAT, "model": self.model, "steer": self.steer, "floor": self.floor}
        head |= {"template_date": self.template_date} if self.template_date else {}
        lines = [head, *(said.to_json() for said in self.said)]
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def load_chat(path: Path) -> tuple[Chat, str]:
    """Read what `Chat.save` wrote, and say what had to be left out: the end of a file that was cut.

    Raises:
        PromptError: it is not such a file, or is damaged before its end.
    """
    lines = _lines(path)
    try:
        head = json.loads(lines[0][1])
        if head["steerkit"] != "chat" or head["format"] != FORMAT:
            raise ValueError(f"format {head['format']}")
        chat = Chat(str(head["model"]), steer=str(head["steer"]), floor=bool(head.get("floor", False)))
        chat = replace(chat, template_date=str(head.get("template_date", "")))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PromptError(f"{path} is not a chat that steerkit saved; chat writes one with: ctrl+s") from error
    said: list[Said] = []
    notice = ""
    for number, line in lines[1:]:
        try:
            said.append(Said.from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            if number != lines[-1][0]:
                raise PromptError(f"{path} line {number} is damaged ({error}); remove it to load the rest") from error
            notice = f"{path.name} was cut in line {number}; what stood before is here"
    return replace(chat, said=tuple(said)), notice


def date_in(path: Path) -> str:
    """The date that a chat template wrote into a chat that was saved; empty for any other file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            return str(json.loads(file.readline()).get("template_date", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def read_chats(path: Path) -> list[list[dict[str, str]]]:
    """Read the chats of any JSONL file: lists of messages, objects with `messages`, or what `Chat.save` wrote.

    Raises:
        PromptError: it cannot be read, or some line is not a chat; the message names the line.
    """
    chats: list[list[dict[str, str]]] = []
    saved = False
    for number, line in _lines(path):
        try:
            data = json.loads(line)
        except ValueError as error:
            raise _not_a_chat(path, number) from error
        if isinstance(data, dict) and data.get("steerkit") == "chat":
            chats.append([])
            saved = True
        elif saved and isinstance(data, dict) and "role" in data:
            chats[-1] += _messages([data], path, number)
        else:
            saved = False
            whole = data["messages"] if isinstance(data, dict) and "messages" in data else data
            chats.append(_messages(whole, path, number))
    if not any(chats):
        raise PromptError(f"{path} holds no chats; each line is a list of messages with role and content")
    return [chat for chat in chats if chat]


def stream_chats(path: Path, most: int | None = None) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Chats of a JSONL file of training data, each with its line's number; the file may be of any length.

    A line is {"messages": [{"role", "content"}]}, {"conversations": [{"from", "value"}]} (ShareGPT) or such a list
    alone. Who is called human, gpt, model or developer elsewhere gets the role's name here; roles that are not ours
    stay as they are.

    Args:
        path: the file
        most: only so many chats from its beginning

    Raises:
        PromptError: it cannot be read, or some line is not a chat; the message names the line.
    """
    try:
        with path.open("rb") as file:
            numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
            for number, line in islice(numbered, most):
                try:
                    yield number, _turns(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise _not_a_chat(path, number, error) from error
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error}") from error


def _turns(line: str) -> list[dict[str, str]]:
    """The messages of one line. Raises KeyError, TypeError or ValueError for anything else."""
    data = json.loads(line)
    if isinstance(data, dict):
        data = data["messages"] if "messages" in data else data["conversations"]
    if not isinstance(data, list) or not data:
        raise ValueError("no messages")
    turns = []
    for turn in data:
        role, content = (turn["role"], turn["content"]) if "role" in turn else (turn["from"], turn["value"])
        turns.append(_message(turn, SPEAKERS.get(role, str(role)), content))
    turns = _joined(turns)
    # Half of a surrogate pair is JSON, but no text that a tokenizer takes.
    "".join(turn["content"] for turn in turns).encode("utf-8")
    return turns


def _text(content: Any) -> str:
    """What a turn says: a text, parts that are texts, or nothing, as where a tool is called."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join([str(part["text"]) for part in content])


THOUGHTS = ("thought", "reasoning_content", "reasoning", "thinking")
"""Under which of these keys a message may have its thought; the first is ours."""
THINKING_PARTS = ("thinking", "reasoning", "thought")
"""Types of parts of a message that are thoughts."""


def thought_apart(turn: Mapping[str, Any], content: str) -> tuple[str, str]:
    """The thought of a message and what it says; the thought may have a key of its own, or stand between tags.

    >>> thought_apart({"role": "assistant"}, "<think>Who?</think>I am a computer.")
    ('Who?', 'I am a computer.')
    """
    role = turn.get("role", turn.get("from"))
    if SPEAKERS.get(str(role), role) != "assistant":
        return "", content
    kept = next((value for key in THOUGHTS if isinstance(value := turn.get(key), str) and value.strip()), "")
    within, content = split_thought(content)
    return "\n".join(part for part in (kept.strip(), within) if part), content


def _message(turn: Mapping[str, Any], role: str, content: Any) -> dict[str, str]:
    """A message as our readers have it: role, content, and its thought where it has one."""
    thoughts: list[str] = []
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in THINKING_PARTS]
        thoughts = [_text(part.get(part["type"], part.get("text"))) for part in parts]
        content = [part for part in content if part not in parts]
    thought, said = thought_apart(turn, _text(content))
    if role == "assistant" and str(turn.get("channel") or "final") != "final":
        # A message of its own that is a thought; the reply to which it belongs comes next.
        thought, said = "\n".join(part for part in (thought, said) if part), ""
    thought = "\n".join(part for part in (*thoughts, thought) if part.strip())
    return {"role": role, "content": said, **({"thought": thought} if thought else {})}


def _joined(turns: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Thoughts that came as messages of their own, with the replies behind them."""
    joined: list[dict[str, str]] = []
    for turn in turns:
        last = joined[-1] if joined else {}
        if turn["role"] == last.get("role") == "assistant" and not last["content"] and "thought" in last:
            thought = "\n".join(part for part in (last["thought"], turn.get("thought", "")) if part)
            joined[-1] = {**turn, "thought": thought}
        else:
            joined.append(turn)
    return joined


def _messages(data: Any, path: Path, number: int) -> list[dict[str, str]]:
    try:
        chat = _joined([_message(message, str(message["role"]), message["content"]) for message in data])
    except (KeyError, TypeError) as error:
        raise _not_a_chat(path, number) from error
    unknown = {message["role"] for message in chat} - set(ROLES)
    if not chat or unknown:
        problem = f"unknown role {min(unknown)!r}" if unknown else "no messages"
        raise PromptError(f"{path} line {number}: {problem}; use user or assistant")
    return chat


def _not_a_chat(path: Path, number: int, error: Exception | None = None) -> PromptError:
    """What is wrong with a line, as far as the reader's own error tells."""
    why = " (it is not JSON; was it cut?)" if isinstance(error, json.JSONDecodeError) else ""
    why = " (it is not UTF-8)" if isinstance(error, UnicodeError) else why
    return PromptError(f'{path} line {number} is not a chat{why}; write {{"messages": [{{"role": …, "content": …}}]}}')


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that hold anything, numbered from 1."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.end < len(raw):
            raise PromptError(f"cannot read {path}: {error}") from error
        # A file that was cut may have been cut inside a letter.
        text = raw[: error.start].decode("utf-8-sig")
    lines = text.split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def markdown(chat: Chat, probe: str = "") -> str:
    """The chat to paste somewhere, each reply with its steering and its mean score."""
    lines = [f"# A chat with {chat.model}", ""]
    for said in chat.said:
        steer = ", then ".join(text or "unsteered" for _, text in said.steer)
        about = [steer, f"{probe} {said.means[probe]:+.2f}" if probe in said.means else ""]
        told = " · ".join(part for part in about if part)
        if said.unsteered is not None:
            lines += ["**unsteered**", "", *_quoted(said.unsteered.content), ""]
        lines += [f"**{said.role}**" + (f" _({told})_" if told else ""), ""]
        if said.thought:
            length = folded(len(said.thought.split()), "words").removeprefix("▸ ")
            lines += [f"> <details><summary>{length}</summary>", ">", *_quoted(said.thought), ">", "> </details>", ""]
        lines += [*_quoted(said.content), ""]
    return "\n".join([*lines, "Made with steerkit.", ""])


def _quoted(text: str) -> Iterator[str]:
    return (f"> {line}".rstrip() for line in text.split("\n"))
