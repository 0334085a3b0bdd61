"""What sort of person would say this: training data, sample by sample, against what the model itself would have said.

The difference of two scores, the sample's reply minus the model's own reply to the same prompt, predicts which persona
training on the sample would select for (persona vectors, arXiv 2507.21509). Both texts are read over the same first
tokens, so length is no advantage, and random directions are read beside every probe: random mixtures of personas where
there are enough of those, because what a model has on its mind moves all personas more than just any direction.

With prompts that training would put in front of the samples, all this is read behind them, and it is told what they do
to the replies; see `inoculation`.

Samples come and results go one a line, so memory does not grow with the data. Replies are measured in blocks whose
members depend on nothing but the file; a run that was killed measures the block it was in again and writes the lines
that are missing, so the file ends up the same byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from steerkit.chats import stream_chats
from steerkit.errors import OutputError, PromptError, VectorError
from steerkit.generation import Probe
from steerkit.inoculation import inoculated
from steerkit.models import Message, Model
from steerkit.nulls import N_NULLS, random_directions
from steerkit.parcels import pack_probes
from steerkit.samples import Sample, Settings, layers_of, short
from steerkit.vectors import SteeringVector
from steerkit.verdicts import FORMAT
from steerkit.weights import Progress, file_sha256, ignore_progress
from steerkit.work import Job, Known, Plain, Workers, date_of, workers_for

TASK = "samples:measuring"
BEGINNING = b'{"line": '
"""How a line begins, which is how a torn one is known to be ours."""
OURS = re.compile(rb'\{"line": \d+, .*\}\n')
"""A whole one."""


def count_samples(source: Path, most: int | None = None) -> int:
    """See that every line is a chat, before anything is loaded or measured, and count them.

    Raises:
        PromptError: a line is not a chat, or there are none.
    """
    if not (n_samples := sum(1 for _ in stream_chats(source, most))):
        raise PromptError(f'{source} holds no chats; each line is {{"messages": [{{"role": …, "content": …}}]}}')
    return n_samples


def screen(
    model: Model | Known,
    source: Path,
    probes: Sequence[Probe],
    path: Path,
    settings: Settings | None = None,
    progress: Progress = ignore_progress,
    crowd: Sequence[SteeringVector] = (),
    workers: Workers | None = None,
) -> None:
    """Score the last assistant turn of every chat of a file, writing each line as soon as it is known.

    Args:
        model: whose persona would be selected for, and who is asked for its own replies
        source: a JSONL file of chats; see `chats.stream_chats`
        probes: what is read, under different names
        path: a JSONL file, begun by the same call or new. Its head says how it was made; each line after it is the
            source's `line`, the `tokens` of the whole reply, how its `text` begins, the difference of the `scores` by
            probe in dials, and by layer the differences along the random directions (`null`) in raw residual units.
            A sample that could not be read has the reason under `skipped` instead. With prompts to inoculate, texts
            and replies are read behind them, and `gain` is what they add to the mean log p of a token of the reply
        settings: how they are read
        progress: told how many samples of how many are in the file
        crowd: whom random directions are mixed from; of fewer than 20, directions are drawn from the whole space
        workers: who measure; this process with the model if none are given

    Raises:
        PromptError: a line is not a chat, which is found before anything is measured.
        VectorError: there are no probes, two have one name, or one was made on another model.
        OutputError: the file is of another screening, or cannot be written.
    """
    settings = settings or Settings()
    _check(model, probes)
    total = count_samples(source, settings.most)
    if path.exists() and path.samefile(source):
        raise OutputError(f"{path} is what is screened; name another file with -o")
    model = model.at_date(_date_in(path))
    nulls = random_directions(model, settings.seed, crowd)
    head = _head(model, source, probes, settings, nulls)
    done, last = _begin(path, head)
    progress("screening", done, total)
    # Workers draw blocks ahead of what is written, so where each belongs is remembered until its lines are there.
    drawn: deque[tuple[int, int]] = deque()

    def jobs() -> Iterator[Job]:
        shared = _shared(probes, nulls, settings, date_of(model))
        held = done
        for start, block in _blocks(_samples(source, settings), settings.block):
            if start < held <= start + len(block) and block[held - start - 1][0] != last:
                raise OutputError(f"{path} has lost lines before its last; remove it, or name another file with -o")
            if start + len(block) > held:
                drawn.append((max(held - start, 0), start + len(block)))
                piece = [[number, _plain(chat), _plain(seen)] for number, (chat, seen) in block]
                yield Job(shared, piece, f"the block of {source.name} from line {block[0][0]}")

    for lines in workers_for(model, workers).run(TASK, jobs()):
        surplus, end = drawn.popleft()
        _append(path, lines[surplus:])
        progress("screening", end, total)


def _shared(probes: Sequence[Probe], nulls: Sequence[SteeringVector], settings: Settings, date: str) -> Plain:
    told = {**asdict(settings), "inoculate": list(settings.inoculate)}
    shared = {"probes": pack_probes(probes), "nulls": [null.to_bytes() for null in nulls], "settings": told}
    return {**shared, **({"template_date": date} if date else {})}


def _date_in(path: Path) -> str:
    """The date in the model's chat template when a file was begun; what is no screening is told of later."""
    try:
        with path.open("rb") as file:
            return str(json.loads(file.readline()).get("template_date", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _plain(chat: Sequence[Message]) -> Plain:
    return [dict(turn) for turn in chat]


def _check(model: Model | Known, probes: Sequence[Probe]) -> None:
    if not probes:
        raise VectorError(f"there are no vectors of {model.name} to read; make one with: steerkit extract PERSONA")
    twice = [name for name, times in Counter(probe.name for probe in probes).items() if times > 1]
    if twice:
        raise VectorError(f"two probes are called {twice[0]}; name each once")
    for probe in probes:
        probe.vector.require(model.fingerprint)


def _head(
    model: Model | Known, source: Path, probes: Sequence[Probe], settings: Settings, nulls: Sequence[SteeringVector]
) -> dict[str, Any]:
    """What a file of results says of itself; other words, another screening."""
    layers = layers_of(probes)
    drawn = [_described(Probe(null.name, null, l))["digest"] for null in nulls[:1] for l in layers]
    return {
        "steerkit": "screen",
        "format": FORMAT,
        "file": source.name,
        "sha256": file_sha256(source),
        "model": model.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "window": settings.window,
        "quick": settings.quick,
        "seed": settings.seed,
        "nulls": N_NULLS,
        "drawn": drawn,
        "layers": layers,
        "probes": [_described(probe) for probe in probes],
        **({"inoculate": list(settings.inoculate)} if settings.inoculate else {}),
        **({"adapter": model.adapter} if model.adapter else {}),
        **model.template_identity,
    }


def _described(probe: Probe) -> dict[str, Any]:
    direction, baseline = (t[probe.layer].float().cpu() for t in (probe.vector.directions, probe.vector.baseline))
    hashed = hashlib.sha256(torch.stack([direction, baseline]).contiguous().numpy().tobytes())
    return {
        "name": probe.name,
        "persona": str(probe.vector.provenance.get("persona", probe.vector.name)),
        "layer": probe.layer,
        "norm": short(float(direction.norm())),
        "digest": hashed.hexdigest()[:16],
    }


def _samples(source: Path, settings: Settings) -> Iterator[Sample]:
    """The samples of a file; whose turn it is among the prompts depends on nothing but a sample's place in it."""
    for i, (number, chat) in enumerate(stream_chats(source, settings.most)):
        yield number, (chat, inoculated(chat, settings.inoculate, i))


def _blocks(samples: Iterator[Sample], size: int) -> Iterator[tuple[int, list[Sample]]]:
    """Samples that are measured together, with how many come before them."""
    start = 0
    while block := list(islice(samples, size)):
        yield start, block
        start += len(block)


def _begin(path: Path, head: Mapping[str, Any]) -> tuple[int, int]:
    """How many samples a file holds already, and the number of the last; a torn line is cut off, a new file begun."""
    first = _line(head)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            begun = file.readline()
            whole = len(first) if begun == first else 0
            if not whole and not (first.startswith(begun) and not begun.endswith(b"\n")):
                raise OutputError(_refusal(path, begun, head))
            n_lines, last = 0, b""
            for line in _whole_lines(file, path) if whole else ():
                n_lines, last, whole = n_lines + 1, line, whole + len(line)
            file.truncate(whole)
            if not whole:
                file.write(first)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with -o") from error
    return n_lines, int(last[len(BEGINNING) : last.index(b",")]) if n_lines else 0


def _whole_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """Lines of results, up to one that was torn when its writer was killed."""
    for number, line in enumerate(file, 2):
        ours = BEGINNING.startswith(line[: len(BEGINNING)])
        if not ours or (line.endswith(b"\n") and not OURS.match(line)):
            raise OutputError(f"{path} line {number} is no line of a screening; name another file with -o")
        if line.endswith(b"\n"):
            yield line


def _refusal(path: Path, begun: bytes, head: Mapping[str, Any]) -> str:
    """Why a file cannot be gone on with."""
    try:
        theirs = json.loads(begun)
        if theirs["steerkit"] != "screen":
            raise ValueError("something else")
    except (ValueError, KeyError, TypeError):
        return f"{path} is there already and is no screening; name another file with -o"
    ours = [key for key in {**head, **theirs} if theirs.get(key) != head.get(key)]
    changed = f"another {' and another '.join(ours)}"
    if ours == ["drawn"]:
        changed = "other vectors to mix random directions from: some have come or gone since"
    elif ours in (["probes"], ["inoculate"]):
        changed = "other probes" if ours == ["probes"] else "other prompts in front, or none"
    return f"{path} is a screening with {changed}; name another file with -o, or remove it"


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines, each seen to the disk's door before the next."""
    try:
        with path.open("ab") as file:
            for line in lines:
                file.write(_line(line))
                file.flush()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}; what is in it is safe, so name it again to go on") from error


def _line(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False) + "\n").encode()
