"""The one place where a model runs under a steering: replies, streamed or whole, and readouts.

A reply token's score is read where that token itself is processed, after the edits. Its residual stream exists one step
after the token has been chosen, so with probes each token is handed out together with its scores one step later, and
the last token costs a step of its own: a live readout is the same numbers as an offline pass over the finished text.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from steerkit.decoding import Decoder
from steerkit.errors import ModelError, PromptError, SteerkitError
from steerkit.models import Message, Model, pad_right
from steerkit.passages import Passage
from steerkit.passes import Means, batches, check_pairs, merge, prefill, steered_passages
from steerkit.readings import Probe, Readings, distinct_names
from steerkit.steering import Steering, edits
from steerkit.thinking import ReplyText
from steerkit.validation import check_context, check_messages, check_probes, check_steerings, check_tokens
from steerkit.weights import Progress, ignore_progress

Steerings = Callable[[int], Sequence[Steering]]
"""One steering per row, asked for before the reply's token of that number is chosen; as long as it is the same object,
nothing has changed."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 60
    """The longest reply."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability."""
    seed: int | tuple[int, ...] = 0
    """Every row draws from its own random stream, so it does not depend on its neighbours. One number begins all of
    them alike: rows of one prompt then differ in their steering and in nothing else. A tuple has a seed for each row;
    `complete` makes one of a number, with `per_row`."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            SteerkitError: one of them does.
        """
        if not isinstance(self.max_tokens, Integral) or self.max_tokens < 0:
            raise SteerkitError(f"max_tokens is {self.max_tokens!r}; it is a whole number, such as 60")
        if not isinstance(self.temperature, Real) or not 0 <= self.temperature < math.inf:
            told = "0 takes the likeliest token, and 0.7 draws"
            raise SteerkitError(f"the temperature is {self.temperature!r}; {told}")
        if not isinstance(self.top_p, Real) or not 0 <= self.top_p <= 1:
            raise SteerkitError(f"top_p is {self.top_p!r}; it is a probability, from 0 to 1, and 1 leaves nothing out")
        for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
            if not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
                told = "it is a whole number of at most 64 bits, or a tuple with one for each row"
                raise SteerkitError(f"the seed is {seed!r}; {told}")

    def seeds(self, n_rows: int) -> tuple[int, ...]:
        """The seed of each of so many rows.

        Raises:
            SteerkitError: there is a seed for each of another number of rows.
        """
        if not isinstance(self.seed, tuple):
            return (self.seed,) * n_rows
        if len(self.seed) != n_rows:
            raise SteerkitError(f"there are {n_rows} rows and {len(self.seed)} seeds; give one seed for each row")
        return self.seed

    def per_row(self, n_rows: int) -> Sampling:
        """The same with a seed for each row, made of this one and the row's number alone; the first row keeps this one.

        >>> Sampling(seed=7).per_row(3).seed[:1], len(set(Sampling(seed=7).per_row(3).seed))
        ((7,), 3)
        """
        if isinstance(self.seed, tuple):
            return replace(self, seed=self.seeds(n_rows))
        drawn = (hashlib.sha256(f"{self.seed}:{row}".encode()).digest()[:8] for row in range(1, n_rows))
        seeds = (self.seed, *(int.from_bytes(digest) >> 1 for digest in drawn))
        return replace(self, seed=seeds[:n_rows])


@dataclass(frozen=True)
class Step:
    """One token of one row."""

    row: int
    """Which row of the batch."""
    token: int
    """The token's number."""
    text: str
    """What it adds to the reply, or to a thought before it; empty where a character is not complete yet."""
    scores: tuple[float, ...] = ()
    """One score a probe."""
    thought: bool = False
    """Whether it is part of a thought, or of the tags around it, which have no text."""
    open: bool = False
    """Whether the thought goes on behind it."""


