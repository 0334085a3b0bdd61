"""Thoughts: what some models write before a reply, between tags of their own, and where in it the reply begins.

A thought stands where a reply begins. Tags are sought in the text of the tokens, special tokens included, because for
one model a tag is one token and for another it is several.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    between: str = ""
    """The pattern of what may stand in between, where one reply may have several thoughts."""

    def find_end(self, text: str) -> re.Match[str] | None:
        """The first end of a thought."""
        return re.search(self.closes or re.escape(self.closing), text)

    def is_open(self, prompt: str) -> bool:
        """Whether a prompt ends in a thought in which nothing has been thought yet."""
        return re.search(f"(?:{self.opens or re.escape(self.opening)})\\s*\\Z", prompt) is not None

    def is_closed(self, text: str) -> bool:
        """Whether a text ends behind a thought."""
        return re.search(f"(?:{self.closes or re.escape(self.closing)})\\s*\\Z", text) is not None


_TURN = r"(?:<\|(?:im_)?end\|>)?(?:<\|(?:im_)?start\|>assistant)?\s*"
_HEADER = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
HARMONY = Tags(
    opening="<|channel|>",
    closing="<|channel|>final<|message|>",
    opens=rf"<\|channel\|>(?!\s*final){_HEADER}",
    closes=rf"{_TURN}<\|channel\|>\s*final{_HEADER}",
    between=rf"{_TURN}<\|channel\|>{_HEADER}",
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
TAIL = 64
"""So many tokens at the end of a prompt say whether a thought is open."""
LONGEST_TAG = 200
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


MODES = ("auto", "on", "off")
"""Whether a chat template is asked for thoughts."""
_NAME = re.compile(r"(?<![\w.'\"])\w*(?:think|reason)\w*(?![\w'\"])")
_INVERTED = re.compile(r"(?:^|_)(?:no|skip|disable|without|hide|suppress)(?:_|(?=think|reason))")
_NO_EFFORT = ("none", "no_think", "off", "disabled")
_SOME_EFFORT = ("medium", "high", "low")


@dataclass(frozen=True)
class Switch:
    """A variable of a chat template that lets a model think before it replies, or keeps it from that."""

    name: str
    """What the template calls it."""
    on: Any
    """The value at which it thinks."""
    off: Any
    """The value at which it does not."""
    default: str
    """What the template does without it: as `on`, as `off`, or otherwise, which is `auto`."""

    def mode(self, variables: Mapping[str, Any]) -> str:
        """Where it stands among variables that a template is given."""
        if self.name not in variables:
            return "auto"
        value = variables[self.name]
        return "on" if value == self.on else "off" if value == self.off else "auto"


def find_switch(template: str, render: Callable[[Mapping[str, Any]], str]) -> Switch | None:
    """The switch of a chat template: a variable named after thinking whose values make a difference to a prompt.

    Args:
        template: its source
        render: what it makes of a question, given some variables
    """
    names = dict.fromkeys(["enable_thinking", "thinking", *_NAME.findall(template)])
    candidates = [
        (name, on, off) for name in names if name in template for on, off in [_values(name, template)] if on != off
    ]
    by_itself = render({}) if candidates else ""
    for name, on, off in candidates:
        at_on, at_off = render({name: on}), render({name: off})
        if at_on != at_off:
            default = "on" if by_itself == at_on else "off" if by_itself == at_off else "auto"
            return Switch(name, on, off, default)
    return None


def _values(name: str, template: str) -> tuple[Any, Any]:
    """The values of a switch that its name suggests; twice the same where it is none."""
    if "effort" in name:
        # An effort may be more or less; only where the template speaks of none is there a switch.
        off = next((word for word in _NO_EFFORT if f"'{word}'" in template or f'"{word}"' in template), None)
        on = next((word for word in _SOME_EFFORT if f"'{word}'" in template or f'"{word}"' in template), "medium")
        return (on, off) if off else (None, None)
    if "budget" in name:
        return -1, 0
    return (False, True) if _INVERTED.search(name) else (True, False)


class Untagger:
    """Takes the text of a thought as it comes, and lets it through without its tags, up to its end."""

    def __init__(self, tags: Tags) -> None:
        self.behind: str | None = None
        """What stands behind the end, once there is one."""
        self._tags = tags
        self._held = ""
        self._begun = False

    def push(self, text: str) -> str:
        """The text that is settled: what may be the beginning of a tag, and white space before one, is held back."""
        self._held += text
        if end := self._tags.find_end(self._held):
            thought, self.behind, self._held = self._held[: end.start()], self._held[end.end() :], ""
            return self._through(self._without_markup(thought).rstrip())
        self._held = self._without_markup(self._held)
        settled = self._held[: self._tag_begins()].rstrip()
        self._held = self._held[len(settled) :]
        return self._through(settled)

    def rest(self) -> str:
        """What was held back, where nothing more comes; half a tag is no thought."""
        place, held, self._held = self._tag_begins(), self._held, ""
        return self._through(held.rstrip() if len(held) - place == 1 else held[:place].rstrip())

    def _without_markup(self, text: str) -> str:
        return re.sub(rf"\s*{self._tags.between}\s*", "\n", text) if self._tags.between else text

    def _tag_begins(self) -> int:
        """Where in what is held a tag may begin of which the end is missing."""
        if not self._tags.between:
            return len(self._held) - overlap(self._held, self._tags.closing)
        begins = re.search(r"<(?:\||\Z)", self._held[-LONGEST_TAG:])
        return max(len(self._held) - LONGEST_TAG, 0) + begins.start() if begins else len(self._held)

    def _through(self, text: str) -> str:
        text = text if self._begun else text.lstrip()
        self._begun = self._begun or bool(text)
        return text


def overlap(text: str, stop: str) -> int:
    """How much of the end of a text is the beginning of a stop text.

    >>> overlap("the E", "END"), overlap("THE END", "END")
    (1, 0)
    """
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def split_thought(text: str, tags: Sequence[Tags] = KNOWN) -> tuple[str, str]:
    r"""A written reply's thought and the reply; a thought that has no end leaves no reply.

    >>> split_thought("<think>\nWho?\n</think>\n\nI am a computer.")
    ('Who?', 'I am a computer.')
    >>> split_thought("Who?\n</think>\n\nI am a computer.")
    ('Who?', 'I am a computer.')
    >>> split_thought("In HTML there is no <think> tag.")
    ('', 'In HTML there is no <think> tag.')
    >>> channels = "<|channel|>analysis<|message|>Who?<|end|><|start|>assistant<|channel|>final<|message|>I am."
    >>> split_thought(channels)
    ('Who?', 'I am.')
    """
    for each in tags:
        end = each.find_end(text)
        if text.lstrip().startswith(each.opening) or (end and _stands_alone(text, end)):
            untagger = Untagger(each)
            thought = untagger.push(text if each.between else text.lstrip().removeprefix(each.opening))
            return thought + untagger.rest(), (untagger.behind or "").strip()
    return "", text


def _stands_alone(text: str, end: re.Match[str]) -> bool:
    """Whether an end without a beginning ends a thought that the prompt began, and is not only spoken of."""
    before, behind = text[: end.start()].rstrip(" \t"), text[end.end() :].lstrip(" \t")
    return (not before or before.endswith("\n")) and (not behind or behind.startswith("\n"))


def folded(n: int, unit: str = "tokens", unfolded: bool = False) -> str:
    """The line that stands for a thought.

    >>> folded(123), folded(1, "words", unfolded=True)
    ('▸ thought, 123 tokens', '▾ thought, 1 word')
    """
    return f"{'▾' if unfolded else '▸'} thought, {n} {unit if n != 1 else unit.removesuffix('s')}"


def unfinished_note(n_cut: int, n: int, longest: str, off: str) -> str:
    """What is to be said of replies that ended within their thoughts.

    >>> unfinished_note(1, 1, "--max-tokens", "--thinking off")
    'the reply ended within its thought, so it is empty; raise --max-tokens, or try --thinking off'
    """
    which = "the reply" if n == 1 else f"{n_cut} of {n} replies"
    its, it_is = ("its thought", "it is") if n == 1 else ("their thoughts", "they are")
    return f"{which} ended within {its}, so {it_is} empty; raise {longest}, or try {off}"


@dataclass(frozen=True)
class Word:
    """A token of what a model writes, and its text."""

    token: int
    """The token's number."""
    text: str
    """What it adds to the reply, or to the thought before it; empty where it completes no character, or is a tag."""
    thought: bool = False
    """Whether it belongs to a thought or its tags."""
    open: bool = False
    """Whether the thought goes on behind it."""


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
        self._untagger: Untagger | None = None
        self._in_reply = False
        self._blank = False
        """Whether there is only white space behind the thought, which separates it from the reply."""
        self._stage = self._stage_behind(self._written.decode(prompt[-TAIL:]) if thoughts.tags else "")

    def _stage_behind(self, prompt: str) -> Stage:
        tags = self._thoughts.tags
        self._untagger = next((Untagger(each) for each in tags if each.is_open(prompt)), None)
        if self._untagger:
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
        self._in_reply = self._stage is Stage.UNDECIDED and not self._thoughts.expected
        if self._stage is Stage.UNDECIDED:
            self._held.append(Word(token, "", thought=True, open=True))
            self._seen += text
            self._decide()
        else:
            self._settle()
            self._held.append(Word(token, "", thought=True, open=True))
            self._think(text)

    def end(self) -> None:
        """No more tokens come: what was held back is settled as it is."""
        if self._stage is Stage.UNDECIDED:
            self._begin_reply()
        if self._stage is Stage.THOUGHT and self._untagger is not None:
            rest = self._untagger.push(self._written.rest()) + self._untagger.rest()
        else:
            rest = self._reply.rest()
        if self._held:
            self._held[-1] = replace(self._held[-1], text=self._held[-1].text + rest)
        self._settle()

    def _decide(self) -> None:
        begins = self._seen.lstrip()
        opened = next((each for each in self._thoughts.tags if begins.startswith(each.opening)), None)
        if opened is not None:
            self._stage, self._untagger = Stage.THOUGHT, Untagger(opened)
            self._think(begins if opened.between else begins.removeprefix(opened.opening))
        elif begins and not any(each.opening.startswith(begins) for each in self._thoughts.tags):
            self._begin_reply()

    def _begin_reply(self) -> None:
        self._stage, held, self._held = Stage.REPLY, self._held, []
        for word in held:
            self._say(word.token)

    def _think(self, text: str) -> None:
        """Take the text of the latest token, which is part of a thought."""
        assert self._untagger is not None
        self._in_reply = False
        thought, behind = self._untagger.push(text), self._untagger.behind
        latest = replace(self._held[-1], text=thought, open=behind is None)
        if behind is not None:
            self._stage, self._blank = Stage.REPLY, not behind.strip()
            if behind.strip():
                # A token that ends the thought and begins the reply belongs to the reply.
                latest, self._in_reply = Word(latest.token, behind.lstrip()), True
        self._held[-1] = latest
        if behind is not None:
            self._settle()

    def _say(self, token: int) -> None:
        self._in_reply = True
        self._settle()
        text = self._reply.push(token)
        if self._blank:
            text = text.lstrip()
            self._blank = not text
        self._held.append(Word(token, text))
        if not self._reply.waiting:
            self._settle()

    def _settle(self) -> None:
        self.words += self._held
        self._held = []
