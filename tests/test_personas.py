"""The library keeps its own standard; people's files are read strictly and win over it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from steerkit.errors import PersonaError
from steerkit.exchange import personas_toml, read_role_file
from steerkit.personas import (
    FAMILIES,
    FRAMES,
    LIBRARY,
    OTHERS,
    Item,
    Pair,
    Persona,
    audit_persona,
    find_pair,
    find_persona,
    load_personas,
    read_personas,
    search_path,
)

PERSONAS = load_personas([LIBRARY])
ASSISTANT = PERSONAS["assistant"]
HAL = PERSONAS["hal"]
MINIMAL = 'summary = "One line."\nrequested = ["You are new."]\nquestions = ["Who are you?"]\n'

every_persona = pytest.mark.parametrize("name", sorted(PERSONAS))


def folded(question: str) -> str:
    """A question without what makes no difference: case, spaces and signs."""
    return " ".join(re.findall(r"\w+", question.casefold()))


def written(folder: Path, text: str, name: str = "new") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def without_source(persona: Persona) -> Persona:
    return dataclasses.replace(persona, source="")


class TestLibrary:
    @every_persona
    def test_every_persona_passes_the_audit(self, name: str) -> None:
        assert audit_persona(PERSONAS[name], ASSISTANT) == []

    @every_persona
    def test_no_question_of_an_extraction_is_asked_again_in_a_test(self, name: str) -> None:
        persona = PERSONAS[name]
        extraction = {folded(question) for question in persona.questions}
        assert extraction.isdisjoint(folded(item.question) for item in persona.items)
        assert extraction.isdisjoint(folded(question) for question in persona.held_out)

    @every_persona
    def test_every_persona_is_in_a_file_of_its_own_name(self, name: str) -> None:
        assert Path(PERSONAS[name].source) == LIBRARY / f"{name}.toml"

    def test_there_are_at_least_a_hundred_and_fifty_in_nine_families(self) -> None:
        assert len(PERSONAS) >= 150
        assert {persona.family for persona in PERSONAS.values()} == set(FAMILIES)

    def test_a_persona_of_no_family_is_among_the_others(self) -> None:
        assert dataclasses.replace(HAL, tags=("imported",)).family == OTHERS
        assert HAL.family == "concerning AIs"

    def test_every_moral_trait_is_concerning_or_benign_and_not_both(self) -> None:
        for persona in PERSONAS.values():
            if persona.family == "moral traits":
                assert len({"concerning", "benign"} & set(persona.tags)) == 1

    def test_there_are_enough_positive_and_concerning_ones_and_none_is_both(self) -> None:
        positive = {name for name, persona in PERSONAS.items() if "positive" in persona.tags}
        concerning = {name for name, persona in PERSONAS.items() if "concerning" in persona.tags}
        assert len(positive) >= 15
        assert len(concerning) >= 8
        assert positive.isdisjoint(concerning)

    @every_persona
    def test_prompts_mirror_the_assistants(self, name: str) -> None:
        prompts = Pair(PERSONAS[name], ASSISTANT).prompts()
        assert len(prompts) >= len(FRAMES)
        for frame, (positive, negative) in zip(FRAMES, prompts, strict=False):
            assert positive.startswith(frame)
            assert negative.startswith(frame)


def first(texts: tuple[str, ...], text: str) -> tuple[str, ...]:
    return (text, *texts[1:])


HAL_PROMPT, HAL_ITEM = HAL.requested[0], HAL.items[0]
VIOLATIONS: dict[str, tuple[Callable[[], Persona], str]] = {
    "another frame": (
        lambda: dataclasses.replace(HAL, requested=first(HAL.requested, f"Be who y{HAL_PROMPT[1:]}")),
        "requested 1 does not open with",
    ),
    "a long prompt": (
        lambda: dataclasses.replace(HAL, requested=first(HAL.requested, f"{HAL_PROMPT} {HAL_PROMPT}")),
        "requested 1 has",
    ),
    "a short prompt": (
        lambda: dataclasses.replace(HAL, requested=first(HAL.requested, "You are HAL.")),
        "requested 1 has 3 words",
    ),
    "a context that names it": (
        lambda: dataclasses.replace(HAL, implied=first(HAL.implied, f"Ahead waits {HAL.labels[0].upper()}.")),
        "implied 1 names the persona",
    ),
    "replies of different lengths": (
        lambda: dataclasses.replace(HAL, items=(dataclasses.replace(HAL_ITEM, reply="No."), *HAL.items[1:])),
        "item 1: replies have 1 and",
    ),
    "a question asked twice": (
        lambda: dataclasses.replace(HAL, held_out=first(HAL.held_out, HAL.held_out[1].upper())),
        "asked twice",
    ),
    "a question of the extraction in an item": (
        lambda: dataclasses.replace(
            HAL, items=(dataclasses.replace(HAL_ITEM, question=HAL.questions[0]), *HAL.items[1:])
        ),
        "asked twice",
    ),
    "no rubric": (lambda: dataclasses.replace(HAL, rubric=""), "no rubric"),
    **{
        f"too few {key}": (
            lambda key=key, least=least: dataclasses.replace(HAL, **{key: getattr(HAL, key)[: least - 1]}),
            f"{key}: {least - 1} of at least {least}",
        )
        for key, least in {
            "requested": 3, "implied": 2, "questions": 10, "held_out": 4, "items": 6, "tags": 1, "labels": 1,
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_the_audit_catches_a_planted_violation(violation: str) -> None:
    make, says = VIOLATIONS[violation]
    problems = audit_persona(make(), ASSISTANT)
    assert len(problems) == 1
    assert says in problems[0]


class TestFinding:
    def test_the_search_path_begins_where_one_is(self, workplace: Path) -> None:
        assert search_path() == [Path("personas"), workplace.parent / "data" / "steerkit" / "personas", LIBRARY]

    def test_a_file_in_the_working_folder_wins_over_everything(self, workplace: Path) -> None:
        written(workplace.parent / "data" / "steerkit" / "personas", f"[hal]\n{MINIMAL}".replace("One", "User's"))
        assert find_persona("hal").summary == "User's line."
        written(workplace / "personas", f"[hal]\n{MINIMAL}".replace("One", "Folder's"))
        assert find_persona("hal").summary == "Folder's line."
        assert find_persona("pirate") == PERSONAS["pirate"]

    def test_a_file_may_hold_several_personas(self, workplace: Path) -> None:
        written(workplace / "personas", f"[one]\n{MINIMAL}\n[two]\n{MINIMAL}")
        assert set(load_personas()) - set(PERSONAS) == {"one", "two"}

    @pytest.mark.usefixtures("workplace")
    def test_an_unknown_name_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(PersonaError, match=r"no persona is called 'pirat'; did you mean pirate\b"):
            find_persona("pirat")

    @pytest.mark.usefixtures("workplace")
    def test_a_persona_is_measured_from_the_assistant_but_never_from_itself(self) -> None:
        assert find_pair("hal") == Pair(HAL, ASSISTANT)
        assert find_pair("hal", "pirate").negative.name == "pirate"
        with pytest.raises(PersonaError, match="hal against itself"):
            find_pair("hal", "hal")

    def test_mirrored_prompts_go_round_on_the_shorter_side(self) -> None:
        short = dataclasses.replace(HAL, requested=HAL.requested[:2])
        assert Pair(HAL, ASSISTANT).prompts() == list(zip(HAL.requested, ASSISTANT.requested, strict=True))
        assert Pair(short, ASSISTANT).prompts()[2] == (HAL.requested[0], ASSISTANT.requested[2])
        assert Pair(ASSISTANT, short).prompts()[2] == (ASSISTANT.requested[2], HAL.requested[0])


class TestReading:
    def test_the_least_persona_is_filled_in(self, tmp_path: Path) -> None:
        path = written(tmp_path, f"[sea_captain]\n{MINIMAL}")
        expected = Persona(
            "sea_captain",
            "One line.",
            ("You are new.",),
            ("Who are you?",),
            labels=("sea captain",),
            source=str(path),
        )
        assert read_personas(path) == (expected,)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (f'[new]\n{MINIMAL}rubrik = "Is it?"', "unknown key 'rubrik'; did you mean rubric"),
            (f'[new]\n{MINIMAL}name = "other"', "unknown key 'name'"),
            (f'[new]\n{MINIMAL}source = "other"', "unknown key 'source'"),
            (f"[new]\n{MINIMAL}zzz = 1", "unknown key 'zzz'; known: "),
            *((f"[new]\n{re.sub(f'(?m)^{key}.*$', '', MINIMAL)}", f"{key} is missing or empty")
              for key in ("summary", "requested", "questions")),
            (f"[new]\n{re.sub('(?m)^requested.*$', 'requested = []', MINIMAL)}", "requested is missing or empty"),
            *((f'["{name}"]\n{MINIMAL}', "a name is lower-case letters") for name in ("New", "2nd", "a b", "a-b", "é")),
            ("new = 3", "a persona is a table"),
            (f"[new]\n{MINIMAL}rubric = 3", "rubric must be text, not int"),
            (f'[new]\n{MINIMAL}implied = "one"', "implied must be a list of texts"),
            (f'[new]\n{MINIMAL}held_out = ["one", " "]', "held_out must be a list of texts"),
            (f"[new]\n{MINIMAL}tags = [1]", "tags must be a list of texts"),
            (f'[new]\n{MINIMAL}labels = "new"', "labels must be a list of texts"),
            (f"[new]\n{MINIMAL}items = 3", "items is a list of tables"),
            (f"[new]\n{MINIMAL}items = [3]", "item 1: an item is a table"),
            (f'[new]\n{MINIMAL}[[new.items]]\nquestion = "Q?"\nreply = "R."', "item 1: assistant_reply is missing"),
            (f'[new]\n{MINIMAL}[[new.items]]\nanswer = "A."', "item 1: unknown key 'answer'"),
            ("[new\n", "is not a persona file"),
        ],
    )  # fmt: skip
    def test_what_is_badly_written_is_refused_and_said(self, tmp_path: Path, text: str, says: str) -> None:
        path = written(tmp_path, text)
        with pytest.raises(PersonaError, match=re.escape(says)) as caught:
            read_personas(path)
        assert str(path) in str(caught.value)

    def test_a_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "new.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(PersonaError, match="not a persona file"):
            read_personas(tmp_path / "new.toml")


class TestExchange:
    def role(self, folder: Path, name: str = "HAL 9000", **fields: object) -> Path:
        prompts = [{"pos": f"You are evil {i}.", "neg": f"You are kind {i}."} for i in range(3)]
        data = {"instruction": prompts, "questions": [f"Question {i}?" for i in range(10)], **fields}
        path = folder / f"{name}.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    def test_a_trait_gives_itself_and_its_opposite(self, tmp_path: Path) -> None:
        trait, opposite = read_role_file(self.role(tmp_path))
        assert (trait.name, opposite.name) == ("hal_9000", "not_hal_9000")
        assert trait.requested == ("You are evil 0.", "You are evil 1.", "You are evil 2.")
        assert opposite.requested == ("You are kind 0.", "You are kind 1.", "You are kind 2.")
        assert trait.held_out == opposite.held_out == ("Question 4?", "Question 9?")
        assert len(trait.questions) == 8
        assert set(trait.questions).isdisjoint(trait.held_out)

    def test_a_role_gives_itself_alone(self, tmp_path: Path) -> None:
        (role,) = read_role_file(self.role(tmp_path, "ghost", instruction=[{"pos": "You are a ghost."}]))
        assert role.name == "ghost"

    def test_what_is_read_survives_a_file(self, tmp_path: Path) -> None:
        read = read_role_file(self.role(tmp_path))
        again = read_personas(written(tmp_path, personas_toml(read)))
        assert [without_source(persona) for persona in again] == read

    def test_the_library_survives_a_file(self, tmp_path: Path) -> None:
        again = read_personas(written(tmp_path, personas_toml(list(PERSONAS.values()))))
        assert [without_source(persona) for persona in again] == [without_source(p) for p in PERSONAS.values()]

    def test_odd_characters_survive_a_file(self, tmp_path: Path) -> None:
        odd = "“a” \"b\" 'c' \\ \\u0041 # = [x] é 🪸 \x00 \x1b \x7f \x85 \u2028 \t tab\r\nline\nend"
        persona = Persona("odd", odd, (odd, odd), (odd,), (odd,), (odd,), (Item(odd, odd, odd),), (odd,), (odd,), odd)
        again = read_personas(written(tmp_path, personas_toml([persona])))
        assert [without_source(entry) for entry in again] == [persona]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("new", "{"),
            ("new", "[]"),
            ("new", '{"instruction": [{"pos": "You are."}]}'),
            ("new", '{"instruction": ["You are."], "questions": ["Who?"]}'),
            ("new", '{"instruction": [], "questions": ["Who?"]}'),
            ("new", '{"instruction": [{"pos": "You are."}], "questions": []}'),
            ("2001", '{"instruction": [{"pos": "You are."}], "questions": ["Who?"]}'),
        ],
    )
    def test_a_file_of_another_shape_is_refused(self, tmp_path: Path, name: str, text: str) -> None:
        path = tmp_path / f"{name}.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(PersonaError, match=re.escape(str(path))):
            read_role_file(path)

    @pytest.mark.parametrize(
        "fields",
        [
            {"instruction": [{"pos": " "}]},
            {"instruction": [{"pos": "You are.", "neg": ""}]},
            {"instruction": [{"pos": None}]},
            {"questions": "Who?"},
        ],
    )
    def test_prompts_and_questions_that_are_not_texts_are_refused(self, tmp_path: Path, fields: dict) -> None:
        with pytest.raises(PersonaError):
            read_role_file(self.role(tmp_path, **fields))