@dataclass(frozen=True)
class Readout:
    """Scores of a reply, token by token."""

    tokens: tuple[str, ...]
    """The text each token adds."""
    probes: tuple[str, ...]
    """Names of the columns of `scores`, no two alike."""
    scores: Float[Tensor, "s p"]
    """In persona units: 0 is the assistant, 1 the persona asked for outright."""

    def means(self) -> dict[str, float]:
        """The mean score of each probe over the tokens."""
        if not len(self.scores):
            return {}
        return {name: float(mean) for name, mean in zip(self.probes, self.scores.mean(0), strict=True)}


@dataclass(frozen=True)
class Reply:
    """What a model said, and how it scored while saying it."""

    prompt: tuple[int, ...]
    """Tokens before the reply, those of a thought included."""
    tokens: tuple[int, ...]
    """Tokens of the reply, without the one that ends it; behind a thought, unless thoughts count as replies do."""
    text: str
    """The reply, without a thought."""
    readout: Readout
    """Scores of the tokens."""
    thought: str = ""
    """What was thought before, without its tags."""
    n_thought: int = 0
    """So many tokens the thought and its tags had."""
    unfinished: bool = False
    """Whether it ended within its thought, so that there is no reply."""


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering] | Steerings,
    probes: Sequence[Probe] = (),
    sampling: Sampling | None = None,
    means: Means | None = None,
    begun: tuple[Any, Int[Tensor, "b t"]] | None = None,
    batch_size: int | None = None,
) -> Iterator[Step]:
    """Generate a reply for every row at once, a token of every row at a time.

    With a temperature, a seed that is one number begins the random stream of every row alike, so that rows of one
    prompt under several steerings differ in their steering only; `complete` gives each row a seed of its own.

    Args:
        model: the model that replies
        prompts: tokens of each row, from `Model.chat_tokens`
        steerings: one per row; rows of one batch may be steered differently, and they may change while the reply is
            being made: what was said stays as it is
        probes: what is read at every reply token
        sampling: how tokens are chosen
        means: is given every reply token of every row
        begun: what `prefill` returns, where that has been done
        batch_size: rows of one forward pass, by default as many as `batches` allows; rows that change their steering,
            have begun or are averaged are always one batch

    Returns:
        A step for each row whose reply goes on, a token of every row at a time; more rows than one batch holds come
        batch after batch. The token that ends a reply is not part of it.

    Raises:
        ModelError: an engine cannot do it.
        PromptError: a prompt is text, empty or longer than the context.
        SteerkitError: there is not one steering, or not one seed, a prompt.
        VectorError: a vector was made on another model.
    """
    sampling = sampling or Sampling()
    prompts = check_tokens(model, prompts)
    check_context(model, [len(prompt) for prompt in prompts])
    check_probes(model, probes)
    seeds = sampling.seeds(len(prompts))
    changing = steerings if callable(steerings) else None
    if not callable(steerings):
        check_steerings(model, steerings, len(prompts))
    if model.engine is not None:
        if callable(steerings) or begun is not None:
            raise ModelError(f"{model.engine.name} speaks under one steering from end to end; use --engine local")
        return _stream_elsewhere(model, prompts, steerings, probes, sampling, means) if prompts else iter(())
    if changing is not None or means is not None or begun is not None:
        watched = steerings if changing is None else _checked(model, changing, len(prompts))
        return _stream_here(model, prompts, watched, probes, sampling, means, begun) if prompts else iter(())
    assert not callable(steerings)
    lengths = [len(prompt) + sampling.max_tokens for prompt in prompts]
    return _stream_batches(model, prompts, steerings, probes, sampling, seeds, _cut(lengths, batch_size))


def _cut(lengths: Sequence[int], batch_size: int | None) -> list[list[int]]:
    """Which rows run together.

    Raises:
        SteerkitError: a batch of so many rows is none.
    """
    if batch_size is None:
        return list(batches(lengths))
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise SteerkitError(f"batch_size is {batch_size!r}; a batch has at least one row")
    return list(batches(lengths, batch_size, sum(lengths) * len(lengths)))


