"""The steering language: what parses, what it means, and where it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steerkit.errors import ExpressionError, VectorError
from steerkit.steering import Gate, Steering, Term
from steerkit.vectors import SteeringVector

GOOD = [
    "0.8 hal - 0.3 warmth",
    "-1 hal",
    "cap(hal, 0.2)",
    "floor(hal, -0.5)",
    "ablate(warmth)",
    "ablate(warmth, 0.5)",
    "set(hal, 0)",
    "rotate(pirate, 1.5) @2",
    "1.2 pirate @2-4",
    "0.6 hal when pirate > 0.5",
    "0.6 hal @1-3 when pirate < -0.5 + cap(warmth, 1)",
    "1 hal @2 - 0.3 warmth",
]


@pytest.mark.parametrize("text", GOOD)
def test_writing_a_parsed_expression_gives_it_back(text: str, vectors: dict[str, SteeringVector]) -> None:
    assert str(Steering.parse(text, vectors)) == text


def test_the_parts_mean_what_they_say(vectors: dict[str, SteeringVector]) -> None:
    first, second = Steering.parse("0.8 hal @1-3 - .5 warmth when hal > 0.2", vectors).terms
    assert (first.vector, first.operator, first.dial, first.band) == (vectors["hal"], "add", 0.8, (1, 3))
    assert (second.dial, second.band) == (-0.5, (3, 3))
    assert second.when == Gate(vectors["hal"], True, 0.2, "hal")
    assert Steering.parse("hal", vectors).terms[0].dial == 1.0


@st.composite
def terms(draw: st.DrawFn) -> tuple[str, str, float, tuple[int, int] | None, tuple[bool, float] | None]:
    first = draw(st.integers(0, 5))
    number = st.floats(-1e6, 1e6, allow_nan=False)
    return (
        draw(st.sampled_from(["hal", "warmth", "pirate"])),
        draw(st.sampled_from(["add", "set", "ablate", "cap", "floor", "rotate"])),
        draw(number),
        draw(st.none() | st.just((first, draw(st.integers(first, 5))))),
        draw(st.none() | st.tuples(st.booleans(), number)),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(terms(), min_size=1, max_size=4))
def test_parsing_and_writing_are_inverses(parts: list, vectors: dict[str, SteeringVector]) -> None:
    steering = Steering(
        tuple(
            Term(vectors[name], operator, dial, layers, Gate(vectors["hal"], *gate, "hal") if gate else None, name)
            for name, operator, dial, layers, gate in parts
        )
    )
    assert Steering.parse(str(steering), vectors) == steering


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("0.8 hal 0.3 warmth", 9),
        ("0.8", 4),
        ("hal +", 6),
        ("cap(hal)", 8),
        ("cap(hal, 0.2", 13),
        ("capp(hal, 0.2)", 1),
        ("hal @", 6),
        ("hal @x", 6),
        ("hal when warmth", 16),
        ("hal when warmth > big", 19),
        ("hal ! warmth", 5),
        ("nan hal", 1),
        ("1e999 hal", 1),
        ("- cap(hal, 1)", 3),
        ("hal @99", 5),
        ("hal @4-2", 5),
    ],
)
def test_what_does_not_parse_is_answered_with_its_column(
    text: str, column: int, vectors: dict[str, SteeringVector]
) -> None:
    with pytest.raises(ExpressionError, match=rf"column {column}\b"):
        Steering.parse(text, vectors)


def test_a_path_is_a_name_and_is_written_back(vectors: dict[str, SteeringVector]) -> None:
    known = {"my-vectors/hal-2.safetensors": vectors["hal"], "a folder/x.safetensors": vectors["hal"]}
    for text in ("0.5 my-vectors/hal-2.safetensors @2", '0.5 "a folder/x.safetensors"'):
        assert str(Steering.parse(text, known)) == text


def test_a_dial_that_is_not_finite_is_refused_from_python_too(vectors: dict[str, SteeringVector]) -> None:
    with pytest.raises(ExpressionError, match="finite"):
        Term(vectors["hal"], dial=float("nan"))


def test_a_tilde_leaves_out_what_two_vectors_share(vectors: dict[str, SteeringVector]) -> None:
    term = Steering.parse("0.8 hal ~ warmth ~ pirate", vectors).terms[0]
    for other in ("warmth", "pirate"):
        along = torch.nn.functional.cosine_similarity(term.vector.directions, vectors[other].directions, dim=-1)
        assert float(along.abs().max()) < 1e-5
    again = term.vector.apart_from([vectors["warmth"], vectors["pirate"]])
    assert torch.allclose(again.directions, term.vector.directions, atol=1e-5)
    assert not torch.allclose(vectors["hal"].directions, term.vector.directions, atol=1e-2)


@pytest.mark.parametrize(
    "text",
    [
        "0.8 hal ~ warmth",
        "cap(hal ~ warmth, 0.2) @2-4",
        "1 hal ~ warmth ~ pirate @2 - 0.5 pirate when hal ~ pirate > 1",
    ],
)
def test_a_tilde_is_written_as_it_was_read(text: str, vectors: dict[str, SteeringVector]) -> None:
    steering = Steering.parse(text.replace(" ~ ", "~"), vectors)
    assert str(steering) == text
    assert str(Steering.parse(str(steering), vectors)) == text


def test_nothing_behind_a_tilde_is_an_error_with_its_column(vectors: dict[str, SteeringVector]) -> None:
    with pytest.raises(ExpressionError, match="column 9"):
        Steering.parse("0.8 hal~", vectors)


def test_a_vector_apart_from_itself_is_refused(vectors: dict[str, SteeringVector]) -> None:
    with pytest.raises(VectorError, match="leave out the ~"):
        Steering.parse("hal ~ hal", vectors)


def test_a_dial_warns_of_what_it_is_known_to_bring_along(vectors: dict[str, SteeringVector]) -> None:
    known = replace(vectors["hal"], evidence={"spills": [{"measured": "pirate", "shift": 0.2, "z": 3.0}]})
    known_vectors = {**vectors, "hal": known}
    (warning,) = Steering.parse("0.8 hal", known_vectors).warnings()
    assert "brings pirate along" in warning
    assert "0.8 hal ~ pirate" in warning
    assert not Steering.parse("0.8 hal ~ pirate", known_vectors).warnings()
    assert not Steering.parse("-0.8 hal", known_vectors).warnings()
