"""What a caller hands over, checked where it comes in: one line that says what is wrong and what to write instead.

A text where tokens belong is the commonest slip. There is one rule for it everywhere: a prompt is tokens, and
`Model.chat_tokens` makes them of messages; text is never tokenized in silence, because it would lack the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

from steerkit.errors import PromptError, SteerkitError, VectorError

if TYPE_CHECKING:
    from steerkit.models import Model

CHAT = 'model.chat_tokens([{"role": "user", "content": "Who are you?"}])'
REPLY = "model.reply_tokens(text)"


def check_messages(messages: Any) -> None:
    """See that a chat is a list of messages.

    Raises:
        PromptError: it is a text, or something in it is no message.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise PromptError(f"a chat is a list of messages, not {_kind(messages)}; write {CHAT}")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {number} is {_kind(message)}, not a role and its content; write {CHAT}")
        for key, kinds in (("role", str), ("content", (str, list))):
            if not isinstance(message.get(key), kinds):
                found = _kind(message[key]) if key in message else "missing"
                raise PromptError(f"message {number}: its {key} is {found}, not text; write {CHAT}")


def check_tokens(model: Model, rows: Any, what: str = "prompt", make: str = CHAT, empty: bool = False) -> list[Any]:
    """Rows of tokens as lists of whole numbers.

    Args:
        model: whose tokens they are
        rows: one sequence of tokens a row
        what: what a row is called
        make: what makes such tokens
        empty: whether a row may have none

    Raises:
        PromptError: a row is text, messages or empty, or holds what is not one of the model's tokens.
    """
    if isinstance(rows, (str, bytes, Mapping)) or not hasattr(rows, "__iter__"):
        raise PromptError(f"{what}s are lists of tokens, one a row, not {_kind(rows)}; write [{make}]")
    size = _vocabulary(model)
    return [_row(model, row, f"{what} {number}", make, size, empty) for number, row in enumerate(rows, 1)]


def _row(model: Model, row: Any, where: str, make: str, size: int | None, empty: bool) -> list[int]:
    if isinstance(row, (str, bytes)):
        raise PromptError(f"{where} is text, and prompts and replies are tokens here; write {make}")
    if isinstance(row, Mapping) or not hasattr(row, "__iter__"):
        raise PromptError(f"{where} is {_kind(row)}, not a list of tokens; write [{make}]")
    try:
        tokens = [token if type(token) is int else index(token) for token in row]
    except TypeError as error:
        raise PromptError(f"{where} holds what is no token ({error}); write {make}") from error
    if not tokens and not empty:
        raise PromptError(f"{where} is empty; it needs a token at least, from {make}")
    if tokens and (min(tokens) < 0 or (size is not None and max(tokens) >= size)):
        wrong = next(token for token in tokens if token < 0 or (size is not None and token >= size))
        known = "tokens are numbers from 0" if size is None else f"{model.name} has tokens 0 to {size - 1}"
        raise PromptError(f"{where} holds the token {wrong}, and {known}; write {make}")
    return tokens


def _vocabulary(model: Model) -> int | None:
    """How many tokens can be embedded."""
    embeddings = model.original.get_input_embeddings()
    return getattr(embeddings, "num_embeddings", None)


def check_context(model: Model, lengths: Sequence[int], room: int = 0) -> None:
    """See that every row and its reply fit.

    Raises:
        PromptError: one does not.
    """
    longest = max(lengths, default=0)
    if longest + room > model.context:
        reply = f" and its reply may have {room}" if room else ""
        raise PromptError(
            f"prompt {lengths.index(longest) + 1} has {longest} tokens{reply}, but {model.name} holds {model.context}; "
            "shorten it" + (" or lower max_tokens" if room else "")
        )


def check_steerings(model: Model, steerings: Any, n_rows: int) -> None:
    """See that there is one steering a row, by vectors that were made on this model or its base.

    Raises:
        SteerkitError: there is another number of them, or something else than a steering among them.
        VectorError: a vector was made on another model.
    """
    listed = isinstance(steerings, Sequence) and not isinstance(steerings, (str, bytes))
    wrong = [steerings] if not listed else [each for each in steerings if not _has(each, "terms", "everywhere")]
    if wrong:
        one = _has(wrong[0], "terms", "everywhere")
        written = "[steering] * len(prompts)" if one else "Steering.parse('0.8 hal', vectors) for each"
        raise SteerkitError(f"steerings are a list with one for each prompt, not {_kind(wrong[0])}; write {written}")
    if len(steerings) != n_rows:
        raise SteerkitError(
            f"there are {n_rows} prompts and {len(steerings)} steerings; give one steering for each prompt, "
            "Steering() for a prompt that is not steered"
        )
    distinct: Any = {id(each): each for each in steerings if each}.values()
    for term in (term for each in distinct for term in each.terms):
        check_vector(model, term.vector)
        if term.when is not None:
            check_vector(model, term.when.vector)


def check_probes(model: Model, probes: Any) -> None:
    """See that probes are probes, of vectors that were made on this model or its base.

    Raises:
        SteerkitError: something else is among them.
        VectorError: a vector was made on another model.
    """
    listed = isinstance(probes, Sequence) and not isinstance(probes, (str, bytes))
    for probe in probes if listed else [probes]:
        if not _has(probe, "name", "vector", "layer"):
            raise SteerkitError(f"probes are a list of probes, not {_kind(probe)}; write [Probe.of(vector)]")
    if not listed:
        raise SteerkitError("probes are a list, not one probe; write [probe]")
    each: Any
    for each in probes:
        check_vector(model, each.vector)


def check_vector(model: Model, vector: Any) -> None:
    """See that a vector was made on this model or its base.

    Raises:
        VectorError: it was made on another.
    """
    if (vector.model.layers, vector.model.width) != (model.n_layers, model.width):
        shapes = f"{vector.model.layers} layers × {vector.model.width} against {model.n_layers} × {model.width}"
        raise VectorError(f"{vector.name} was made on {vector.model.name}, and this is {model.name} ({shapes})")
    if vector.model is not model.fingerprint:
        vector.require(model.fingerprint)


def _has(thing: Any, *parts: str) -> bool:
    """Whether something is of a kind that this module must not import, because that imports this one."""
    return all(hasattr(thing, part) for part in parts)


def _kind(thing: Any) -> str:
    """What something is, in a word or two, for an error.

    >>> _kind("Hi"), _kind([1]), _kind(None)
    ('text', 'a list', 'nothing')
    """
    if thing is None:
        return "nothing"
    name = {"str": "text", "bytes": "text", "dict": "a message"}.get(type(thing).__name__)
    return name or f"a{'n' if type(thing).__name__[0].lower() in 'aeiou' else ''} {type(thing).__name__}"
