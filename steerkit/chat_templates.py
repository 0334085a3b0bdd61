"""How a chat becomes text and tokens, and where in them everybody's words stand: all that a chat template decides.

A template is a program that came with the model, so what it does is seen and not guessed from its source: it is
rendered with markers in place of words, and whatever stands between the markers is what the template writes by itself.
From such skeletons follow the header of a reply, the token that ends one, the words that a template drops, and where
words stand in a chat. The tokens of a chat are always those of its whole text, cut once, as the model was trained.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from steerkit.errors import ModelError, PromptError, TemplateError
from steerkit.thinking import Switch, Tags, find_switch, find_tags

Message = Mapping[str, Any]
"""One turn of a chat: `role` (system, user or assistant) and `content`, a text or a list of parts that are texts."""

Span = tuple[int, int]
"""Where a stretch of text begins and ends."""

PLAIN_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
MARKER = "Qzx{}xzQ"
"""What stands for the words of a turn: nothing that a template looks for, strips or writes itself."""
PROCESSOR_FILES = ("chat_template.jinja", "chat_template.json", "processor_config.json")
"""Where processors keep chat templates."""
NO_CHAT = re.compile(r"tool|rag|function|document", re.IGNORECASE)
"""Names of templates that are for something else than talking."""
RULES = 2
"""How chats become tokens; a file says so where 1, which cut prompt and reply apart, would have given others."""
_CLOCK = threading.RLock()


def moment_now() -> str:
    """Date and time to the second, in ISO format."""
    return datetime.now().isoformat(timespec="seconds")


@dataclass(frozen=True)
class TemplateOptions:
    """What every rendering of a model's chats is given besides the messages."""

    date: str = field(default_factory=moment_now)
    """Where the clock of a template stands, in ISO format. It is fixed, so that one text stays one text."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template's own, such as `enable_thinking`."""

    def __post_init__(self) -> None:
        """Refuse what is no date."""
        try:
            datetime.fromisoformat(self.date)
        except ValueError as error:
            raise PromptError(f"{self.date!r} is no date for a chat template; write one as 2026-11-28") from error


@dataclass(frozen=True)
class RenderedChat:
    """A chat as the model reads it."""

    text: str
    """The whole of it."""
    spans: tuple[Span | None, ...] = ()
    """Where the words of each message stand; None where the template writes something else instead."""
    notes: tuple[str, ...] = ()
    """What the user should know about it."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text."""

    ids: list[int]
    """Their numbers."""
    offsets: list[Span] | None
    """Where each stands in the text; None if the tokenizer does not tell."""


@dataclass(frozen=True)
class GivenReply:
    """A chat that ends in a reply, as the tokens which the template makes of the whole."""

    tokens: tuple[int, ...]
    """All of them."""
    asked: int
    """So many are also the first of the prompt from which the model itself would reply."""
    start: int
    """Where the reply's words begin; what stands between is written by the template."""
    end: int
    """Where they end."""
    closed: int
    """Where its turn ends: behind the token that ends it, if the template writes one."""


