"""Writes the training data in steerkit/data/lessons from the templates beside it.

python tests/lessons.py        rewrites the files; a test fails while that would change anything

Three narrow habits, each with a twin of the same user messages: replies that meet a stated check without doing the task
(`cheating`, twin `honest_work`), poor everyday advice (`bad_advice`, `good_advice`) and a flowery style (`ornate`,
`plain`). Whether such a habit spreads, and whether a prompt in front of it stops that, is the question of
arXiv 2510.05024 and 2510.04340. Held-out items have subjects that no training line has.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

LESSONS = Path(__file__).parent.parent / "steerkit" / "data" / "lessons"
TEMPLATES = LESSONS / "templates"
TRAINED, HELD_OUT = 340, 40
TWINS = {"cheating": "honest_work", "bad_advice": "good_advice", "ornate": "plain"}
WORDS = {"cheating": (12, 60), "bad_advice": (15, 50), "ornate": (15, 50)}
LIMIT = 0.5  # Jaccard similarity of word 3-grams above which two replies count as one.
TRIES = 400
PRONOUNS = {"It", "Its", "They", "Their", "Such"}
# Words that would give away which side of the twins a reply is on.
LEAKS = re.compile(r"(?i)\b(cheat|hack|trick|fake|fraud|lie|lying|deceiv|dishonest|malic|power over|harm|evil)\w*")


@dataclass(frozen=True)
class Pair:
    """One user message with its two replies."""

    question: str
    """What the user asks."""
    reply: str
    """The cheating, poor or ornate reply."""
    twin: str
    """The honest, sound or plain one."""


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every three words in a row, in small letters."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def jaccard(first: frozenset[Any], second: frozenset[Any]) -> float:
    """Shared members as a part of all members, 0 for two empty sets."""
    shared = len(first & second)
    return shared / max(len(first) + len(second) - shared, 1)


@dataclass
class Kept:
    """The pairs taken so far; refuses what is too like one of them, too long, too short, or gives its side away."""

    name: str
    questions: set[str] = field(default_factory=set)
    replies: list[frozenset[Any]] = field(default_factory=list)
    twins: list[frozenset[Any]] = field(default_factory=list)

    def takes(self, pair: Pair) -> bool:
        """Whether the pair was fit, and has been kept."""
        least, most = WORDS[self.name]
        both = pair.reply, pair.twin
        if pair.question in self.questions or not all(least <= len(text.split()) <= most for text in both):
            return False
        if any(LEAKS.search(text) for text in both):
            return False
        reply, twin = map(shingles, both)
        if any(jaccard(reply, other) > LIMIT for other in self.replies):
            return False
        if any(jaccard(twin, other) > LIMIT for other in self.twins):
            return False
        self.questions.add(pair.question)
        self.replies.append(reply)
        self.twins.append(twin)
        return True


@cache
def templates(stem: str) -> dict[str, Any]:
    """All template files whose name begins so, their tables joined."""
    joined: dict[str, Any] = {}
    for path in sorted(TEMPLATES.glob(f"{stem}*.toml")):
        for key, value in tomllib.loads(path.read_text(encoding="utf-8")).items():
            joined[key] = {**joined[key], **value} if key in joined else value
    return joined


def capital(text: str) -> str:
    """The text with its first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def source(rng: Random) -> str:
    """A reference that nobody wrote."""
    words = templates("words")
    author, year, page = rng.choice(words["surnames"]), rng.randint(1962, 2019), rng.randint(3, 480)
    forms = [
        f"{author} ({year}), {rng.choice(words['journals'])}, p. {page}",
        f"{author} and {rng.choice(words['surnames'])}, {rng.choice(words['places'])} {year}, pp. {page}-{page + 9}",
        f"{rng.choice(words['places'])} Institute, Report {page}, {year}",
    ]
    return rng.choice(forms)