def _stream_batches(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering],
    probes: Sequence[Probe],
    sampling: Sampling,
    seeds: Sequence[int],
    parts: Sequence[Sequence[int]],
) -> Iterator[Step]:
    """Batch after batch, each row with its number and its seed."""
    for part in parts:
        # Seeds and steerings go with their rows; only the numbers of the rows are those of the batch.
        sown = replace(sampling, seed=tuple(seeds[row] for row in part))
        rows, how = [prompts[row] for row in part], [steerings[row] for row in part]
        for step in _stream_here(model, rows, how, probes, sown, None, None):
            yield replace(step, row=part[step.row])


def _checked(model: Model, steerings: Steerings, n_rows: int) -> Steerings:
    """Steerings that change, checked whenever they have."""
    latest: list[Sequence[Steering]] = []

    def current(place: int) -> Sequence[Steering]:
        wanted = steerings(place)
        if not latest or wanted is not latest[0]:
            check_steerings(model, wanted, n_rows)
            latest[:] = [wanted]
        return wanted

    return current


def _stream_here(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering] | Steerings,
    probes: Sequence[Probe],
    sampling: Sampling,
    means: Means | None,
    begun: tuple[Any, Int[Tensor, "b t"]] | None,
) -> Iterator[Step]:
    """The same in this process."""
    texts = [model.thoughts.follow(model.tokenizer, prompt) for prompt in prompts]
    return _worded(texts, _tokens_here(model, prompts, steerings, probes, sampling, means, begun, texts))


def _worded(texts: Sequence[ReplyText], tokens: Iterable[tuple[int, tuple[float, ...]]]) -> Iterator[Step]:
    """Steps of tokens that `texts` have taken, given as row and scores; each comes when its text is settled."""
    scores: list[deque[tuple[float, ...]]] = [deque() for _ in texts]

    def settled(row: int) -> Iterator[Step]:
        while scores[row] and texts[row].words:
            word = texts[row].words.popleft()
            yield Step(row, word.token, word.text, scores[row].popleft(), word.thought, word.open)

    for row, read in tokens:
        scores[row].append(read)
        yield from settled(row)
    for row, text in enumerate(texts):
        text.end()
        yield from settled(row)


def _tokens_here(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering] | Steerings,
    probes: Sequence[Probe],
    sampling: Sampling,
    means: Means | None,
    begun: tuple[Any, Int[Tensor, "b t"]] | None,
    texts: Sequence[ReplyText],
) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Rows whose texts have taken a token, with the token's scores."""
    steer = steerings if callable(steerings) else lambda _place: steerings
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    current, forced = steer(0), in_force(texts)
    pushes = edits(where_in_force(current, forced), like)
    cache, mask = begun or prefill(model, prompts, current)
    mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    last = torch.tensor([prompt[-1:] for prompt in prompts], device=model.device)
    logits, cache = model.forward(last, mask, cache, pushes)
    readings = Readings(probes, model.device)
    readers = merge(readings.functions(), means.functions() if means else {})
    functions = merge(pushes, readers)
    choose = Chooser(sampling, len(prompts), model.device)
    speaking = [True] * len(prompts)
    for position in range(sampling.max_tokens):
        chosen = choose(logits[:, -1])
        picked = chosen.tolist()
        speaking = [on and token not in model.end_tokens for on, token in zip(speaking, picked, strict=True)]
        if not any(speaking):
            return
        rows = [row for row, on in enumerate(speaking) if on]
        for row in rows:
            texts[row].push(picked[row])
        if not probes:
            yield from ((row, ()) for row in rows)
            if position + 1 == sampling.max_tokens and means is None:
                return
        wanted, now = steer(position + 1), in_force(texts)
        if wanted is not current or now != forced:
            current, forced = wanted, now
            functions = merge(edits(where_in_force(current, forced), like), readers)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
        logits, cache = model.forward(chosen[:, None], mask, cache, functions)
        if means is not None:
            means.take([on and text.counts for on, text in zip(speaking, texts, strict=True)])
        if probes:
            scores = readings.scores[:, -1].tolist()
            yield from ((row, tuple(scores[row])) for row in rows)


