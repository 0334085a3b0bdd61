"""From a pair of personas to a steering vector.

Both sides answer the same questions under mirrored system prompts; what they are averaged over is the reading:
`response` takes the model's own replies, token by token, and `prompt` takes the last prompt token, from which the reply
will be made (arXiv 2507.21509). Activations are summed as they come, so memory does not grow with the questions.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from steerkit.errors import SteerkitError, nearest
from steerkit.estimators import ESTIMATORS
from steerkit.generation import Reply, Sampling, Step, gather, stream
from steerkit.models import Message, Model
from steerkit.passes import Means, prompt_states
from steerkit.personas import Pair, names
from steerkit.steering import Steering
from steerkit.training import Lesson, train
from steerkit.vectors import SteeringVector
from steerkit.weights import Progress, ignore_progress
from steerkit.work import Job, Plain

READINGS = ("response", "prompt")
TRAINED = "trained"
TASK = "extraction:extracting"
ESTIMATOR_NAMES = (*ESTIMATORS, TRAINED)
FEW_PAIRS = 20
"""Fewer distinct pairs than this may be about one wording or one question; a persona of the library has 36."""
NOTHING = 1e-6
"""A displacement shorter than this share of the states that it is between is rounding, and no direction."""
REFUSAL = re.compile(
    r"\b(i can(?:no|')t|i am unable|i'm unable|i am not able|i'm not able|as an ai\b|i'm sorry, but)", re.IGNORECASE
)


@dataclass(frozen=True)
class Recipe:
    """How a vector is extracted."""

    estimator: str = "mean_diff"
    """One of `ESTIMATOR_NAMES`: pure functions of activations, and `trained`, which needs the model."""
    reading: str = "response"
    """`response` or `prompt`."""
    max_tokens: int = 40
    """How much of each reply is read."""
    batch_size: int = 36
    """Rows of one forward pass; a pair takes two."""
    temperature: float = 0.7
    """Of the replies; 0 takes the likeliest token, and small models then go round in circles."""
    top_p: float = 0.9
    """Of the replies."""
    seed: int = 0
    """Of the replies."""
    request: str = ""
    """Added to every question on both sides, such as `Answer in one sentence.`; it makes replies alike in style, and
    weakened the personas it was tried on."""

    def __post_init__(self) -> None:
        """Refuse names that do not exist."""
        for kind, name, known in (
            ("estimator", self.estimator, ESTIMATOR_NAMES),
            ("reading", self.reading, READINGS),
        ):
            if name not in known:
                hint = nearest(name, known, "choose from: " + ", ".join(known))
                raise SteerkitError(f"no {kind} is called {name!r}; {hint}")
        if self.estimator == TRAINED and self.reading != "response":
            raise SteerkitError("a trained direction learns from replies; leave out --reading prompt")
        self.sampling()
        if self.max_tokens < 1 or not isinstance(self.batch_size, int) or self.batch_size < 2:
            raise SteerkitError("an extraction needs at least 1 reply token and a batch of 2 rows")

    def sampling(self) -> Sampling:
        """How replies are drawn.

        Every row has the same seed: both sides of a pair begin with the same random numbers, and every vector that
        ships was made so.
        """
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)


@dataclass(frozen=True)
class Case:
    """One question under mirrored prompts, as tokens: a distinct pair.

    Where one persona has fewer prompts than the other, one of its prompts mirrors several, and they are one pair with
    it: a reply that stood in several pairs would agree with itself.
    """

    bare: tuple[int, ...]
    """The question alone, as a user would put it."""
    positives: tuple[tuple[int, ...], ...]
    """After each prompt that asks for the positive persona; no two alike, and more than one only against one."""
    negatives: tuple[tuple[int, ...], ...]
    """After the mirrored prompts of the negative one."""
    turn: int = 0
    """Which of them stands for the others where one of each is wanted."""

    @property
    def positive(self) -> tuple[int, ...]:
        """After the prompt that asks for the positive persona, or one of them."""
        return self.positives[self.turn % len(self.positives)]

    @property
    def negative(self) -> tuple[int, ...]:
        """After the mirrored prompt, or one of them."""
        return self.negatives[self.turn % len(self.negatives)]


@dataclass(frozen=True)
class Contrast:
    """Some cases, what both sides said to them, and what went on inside."""

    cases: Sequence[Case]
    """Questions where both sides said something."""
    replies: Sequence[tuple[Reply, Reply]]
    """Positive and negative reply to each, one of each; nothing where the reading is `prompt`."""
    positive: Float[Tensor, "b l d"]
    """Activations of the positive side, pooled as the reading says, and averaged over the prompts of a case."""
    negative: Float[Tensor, "b l d"]
    """Activations of the negative side."""


@dataclass
class Audit:
    """What the replies look like, because a direction can be about the wrong thing."""

    replies: int = 0
    refusals: int = 0
    label_echoes: int = 0
    empty: int = 0
    unfinished: int = 0
    positive_tokens: int = 0
    negative_tokens: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def take(self, positive: Reply, negative: Reply, labels: Sequence[str]) -> None:
        """Count one pair of replies."""
        self.replies += 2
        self.refusals += sum(bool(REFUSAL.search(reply.text)) for reply in (positive, negative))
        self.label_echoes += any(names(positive.text, label) for label in labels)
        self.positive_tokens += len(positive.tokens)
        self.negative_tokens += len(negative.tokens)
        if len(self.examples) < 2:
            self.examples.append({"positive": positive.text, "negative": negative.text})

    @property
    def length_ratio(self) -> float:
        """Tokens of positive replies for each token of negative ones."""
        return self.positive_tokens / max(self.negative_tokens, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain data for the vector's provenance."""
        told = {**asdict(self), "length_ratio": round(self.length_ratio, 3)}
        if not self.unfinished:
            del told["unfinished"]
        return told


