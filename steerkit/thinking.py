"""Thoughts: what some models write before a reply, between tags of their own, and where in it the reply begins.

A thought stands where a reply begins. Tags are sought in the text of the tokens, special tokens included, because for
one model a tag is one token and for another it is several.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from steerkit.decoding import Decoder


@dataclass(frozen=True)
class Tags:
    """What stands around a thought."""

    opening: str
    """What a reply begins with that begins with a thought."""
    closing: str
    """What ends the thought."""
    opens: str = ""
    """The pattern of an opening, where it is not the same everywhere."""
    closes: str = ""
    """The pattern of an end, where it is not the same everywhere."""

    def find_end(self, text: str) -> re.Match[str] | None:
        """The first end of a thought."""
        return re.search(self.closes or re.escape(self.closing), text)

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends in a thought in which nothing has been thought yet."""
        return re.search(f"(?:{self.opens or re.escape(self.opening)})\\s*\\Z", prompt) is not None

    def is_closed(self, text: str) -> bool:
        """Whether a text ends behind a thought."""
        return re.search(f"(?:{self.closes or re.escape(self.closing)})\\s*\\Z", text) is not None


HARMONY = Tags(
    "<|channel|>",
    "<|channel|>final<|message|>",
    r"<\|channel\|>(?!final)[^<]*<\|message\|>",
    r"<\|channel\|>\s*final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>",
)
"""Channels: the last one is the reply, and before it there may be several thoughts."""
KNOWN = (
    Tags("<think>", "</think>"),
    Tags("<thinking>", "</thinking>"),
    Tags("<thought>", "</thought>"),
    Tags("<reasoning>", "</reasoning>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<|channel>thought", "<channel|>"),
    HARMONY,
)
BETWEEN = re.compile(r"<\|(?:im_)?(?:end|start)\|>(?:assistant)?|<\|channel\|>.*?(?:<\|message\|>|\Z)", re.DOTALL)
"""What stands around the thoughts of one reply where there are channels."""
TAIL = 64
"""So many tokens at the end of a prompt say whether a thought is open."""
LONGEST_TAG = 120
"""No tag has more characters."""


def find_tags(template: str, tokenizer: Any) -> tuple[Tags, ...]:
    """The tags that a model has: those of which its chat template or its vocabulary has one, and those that it names.

    Args:
        template: the source of the chat template, or nothing
        tokenizer: a Hugging Face tokenizer
    """
    tokens = tokenizer.get_added_vocab()
    found = [tags for tags in KNOWN if any(tag in template or tag in tokens for tag in (tags.opening, tags.closing))]
    return tuple(dict.fromkeys([*found, *_described_tags(tokenizer)]))


def _described_tags(tokenizer: Any) -> Iterator[Tags]:
    """What newer tokenizers say themselves of how their model's replies are read."""
    described = getattr(tokenizer, "response_template", None)
    fields = described.get("fields", {}) if isinstance(described, dict) else {}
    for name in ("reasoning_content", "reasoning", "thinking"):
        opening, closing = (fields.get(name, {}).get(end) for end in ("open", "close"))
        if isinstance(opening, str) and isinstance(closing, str) and opening.strip() and closing.strip():
            yield Tags(opening.strip(), closing.strip())


def split_thought(text: str, tags: Sequence[Tags] = KNOWN) -> tuple[str, str]:
    r"""A written reply's thought and the reply; a thought that has no end leaves no reply.

    >>> split_thought("<think>\nWho?\n</think>\n\nI am a computer.")
    ('Who?', 'I am a computer.')
    >>> split_thought("Who?\n</think>\n\nI am a computer.")
    ('Who?', 'I am a computer.')
    >>> split_thought("In HTML there is no <think> tag.")
    ('', 'In HTML there is no <think> tag.')
    """
    for each in tags:
        end = each.find_end(text)
        if text.lstrip().startswith(each.opening) or (end and _stands_alone(text, end)):
            place = end.end() if end else len(text)
            return clean_thought(text[:place]), text[place:].strip()
    return "", text


def _stands_alone(text: str, end: re.Match[str]) -> bool:
    """Whether an end without a beginning ends a thought that the prompt began, and is not only spoken of."""
    before, behind = text[: end.start()].rstrip(" \t"), text[end.end() :].lstrip(" \t")
    return (not before or before.endswith("\n")) and (not behind or behind.startswith("\n"))


def clean_thought(written: str) -> str:
    """A thought without its tags.

    >>> clean_thought("<|channel|>analysis<|message|>Who?<|end|><|start|>assistant<|channel|>final<|message|>")
    'Who?'
    """
    text = written.strip()
    for each in KNOWN:
        if each is not HARMONY:
            text = text.removeprefix(each.opening).removesuffix(each.closing)
    if HARMONY.opening in text:
        text = "\n".join(part.strip() for part in BETWEEN.split(text) if part.strip())
    return text.strip()