def in_force(texts: Sequence[ReplyText]) -> list[bool]:
    """For each row whether steering is in force where its next token is chosen."""
    return [text.steered for text in texts]


def where_in_force(steerings: Sequence[Steering], forced: Sequence[bool]) -> Sequence[Steering]:
    """Steerings of rows, and none where it is not in force."""
    if all(forced):
        return steerings
    return [steering if on else Steering() for steering, on in zip(steerings, forced, strict=True)]


def _stream_elsewhere(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering],
    probes: Sequence[Probe],
    sampling: Sampling,
    means: Means | None,
) -> Iterator[Step]:
    """The same by an engine, which gives whole replies; steps come in the order in which they would have come."""
    assert model.engine is not None
    if sampling.temperature > 0:
        model.note(f"{model.engine.name} draws text in its own way: as repeatable by the seed, but not as it is here")
    readings = Readings(probes, torch.device("cpu"))
    readers = {l: matrix for l, (_, matrix, _) in readings.readers().items()}
    reads = bool(probes) or means is not None
    most = None if means is None else means.most
    seeds = iter(sampling.seeds(len(prompts)))
    measured = [means is not None or bool(steering) for steering in steerings]
    thoughts = _thoughts_elsewhere(model, prompts, measured, sampling)
    begun = [(*prompt, *thought) for prompt, thought in zip(prompts, thoughts, strict=True)]
    asked = [
        replace(
            row,
            # The last token's state is there only when one more has been chosen.
            new=sampling.max_tokens - len(thought) + reads,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=next(seeds),
            ends=model.end_tokens,
            readers=readers,
            since=len(prompt),
            spans=((len(row.tokens), None if most is None else len(row.tokens) + most),) if means is not None else (),
        )
        for row, prompt, thought in zip(steered_passages(begun, steerings), prompts, thoughts, strict=True)
    ]
    found = model.engine.run(asked)
    if means is not None:
        means.fill(torch.stack([heard.means[0] for heard in found]))
    said = [(*thought, *heard.tokens) for thought, heard in zip(thoughts, found, strict=True)]
    scores = [readings.put(heard.scores).tolist() for heard in found]
    texts = [model.thoughts.follow(model.tokenizer, prompt) for prompt in prompts]

    def tokens() -> Iterator[tuple[int, tuple[float, ...]]]:
        for place in range(sampling.max_tokens):
            for row, reply in enumerate(said):
                if place < len(reply):
                    texts[row].push(reply[place])
                    yield row, tuple(scores[row][place]) if probes else ()

    yield from _worded(texts, tokens())


def _thoughts_elsewhere(
    model: Model, prompts: Sequence[Sequence[int]], measured: Sequence[bool], sampling: Sampling
) -> list[tuple[int, ...]]:
    """Tokens of the thoughts before replies that are steered or measured, where thoughts are not.

    An engine steers from a place on that it is given beforehand, so the thought is made first, without steering.
    """
    assert model.engine is not None
    texts = [model.thoughts.follow(model.tokenizer, prompt) for prompt in prompts]
    rows = [row for row, (text, on) in enumerate(zip(texts, measured, strict=True)) if on and not text.steered]
    seeds = sampling.seeds(len(prompts))
    asked = [
        Passage(
            tuple(prompts[row]),
            new=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seeds[row],
            ends=model.end_tokens,
        )
        for row in rows
    ]
    found = model.engine.run(asked) if asked else []
    thoughts: list[tuple[int, ...]] = [()] * len(prompts)
    for row, heard in zip(rows, found, strict=True):
        for token in heard.tokens[: sampling.max_tokens]:
            texts[row].push(token)
        texts[row].end()
        thoughts[row] = tuple(word.token for word in texts[row].words if word.thought)
    return thoughts


