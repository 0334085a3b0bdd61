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
from dataclasses import asdict, dataclass, field
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
        if self.max_tokens < 1 or self.batch_size < 2:
            raise SteerkitError("an extraction needs at least 1 reply token and a batch of 2 rows")


@dataclass(frozen=True)
class Case:
    """One question under both prompts, as tokens."""

    bare: tuple[int, ...]
    """The question alone, as a user would put it."""
    positive: tuple[int, ...]
    """After a prompt that asks for the positive persona."""
    negative: tuple[int, ...]
    """After the mirrored prompt of the negative one."""


@dataclass(frozen=True)
class Contrast:
    """Some cases, what both sides said to them, and what went on inside."""

    cases: Sequence[Case]
    """Questions where both sides said something."""
    replies: Sequence[tuple[Reply, Reply]]
    """Positive and negative reply to each; nothing where the reading is `prompt`."""
    positive: Float[Tensor, "b l d"]
    """Activations of the positive side, pooled as the reading says."""
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


def audit_warnings(audit: Mapping[str, Any]) -> list[str]:
    """What the user should look at before trusting a direction; `audit` is what `Audit.to_json` gave."""
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
    return found


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
        A vector with directions and baseline [l d], its provenance, and what the pairs say of its reliability.

    Raises:
        PromptError: a prompt and its reply exceed the context.
        SteerkitError: every reply was empty, or ended within its thought.
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
    mean = SteeringVector(
        name=pair.name,
        model=model.fingerprint,
        directions=ESTIMATORS["mean_diff" if trained else recipe.estimator](positive, negative),
        baseline=negative.mean(0),
        provenance=_provenance(model, pair, recipe, sums.n, audit),
        evidence=sums.evidence(),
    )
    return train(model, mean, lessons, seed=recipe.seed, progress=progress) if trained else mean


def extracting(model: Model, shared: Plain, progress: Progress) -> Callable[[Plain], Plain]:
    """The task: the file of a pair's vector, and the seconds it took."""
    recipe, model = Recipe(**shared["recipe"]), model.at_date(shared.get("template_date", ""))
    others = [SteeringVector.from_bytes(data) for data in shared["without"]]

    def extracted(piece: Plain) -> Plain:
        started, pair = time.perf_counter(), Pair.from_json(piece)
        vector = extract(model, pair, recipe, progress)
        apart = [other for other in others if other.name != pair.name]
        vector = vector.without(apart) if apart else vector
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
    total = len(cases) * 2 * (recipe.max_tokens if recipe.reading == "response" else 1)
    done = 0
    for batch in _batches(cases, recipe.batch_size):
        rows = [case.positive for case in batch] + [case.negative for case in batch]
        share = len(rows) * total // (2 * len(cases))
        if recipe.reading == "response":
            replies, states = _speak(model, rows, recipe, done, total, progress)
        else:
            replies, states = [], prompt_states(model, rows)
        positive, negative = states.cpu().chunk(2)
        heard = [bool(reply.tokens) for reply in replies] or [True] * len(rows)
        kept = [i for i, sides in enumerate(zip(*_halves(heard), strict=True)) if all(sides)]
        if audit is not None:
            audit.empty += len(batch) - len(kept)
            audit.unfinished += sum(reply.unfinished for reply in replies)
        sides = list(zip(*_halves(replies), strict=True)) if replies else []
        yield Contrast(
            [batch[i] for i in kept], [sides[i] for i in kept] if sides else [], positive[kept], negative[kept]
        )
        done += share
        progress("extract", min(done, total), total)


def _cases(model: Model, pair: Pair, recipe: Recipe, questions: Sequence[str]) -> list[Case]:
    """Every question under every pair of mirrored prompts, shortest first."""
    room = recipe.max_tokens if recipe.reading == "response" else 1

    def tokens(system: str, question: str) -> tuple[int, ...]:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        return tuple(model.chat_tokens([*messages, {"role": "user", "content": question}], room))

    cases = [
        Case(tokens("", asked), tokens(positive, asked), tokens(negative, asked))
        for positive, negative in pair.prompts()
        for asked in (f"{question} {recipe.request}".strip() for question in questions)
    ]
    return sorted(cases, key=lambda case: len(case.positive) + len(case.negative))


def _batches(cases: Sequence[Case], batch_size: int) -> Iterator[Sequence[Case]]:
    """Batches of about equal size, of cases that are about equally long."""
    n_batches = math.ceil(2 * len(cases) / batch_size)
    bounds = [round(i * len(cases) / n_batches) for i in range(n_batches + 1)]
    for start, end in pairwise(bounds):
        yield cases[start:end]


def _halves(rows: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    middle = len(rows) // 2
    return rows[:middle], rows[middle:]


def _speak(
    model: Model, rows: Sequence[tuple[int, ...]], recipe: Recipe, done: int, total: int, progress: Progress
) -> tuple[list[Reply], Float[Tensor, "b l d"]]:
    """The model's own replies, and its mean state while it gave them."""
    sampling = Sampling(recipe.max_tokens, recipe.temperature, recipe.top_p, recipe.seed)
    steps: list[list[Step]] = [[] for _ in rows]
    means = Means(model, len(rows))
    for step in stream(model, rows, [Steering()] * len(rows), (), sampling, means):
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
        **model.template_identity,
        "audit": audit.to_json(),
        "versions": {name: version(name) for name in ("torch", "transformers", "transformer-lens")},
    }
