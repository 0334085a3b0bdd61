"""The steering language, read from text.

    expression := ["-"] term (("+" | "-") term)*
    term       := [number] vector [place]        adds the vector, once unless a number says otherwise
                | operator "(" vector ["," number] ")" [place]   a calibrated vector knows where cap and floor lie
    vector     := name ("~" name)*               without what it shares with the others
    place      := ["@" layer ["-" layer]] ["when" vector (">" | "<") number]

A name is a persona with a vector for this model, or the path of a `.safetensors` file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from steerkit.errors import ExpressionError, VectorError, nearest
from steerkit.operators import OPERATORS
from steerkit.steering import APART, NO_NAMES, Gate, Term
from steerkit.vectors import SteeringVector

TOKEN = re.compile(
    r"""\s*(?:
      (?P<path>"[^"]+"|(?![-+−]|~[^/])[^\s(),"@]*\.safetensors)
    | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![A-Za-z_]))
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<sign>[-+−])
    | (?P<mark>[(),@<>~])
    )""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Word:
    """One token of an expression."""

    kind: str
    text: str
    column: int


def parse_terms(text: str, vectors: Mapping[str, SteeringVector]) -> tuple[Term, ...]:
    """Read the terms of an expression.

    Raises:
        ExpressionError: with the column where reading stopped, and what was expected there.
        VectorError: a name has no vector for this model.
    """
    return Reader(text, vectors).terms()


def _words(text: str) -> list[Word]:
    words, place = [], 0
    while text[place:].strip():
        match = TOKEN.match(text, place)
        if match is None:
            column = place + len(text[place:]) - len(text[place:].lstrip()) + 1
            raise _error(text, column, f"{text[column - 1]!r} means nothing here")
        kind = str(match.lastgroup)
        words.append(Word(kind, match.group(kind).replace("−", "-"), match.start(kind) + 1))
        place = match.end()
    return [*words, Word("end", "the end", len(text) + 1)]


def _error(text: str, column: int, problem: str) -> ExpressionError:
    return ExpressionError(f"cannot read {text!r} at column {column}: {problem}; for example: 0.8 hal - 0.3 warmth")