LIKELIEST = 2048
"""So many tokens hold nearly all of the probability at any temperature that gives readable text."""


class Chooser:
    """Chooses the next token of every row; each row draws from its own stream."""

    def __init__(self, sampling: Sampling, n_rows: int, device: torch.device) -> None:
        self._sampling = sampling
        self._device = device
        self._streams = [torch.Generator().manual_seed(seed) for seed in sampling.seeds(n_rows)]

    def __call__(self, logits: Float[Tensor, "b v"]) -> Int[Tensor, " b"]:
        """One token for each row of logits."""
        if self._sampling.temperature <= 0:
            return logits.argmax(-1)
        logits = logits.float().cpu()
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self._sampling.temperature, 1e-6)
        shares = torch.softmax(logits, dim=-1)
        # Sorting a whole vocabulary costs more than a small model's forward pass, and the likeliest few are enough.
        ordered, order = shares.topk(min(LIKELIEST, shares.shape[-1]), dim=-1)
        # This is how `torch.multinomial` draws; one wait a token keeps the stream the same wherever the list is cut.
        waits = torch.stack([torch.empty(shares.shape[-1]).exponential_(generator=draw) for draw in self._streams])
        won, places = self._race(ordered, waits)
        left = functional.pad(waits[:, ordered.shape[-1] :], (0, 1), value=math.inf)
        # Nobody who is not on the list can be faster than its last with the shortest wait.
        unsure = (ordered.sum(-1) < self._sampling.top_p) & (won[:, 0] <= ordered[:, -1] / left.amin(-1))
        if bool(unsure.any()):
            ordered, order = shares.sort(descending=True, dim=-1)
            _, places = self._race(ordered, waits)
        return order.gather(-1, places)[:, 0].to(self._device)

    def _race(self, ordered: Float[Tensor, "b k"], waits: Float[Tensor, "b v"]) -> tuple[Tensor, Tensor]:
        """Who is first among the likeliest, and by what measure; nobody beyond `top_p` takes part."""
        beyond = ordered.cumsum(-1) - ordered >= self._sampling.top_p
        beyond[:, 0] = False
        return (ordered.masked_fill(beyond, 0.0) / waits[:, : ordered.shape[-1]]).max(-1, keepdim=True)


def complete(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steerings: Sequence[Steering] | None = None,
    probes: Sequence[Probe] = (),
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    progress: Progress = ignore_progress,
) -> list[Reply]:
    """Generate a reply for every row and return them whole; see `stream`.

    With a temperature every row draws from a stream of its own, made of the seed and the row's number: three rows of
    one prompt are three replies. A row does not depend on the others, nor on how rows are cut into batches, and the
    first one is what the seed gives alone. To compare steerings of one prompt under the same random numbers, give all
    rows the same seed: `Sampling(temperature=0.7, seed=(7,) * n)`.

    Args:
        model: the model that replies
        prompts: tokens of each row, from `Model.chat_tokens`; any number of them, in memory that does not grow with it
        steerings: one per row; none steers nothing
        probes: what is read at every reply token
        sampling: how tokens are chosen
        batch_size: rows of one forward pass, by default as many as `batches` allows
        progress: is called with how many tokens of how many have been made, or need not be because replies have ended

    Returns:
        A reply a row, in their order.

    Raises:
        PromptError: a prompt is text or empty, or with its reply longer than the context.
        SteerkitError: there is not one steering, or not one seed, a prompt.
        VectorError: a vector was made on another model.
    """
    sampling, prompts = sampling or Sampling(), check_tokens(model, prompts)
    check_context(model, [len(prompt) for prompt in prompts], sampling.max_tokens)
    if not isinstance(sampling.seed, tuple):
        sampling = sampling.per_row(len(prompts))
    steerings = [Steering()] * len(prompts) if steerings is None else steerings
    steps: list[list[Step]] = [[] for _ in prompts]
    n_made, total = 0, len(prompts) * sampling.max_tokens
    for step in stream(model, prompts, steerings, probes, sampling, batch_size=batch_size):
        steps[step.row].append(step)
        n_made += 1
        progress("generate", n_made, total)
    if n_made < total:
        progress("generate", total, total)
    return [gather(model, prompt, row, probes) for prompt, row in zip(prompts, steps, strict=True)]


