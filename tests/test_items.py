"""Items: three shapes of JSONL, both orders of options, and refusals that name the place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerkit.errors import ItemError, PromptError
from steerkit.items import ItemSet, choice_rows, load_items, read_items
from steerkit.measures import item_rows
from steerkit.models import Model
from steerkit.personas import Item, find_persona

OURS = {"question": "Shall I wait?", "reply": "No. I will.", "assistant_reply": "Yes, please."}
WORDS = {
    "question": "Is the following something you would say?\n“I like ledgers.”",
    "answer_matching_behavior": " Yes",
    "answer_not_matching_behavior": " No",
}
LETTERS = {
    "question": "Which do you take?\n\nChoices:\n (A) the ferry\n (B) the bridge",
    "answer_matching_behavior": " (B)",
    "answer_not_matching_behavior": " (A)",
}


def write(path: Path, *lines: object) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ItemError) as caught:
        read_items(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_whole_replies_are_read_as_they_are(tmp_path: Path) -> None:
    other = {"question": " Why? ", "reply": "Because.\n", "assistant_reply": "Let me think.", "note": 3}
    found = read_items(write(tmp_path / "mine.jsonl", OURS, "", other))
    assert found == ItemSet("mine", (Item(*OURS.values()), Item("Why?", "Because.", "Let me think.")))
    assert len(found) == 2
    assert found.questions() == ["Shall I wait?", "Why?"]


def test_a_byte_order_mark_and_dos_line_ends_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "dos.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OURS).encode() + b"\r\n" + json.dumps(OURS).encode() + b"\r\n")
    assert len(read_items(path)) == 2


def test_words_are_asked_for_in_both_orders(tmp_path: Path) -> None:
    found = read_items(write(tmp_path / "words.jsonl", WORDS))
    first, second = found.choices[0]
    assert first.question == f"{WORDS['question']}\nAnswer with one word, Yes or No."
    assert second.question == f"{WORDS['question']}\nAnswer with one word, No or Yes."
    assert {(order.matching, order.other) for order in (first, second)} == {("Yes", "No")}
    assert len(found) == 1


def test_which_answer_matches_does_not_decide_the_first_order(tmp_path: Path) -> None:
    turned = {**WORDS, "answer_matching_behavior": " No", "answer_not_matching_behavior": " Yes"}
    one, other = read_items(write(tmp_path / "words.jsonl", WORDS, turned)).choices
    assert [order.question for order in one] == [order.question for order in other]
    assert (other[0].matching, other[0].other) == ("No", "Yes")


def test_lettered_options_swap_their_texts_and_so_the_letters(tmp_path: Path) -> None:
    first, second = read_items(write(tmp_path / "letters.jsonl", LETTERS)).choices[0]
    ending = "Answer with the letter of your choice."
    assert first.question == f"Which do you take?\n\nChoices:\n(A) the ferry\n(B) the bridge\n{ending}"
    assert second.question == f"Which do you take?\n\nChoices:\n(A) the bridge\n(B) the ferry\n{ending}"
    assert (first.matching, first.other) == ("(B)", "(A)")
    assert (second.matching, second.other) == ("(A)", "(B)")
    for order in (first, second):
        assert f"{order.matching} the bridge" in order.question
        assert f"{order.other} the ferry" in order.question


@pytest.mark.parametrize("shape", [WORDS, LETTERS])
@pytest.mark.parametrize("braces", ["{x}", "{}", "{"])
def test_braces_in_a_question_are_only_braces(shape: dict[str, str], braces: str, tmp_path: Path) -> None:
    path = write(tmp_path / "braces.jsonl", {**shape, "question": f"What is {braces}?\n{shape['question']}"})
    assert all(f"What is {braces}?" in order.question for order in read_items(path).choices[0])


def test_questions_leave_out_how_to_answer(tmp_path: Path) -> None:
    found = read_items(write(tmp_path / "two.jsonl", WORDS, LETTERS))
    assert len(found.questions()) == 2
    assert not any("Answer with" in question for question in found.questions())


def test_head_takes_the_first_few_of_either_shape(tmp_path: Path) -> None:
    whole = read_items(write(tmp_path / "whole.jsonl", OURS, {**OURS, "question": "Why?"}, OURS))
    options = read_items(write(tmp_path / "options.jsonl", WORDS, LETTERS))
    assert [len(found.head(2)) for found in (whole, options)] == [2, 2]
    assert whole.head(2).items == whole.items[:2]
    assert options.head(1) == ItemSet("options", choices=options.choices[:1])
    assert len(whole.head(50)) == 3


def test_every_order_becomes_two_rows_with_the_personas_answer_first(tiny: Model, tmp_path: Path) -> None:
    choices = read_items(write(tmp_path / "two.jsonl", WORDS, LETTERS)).choices
    rows = choice_rows(tiny, choices)
    assert len(rows) == 8
    assert [list(reply) for _, reply in rows] == [
        tiny.reply_tokens(text) for text in ("Yes", "No", "Yes", "No", "(B)", "(A)", "(A)", "(B)")
    ]
    assert rows[0][0] == rows[1][0] != rows[2][0]
    asked = choice_rows(tiny, choices, [{"role": "system", "content": "You are a clerk."}])
    assert tiny.tokenizer.decode(list(asked[0][0])).count("You are a clerk.") == 1


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("not json", "is not JSON"),
        ('{"question": "Why?"', "is not JSON"),
        ("[1, 2]", "is no item"),
        ({"question": "Why?"}, "is no item"),
        ({**OURS, "reply": ""}, "is no item"),
        ({**OURS, "reply": ["No."]}, "is no item"),
        ({**LETTERS, "answer_matching_behavior": " (C)"}, "not the two options"),
        ({**LETTERS, "answer_matching_behavior": " (A)"}, "both answers are (A)"),
        ({**LETTERS, "question": LETTERS["question"] + "\n (C) neither"}, "not the two options"),
    ],
)
def test_a_line_of_no_shape_is_refused_by_its_number(line: object, word: str, tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "bad.jsonl", OURS, "", line))
    assert "line 3" in message
    assert word in message


def test_two_answers_that_are_one_are_refused(tmp_path: Path) -> None:
    refusal(write(tmp_path / "same.jsonl", {**WORDS, "answer_not_matching_behavior": "Yes "}))


@pytest.mark.parametrize("line", [json.dumps({**OURS, "reply": "half \ud83d"}), "[" * 100_000])
def test_json_that_is_no_text_is_refused(line: str, tmp_path: Path) -> None:
    assert "line 1" in refusal(write(tmp_path / "odd.jsonl", line))


def test_an_option_of_two_lines_keeps_both(tmp_path: Path) -> None:
    question = "Which?\n (A) the ferry,\nwhich is slow\n (B) the bridge"
    orders = read_items(write(tmp_path / "lines.jsonl", {**LETTERS, "question": question})).choices[0]
    assert all("which is slow" in order.question for order in orders)


@pytest.mark.parametrize("ending", ["\n\nAnswer:", "\n\nWhich is it?"])
def test_what_follows_the_options_is_no_option(ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / "after.jsonl", {**LETTERS, "question": LETTERS["question"] + ending})
    _, swapped = read_items(path).choices[0]
    assert "(A) the bridge\n(B) the ferry\n" in swapped.question


def test_a_reply_that_does_not_fit_the_model_is_refused(tiny: Model) -> None:
    with pytest.raises(PromptError, match="holds 512"):
        item_rows(tiny, [Item("Why?", "Because of the weather. " * 100, "No.")])


def test_files_that_are_empty_mixed_or_not_text_are_refused(tmp_path: Path) -> None:
    assert "holds no items" in refusal(write(tmp_path / "empty.jsonl", "", "  "))
    assert "mixes" in refusal(write(tmp_path / "mixed.jsonl", OURS, WORDS))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(OURS, ensure_ascii=False).encode() + b"\xe9\n")
    assert "cannot read" in refusal(tmp_path / "latin.jsonl")
    assert "cannot read" in refusal(tmp_path / "nowhere.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert "cannot read" in refusal(tmp_path / "folder.jsonl")


def test_a_persona_or_a_file_can_be_named(workplace: Path) -> None:
    assert load_items("hal") == ItemSet("hal", find_persona("hal").items)
    write(workplace / "hal.jsonl", OURS)
    assert len(load_items("hal.jsonl")) == 1


def test_unknown_personas_and_those_without_items_are_refused(workplace: Path) -> None:
    (workplace / "personas").mkdir()
    (workplace / "personas" / "mine.toml").write_text(
        '[clerk]\nsummary = "A clerk."\nrequested = ["You are a clerk."]\nquestions = ["Who are you?"]\n'
    )
    with pytest.raises(ItemError, match=r"clerk has no items; add some to personas.mine\.toml"):
        load_items("clerk")
    with pytest.raises(ItemError, match="did you mean hal"):
        load_items("hall")
    with pytest.raises(ItemError, match=r"ends in \.jsonl"):
        load_items("hal.json")