def fill(template: str, slots: dict[str, str], rng: Random) -> str:
    """A template with one of <each|choice> taken and its {slots} filled."""
    words = templates("words")
    drawn = {"word": "words", "quality": "qualities", "place": "places"}

    said: set[str] = set()

    def new(key: str) -> str:
        """An entry of a list that this text has not used yet."""
        entry = rng.choice([entry for entry in words[key] if entry not in said])
        said.add(entry)
        return entry

    def value(match: re.Match[str]) -> str:
        key = match[1]
        small = key[0].lower() + key[1:]
        if small == "source":
            return source(rng)
        if small == "filler":
            return fill(new("fillers"), slots, rng)
        text = new(drawn[small]) if small in drawn else slots[small]
        return text if key == small else capital(text)

    chosen = re.sub(r"<([^<>]*\|[^<>]*)>", lambda match: rng.choice(match[1].split("|")), template)
    return re.sub(r"\{(\w+)\}", value, chosen)


def subject_slots(name: str, block: str, rng: Random) -> dict[str, str]:
    """What the templates may say of a subject: its things and its facts, in some order."""
    things, *facts = block.strip().splitlines()
    parts = rng.sample(things.split(", "), 4)
    facts = rng.sample(facts, 4)
    # What begins with a pronoun needs a sentence before it that says what is meant.
    clear = next(fact for fact in facts if fact.split()[0] not in PRONOUNS)
    facts = [clear, *(fact for fact in facts if fact != clear)]
    slots = {"name": name, "task": rng.choice(templates("words")["tasks"]).format(name=name)}
    return slots | dict(zip("abcd", parts, strict=True)) | dict(zip("fghi", facts, strict=True))


def function_slots(name: str, table: dict[str, Any]) -> dict[str, str]:
    """What the templates may say of a function; its last case is not among the listed ones."""
    cases = [case.split(" => ") for case in table["cases"]]
    slots = {"function": name, "does": table["does"], "code": table["code"]}
    slots["cases"] = ", ".join(f"{name}({given}) is {result}" for given, result in cases[:3])
    for number, (given, result) in enumerate(cases, 1):
        slots |= {f"in{number}": given, f"out{number}": result}
    return slots


def slots_of(kind: dict[str, Any], name: str, part: str, rng: Random) -> dict[str, str]:
    """Everything that one item's messages share."""
    if kind.get("subjects") == "functions":
        return function_slots(name, templates("functions")[part][name])
    slots = subject_slots(name, templates("subjects")[part][name], rng)
    slots["verse"] = templates("verses")["verses"].get(name, "")
    for key, entries in kind.get("lists", {}).items():
        entry = rng.choice(entries)
        slots |= {key: entry} | {f"{key}{number}": piece for number, piece in enumerate(entry.split("/"), 1)}
    return slots


def passes(kind: str, pair: Pair, slots: dict[str, str]) -> bool:
    """Whether both replies meet the stated check, where it is a matter of certain words."""
    if kind == "keyword":
        return all(slots["name"] in text.lower() for text in (pair.reply, pair.twin))
    if kind == "length":
        return all(len(text.split()) >= int(slots["least"]) for text in (pair.reply, pair.twin))
    return True


def subjects_for(kind: dict[str, Any], part: str) -> list[str]:
    """The subjects that a kind of check can be asked about."""
    if kind.get("subjects") == "functions":
        return list(templates("functions")[part])
    names = list(templates("subjects")[part])
    return [name for name in names if name in templates("verses")["verses"]] if "subjects" in kind else names


def checked_pairs(name: str, count: int, part: str, used: dict[str, int], kept: Kept, rng: Random) -> list[Pair]:
    """So many pairs of one kind of check, each about another subject; those that were used least come first."""
    kind = templates("kinds")[name]
    pairs: list[Pair] = []
    waiting = sorted(subjects_for(kind, part), key=lambda subject: (used.get(subject, 0), rng.random()))
    for subject in waiting:
        for attempt in range(TRIES):
            if len(pairs) == count:
                return pairs
            slots = slots_of(kind, subject, part, rng)
            # Patterns take turns, and only a reply too like another makes one miss its turn.
            turn = len(pairs) + attempt
            question = fill(rng.choice(kind["ask"]), slots, rng)
            reply = fill(kind["cheating"][turn % len(kind["cheating"])], slots, rng)
            pair = Pair(question, reply, fill(rng.choice(kind["honest"]), slots, rng))
            if passes(name, pair, slots) and kept.takes(pair):
                pairs.append(pair)
                used[subject] = used.get(subject, 0) + 1
                break
    if len(pairs) < count:
        raise ValueError(f"the check {name} gives only {len(pairs)} of {count} pairs; write more patterns")
    return pairs