def gather(model: Model, prompt: Sequence[int], steps: Sequence[Step], probes: Sequence[Probe]) -> Reply:
    """Put the steps of one row together; what is thought counts for nothing, unless the model's thoughts are to."""
    thought, said = ([step for step in steps if step.thought is which] for which in (True, False))
    counted, before = (steps, ()) if model.thoughts.included else (said, tuple(step.token for step in thought))
    scores = torch.tensor([step.scores for step in counted]).reshape(len(counted), len(probes))
    readout = Readout(tuple(step.text for step in counted), distinct_names(probes), scores)
    tokens = tuple(step.token for step in counted)
    text, written = ("".join(step.text for step in part).strip() for part in (said, thought))
    unfinished = bool(steps) and steps[-1].open
    return Reply((*prompt, *before), tokens, text, readout, written, len(thought), unfinished)


def require_replies(model: Model, replies: Sequence[Reply]) -> None:
    """See that there is something to measure where a model thinks before it replies; what is missing is told.

    Raises:
        SteerkitError: every reply ended within its thought.
    """
    n_cut = sum(reply.unfinished for reply in replies)
    if n_cut and n_cut == len(replies):
        longest = max(reply.n_thought for reply in replies)
        raise SteerkitError(
            f"every reply of {model.name} ended within its thought, the longest after {longest} tokens, so there is "
            "nothing to measure; use --thinking off where the model has it, longer replies, or --steer-thoughts"
        )
    if n_cut:
        model.note(f"{n_cut} of {len(replies)} replies ended within their thoughts and were left out")


def read_tokens(
    model: Model, prompt: Sequence[int], reply: Sequence[int], probes: Sequence[Probe], steering: Steering | None = None
) -> Readout:
    """Read a finished reply in one pass, under the steering it was made with.

    Raises:
        PromptError: prompt or reply are text, there is neither, or both together are longer than the context.
        VectorError: a vector was made on another model.
    """
    scores = read_rows(model, [(prompt, reply)], probes, [steering or Steering()])[0][len(prompt[-1:]) :]
    return Readout(tuple(pieces(model, reply)), distinct_names(probes), scores)


def pieces(model: Model, tokens: Sequence[int]) -> list[str]:
    """What each of some tokens adds to their text."""
    decoder = Decoder(model.tokenizer)
    found = [decoder.push(token) for token in tokens]
    return [*found[:-1], found[-1] + decoder.rest()] if found else []


def read_rows(
    model: Model,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    probes: Sequence[Probe],
    steerings: Sequence[Steering],
    begun: tuple[Any, Int[Tensor, "b t"]] | None = None,
) -> list[Float[Tensor, "s p"]]:
    """Scores at the last token of each prompt, if it has any, and at every token of the reply to it.

    Any number of rows is read in batches of bounded memory, unless they have begun.

    Args:
        model: who reads
        rows: prompts with the reply to each, as tokens
        probes: what is read
        steerings: one a row
        begun: what `prefill` returns, where that has been done

    Raises:
        PromptError: a row is text, is empty, or is longer than the context.
        SteerkitError: there is not one steering a row.
        VectorError: a vector was made on another model.
    """
    prompts, replies = check_pairs(model, rows, empty=True)
    check_steerings(model, steerings, len(rows))
    check_probes(model, probes)
    rows = list(zip(prompts, replies, strict=True))
    if model.engine is not None:
        readings = Readings(probes, torch.device("cpu"))
        readers = {l: matrix for l, (_, matrix, _) in readings.readers().items()}
        given = steered_passages([prompt for prompt, _ in rows], steerings, [reply for _, reply in rows])
        since = [max(len(prompt) - 1, 0) for prompt, _ in rows]
        asked = [replace(row, readers=readers, since=first) for row, first in zip(given, since, strict=True)]
        return [readings.put(heard.scores) for heard in model.engine.run(asked)]
    if begun is not None:
        return _read(model, rows, probes, steerings, begun)
    scores: list[Any] = [None] * len(rows)
    for part in batches([len(prompt) + len(reply) for prompt, reply in rows]):
        found = _read(model, [rows[i] for i in part], probes, [steerings[i] for i in part], None)
        for i, row in zip(part, found, strict=True):
            scores[i] = row
    return scores