def audit_warnings(audit: Mapping[str, Any], n_pairs: int | None = None) -> list[str]:
    """What the user should look at before trusting a direction.

    Args:
        audit: what `Audit.to_json` gave
        n_pairs: distinct pairs that it was made of, if that is known
    """
    replies, ratio, found = audit["replies"], audit["length_ratio"], []
    if audit["refusals"] > 0.25 * replies:
        found.append(f"{audit['refusals']} of {replies} replies refuse; the direction may be about refusing")
    if audit["label_echoes"] > 0.25 * replies / 2:
        found.append(f"{audit['label_echoes']} of {replies // 2} replies name the persona, which is not playing it")
    if replies and not 0.67 <= ratio <= 1.5:
        found.append(f"replies differ in length ({ratio:.2f} to 1); the direction may be about length")
    if audit["empty"]:
        found.append(f"{audit['empty']} pairs were left out because one side said nothing")
    if audit.get("unfinished"):
        found.append(f"{audit['unfinished']} replies ended within their thoughts, and their pairs were left out")
    return found + ([] if n_pairs is None else few_pairs(n_pairs))


def few_pairs(n_pairs: int) -> list[str]:
    """A line if so many distinct pairs are few."""
    if n_pairs >= FEW_PAIRS:
        return []
    pairs = "pair is" if n_pairs == 1 else "pairs are"
    told = f"only {n_pairs} distinct {pairs} behind the direction, which may be about one wording or one question"
    return [f"{told}; give the persona three requested prompts and a dozen questions"]