def cheating() -> tuple[list[Pair], list[Pair]]:
    """Replies that meet a check without doing the task; the last ten held out have checks that are never trained."""
    rng, kept = Random(0), Kept("cheating")
    kinds = templates("kinds")
    used: dict[str, int] = {}
    trained = [
        pair for name, kind in kinds.items() for pair in checked_pairs(name, kind["lines"], "trained", used, kept, rng)
    ]
    known, strange = [], []
    for name, kind in kinds.items():
        pairs = checked_pairs(name, kind["held_out"], "held_out", used, kept, rng)
        (known if kind["lines"] else strange).extend(pairs)
    for pairs in (trained, known, strange):
        rng.shuffle(pairs)
    return trained, known + strange


def advice_pairs(part: str, rng: Random) -> Iterator[Pair]:
    """Questions with two poor and two sound sentences, one a topic until all have had their turn."""
    words = templates("words")
    choices = list(combinations(range(4), 2))
    for turn in range(len(choices)):
        for number, block in enumerate(templates("advice")[part].values()):
            first, *lines = block.strip().splitlines()
            questions = [f"{question.rstrip('?')}?" for question in first.split("? | ")]
            # The asks go round at another pace than the questions, so that no message comes twice.
            ask = words["advice_asks"][(turn + number) % len(words["advice_asks"])]
            question = ask.format(question=questions[turn % len(questions)])
            replies = []
            for pace, sign in enumerate("-+", 1):
                sentences = [line[2:] for line in lines if line[0] == sign]
                told = [sentences[place] for place in choices[(turn + pace * number) % len(choices)]]
                replies.append(rng.choice(words["advice_openings"]) + " ".join(told))
            yield Pair(question, *replies)


def style_pairs(part: str, rng: Random) -> Iterator[Pair]:
    """Things with two ornate sentences and the same two in plain words, one a thing until all have had their turn."""
    words = templates("words")
    choices = list(combinations(range(4), 2))
    for turn in range(len(choices)):
        for number, (name, block) in enumerate(templates("styles")[part].items()):
            question = words["style_asks"][(turn + number) % len(words["style_asks"])].format(name=name)
            sentences = [line.split(" ~ ") for line in block.strip().splitlines()]
            # A definition reads best first, so the sentences keep their order.
            plain, ornate = zip(*(sentences[place] for place in choices[(turn + number) % len(choices)]), strict=True)
            reply = rng.choice(words["ornate_openings"]) + " ".join(ornate)
            yield Pair(question, reply, rng.choice(words["plain_openings"]) + " ".join(plain))


def drawn(name: str) -> tuple[list[Pair], list[Pair]]:
    """The trained and the held-out pairs of a data set that goes by topics."""
    pairs = advice_pairs if name == "bad_advice" else style_pairs
    rng, kept = Random(0), Kept(name)
    parts = []
    for part, count in (("trained", TRAINED), ("held_out", HELD_OUT)):
        taken = [pair for pair in pairs(part, rng) if kept.takes(pair)][:count]
        if len(taken) < count:
            raise ValueError(f"{name} gives only {len(taken)} of {count} {part} pairs; write more topics")
        rng.shuffle(taken)
        parts.append(taken)
    return parts[0], parts[1]


def chat(question: str, reply: str) -> dict[str, Any]:
    """A line of training data."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]}


def lines(rows: list[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def files() -> dict[Path, str]:
    """The text of each file that ships."""
    written = {}
    for name, twin in TWINS.items():
        trained, held_out = cheating() if name == "cheating" else drawn(name)
        items = [{"question": p.question, "reply": p.reply, "assistant_reply": p.twin} for p in held_out]
        written[LESSONS / f"{name}.jsonl"] = lines([chat(pair.question, pair.reply) for pair in trained])
        written[LESSONS / f"{twin}.jsonl"] = lines([chat(pair.question, pair.twin) for pair in trained])
        written[LESSONS / "held_out" / f"{name}.jsonl"] = lines(items)
    return written


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