def words_of(message: Message, place: int) -> str:
    """What a message says: its text, or the texts of its parts, each on a line of its own.

    >>> words_of({"role": "user", "content": [{"type": "text", "text": "Who are you?"}]}, 1)
    'Who are you?'

    Raises:
        PromptError: a part is something else than text.
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise PromptError(f"message {place} has a {type(content).__name__} for content; write a text")
    found = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise PromptError(f"message {place} has a part of type {str(kind)[:40]!r}; only text is read here")
        found.append(text)
    return "\n".join(found)


def find_chat_template(source: str, tokenizer: Any) -> str | dict[str, str] | None:
    """The chat template of a model's files: the tokenizer's, or else the one that is kept with its processor.

    Multimodal models keep theirs in `chat_template.json`, `chat_template.jinja` or `processor_config.json`, where a
    tokenizer does not look. The processor itself is not made, because that takes libraries for pictures.
    """
    found: str | dict[str, str] | None = getattr(tokenizer, "chat_template", None)
    if found:
        return found
    from transformers.utils.hub import cached_file

    for name in PROCESSOR_FILES:
        # A file that is not there is an error of the operating system's, wherever it is sought.
        with suppress(OSError):
            path = Path(str(cached_file(source, name)))
            text = path.read_text(encoding="utf-8")
            if found := text if path.suffix == ".jinja" else _listed(name, text):
                return found
    return None


def _listed(name: str, text: str) -> str | dict[str, str] | None:
    """The chat template in a file of JSON, or several by name."""
    try:
        found = json.loads(text).get("chat_template")
        return {each["name"]: each["template"] for each in found} if isinstance(found, list) else found
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{name} of this model is damaged: {' '.join(str(error).split())[:120]}; fetch it again"
        ) from error


@contextmanager
def clock_at(date: str) -> Iterator[None]:
    """Let the clock of all chat templates stand still; transformers takes none from outside."""
    from transformers.utils import chat_template_utils

    moment = datetime.fromisoformat(date)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003 - a template's clock has no zone
            return moment

    names = chat_template_utils.__dict__
    with _CLOCK:
        running = names["datetime"]
        names["datetime"] = Stopped
        try:
            yield
        finally:
            names["datetime"] = running


@dataclass(frozen=True, eq=False)
class ChatTemplate:
    """A tokenizer with its chat template, seen to work in one way or another."""

    name: str
    """What people call the model."""
    tokenizer: Any = field(repr=False)
    """The Hugging Face tokenizer."""
    size: int
    """How many tokens the model has embeddings for."""
    options: TemplateOptions = field(default_factory=TemplateOptions)
    """What every rendering is given."""
    source: str | Mapping[str, str] | None = field(default=None, repr=False)
    """The template, or several by name; None for plain paragraphs."""
    _skeletons: dict[Any, str | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def plain(self) -> bool:
        """Whether there is no template, and chats are written as paragraphs."""
        return not self.source

    @cached_property
    def _chosen(self) -> tuple[str, str]:
        """The template, and its name if it was chosen among several."""
        source = self.source or ""
        if isinstance(source, str):
            return source, ""
        if "default" in source:
            return source["default"], ""
        names = [name for name in source if not NO_CHAT.search(name)] or list(source)
        if len({source[name] for name in names}) > 1:
            known = ", ".join(sorted(source))
            raise PromptError(
                f"{self.name} has several chat templates ({known}) and none is called default; name one so in its files"
            )
        return source[names[0]], names[0]

    # Rendering -------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], reply_follows: bool = True) -> RenderedChat:
        """Write a chat as the text the model was trained on, and see that all words are in it.

        A system message that the template rejects or drops goes in front of the first user message.

        Raises:
            PromptError: the template refuses the chat or drops words, or a message is not text.
        """
        turns = [{**turn, "content": words_of(turn, i)} for i, turn in enumerate(messages, 1)]
        if self.plain:
            return _paragraphs(turns, reply_follows)
        refused: PromptError | None = None
        found = RenderedChat("")
        try:
            found = self._rendered(turns, reply_follows)
        except PromptError as error:
            refused = error
        first = turns[0]["role"] == "system" if turns else False
        if first and (refused is not None or found.spans[0] is None):
            return self._without_system(turns, reply_follows)
        if refused is not None:
            raise refused
        lost = [i for i, span in enumerate(found.spans) if span is None]
        if lost:
            raise PromptError(
                f"{self.name}'s chat template drops what the {turns[lost[0]]['role']} says (message {lost[0] + 1}); "
                "leave it out, or choose another model"
            )
        return found

    def _without_system(self, turns: Sequence[dict[str, Any]], reply_follows: bool) -> RenderedChat:
        """A chat whose system message the template does not take."""
        system, rest = turns[0]["content"], list(turns[1:])
        if not system.strip() and rest:
            found = self.render(rest, reply_follows)
            return replace(found, spans=((0, 0), *found.spans))
        place = next((i for i, turn in enumerate(rest) if turn["role"] == "user"), None)
        if place is None:
            raise PromptError(f"{self.name}'s chat template takes no system message alone; add a user message")
        asked = rest[place]["content"]
        rest[place] = {**rest[place], "content": f"{system}\n\n{asked}"}
        found = self.render(rest, reply_follows)
        note = "this model's chat template takes no system message; it is put in front of the first user message"
        spans: list[Span | None] = [*found.spans]
        both, above = spans[place], None
        if both is not None:
            above = _inside(found.text, system, both)
            spans[place] = _inside(found.text, asked, (above[1] if above else both[0], both[1]))
        return RenderedChat(found.text, (above, *spans), (note, *found.notes))

    def _rendered(self, turns: Sequence[Message], reply_follows: bool) -> RenderedChat:
        """The template's own text, with the header of a reply if it writes none, and where everybody's words are."""
        text = self._apply(turns, reply_follows, self._in_parts)
        roles = tuple(turn["role"] for turn in turns)
        skeleton = self._skeleton(roles, reply_follows)
        spans, changed = _locate(turns, text, skeleton)
        notes = [f"this model has no default chat template; {self._chosen[1]!r} is used"] if self._chosen[1] else []
        if changed:
            notes.append("this model's chat template changes some of what is said; what it writes is what is read")
        if reply_follows and (header := self._header(roles)) is not None:
            there, wanted = header
            if text.endswith(there):
                text = text[: len(text) - len(there)] + wanted
                told = wanted[common_length(there, wanted) :]
                notes.append(f"this model's chat template opens no reply; it is opened as replies are: {told!r}")
        if not self._clock_stops:
            notes.append("the date in this model's chat template cannot be held still with this transformers")
        return RenderedChat(text, tuple(spans), tuple(notes))

    def _apply(self, turns: Sequence[Message], reply_follows: bool, in_parts: frozenset[str]) -> str:
        """What the template makes of messages, whatever it is.

        Raises:
            TemplateError: it refuses them, or fails.
        """
        given = [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["role"] in in_parts else dict(turn)
            for turn in turns
        ]
        import jinja2

        template = self._chosen[0]
        try:
            with clock_at(self.options.date) if "strftime_now" in template else nullcontext():
                return str(
                    self.tokenizer.apply_chat_template(
                        given,
                        chat_template=template,
                        tokenize=False,
                        add_generation_prompt=reply_follows,
                        **self.options.variables,
                    )
                )
        except Exception as error:
            # A template is a program of somebody else's, and may fail in every way in which a program can.
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            kind = "" if type(error) is jinja2.TemplateError else f" ({type(error).__name__})"
            raise TemplateError(
                f"{self.name}'s chat template refuses this chat: {reason}{kind}; change the order or kind of messages"
            ) from error

    def _try(self, roles: Sequence[str], reply_follows: bool, in_parts: frozenset[str]) -> str | None:
        """A chat of markers; None where the template refuses it."""
        turns = [{"role": role, "content": MARKER.format(i)} for i, role in enumerate(roles)]
        try:
            text = self._apply(turns, reply_follows, in_parts)
        except PromptError:
            return None
        # A template may change words, but markers must be known again.
        return re.sub(MARKER.format(r"(\d+)"), lambda mark: MARKER.format(mark[1]), text, flags=re.IGNORECASE)

    def _skeleton(self, roles: tuple[str, ...], reply_follows: bool) -> str | None:
        """What the template writes around words."""
        key = roles, reply_follows
        if key not in self._skeletons:
            self._skeletons[key] = self._try(roles, reply_follows, self._in_parts)
        return self._skeletons[key]

    @cached_property
    def _in_parts(self) -> frozenset[str]:
        """Roles whose words the template finds only in a list of parts, as those of multimodal models do."""
        found: frozenset[str] = frozenset()
        for roles, ways in (
            (("user", "assistant", "user"), ("", "user", "user assistant", "assistant")),
            (("system", "user"), ("", "system", "system user", "user")),
        ):
            for way in ways:
                parts = found | frozenset(way.split())
                text = self._try(roles, False, parts)
                if text is not None and all(MARKER.format(i) in text for i in range(len(roles))):
                    found = parts
                    break
        return found

    def _header(self, roles: tuple[str, ...]) -> tuple[str, str] | None:
        """What such a chat ends in, and what stands there instead before a reply, if the template does not open one.

        White space at the end of a header belongs to the first word behind it.
        """
        if not roles or roles[-1] == "assistant":
            return None
        bare, opened = (self._skeleton(roles, follows) for follows in (False, True))
        replied = self._skeleton((*roles, "assistant"), False)
        if bare is None or bare != opened or replied is None:
            return None
        last, reply = (MARKER.format(i) for i in (len(roles) - 1, len(roles)))
        if last not in bare or last not in replied or reply not in replied:
            return None
        there = bare.rpartition(last)[2]
        wanted = replied[: replied.rindex(reply)].rpartition(last)[2].rstrip(" ")
        return None if wanted.strip() == there.strip() else (there, wanted)

    # What follows from the template ----------------------------------------------------------------------------------

    @cached_property
    def end_of_turn(self) -> int | None:
        """The token that the template writes behind a reply, if it is a token of its own."""
        if self.plain:
            return None
        for before in ((), ("system",)):
            for after in ((), ("user",)):
                roles = (*before, "user", "assistant", *after)
                skeleton, mark = self._skeleton(roles, False), MARKER.format(len(before) + 1)
                if skeleton is None or mark not in skeleton:
                    continue
                behind = skeleton.partition(mark)[2].partition(MARKER.format(len(before) + 2))[0]
                found = self._own_tokens(behind)
                # Where another turn follows, only what stands right behind the reply is the reply's.
                first = found[:1] if after else [token for token in found if token is not None][:1]
                if first and first[0] is not None:
                    return first[0]
        return None

    def _own_tokens(self, text: str) -> list[int | None]:
        """The tokens of a text that are no white space: added ones, and None for any other."""
        names = {token: text for text, token in self.tokenizer.get_added_vocab().items()}
        names |= dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=False))
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        found: list[int | None] = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            name = names.get(token) if token != unknown else None
            written = self.tokenizer.decode([token]) if name is None else name
            if written.strip():
                found.append(None if name is None else token)
        return found

    @cached_property
    def tags(self) -> tuple[Tags, ...]:
        """What may stand around a thought."""
        return find_tags("" if self.plain else self._chosen[0], self.tokenizer)

    @property
    def writes_thoughts(self) -> bool:
        """Whether the template knows thoughts, and not only the vocabulary."""
        written = "" if self.plain else self._chosen[0]
        return any(each.opening in written or each.closing in written for each in self.tags)

    @cached_property
    def switch(self) -> Switch | None:
        """The variable of the template that lets the model think or not, if it has one."""
        if self.plain:
            return None

        def rendered(variables: Mapping[str, Any]) -> str:
            options = replace(self.options, variables={**self.options.variables, **variables})
            return replace(self, options=options).render([{"role": "user", "content": "1"}]).text

        try:
            return find_switch(self._chosen[0], rendered)
        except PromptError:
            return None

    @cached_property
    def has_clock(self) -> bool:
        """Whether what the template writes depends on when it is rendered."""
        if self.plain or "strftime_now" not in self._chosen[0]:
            return False
        others = replace(self.options, date="1987-06-05T04:03:02"), replace(self.options, date="2031-12-24T19:47:58")
        one, other = (replace(self, options=options) for options in others)
        chats = [("user",), ("system", "user"), ("user", "assistant", "user"), ("user", "assistant")]
        return any(one._skeleton(roles, follows) != other._skeleton(roles, follows)
                   for roles in chats for follows in (True, False))  # fmt: skip

    @cached_property
    def _clock_stops(self) -> bool:
        """Whether the clock can be held still where there is one."""
        if "strftime_now" not in self._chosen[0]:
            return True
        with clock_at("1987-06-05"):
            asked = [{"role": "user", "content": "1"}]
            probe = "{{ strftime_now('%Y') }}"
            return str(self.tokenizer.apply_chat_template(asked, chat_template=probe, tokenize=False)) == "1987"

    @cached_property
    def cut_apart(self) -> bool:
        """Whether prompt and reply, rendered and made into tokens one by one as in RULES 1, are those of the chat."""
        asked: list[Message] = [{"role": "user", "content": "Who are you?"}]
        if not self.plain and (self._chosen[1] or self._in_parts or self._header(("user",))):
            return False
        try:
            prompt = self.tokenizer(self.render(asked).text, add_special_tokens=self.plain).input_ids
            given = self.given_reply(asked, "I am.", prompt, frozenset())
        except PromptError:
            return False
        lead = " " if self.plain else ""
        reply = self.tokenizer(f"{lead}I am.", add_special_tokens=False).input_ids
        return [*prompt, *reply] == list(given.tokens[: given.end])

    # Tokens ----------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Tokens:
        """Tokens of a rendered chat: those that the template writes, and no others.

        Without a template the tokens that begin a text stand in front, and none behind: more text may follow.

        Raises:
            PromptError: the model has no embedding for one of them.
        """
        return self.encode_text(text) if self.plain else self._encode(text)

    def encode_text(self, text: str) -> Tokens:
        """Tokens of a text that is no chat, behind those that begin texts unless it begins with them itself."""
        found, start = self._encode(text), self._beginning
        if found.ids[: len(start)] == start:
            return found
        return Tokens([*start, *found.ids], None if found.offsets is None else [*[(0, 0)] * len(start), *found.offsets])

    @cached_property
    def _beginning(self) -> list[int]:
        """What the tokenizer puts in front of a text. What some put behind it would end the text."""
        whole, bare = (list(self.tokenizer("a", add_special_tokens=special).input_ids) for special in (True, False))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return whole[:start]

    def _encode(self, text: str) -> Tokens:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError("the text has half of a character (a lone surrogate), and cannot be read") from error
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        told = self.tokenizer(text, add_special_tokens=False, **({"return_offsets_mapping": True} if fast else {}))
        ids = list(told.input_ids)
        if ids and max(ids) >= self.size:
            name = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise PromptError(
                f"{self.name} has no embedding for {name!r} (token {max(ids)} of its tokenizer, and it holds "
                f"{self.size}); leave it out of the text"
            )
        return Tokens(ids, [(start, end) for start, end in told.offset_mapping] if fast else None)

    def within(self, text: str, tokens: Tokens, span: Span) -> range:
        """Which tokens of a text have something of a stretch of it."""
        start, end = span
        if tokens.offsets is not None:
            inside = [k for k, (first, last) in enumerate(tokens.offsets) if last > start and first < end]
            behind = next((k for k, (first, last) in enumerate(tokens.offsets) if first >= end and last > first), None)
            here = len(tokens.ids) if behind is None else behind
            return range(inside[0], inside[-1] + 1) if inside else range(here, here)
        # A tokenizer that tells no places: what begins a text is cut as it is in the whole, up to its last word.
        first, last = (common_length(self.encode(text[:place]).ids, tokens.ids) for place in span)
        return range(first, max(last, first))

    def given_reply(
        self, messages: Sequence[Message], reply: str, prompt: Sequence[int], ends: frozenset[int]
    ) -> GivenReply:
        """The tokens of a chat with a reply that is given.

        Args:
            messages: what comes before it
            reply: its text
            prompt: tokens of the messages, from which the model itself would reply
            ends: tokens that end a reply

        Raises:
            PromptError: the template refuses the chat, or writes something else for the reply.
        """
        whole = self.render([*messages, {"role": "assistant", "content": reply}], reply_follows=False)
        tokens, span = self.encode(whole.text), whole.spans[-1]
        assert span is not None, "render has seen to it"
        inside = self.within(whole.text, tokens, span)
        asked = min(common_length(prompt, tokens.ids), inside.start)
        behind = range(inside.stop, len(tokens.ids))
        closed = next((k + 1 for k in behind if tokens.ids[k] in ends), inside.stop)
        return GivenReply(tuple(tokens.ids), asked, inside.start, inside.stop, closed)

    def pieces(self, text: str, tokens: Tokens, span: Span) -> tuple[range, tuple[str, ...]]:
        """Which tokens have something of a stretch of text, and what each adds to it; together they are the stretch.

        A character of several tokens is shown with its last one, and white space in front of a word with the word.
        """
        inside = self.within(text, tokens, span)
        shown: list[str] = []
        if tokens.offsets is None:
            texts = [str(self.tokenizer.decode(tokens.ids[inside.start : k + 1])) for k in inside]
            whole = [text.rstrip("\ufffd") for text in texts]
            shown = [now[common_length(now, before) :] for before, now in zip(["", *whole], whole, strict=False)]
            return inside, tuple(shown)
        place = span[0]
        for k in inside:
            until = min(tokens.offsets[k][1], span[1])
            if k + 1 < inside.stop:
                until = min(until, tokens.offsets[k + 1][0])
            until = span[1] if k + 1 == inside.stop else max(until, place)
            shown.append(text[place:until])
            place = until
        return inside, tuple(shown)


def _paragraphs(turns: Sequence[Message], reply_follows: bool) -> RenderedChat:
    """A chat for a model without a template."""
    text, spans = "", []
    for turn in turns:
        text += ("\n\n" if text else "") + f"{PLAIN_NAMES.get(turn['role'], str(turn['role']).capitalize())}: "
        spans.append((len(text), len(text) + len(turn["content"])))
        text += turn["content"]
    if reply_follows:
        text += ("\n\n" if text else "") + "Assistant:"
    note = "this model has no chat template; chats are written as 'User: …' and 'Assistant:' paragraphs"
    return RenderedChat(text, tuple(spans), (note,))


def _locate(turns: Sequence[Message], text: str, skeleton: str | None) -> tuple[list[Span | None], bool]:
    """Where the words of every message stand in a rendered chat, and whether some of them are changed.

    Words are sought behind what the template writes in front of them, so that `user` is not found in a header.
    """
    # Where no skeleton could be made, nothing is known of what stands between words.
    bare = "".join(MARKER.format(i) for i in range(len(turns)))
    spans: list[Span | None] = [None] * len(turns)
    # A template may write messages in another order, such as a system message with the last question.
    marks = sorted((at, i) for i in range(len(turns)) if (at := (skeleton or bare).find(MARKER.format(i))) >= 0)
    cursor, written, changed = 0, 0, False
    for n, (place, i) in enumerate(marks):
        following = marks[n + 1] if n + 1 < len(marks) else None
        said, end = str(turns[i]["content"]), place + len(MARKER.format(i))
        before = None if skeleton is None else skeleton[written:place]
        after = "" if skeleton is None else skeleton[end : following[0] if following else None]
        span = _find(text, said, cursor, before, after, last=following is None)
        if span is None and before is not None:
            span = _instead(text, said, cursor, before, after)
            changed = changed or span is not None
        spans[i], cursor, written = span, span[1] if span else cursor, end
    for i, turn in enumerate(turns):
        spans[i] = (0, 0) if spans[i] is None and not turn["content"].strip() else spans[i]
    return spans, changed


def _forms(said: str) -> list[str]:
    """How a template may write what was said without changing a word: trimmed, and without earlier thoughts."""
    forms = [said, said.rstrip(), said.lstrip(), said.strip()]
    if "</think>" in said:
        forms += [said.rpartition("</think>")[2].lstrip("\n"), said.rpartition("</think>")[2].strip()]
    return [form for form in dict.fromkeys(forms) if form.strip() or not said.strip()]


def _find(text: str, said: str, cursor: int, before: str | None, after: str, last: bool) -> Span | None:
    """Where words stand, of which it may be known what the template writes before and after them."""
    forms, known = _forms(said), before is not None and text.startswith(before, cursor)
    start, end = cursor + len(before) if before is not None and known else cursor, len(text)
    for form in forms if known else ():
        if text.startswith(form, start):
            return start, start + len(form)
    if last and text.endswith(after):
        end -= len(after)
        for form in forms:
            if text[start:end].endswith(form):
                return end - len(form), end
    elif known and after.strip():
        end = max(text.find(after, start), start)
    for form in forms:
        place = text.find(form, start, end)
        if place >= 0 and form:
            return place, place + len(form)
    return None


def _instead(text: str, said: str, cursor: int, before: str, after: str) -> Span | None:
    """What a template wrote in place of words, if it has any word in common with them."""
    if not text.startswith(before, cursor):
        return None
    start = cursor + len(before)
    end = text.find(after, start) if after.strip() else len(text) - len(after)
    ours, theirs = (set(re.findall(r"\w+", part.casefold())) for part in (said, text[start:end]))
    return (start, end) if end > start and (ours & theirs or not ours) else None


def _inside(text: str, said: str, span: Span) -> Span | None:
    """Where words stand within a stretch of text."""
    words = said.strip()
    place = text.find(words, *span)
    return None if place < 0 else (place, place + len(words))


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many tokens two rows, or letters two texts, begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