@dataclass
class Reader:
    """Reads one expression from left to right."""

    text: str
    vectors: Mapping[str, SteeringVector]
    at: int = 0
    words: list[Word] = field(init=False)

    def __post_init__(self) -> None:
        self.words = _words(self.text)

    def terms(self) -> tuple[Term, ...]:
        """The whole expression."""
        found = [self._term(self._leading_sign())]
        while self._word.kind != "end":
            if self._word.kind != "sign":
                raise self._expected("+ or - before the next term")
            found.append(self._term(self._leading_sign()))
        return tuple(found)

    @property
    def _word(self) -> Word:
        return self.words[self.at]

    def _take(self) -> Word:
        word = self._word
        self.at += 1
        return word

    def _expected(self, what: str) -> ExpressionError:
        return _error(self.text, self._word.column, f"expected {what}, not {self._word.text!r}")

    def _leading_sign(self) -> float:
        if self._word.kind != "sign":
            return 1.0
        return -1.0 if self._take().text == "-" else 1.0

    def _term(self, sign: float) -> Term:
        if self._word.kind == "name" and self.words[self.at + 1].text == "(":
            return self._call(sign)
        dial = sign * (self._number() if self._word.kind == "number" else 1.0)
        name, vector = self._vector()
        return self._placed(vector, "add", dial, name)

    def _call(self, sign: float) -> Term:
        word = self._take()
        if word.text not in OPERATORS:
            known = nearest(word.text, OPERATORS, "operators are " + ", ".join(OPERATORS))
            raise _error(self.text, word.column, f"no operator is called {word.text!r}, {known}")
        if sign < 0:
            raise _error(self.text, word.column, f"{word.text}(…) takes its sign inside: {word.text}(name, -0.5)")
        self._take()
        name, vector = self._vector()
        operator = OPERATORS[word.text]
        dial = operator.default
        if operator.percentile is not None:
            dial = vector.evidence.get("thresholds", {}).get(operator.percentile)
        if self._word.text == ",":
            self._take()
            dial = self._leading_sign() * self._number()
        if dial is None:
            calibrate = f", or calibrate {name} for a default" if operator.percentile else ""
            raise self._expected(f", and a number, as in {word.text}({name}, 0.5){calibrate}")
        if self._word.text != ")":
            raise self._expected(")")
        self._take()
        return self._placed(vector, word.text, dial, name)

    def _placed(self, vector: SteeringVector, operator: str, dial: float, name: str) -> Term:
        """Read where a term holds, and build it."""
        column = self._word.column
        layers = gate = None
        if self._word.text == "@":
            self._take()
            first = last = self._layer()
            if self._word.text == "-" and self.words[self.at + 1].kind == "number" and self._is_band():
                self._take()
                last = self._layer()
            layers = (first, last)
        if self._word.text == "when":
            self._take()
            gate = self._gate()
        try:
            return Term(vector, operator, dial, layers, gate, name)
        except ExpressionError as error:
            raise ExpressionError(f"{error} (column {column} of {self.text!r})") from error

    def _is_band(self) -> bool:
        """Whether `- number` goes on with a band, as in `@12-18`, rather than with a term, as in `@12 - 0.3 warmth`."""
        after = self.words[self.at + 2]
        return after.kind not in ("name", "path") or after.text == "when"

    def _gate(self) -> Gate:
        name, vector = self._vector()
        if self._word.text not in ("<", ">"):
            raise self._expected("> or <")
        above = self._take().text == ">"
        return Gate(vector, above, self._leading_sign() * self._number(), name)

    def _vector(self) -> tuple[str, SteeringVector]:
        """A name, and what it stands for without what it shares with those behind a tilde."""
        found = [self._named()]
        while self._word.text == "~":
            self._take()
            found.append(self._named())
        (name, vector), others = found[0], found[1:]
        if not others:
            return name, vector
        return APART.join(name for name, _ in found), vector.apart_from([other for _, other in others])

    def _named(self) -> tuple[str, SteeringVector]:
        if self._word.kind not in ("name", "path"):
            raise self._expected("the name of a persona")
        word = self._word
        if word.text.lower() in NO_NAMES:
            raise _error(self.text, word.column, f"a dial must be a finite number, not {word.text}")
        self._take()
        name = word.text.strip('"')
        if APART in name:
            raise _error(self.text, word.column, f"a file's name must not have {APART!r} in it; rename it")
        try:
            vector = self.vectors[name]
        except KeyError as error:
            known = sorted(map(str, self.vectors))
            others = f"there are {', '.join(known[:12])}{', …' if len(known) > 12 else ''}" if known else ""
            hint = nearest(name, known, others or "none were given; load one with find_vector")
            raise VectorError(
                f"no vector is called {name!r} (column {word.column} of {self.text!r}); {hint}"
            ) from error
        if not isinstance(vector, SteeringVector):
            raise VectorError(f"what is called {name!r} is a {type(vector).__name__}, and no SteeringVector")
        return name, vector

    def _number(self) -> float:
        if self._word.kind != "number":
            raise self._expected("a number")
        word = self._take()
        if not math.isfinite(number := float(word.text)):
            raise _error(self.text, word.column, f"a dial must be a finite number, not {word.text}")
        return number

    def _layer(self) -> int:
        if self._word.kind != "number" or not self._word.text.isdigit():
            raise self._expected("a layer number")
        return int(self._take().text)


def parse_layers(text: str) -> tuple[int, int]:
    """Read a layer or a band.

    >>> parse_layers("15"), parse_layers("8-23")
    ((15, 15), (8, 23))

    Raises:
        ExpressionError: it is neither.
    """
    first, _, last = text.partition("-")
    if not first.strip().isdecimal() or (last and not last.strip().isdecimal()):
        raise ExpressionError(f"layers {text!r} are neither a layer nor a band; write 15 or 8-23")
    return int(first), int(last or first)
