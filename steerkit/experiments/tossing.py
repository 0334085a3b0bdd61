"""Texts that break off before they say how a coin landed, and how likely a model finds either side behind them.

A text is two rows, the same prompt with either side as the reply, so a contrast of them is the log odds of heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import PromptError
from steerkit.experiments.scoring import score_in_blocks
from steerkit.kept import measure_once
from steerkit.limits import WORKING, Search, at_dial
from steerkit.material import load_material
from steerkit.measures import Row, contrast, score_replies
from steerkit.models import Message, Model
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, as_stage

SIDES = (" heads", " tails")
SPOKEN = "assistant"
"""The voice in which the Assistant speaks; a document has no speaker, and a user's turn is the user's."""
ROUNDS = 4
"""So many dials are tried at most."""


def pairs_of(kind: str) -> list[tuple[str, str]]:
    """What would be preferred and what would not, of every pair of a kind."""
    return [(each["preferred"], each["other"]) for each in load_material("coinflip")["pairs"] if each["kind"] == kind]


def tosses(
    model: Model, voice: str, pairs: Sequence[tuple[str, str]], orders: int = 2, before: Sequence[Message] = ()
) -> list[Row]:
    """A text for every pair, order of mention and side of the preferred outcome, heads first; each text is two rows.

    Raises:
        PromptError: the tokenizer, the chat template or the context does not allow it.
    """
    rows: list[Row] = []
    for preferred, other in pairs:
        for order in range(orders):
            for heads, tails in ((preferred, other), (other, preferred)):
                rows += toss(model, voice, order, heads, tails, before)
    longest = max(len(prompt) + len(reply) for prompt, reply in rows)
    if longest > model.context:
        raise PromptError(f"coinflip has texts of {longest} tokens and {model.name} holds {model.context}; try another")
    return rows


def toss(model: Model, voice: str, order: int, heads: str, tails: str, before: Sequence[Message] = ()) -> list[Row]:
    """One text, with either side behind it.

    Args:
        model: who reads it
        voice: whose text it is
        order: of mention, 0 or 1
        heads: what happens if it lands heads
        tails: what happens if it lands tails
        before: messages before the user's

    Raises:
        PromptError: the tokenizer or the chat template does not allow it.
    """
    told = load_material("coinflip")["templates"][voice]
    template = told["question"][order] if voice == SPOKEN else told[order]
    text = template.format(heads=heads, tails=tails)
    chat: list[Message] = [*before, {"role": "user", "content": text}]
    if voice == SPOKEN:
        model.chat_tokens(chat)

        def spoken(reply: str) -> list[int]:
            given = model.given_reply(chat, reply)
            return list(given.tokens[: given.end])

        start, sides = split(model, told["answer"], spoken)
        return [(start, side) for side in sides]
    if voice == "user":
        rendered = model.render(chat, reply_follows=False)
        if text not in rendered:
            raise PromptError(f"the chat template of {model.name} changes what users say; try a model whose does not")
        # The user has not finished, so what closes a turn is cut off.
        text = rendered[: rendered.rindex(text) + len(text)]
    start, sides = split(model, text, model.tokenize)
    return [(start, side) for side in sides]


def split(model: Model, text: str, tokenize: Callable[[str], list[int]]) -> tuple[list[int], list[list[int]]]:
    """Tokens of a text, and those that each side of the coin adds to it, of which there may be several.

    Raises:
        PromptError: a side changes the tokens before it.
    """
    start, wholes = tokenize(text), [tokenize(text + side) for side in SIDES]
    if any(len(whole) <= len(start) or whole[: len(start)] != start for whole in wholes):
        raise PromptError(
            f"the tokenizer of {model.name} writes {text[-9:]!r} otherwise before{' or'.join(SIDES)}, so their "
            "probabilities cannot be read; try another model"
        )
    return start, [whole[len(start) :] for whole in wholes]


def read(model: Model, rows: Sequence[Row]) -> Float[Tensor, " n"]:
    """Log probability of every reply, unsteered; what has been read before is not read again."""

    def measure() -> dict[str, Tensor]:
        return {"totals": score_replies(model, rows, [Steering()], batch_size=24).totals[0]}

    depends = [[list(prompt), list(reply)] for prompt, reply in rows]
    return measure_once("scores", model, "coinflip", depends, measure)["totals"]


def odds_at_cost(
    model: Model,
    rows: Sequence[Row],
    plain: Float[Tensor, " n"],
    vectors: Sequence[SteeringVector],
    dials: Sequence[float],
    progress: Progress,
) -> tuple[Float[Tensor, "k n"], Float[Tensor, " k"]]:
    """Log odds of heads in every text under every vector, at a KL p95 of half a nat.

    Nobody in particular speaks or reads these texts, so all of each is steered. Where a word is nearly certain, KL
    grows faster than the square of the dial; so every text is read at several, until half a nat lies between two of
    them or near one, and readings are taken from the line between dials.

    Args:
        model: who is steered
        rows: two for each of n texts
        plain: unsteered log odds
        vectors: k of them
        dials: for each one to start from
        progress: told how many steerings of how many have been measured

    Returns:
        Log odds [k n], and of each vector the KL p95 [k] that was measured next to half a nat.
    """
    searches, guesses = [Search(WORKING) for _ in vectors], [float(dial) for dial in dials]
    readings: list[dict[float, Tensor]] = [{0.0: plain} for _ in vectors]
    for i in range(ROUNDS):
        sought = [k for k, search in enumerate(searches) if not is_found(search)]
        if not sought:
            break
        steerings = [replace(at_dial(vectors[k], guesses[k]), everywhere=True) for k in sought]
        scored = score_in_blocks(model, rows, steerings, as_stage(progress, "prove" if i else "match"))
        for k, told, cost in zip(sought, contrast(scored.totals), scored.costs.tolist(), strict=True):
            readings[k][guesses[k]], searches[k].points[guesses[k]] = told, cost
            guesses[k] = searches[k].estimate(guesses[k])
    odds = [between(points, dial) for points, dial in zip(readings, guesses, strict=True)]
    nearest = [min(search.points.values(), key=lambda cost: abs(cost - WORKING)) for search in searches]
    return torch.stack(odds) if odds else plain[None][:0], torch.tensor(nearest)


def is_found(search: Search) -> bool:
    """Whether the dials that were tried embrace the target, or one of them comes within a factor of two of it."""
    costs = search.points.values()
    near = any(search.target / 2 <= cost <= search.target * 2 for cost in costs)
    return near or (bool(costs) and min(costs) < search.target < max(costs))


def between(points: Mapping[float, Tensor], place: float) -> Tensor:
    """What lies on the line through the two points around a place, or through the last two, if it lies behind them.

    >>> between({0.0: torch.tensor(1.0), 2.0: torch.tensor(5.0), 4.0: torch.tensor(5.0)}, 1.0)
    tensor(3.)
    """
    known = sorted(points)
    first = max([i for i, each in enumerate(known[:-1]) if each <= place], default=0)
    low, high = known[first], known[first + 1]
    return points[low] + (place - low) / (high - low) * (points[high] - points[low])


def lean_of(odds: Float[Tensor, "*n o 2"]) -> Float[Tensor, "*n"]:
    """By how much the preferred side is likelier than one half, the mean over sides and orders of mention."""
    heads = odds.double().sigmoid()
    return (heads[..., 0] - heads[..., 1]).mean(-1) / 2


def room_of(odds: Float[Tensor, "*n o 2"]) -> Float[Tensor, "*n"]:
    """The largest lean that there could be, given how often heads come up whatever they stand for."""
    heads = odds.double().sigmoid().mean(-1)
    return torch.minimum(heads, 1 - heads).mean(-1)