def is_finished(written: str) -> bool:
    """Whether a thought, with its tags, has come to its end."""
    return any(each.is_closed(written) for each in KNOWN)


@dataclass(frozen=True)
class Word:
    """A token of what a model writes, and its text."""

    token: int
    """The token's number."""
    text: str
    """What it adds; empty while a character is still incomplete. Thoughts have theirs with all tags."""
    thought: bool = False
    """Whether it belongs to a thought or its tags."""


class Stage(Enum):
    """How far a reply has come."""

    UNDECIDED = "undecided"
    """What there is may be the beginning of an opening tag."""
    THOUGHT = "thought"
    """A thought is open."""
    REPLY = "reply"
    """Everything that follows is the reply."""


@dataclass(frozen=True)
class Thoughts:
    """How a model thinks, and what is made of it."""

    tags: tuple[Tags, ...] = ()
    """What may stand around a thought; without any, there are no thoughts."""
    expected: bool = False
    """Whether a reply is expected to begin with a thought: then steering waits until it is clear that none comes."""
    included: bool = False
    """Whether thoughts are steered, and count, as the reply does."""

    def follow(self, tokenizer: Any, prompt: Sequence[int]) -> ReplyText:
        """What takes the tokens of one reply to a prompt."""
        return ReplyText(tokenizer, prompt, self)


class ReplyText:
    """Takes the tokens of one reply and gives each back with the text that it completes.

    The latest is kept as long as it leaves a character incomplete, because it gets what is left where nothing follows;
    and so are the first ones, until it is clear whether they begin a thought. It also says whether steering is in force
    at the next token, and whether the latest one counts.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], thoughts: Thoughts) -> None:
        self.words: deque[Word] = deque()
        """What is settled and has not been fetched."""
        self._thoughts = thoughts
        self._reply = Decoder(tokenizer)
        self._written = Decoder(tokenizer, skip_special=False)
        self._held: list[Word] = []
        self._seen = ""
        self._in_reply = False
        self._stage = self._stage_behind(self._written.decode(prompt[-TAIL:]) if thoughts.tags else "")

    def _stage_behind(self, prompt: str) -> Stage:
        tags = self._thoughts.tags
        self._open = [each for each in tags if each.is_open(prompt)]
        if self._open:
            return Stage.THOUGHT
        return Stage.REPLY if not tags or any(each.is_closed(prompt) for each in tags) else Stage.UNDECIDED

    @property
    def steered(self) -> bool:
        """Whether steering is in force where the next token is chosen."""
        waits = self._stage is Stage.THOUGHT or (self._stage is Stage.UNDECIDED and self._thoughts.expected)
        return self._thoughts.included or not waits

    @property
    def counts(self) -> bool:
        """Whether the latest token is part of what is measured."""
        return self._thoughts.included or self._in_reply

    def push(self, token: int) -> None:
        """Take a token."""
        if self._stage is Stage.REPLY:
            self._say(token)
            return
        text = self._written.push(token)
        self._seen += text
        if self._stage is Stage.THOUGHT:
            self._settle()
        self._held.append(Word(token, text, thought=True))
        self._in_reply = self._stage is Stage.UNDECIDED and not self._thoughts.expected
        if self._stage is Stage.UNDECIDED:
            self._decide()
        if self._stage is Stage.THOUGHT:
            self._think()

    def end(self) -> None:
        """No more tokens come: what was held back is settled as it is."""
        if self._stage is Stage.UNDECIDED:
            self._begin_reply()
        rest = (self._written if self._stage is Stage.THOUGHT else self._reply).rest()
        if self._held:
            self._held[-1] = replace(self._held[-1], text=self._held[-1].text + rest)
        self._settle()

    def _decide(self) -> None:
        begins = self._seen.lstrip()
        self._open = [each for each in self._thoughts.tags if begins.startswith(each.opening)]
        if self._open:
            self._stage = Stage.THOUGHT
        elif begins and not any(each.opening.startswith(begins) for each in self._thoughts.tags):
            self._begin_reply()

    def _begin_reply(self) -> None:
        self._stage, held, self._held = Stage.REPLY, self._held, []
        for word in held:
            self._say(word.token)

    def _think(self) -> None:
        self._in_reply = False
        ends = [end for each in self._open if (end := each.find_end(self._seen))]
        if ends:
            self._stage = Stage.REPLY
            behind = self._seen[min(end.end() for end in ends) :]
            if behind.strip():
                # A token that ends the thought and begins the reply is part of the reply.
                self._held[-1] = Word(self._held[-1].token, behind)
                self._in_reply = True
        self._seen = self._seen[-LONGEST_TAG:]
        if ends or not self._written.waiting:
            self._settle()

    def _say(self, token: int) -> None:
        self._in_reply = True
        self._settle()
        self._held.append(Word(token, self._reply.push(token)))
        if not self._reply.waiting:
            self._settle()

    def _settle(self) -> None:
        self.words += self._held
        self._held = []