class Sums:
    """Running sums over pairs of activations [b l d]; rows are only kept for estimators that need each of them."""

    def __init__(self, n_layers: int, width: int, keep_rows: bool) -> None:
        self.n = 0
        self._halves = torch.zeros(2, 2, n_layers, width, dtype=torch.float64)
        self._counts = [0, 0]
        self._units = torch.zeros(n_layers, width, dtype=torch.float64)
        self._rows: list[tuple[Tensor, Tensor]] | None = [] if keep_rows else None

    def add(self, positive: Float[Tensor, "b l d"], negative: Float[Tensor, "b l d"]) -> None:
        """Take some pairs."""
        positive, negative = positive.cpu(), negative.cpu()
        for ours, theirs in zip(positive.double(), negative.double(), strict=True):
            half = self.n % 2
            self._halves[half, 0] += ours
            self._halves[half, 1] += theirs
            self._counts[half] += 1
            self._units += torch.nn.functional.normalize(ours - theirs, dim=-1)
            self.n += 1
        if self._rows is not None:
            self._rows.append((positive, negative))

    def sides(self) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n l d"]]:
        """What an estimator takes: all rows, or where only the means matter, one row a side."""
        if self._rows is not None:
            return torch.cat([p for p, _ in self._rows]), torch.cat([n for _, n in self._rows])
        positive, negative = (self._halves.sum(0) / max(self.n, 1)).float()
        return positive[None], negative[None]

    def evidence(self) -> dict[str, list[float]]:
        """By layer: how well the pairs agree with their mean, and how well one half of them agrees with the other.

        The mean cosine of the pairs with their mean is the mean of their unit differences, projected on it, so running
        sums are enough.
        """
        mean = (self._halves[:, 0] - self._halves[:, 1]).sum(0)
        agreement = (self._units / max(self.n, 1) * torch.nn.functional.normalize(mean, dim=-1)).sum(-1)
        first, second = (self._halves[half, 0] - self._halves[half, 1] for half in (0, 1))
        split = torch.nn.functional.cosine_similarity(first, second, dim=-1)
        return {
            "pair_agreement": [round(x, 4) for x in agreement.tolist()],
            "split_half": [round(x, 4) for x in split.tolist()],
        }


def extract(
    model: Model, pair: Pair, recipe: Recipe | None = None, progress: Progress = ignore_progress
) -> SteeringVector:
    """Compute a persona pair's steering vector.

    Args:
        model: whose persona space it is
        pair: positive against negative persona
        recipe: estimator, reading, sizes
        progress: told how many tokens of how many have been done

    Returns:
        A vector with directions and baseline [l d], its provenance, and what the pairs say of its reliability. Where
        few of them are distinct, a line under `warnings` in the audit of its provenance says so.

    Raises:
        PromptError: a prompt and its reply exceed the context.
        SteerkitError: every reply was empty or ended within its thought, or both personas do the same to the model, so
            that there is no direction.
    """
    recipe, model = recipe or Recipe(), model.for_measuring()
    trained = recipe.estimator == TRAINED
    sums = Sums(model.n_layers, model.width, keep_rows=recipe.estimator not in ("mean_diff", TRAINED))
    audit, lessons = Audit(), []
    for part in contrasts(model, pair, recipe, progress=progress, audit=audit):
        sums.add(part.positive, part.negative)
        for case, (positive, negative) in zip(part.cases if part.replies else (), part.replies, strict=True):
            audit.take(positive, negative, pair.positive.labels)
            if trained:
                lessons.append(Lesson(case.bare, positive.tokens, negative.tokens))
    if sums.n == 0 and audit.unfinished:
        raise SteerkitError(
            f"no two replies of {model.name} came out of their thoughts in {recipe.max_tokens} tokens; use --thinking "
            "off where the model has it, raise --max-tokens, or try --reading prompt"
        )
    if sums.n == 0:
        raise SteerkitError(f"{model.name} said nothing to any question; try --reading prompt")
    positive, negative = sums.sides()
    directions = ESTIMATORS["mean_diff" if trained else recipe.estimator](positive, negative)
    _require_direction(model, pair, directions, negative.mean(0))
    mean = SteeringVector(
        name=pair.name,
        model=model.fingerprint,
        directions=directions,
        baseline=negative.mean(0),
        provenance=_provenance(model, pair, recipe, sums.n, audit),
        evidence=sums.evidence(),
    )
    return train(model, mean, lessons, seed=recipe.seed, progress=progress) if trained else mean


