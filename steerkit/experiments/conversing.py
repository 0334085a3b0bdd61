"""Conversations whose user's side is written and which a model answers for itself, and its state after some of them.

The state is the one at the last token of a prompt, from which a reply is made and which foretells its trait (arXiv
2507.21509). It is read along the axis that leads from the Assistant to the mean of many personas (arXiv 2601.10387), of
which there are two, made of different personas: one to hold the model with and another to see whether it is held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.experiments.scoring import score_in_blocks
from steerkit.generation import Sampling, complete, require_replies
from steerkit.kept import measure_once
from steerkit.material import load_material
from steerkit.measures import Row, capability
from steerkit.models import Message, Model, pad_left
from steerkit.passes import Recall, prefill, prompt_states
from steerkit.personas import load_personas
from steerkit.steering import Steering, Term, edits
from steerkit.training import middle_band
from steerkit.vectors import SteeringVector, VectorSet
from steerkit.weights import Progress, ignore_progress

KIND = "conversations"
CODING = "coding"
"""The topic that the Assistant is at home in."""
FAMILIES = ("characters", "concerning AIs", "things")
FEWEST = 4
UPPER = 0.75
"""The share of the Assistant's own scores below a floor's threshold, as where a `cap` without a dial gets it from."""
AT_ONCE = 60
"""Rows of one pass that continue a long context; each has its own copy of what was read."""


@dataclass(frozen=True)
class Axis:
    """Where persona drift is held and read, which are nearly the same direction from different personas."""

    hold: SteeringVector
    """From the Assistant to the mean of one half of the personas."""
    read: SteeringVector
    """To the mean of the other half."""
    characters: tuple[str, ...]
    """Who `hold` is the mean of."""
    band: tuple[int, int]
    """First and last layer where a floor acts: the band in which the library's vectors steer."""
    layer: int
    """Where scores are read: midway between the band and the end of the model, so that later layers have had their say
    about what a floor does. What is capped is low where it is capped by construction."""

    @property
    def agreement(self) -> float:
        """Cosine of both directions where they are read; of what has no axis it is next to nothing."""
        one, other = (vector.directions[self.layer].double() for vector in (self.hold, self.read))
        return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@dataclass(frozen=True, eq=False)
class Drifted:
    """Scores of the token before the reply to p probes, in lengths of the vector that is read."""

    topics: tuple[str, ...]
    """Of each of c conversations."""
    start: Float[Tensor, "s p"]
    """Before any talk: unsteered, under the floor, and under each of r random caps."""
    scores: Float[Tensor, "2 c t p"]
    """After each of t turns: unsteered, and under the floor."""
    capped: Float[Tensor, "r w p"]
    """After the last turn under random caps, in the w conversations that are not about code."""
    shuffled: Float[Tensor, "c p"]
    """After as many turns that were shuffled between conversations."""
    asked: Float[Tensor, "k p"]
    """After a system prompt that asks for a character instead of any talk."""
    elsewhere: Float[Tensor, "r c p"]
    """Along random axes, after the last turn less before any."""
    agreement: float
    """Cosine of the axis that is read with the one that holds."""
    cost: tuple[float, float, float]
    """What the floor costs: loss on prose, loss on the model's own replies about code, both in nats a token, and the
    KL p95 on those replies."""

    @property
    def drifts(self) -> Float[Tensor, "2 c t p"]:
        """How far each conversation has moved each probe, each arm from where it began itself."""
        return self.scores.double() - self.start[:2, None, None]

    @property
    def asks(self) -> Float[Tensor, "k p"]:
        """How far asking for each character moves each probe."""
        return self.asked.double() - self.start[0]

    @property
    def unit(self) -> float:
        """How far asking moves the mean probe."""
        return float(self.asks.mean())

    @property
    def others(self) -> str:
        """The topics that are not code, as a sentence has them."""
        return " and ".join(dict.fromkeys(topic for topic in self.topics if topic != CODING))

    def about(self, code: bool) -> Int[Tensor, " n"]:
        """Which conversations are about code, or are not."""
        return torch.tensor([i for i, topic in enumerate(self.topics) if (topic == CODING) == code])


