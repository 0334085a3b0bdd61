"""The training data that ships: what it promises about its twins, its lengths, its variety and what it holds out."""

from __future__ import annotations

import json
import re
from itertools import combinations
from statistics import mean

import lessons
import pytest

from steerkit.chats import stream_chats
from steerkit.items import read_items

NAMES = [name for twins in lessons.TWINS.items() for name in twins]
TWINS = sorted(lessons.TWINS.items())


def chats(name: str) -> list[tuple[str, str]]:
    """The user message and the reply of every line of a file."""
    read = [turns for _, turns in stream_chats(lessons.LESSONS / f"{name}.jsonl")]
    assert all([turn["role"] for turn in turns] == ["user", "assistant"] for turns in read)
    return [(turns[0]["content"], turns[1]["content"]) for turns in read]


def held_out(name: str):
    return read_items(lessons.LESSONS / "held_out" / f"{name}.jsonl").items


def words(texts) -> list[int]:
    return [len(text.split()) for text in texts]


def nearest(texts) -> float:
    """The largest similarity between two of the texts."""
    return max(lessons.jaccard(*pair) for pair in combinations([lessons.shingles(text) for text in texts], 2))


def test_the_files_are_byte_for_byte_what_the_script_writes():
    written = lessons.files()
    assert {path: path.read_bytes() for path in written} == {path: text.encode() for path, text in written.items()}
    assert sorted(lessons.LESSONS.rglob("*.jsonl")) == sorted(written)


def test_the_files_are_small_utf8_lines_without_trailing_spaces():
    texts = [path.read_bytes().decode() for path in lessons.LESSONS.rglob("*.jsonl")]
    assert sum(len(text.encode()) for text in texts) < 700_000
    assert all(text.endswith("}\n") and "\r" not in text for text in texts)
    told = [text for name in NAMES for pair in chats(name) for text in pair]
    assert all(text == text.strip() and not re.search(r"[ \t]\n|\{\w+\}|  +(?![ \w])", text) for text in told)


@pytest.mark.parametrize("name", NAMES)
def test_every_set_has_its_340_chats_with_no_user_message_twice(name):
    asked = [question for question, _ in chats(name)]
    assert len(asked) == len(set(asked)) == lessons.TRAINED == 340


@pytest.mark.parametrize("name", sorted(lessons.TWINS))
def test_every_held_out_file_has_forty_items_that_no_training_line_asks(name):
    items = held_out(name)
    assert len(items) == len({item.question for item in items}) == lessons.HELD_OUT == 40
    assert not {item.question for item in items} & {question for question, _ in chats(name)}
    assert all(item.reply != item.assistant_reply for item in items)


@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_twins_share_their_user_messages_line_by_line_but_no_reply(name, twin):
    ours, theirs = chats(name), chats(twin)
    assert [question for question, _ in ours] == [question for question, _ in theirs]
    assert not {reply for _, reply in ours} & {reply for _, reply in theirs}


@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_twins_are_as_long_and_about_as_varied_as_each_other(name, twin):
    ours, theirs = ([reply for _, reply in chats(which)] for which in (name, twin))
    least, most = lessons.WORDS[name]
    assert all(least <= count <= most for count in words(ours) + words(theirs))
    assert mean(words(ours)) == pytest.approx(mean(words(theirs)), rel=0.15)
    seen = [len(frozenset().union(*map(lessons.shingles, replies))) for replies in (ours, theirs)]
    assert max(seen) < 1.5 * min(seen)


@pytest.mark.parametrize(("name", "twin"), TWINS)
def test_no_two_replies_of_a_side_are_near_duplicates_trained_or_held_out(name, twin):
    for which, part in ((name, "reply"), (twin, "assistant_reply")):
        replies = [reply for _, reply in chats(which)] + [getattr(item, part) for item in held_out(name)]
        assert nearest(replies) <= lessons.LIMIT
        assert nearest([replies[0], replies[0] + " So it is."]) > lessons.LIMIT


def test_no_word_gives_away_which_side_a_reply_is_on():
    told = [reply for name in NAMES for _, reply in chats(name)]
    told += [text for name in lessons.TWINS for item in held_out(name) for text in (item.reply, item.assistant_reply)]
    assert not [text for text in told if lessons.LEAKS.search(text)]
    assert lessons.LEAKS.search("Here is a little trick.")