def _require_direction(
    model: Model, pair: Pair, directions: Float[Tensor, "l d"], baseline: Float[Tensor, "l d"]
) -> None:
    """Refuse a displacement that is zero or not finite; a file of it would steer nothing in silence.

    A few layers may be zero: one that looks back a few tokens only has not seen the prompts.
    """
    both = f"{pair.positive.name} and {pair.negative.name}"
    if not torch.isfinite(directions).all():
        raise SteerkitError(f"{model.name} gives states that are not finite for {both}; try --dtype float32")
    lengths, sizes = directions.double().norm(dim=-1), baseline.double().norm(dim=-1)
    if bool((lengths <= NOTHING * sizes).all()):
        raise SteerkitError(
            f"{both} make no difference to {model.name}: the direction is zero at every layer; "
            "see whether its chat template keeps system prompts, and whether the prompts differ"
        )


def extracting(model: Model, shared: Plain, progress: Progress) -> Callable[[Plain], Plain]:
    """The task: the file of a pair's vector, and the seconds it took."""
    recipe, model = Recipe(**shared["recipe"]), model.at_date(shared.get("template_date", ""))
    others = [SteeringVector.from_bytes(data) for data in shared["without"]]

    def extracted(piece: Plain) -> Plain:
        started, pair = time.perf_counter(), Pair.from_json(piece)
        vector = extract(model, pair, recipe, progress)
        apart = [other for other in others if other.name != pair.name]
        # It takes the place of the persona's vector, under the persona's name; its provenance says what it is without.
        vector = replace(vector.without(apart), name=vector.name) if apart else vector
        return {"vector": vector.to_bytes(), "seconds": time.perf_counter() - started}

    return extracted


def extraction_jobs(
    pairs: Iterable[Pair], recipe: Recipe, without: Sequence[SteeringVector] = (), date: str = ""
) -> Iterator[Job]:
    """What workers are asked for the vectors of some pairs, each less what it has in common with other vectors.

    `date` is where the clock of the model's chat template stands for all of them, if it has one.
    """
    shared: Plain = {"recipe": asdict(recipe), "without": [other.to_bytes() for other in without]}
    shared |= {"template_date": date} if date else {}
    for pair in pairs:
        yield Job(shared, pair.to_json(), pair.name)


def contrasts(
    model: Model,
    pair: Pair,
    recipe: Recipe,
    questions: Sequence[str] | None = None,
    progress: Progress = ignore_progress,
    audit: Audit | None = None,
) -> Iterator[Contrast]:
    """Let both personas answer, a batch at a time; `questions` are those of the extraction if none are given."""
    model = model.for_measuring()
    cases = _cases(model, pair, recipe, pair.positive.questions if questions is None else questions)
    length = recipe.max_tokens if recipe.reading == "response" else 1
    total = length * sum(len(case.positives) + len(case.negatives) for case in cases)
    done = 0
    for batch in _batches(cases, recipe.batch_size):
        rows = [row for case in batch for row in case.positives] + [row for case in batch for row in case.negatives]
        replies: list[Reply] = []
        if recipe.reading == "response":
            replies, states = _speak(model, rows, recipe, done, total, progress)
        else:
            states = prompt_states(model, rows)
        spoken = [bool(reply.tokens) for reply in replies] or [True] * len(rows)
        sides = zip(*_sides(batch), strict=True)
        found = [
            (case, *([row for row in side if spoken[row]] for side in both))
            for case, both in zip(batch, sides, strict=True)
        ]
        kept = [(case, ours, theirs) for case, ours, theirs in found if ours and theirs]
        if audit is not None:
            audit.empty += len(batch) - len(kept)
            audit.unfinished += sum(reply.unfinished for reply in replies)
        states = states.cpu()
        yield Contrast(
            [case for case, _, _ in kept],
            [_heard(replies, *entry) for entry in kept] if replies else [],
            *(_averages(states, [sides[i] for _, *sides in kept]) for i in (0, 1)),
        )
        done += len(rows) * length
        progress("extract", min(done, total), total)


def _sides(batch: Sequence[Case]) -> tuple[list[range], list[range]]:
    """Which rows are the positive ones of each case, and which the negative ones; all positive ones come first."""
    found: list[list[range]] = []
    start = 0
    for sizes in ([len(case.positives) for case in batch], [len(case.negatives) for case in batch]):
        found.append([])
        for size in sizes:
            found[-1].append(range(start, start + size))
            start += size
    return found[0], found[1]


