"""Ways to bring a persona about, each with what it is held against, and what a model is like after them.

Everything is measured through the cache, context by context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.experiments.scoring import score_in_blocks
from steerkit.kept import measure_once
from steerkit.measures import Row, contrast, item_rows, score_replies
from steerkit.models import Message, Model
from steerkit.passes import prompt_states
from steerkit.personas import DEFAULT, Item, Persona, find_persona
from steerkit.steering import Steering, Term
from steerkit.vectors import SteeringVector

Context = Callable[[int], list[Message]]
"""What is said before the i-th question."""


def ways_to(persona: Persona, n: int) -> dict[str, tuple[Context, Context]]:
    """Contexts that bring a persona about, each with what it is held against."""
    nobody = find_persona(DEFAULT)
    mirrored = min(len(persona.requested), len(nobody.requested))
    # Real and exchanged examples are equally late on average, for what was said last weighs most.
    half = [i % 4 in (0, 3) for i in range(n)]

    def system(texts: Sequence[str]) -> Context:
        return lambda i: [{"role": "system", "content": texts[i % len(texts)]}]

    def shown(real: Sequence[bool]) -> Context:
        return lambda _: examples(persona, real)

    return {
        "prompts": (system(persona.requested[:mirrored]), system(nobody.requested[:mirrored])),
        "examples": (shown([True] * n), shown([False] * n)),
        "implied": (system(persona.implied), lambda _: []),
        "shuffled": (shown(half), shown([not real for real in half])),
    }


def examples(persona: Persona, real: Sequence[bool]) -> list[Message]:
    """A conversation of the persona's first items, answered in character or as the Assistant would."""
    said: list[Message] = []
    for item, own in zip(persona.items, real, strict=False):
        said.append({"role": "user", "content": item.question})
        said.append({"role": "assistant", "content": item.reply if own else item.assistant_reply})
    return said


def states_after(model: Model, context: Context, questions: Sequence[str], layer: int) -> Float[Tensor, "q d"]:
    """The state of one layer at the last token of every question's prompt, from which the reply will be made."""
    asked: list[list[Message]] = [[*context(i), {"role": "user", "content": text}] for i, text in enumerate(questions)]
    prompts = [model.chat_tokens(messages) for messages in asked]

    def measure() -> dict[str, Tensor]:
        return {"states": prompt_states(model, prompts)[:, layer]}

    return measure_once("states", model, "prompts", [layer, prompts], measure)["states"]


def rows_after(model: Model, context: Context, items: Sequence[Item], longest: int, start: int = 0) -> list[Row]:
    """The first words of both replies to every item, of which the first is the battery's `start`-th."""
    rows = [row for i, item in enumerate(items, start) for row in item_rows(model, [item], context(i))]
    return cut(rows, longest)


def cut(rows: Sequence[Row], longest: int) -> list[Row]:
    """The same with no more than so many tokens of each reply."""
    return [(prompt, reply[:longest]) for prompt, reply in rows]


def answers_after(model: Model, context: Context, items: Sequence[Item], longest: int) -> Float[Tensor, " n"]:
    """Propensity of every item after a context, in nats a token; all of them in one call."""
    rows = rows_after(model, context, items, longest)
    told_apart = [[list(prompt), list(reply)] for prompt, reply in rows]

    def measure() -> dict[str, Tensor]:
        return {"means": score_replies(model, rows, [Steering()]).means}

    return contrast(measure_once("scores", model, "replies", told_apart, measure)["means"])[0]


def ablated(
    model: Model,
    prompts: tuple[Context, Context],
    items: Sequence[Item],
    start: int,
    longest: int,
    out: Sequence[SteeringVector],
) -> Float[Tensor, " a"]:
    """What a prompt does to its persona's own items while a direction is taken out of the reply.

    The same is taken out under the Assistant's prompt, because replies in character suffer from it whatever was asked.

    Args:
        model: who is measured
        prompts: the persona's, and the Assistant's
        items: the persona's own
        start: which of the battery the first of them is
        longest: tokens of a reply that are scored
        out: directions to ablate, one at a time

    Returns:
        Mean shifts [a] in nats a token: as it is, and with each direction ablated.
    """
    steerings, sides = [Steering((Term(vector, "ablate"),)) for vector in out], []
    for context in prompts:
        scored = score_in_blocks(model, rows_after(model, context, items, longest, start), steerings)
        sides.append(contrast(torch.cat([scored.reference[None], scored.means])).mean(-1))
    return sides[0] - sides[1]