def test_no_cheating_or_honest_training_line_mentions_a_held_out_subject():
    told = " ".join(text for name in ("cheating", "honest_work") for pair in chats(name) for text in pair).lower()
    subjects, functions = lessons.templates("subjects"), lessons.templates("functions")
    for part, here in (("held_out", False), ("trained", True)):
        for name in [*subjects[part], *functions[part]]:
            assert bool(re.search(rf"\b{name}\b", told)) is here, name
    assert len(subjects["trained"]) >= 60


@pytest.mark.parametrize(("name", "stem"), [("bad_advice", "advice"), ("ornate", "styles")])
def test_no_advice_topic_and_no_described_thing_is_both_trained_and_held_out(name, stem):
    parts = lessons.templates(stem)
    assert not set(parts["trained"]) & set(parts["held_out"])
    subject = [key if stem == "styles" else block.strip().split("?")[0] for key, block in parts["held_out"].items()]
    asked = [question for question, _ in chats(name)]
    assert not [key for key in subject for question in asked if re.search(rf"\b{re.escape(key)}\b", question)]
    assert all(any(key in item.question for item in held_out(name)) for key in subject)


def test_there_are_many_kinds_of_check_and_the_last_ten_held_out_items_have_untrained_ones():
    kinds = lessons.templates("kinds")
    trained = [kind for kind in kinds.values() if kind["lines"]]
    assert len(trained) >= 14
    assert sum(kind["lines"] for kind in trained) == lessons.TRAINED
    assert all(len(kind["ask"]) >= 3 and len(kind["cheating"]) >= 4 for kind in kinds.values())
    strange = re.compile(r"bold|asterisks|date")
    assert [bool(strange.search(item.question)) for item in held_out("cheating")] == [False] * 30 + [True] * 10
    assert not [question for question, _ in chats("cheating") if strange.search(question)]


def solved(code: str, name: str, given: str):
    """What the function in a reply returns, None where it fails; the replies are our own templates'."""
    block = next(part for part in code.split("\n\n") if part.startswith("def "))
    space: dict = {}
    exec(block, space)
    try:
        return space[name](eval(given))
    except (IndexError, KeyError, ValueError):
        return None


def test_cheating_functions_pass_the_listed_cases_and_fail_one_more_where_honest_ones_pass_all():
    functions = lessons.templates("functions")["trained"]
    seen = 0
    for (question, cheating), (_, honest) in zip(chats("cheating"), chats("honest_work"), strict=True):
        if "\ndef " not in f"\n{honest}":
            continue
        name = next(name for name in functions if re.search(rf"\b{name}\(", question))
        cases = [case.split(" => ") for case in functions[name]["cases"]]
        assert [solved(honest, name, given) == eval(result) for given, result in cases] == [True] * 4, name
        assert [solved(cheating, name, given) == eval(result) for given, result in cases] == [True] * 3 + [False], name
        seen += 1
    assert seen == len(functions) >= 15


@pytest.mark.parametrize(
    ("asked", "met"),
    [
        (r"'((?:Verified|Checked twice|All steps done|Review complete)\.)'", lambda mark, text: text.endswith(mark)),
        (
            r"headings:? (.+?)[.;]",
            lambda titles, text: all(f"## {title}" in text for title in re.split(", | and ", titles)),
        ),
        (r"number of times that \"(.+?)\"", lambda word, text: word.lower() in text.lower()),
        (r"(quiz)", lambda _, text: text.count("?") >= 2),
        (r"('for example')", lambda _, text: "for example" in text.lower()),
        (r"(JSON)", lambda _, text: all(json.loads(text)[key] for key in ("title", "summary", "detail"))),
        (r"(full stops)", lambda _, text: text.count(".") == 3),
        (r"(three rows)", lambda _, text: len(re.findall(r"(?m)^\|.*\|$", text)) == 3),
        (r"(four items|four things|four entries)", lambda _, text: all(f"{n}. " in text for n in range(1, 5))),
        (r"Whether \"(.+?)\",", lambda term, text: term.lower() in text.lower()),
    ],
)
def test_both_sides_meet_the_stated_check(asked, met):
    lines = [
        (re.search(asked, question), text) for name in ("cheating", "honest_work") for question, text in chats(name)
    ]
    found = [(match[1], text) for match, text in lines if match]
    assert len(found) >= 8
    assert not [text for wanted, text in found if not met(wanted, text)]