def find_axis(model: Model) -> Axis:
    """The axis away from the Assistant, from all characters, concerning AIs and things that have vectors.

    Raises:
        VectorError: fewer than four of them have one.
    """
    vectors, library = VectorSet(model.fingerprint), load_personas()
    having = set(vectors)
    names = [name for name in sorted(library) if library[name].family in FAMILIES and name in having]
    if len(names) < FEWEST:
        raise VectorError(
            f"{len(names)} characters have vectors for {model.name}, and an axis away from the Assistant needs at "
            f"least {FEWEST}; make some with: steerkit extract pirate"
        )
    band = middle_band(model.n_layers)
    hold, read = (mean_vector([vectors[name] for name in names[half::2]]) for half in (0, 1))
    return Axis(hold, read, tuple(names[0::2]), band, (band[1] + model.n_layers - 1) // 2)


def mean_vector(vectors: Sequence[SteeringVector]) -> SteeringVector:
    """The mean persona of several, from the mean of their baselines.

    Adding vectors one by one would weigh the last baseline as much as all before it.
    """
    directions, baselines = (
        torch.stack([getattr(vector, key) for vector in vectors]).mean(0) for key in ("directions", "baseline")
    )
    provenance = {"mean_of": [vector.name for vector in vectors]}
    return SteeringVector("away_from_assistant", vectors[0].model, directions, baselines, provenance)


def score_along(states: Float[Tensor, "*n d"], vector: SteeringVector, layer: int) -> Float[Tensor, "*n"]:
    """How far along a vector states of one layer are, in its own lengths, from its baseline."""
    direction = vector.directions[layer].double()
    return (states.double() - vector.baseline[layer]) @ direction / direction.square().sum().clamp_min(1e-20)


def make_floor(vector: SteeringVector, states: Float[Tensor, "p l d"], band: tuple[int, int]) -> Steering:
    """A floor under the Assistant: no score further away than most of what the Assistant itself scores.

    Every layer has a threshold of its own, because the baselines of vectors are means over replies, and the token
    before a reply stands elsewhere, at every layer by another amount.
    """

    def threshold(l: int) -> float:
        return float(score_along(states[:, l], vector, l).quantile(UPPER))

    return Steering(tuple(Term(vector, "cap", threshold(l), (l, l)) for l in range(band[0], band[1] + 1)))


@dataclass(frozen=True)
class Talk:
    """One conversation that was held."""

    topic: str
    """What it is about."""
    messages: tuple[Message, ...]
    """The user's and the model's, in turns."""
    rows: tuple[Row, ...]
    """Tokens of the prompt and of the reply at every turn."""


def hold_talks(
    model: Model, n_each: int, n_turns: int, n_tokens: int, progress: Progress = ignore_progress
) -> list[Talk]:
    """Let the model answer the scripted conversations greedily, the same turn of all of them at once.

    Args:
        model: who answers
        n_each: conversations of each topic
        n_turns: messages of each
        n_tokens: the longest reply
        progress: told how many turns of how many are over

    Raises:
        PromptError: a conversation does not fit the model's context.
    """
    scripts = _scripts(n_each)
    said: list[list[Message]] = [[] for _ in scripts]
    rows: list[list[Row]] = [[] for _ in scripts]
    for turn in range(n_turns):
        for messages, script in zip(said, scripts, strict=True):
            messages.append({"role": "user", "content": script["messages"][turn]})
        prompts = [model.chat_tokens(messages, n_tokens) for messages in said]
        for i, (thought, reply) in enumerate(_replies(model, prompts, n_tokens)):
            text = str(model.tokenizer.decode(reply, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            said[i].append({"role": "assistant", "content": text.strip()})
            rows[i].append(([*prompts[i], *thought], reply))
        progress("talk", turn + 1, n_turns)
    return [
        Talk(script["topic"], tuple(messages), tuple(spoken))
        for script, messages, spoken in zip(scripts, said, rows, strict=True)
    ]


def _scripts(n_each: int) -> list[dict[str, Any]]:
    """The first few conversations of each topic."""
    scripts = load_material("drift")["conversations"]
    topics = dict.fromkeys(script["topic"] for script in scripts)
    return [s for topic in topics for s in [s for s in scripts if s["topic"] == topic][:n_each]]


def _replies(model: Model, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Thought and reply of one turn of every conversation, as tokens."""

    def filled(rows: Sequence[Sequence[int]]) -> Int[Tensor, "c s"]:
        """What ends sooner is filled up with −1 where it is kept."""
        return torch.tensor([[*row, *[-1] * (n_tokens - len(row))] for row in rows])

    def measure() -> dict[str, Int[Tensor, "c s"]]:
        replies = complete(model, prompts, sampling=Sampling(n_tokens))
        require_replies(model, replies)
        thoughts = [r.prompt[len(prompt) :] for r, prompt in zip(replies, prompts, strict=True)]
        told = {"tokens": filled([reply.tokens for reply in replies])}
        return told | ({"thoughts": filled(thoughts)} if any(thoughts) else {})

    kept = measure_once(KIND, model, "replies", [[list(prompt) for prompt in prompts], n_tokens], measure)
    replies = kept["tokens"].tolist()
    thoughts = kept["thoughts"].tolist() if "thoughts" in kept else [[]] * len(replies)

    def real(row: Sequence[int]) -> list[int]:
        return [token for token in row if token >= 0]

    return [(real(thought), real(reply)) for thought, reply in zip(thoughts, replies, strict=True)]


def shuffle_turns(talks: Sequence[Talk], n_turns: int, draw: torch.Generator) -> list[list[Message]]:
    """As many conversations of as many turns, in which every exchange comes from another one of any topic.

    Every exchange that was made is used once, so nothing but its company has changed.
    """
    n = len(talks)
    order = torch.randperm(n, generator=draw).tolist()
    shifts = [shift for _ in range(0, n_turns, n) for shift in torch.randperm(n, generator=draw).tolist()]
    turns = [torch.randperm(n_turns, generator=draw).tolist() for _ in talks]
    mixed: list[list[Message]] = []
    for first in range(n):
        chosen = [(order[(first + shifts[place]) % n], place) for place in range(n_turns)]
        exchanges = [(talks[i].messages, turns[i][place]) for i, place in chosen]
        mixed.append([message for messages, turn in exchanges for message in messages[2 * turn : 2 * turn + 2]])
    return mixed


def starting_states(model: Model, probes: Sequence[str]) -> Float[Tensor, "p l d"]:
    """The state before the reply to each probe that nothing precedes, at every layer."""
    prompts = _asked(model, (), probes)
    return measure_once(KIND, model, "start", prompts, lambda: {"states": prompt_states(model, prompts)})["states"]


def states_after(
    model: Model,
    contexts: Sequence[Sequence[Message]],
    probes: Sequence[str],
    steerings: Sequence[Steering],
    layer: int,
) -> Float[Tensor, "n k p d"]:
    """The state before the reply to each probe, after each of n contexts, under each of k steerings.

    Nothing is read twice: neither what contexts that follow each other have in common, nor what precedes the last token
    of a prompt, where steering begins. So the messages are as they were said, and only the token from which the reply
    is made is steered. All contexts are kept as one, because what is remembered of one changes the next's last bit.

    Raises:
        PromptError: a probe does not fit behind the messages.
    """
    prompts = [_asked(model, before, probes) for before in contexts]

    def measure() -> dict[str, Tensor]:
        recall, size = Recall(model), max(1, AT_ONCE // len(probes))
        parts = [steerings[start : start + size] for start in range(0, len(steerings), size)]
        found = [torch.cat([_read(model, recall, each, part, layer) for part in parts]) for each in prompts]
        return {"states": torch.stack(found)}

    depends = [prompts, layer, [describe(each) for each in steerings]]
    return measure_once(KIND, model, "states", depends, measure)["states"]


def _asked(model: Model, before: Sequence[Message], probes: Sequence[str]) -> list[list[int]]:
    return [model.chat_tokens([*before, {"role": "user", "content": probe}]) for probe in probes]


def _read(
    model: Model, recall: Recall, prompts: Sequence[Sequence[int]], steerings: Sequence[Steering], layer: int
) -> Float[Tensor, "k p d"]:
    if model.engine is not None:
        rows = [(prompt, each) for each in steerings for prompt in prompts]
        states = prompt_states(model, [prompt for prompt, _ in rows], [each for _, each in rows])
        return states[:, layer].cpu().reshape(len(steerings), len(prompts), -1)
    cache, mask = _begin(model, recall, [prompt[:-1] for prompt in prompts])
    mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    last = torch.tensor([prompt[-1:] for prompt in prompts], device=model.device)
    rows = torch.arange(len(prompts), device=model.device).repeat(len(steerings))
    states = torch.empty(len(rows), model.width)

    def read(h: Tensor) -> Tensor:
        states.copy_(h[:, -1])
        return h

    like = torch.empty(0, device=model.device, dtype=model.dtype)
    functions: dict[int, list[Any]] = {**edits([each for each in steerings for _ in prompts], like)}
    functions[layer] = [*functions.get(layer, []), read]
    model.forward(last, mask, cache, functions, keep=0, rows=rows)
    return states.reshape(len(steerings), len(prompts), -1)


def _begin(model: Model, recall: Recall, starts: Sequence[Sequence[int]]) -> tuple[Any, Int[Tensor, "b t"]]:
    """Read rows that begin alike, of which the beginning is remembered."""
    if not (model.holes and model.continues):
        # Behind a shared beginning padding would stand inside a row, which a window does not forgive.
        return prefill(model, [[*start, 0] for start in starts], [Steering()] * len(starts))
    columns = zip(*starts, strict=False)
    alike = next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, starts)))
    cache, mask = recall.prefill([*starts[0][:alike], 0], len(starts))
    tokens, more = pad_left([start[alike:] for start in starts], model.device)
    mask = torch.cat([mask, more], dim=1)
    if tokens.shape[1]:
        _, cache = model.forward(tokens, mask, cache, keep=0)
    return cache, mask


def price_of(
    model: Model, talks: Sequence[Talk], floor: Steering, progress: Progress = ignore_progress
) -> tuple[float, float, float]:
    """What a floor costs where nothing should drift: prose, and what the model itself says about code.

    Returns:
        Loss on prose and on the replies, in nats a token, beyond that without the floor; and the KL p95 on the replies.
    """
    both = [Steering(), floor]
    prose = measure_once(KIND, model, "prose", describe(floor), lambda: {"loss": capability(model, both)})["loss"]
    rows = [row for talk in talks if talk.topic == CODING for row in talk.rows if row[1]]
    if not rows:
        return float(prose[1] - prose[0]), 0.0, 0.0
    scored, lengths = score_in_blocks(model, rows, [floor], progress), torch.tensor([len(reply) for _, reply in rows])
    lost = ((scored.reference - scored.means[0]) * lengths).sum() / lengths.sum()
    return float(prose[1] - prose[0]), float(lost), float(scored.costs[0])


def describe(steering: Steering) -> list[Any]:
    """All that matters of a floor, as plain data; of its vector a digest of what each layer's term uses."""
    return [[term.dial, *term.band, term.operator, _digest(term.vector, term.band[0])] for term in steering.terms]


def _digest(vector: SteeringVector, l: int) -> str:
    used = torch.cat([vector.directions[l], vector.baseline[l]]).float().contiguous()
    return hashlib.sha256(used.numpy().tobytes()).hexdigest()