def _read(
    model: Model,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    probes: Sequence[Probe],
    steerings: Sequence[Steering],
    begun: tuple[Any, Int[Tensor, "b t"]] | None,
) -> list[Float[Tensor, "s p"]]:
    """Scores of some rows, in one pass."""
    cache, mask = begun or prefill(model, [prompt for prompt, _ in rows], steerings)
    asked = [[*prompt[-1:], *reply] for prompt, reply in rows]
    width = max(map(len, asked))
    # Padding stands behind, where no token looks.
    tokens, behind = pad_right(asked, model.device)
    mask = torch.cat([mask, behind], dim=1)
    readings = Readings(probes, model.device)
    like = torch.empty(0, device=model.device, dtype=model.dtype)
    model.forward(tokens, mask, cache, merge(edits(steerings, like), readings.functions()), keep=0)
    scores = readings.scores.cpu() if probes else torch.zeros(*tokens.shape, 0)
    return [scores[i, : len(row)] for i, row in enumerate(asked)]


@dataclass(frozen=True)
class Turn:
    """One turn of a chat that was read."""

    role: str
    """Who spoke."""
    readout: Readout
    """The turn's tokens and scores."""


def read_chat(model: Model, messages: Sequence[Message], probes: Sequence[Probe]) -> list[Turn]:
    """Read every turn of a chat, in one pass over the text the model would have seen.

    Raises:
        PromptError: it is no list of messages, or exceeds the context.
        VectorError: a probe's vector was made on another model.
    """
    check_messages(messages)
    ids, turns = find_turns(model, messages)
    readout = read_tokens(model, [], ids, probes)
    return [Turn(turn.role, Readout(turn.pieces, readout.probes, readout.scores[list(turn.places)])) for turn in turns]


@dataclass(frozen=True)
class Span:
    """Where one turn's words stand among the tokens of a chat."""

    role: str
    """Who spoke."""
    places: tuple[int, ...]
    """Places of its tokens."""
    pieces: tuple[str, ...]
    """The text of each of them."""


def find_turns(model: Model, messages: Sequence[Message]) -> tuple[list[int], list[Span]]:
    """The tokens of a chat as the model would see it, and where in them each turn's words are.

    Raises:
        PromptError: the chat exceeds the context, or the template rewrites what was said.
    """
    chat = model.rendered(messages, reply_follows=False)
    tokens = model.template.encode(chat.text)
    if len(tokens.ids) > model.context:
        raise PromptError(f"the chat has {len(tokens.ids)} tokens and {model.name} holds {model.context}; shorten it")
    turns = []
    for i, (message, span) in enumerate(zip(messages, chat.spans, strict=True), 1):
        if span is None:
            raise PromptError(f"{model.name}'s chat template rewrites turn {i}, so its words cannot be found again")
        said = chat.text[slice(*span)]
        bare = span[0] + len(said) - len(said.lstrip()), span[0] + len(said.rstrip())
        places, pieces = model.template.pieces(chat.text, tokens, bare if said.strip() else (span[0], span[0]))
        turns.append(Span(message["role"], tuple(places), pieces))
    return tokens.ids, turns