def _heard(
    replies: Sequence[Reply], case: Case, positive: Sequence[int], negative: Sequence[int]
) -> tuple[Reply, Reply]:
    """One reply of each side to a case, in turn where a side has several."""
    return replies[positive[case.turn % len(positive)]], replies[negative[case.turn % len(negative)]]


def _averages(states: Float[Tensor, "r l d"], groups: Sequence[Sequence[int]]) -> Float[Tensor, "b l d"]:
    """The mean state of each group of rows."""
    if not groups:
        return states[:0]
    return torch.stack([states[group[0]] if len(group) == 1 else states[list(group)].mean(0) for group in groups])


def _cases(model: Model, pair: Pair, recipe: Recipe, questions: Sequence[str]) -> list[Case]:
    """Every distinct question under the mirrored prompts, shortest first.

    Raises:
        SteerkitError: the model reads both sides as the same text.
    """
    room = recipe.max_tokens if recipe.reading == "response" else 1

    def tokens(system: str, question: str) -> tuple[int, ...]:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        return tuple(model.chat_tokens([*messages, {"role": "user", "content": question}], room))

    asked = dict.fromkeys(f"{question} {recipe.request}".strip() for question in questions)
    rows = dict.fromkeys(
        (tokens("", question), tokens(positive, question), tokens(negative, question))
        for positive, negative in pair.prompts()
        for question in asked
    )
    rows = [row for row in rows if row[1] != row[2]]
    if not rows:
        raise SteerkitError(
            f"{model.name} reads {pair.positive.name} and {pair.negative.name} as the same text, so there is no "
            "direction between them; see whether its chat template keeps system prompts, and whether the prompts differ"
        )
    # The side with fewer prompts decides what is distinct.
    side = 1 if len({row[1] for row in rows}) <= len({row[2] for row in rows}) else 2
    groups: dict[tuple[int, ...], list[tuple[tuple[int, ...], ...]]] = {}
    for row in rows:
        groups.setdefault(row[side], []).append(row)
    cases = [
        Case(
            group[0][0],
            tuple(dict.fromkeys(positive for _, positive, _ in group)),
            tuple(dict.fromkeys(negative for _, _, negative in group)),
            turn,
        )
        for turn, group in enumerate(groups.values())
    ]
    return sorted(cases, key=lambda case: len(case.positive) + len(case.negative))


def _batches(cases: Sequence[Case], batch_size: int) -> Iterator[Sequence[Case]]:
    """Batches of about equal size, of cases that are about equally long."""
    n_rows = sum(len(case.positives) + len(case.negatives) for case in cases)
    n_batches = min(math.ceil(n_rows / batch_size), len(cases))
    bounds = [round(i * len(cases) / n_batches) for i in range(n_batches + 1)]
    for start, end in pairwise(bounds):
        yield cases[start:end]


def _speak(
    model: Model, rows: Sequence[tuple[int, ...]], recipe: Recipe, done: int, total: int, progress: Progress
) -> tuple[list[Reply], Float[Tensor, "b l d"]]:
    """The model's own replies, and its mean state while it gave them."""
    steps: list[list[Step]] = [[] for _ in rows]
    means = Means(model, len(rows))
    for step in stream(model, rows, [Steering()] * len(rows), (), recipe.sampling(), means):
        steps[step.row].append(step)
        done += 1
        progress("extract", min(done, total), total)
    return [gather(model, row, said, ()) for row, said in zip(rows, steps, strict=True)], means.values


def _provenance(model: Model, pair: Pair, recipe: Recipe, n_pairs: int, audit: Audit) -> dict[str, Any]:
    prompts = json.dumps([pair.prompts(), pair.positive.questions, recipe.request], ensure_ascii=False)
    return {
        "persona": pair.positive.name,
        "against": pair.negative.name,
        **asdict(recipe),
        "n_pairs": n_pairs,
        "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest(),
        "model": model.name,
        "path": model.path,
        **model.template_identity,
        "audit": audit.to_json() | ({"warnings": few} if (few := few_pairs(n_pairs)) else {}),
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer-lens")},
    }
