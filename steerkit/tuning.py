"""Fine-tuning with LoRA, watched: replies are learned, and as they are, probes tell which persona the model drifts to.

What comes out is an ordinary adapter folder of peft's. In it `training.json` says how it was made, `log.jsonl` has a
line a step with the loss and, at every look, the shift of every probe; `checkpoints/` has an adapter a look. A
checkpoint is written whole or not at all, and the same call goes on from the last one to the same weights: what is
shown in which order depends on the seed and the step alone, and nothing else is drawn once training has begun.

The loop is our own because a checkpoint of others' is pickled and not written atomically. Source of what is watched:
the shift at the last prompt token foretells the trait after fine-tuning (persona vectors, arXiv 2507.21509), from which
preventative steering (`hold`) comes too.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from steerkit.adapters import TRAINING, list_checkpoints, load_peft, write_adapter
from steerkit.errors import ModelError, OutputError
from steerkit.files import replacing_folder, write_text
from steerkit.fingerprints import Fingerprint
from steerkit.forward import BatchedForward, RowForward
from steerkit.lessons import Sample, show_samples
from steerkit.models import Model, ResidualFunction, pad_left
from steerkit.networks import HFModules, is_spread
from steerkit.recipes import UNSTEERED, Order, Recipe
from steerkit.runners import Runner
from steerkit.steering import Steering, edits
from steerkit.watching import Look, Watch

STATE, LOG, CHECKPOINTS = "state.safetensors", "log.jsonl", "checkpoints"


Report = Callable[[int, int, float, Look | None], None]
"""Told after every step: how many of how many, the loss, and what probes say if they were read."""


def ignore_report(_done: int, _total: int, _loss: float, _look: Look | None) -> None:
    """Take a report and say nothing."""


def tune(
    model: Model,
    samples: Sequence[Sample],
    folder: Path,
    order: Order,
    watch: Watch | None = None,
    report: Report = ignore_report,
) -> dict[str, Any]:
    """Train an adapter, or go on with one.

    Args:
        model: the base, which is the same again when this ends
        samples: what is learned
        folder: where the adapter goes
        order: how; a folder that was begun with another one is refused
        watch: probes that are read at every look, and when they end the training
        report: told after every step

    Returns:
        What `training.json` says in the end: `loss` of the last tenth of the steps, `steps`, `state` ("done" or
        "stopped", where a probe crossed its limit) and `scores`, the shift of every probe.

    Raises:
        OutputError: the folder holds something else, or cannot be written; the last checkpoint stays.
        ModelError: the model cannot be trained here.
        SteerkitError: peft is not installed.
    """
    shown = [[list(sample.prompt), list(sample.reply)] for sample in samples]
    told = {"shown": hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]}
    told |= order.to_json(model) | ({"watch": watch.to_json()} if watch else {})
    head = json.loads(json.dumps(told))
    begun = _begin(folder, head)
    if begun is not None and begun.get("state") in ("done", "stopped"):
        return begun
    total = order.recipe.steps(len(samples))
    with adapted(model, order.recipe) as (wrapped, tuned), _fitting():
        # A fresh adapter changes nothing, and what is read before and after is read in the same way.
        if watch:
            watch.begin(tuned)
        training = _Training(model, wrapped, tuned, samples, folder, order, watch)
        try:
            training.run(total, report)
        except KeyboardInterrupt:
            training.rescue()
            raise
        return _finish(training, head, folder)


@contextmanager
def adapted(model: Model, recipe: Recipe) -> Iterator[tuple[Any, Model]]:
    """A fresh adapter on a model's own modules: peft's model, and the tuned one as steerkit reads it.

    Raises:
        ModelError: its modules cannot be reached.
    """
    peft, runner = load_peft(), require_trainable(model)
    plain = model.original
    config = peft.LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        # Some modules keep their matrices the other way round, which peft sees and says.
        warnings.simplefilter("ignore")
        torch.manual_seed(recipe.seed)
        wrapped = peft.get_peft_model(plain, config)
    try:
        wrapped.eval()
        yield wrapped, replace(model, runner=runner)
    finally:
        wrapped.unload()
        plain.requires_grad_(False)


def require_trainable(model: Model) -> Runner:
    """See, before anything is measured, that a model can be trained here; the way through the modules that train.

    Raises:
        ModelError: its modules cannot be reached, or it has an adapter already.
        SteerkitError: peft is not installed.
    """
    load_peft()
    if model.adapter:
        raise ModelError(f"{model.name} has an adapter already; train on {model.name.partition('+')[0]} itself")
    if model.runner is None:
        raise ModelError(
            f"{model.path} has {model.name}'s blocks, and they cannot be trained there; use --engine local"
        )
    if getattr(model.original.config, "quantization_config", None) is not None:
        raise ModelError(f"{model.name} is quantised, and cannot be trained here; name the model it was made from")
    if is_spread(model.original):
        raise ModelError(f"{model.name} is spread over devices, and cannot be trained there; use a single --device")
    if isinstance(model.runner, RowForward) and isinstance(model.runner.network, HFModules):
        return model.runner
    return BatchedForward(HFModules.of(model.original, model.blocks))


class _Training:
    """One training under way."""

    def __init__(
        self,
        base: Model,
        wrapped: Any,
        tuned: Model,
        samples: Sequence[Sample],
        folder: Path,
        order: Order,
        watch: Watch | None,
    ) -> None:
        self.base, self.tuned, self.watch = base, tuned, watch
        self._wrapped, self._samples, self._folder, self._order = wrapped, samples, folder, order
        named = [(name, p) for name, p in wrapped.named_parameters() if p.requires_grad]
        self._named = sorted(named, key=lambda pair: pair[0])
        self._optimiser = torch.optim.AdamW([p for _, p in self._named], lr=order.recipe.rate, weight_decay=0.0)
        self._whole = True
        self.log: list[dict[str, Any]] = []
        self.stopped = False
        self._resume()

    @property
    def done(self) -> int:
        """Steps that are behind us."""
        return len(self.log)

    def run(self, total: int, report: Report) -> None:
        """Take the steps that are left."""
        recipe = self._order.recipe
        batches = show_samples(self._samples, recipe.batch, total, recipe.seed)
        looks = {round(total * (i + 1) / recipe.looks) for i in range(recipe.looks)} | {total}
        self.stopped = any(line.get("stopped") for line in self.log[-1:])
        while self.done < total and not self.stopped:
            loss = self._step(batches[self.done], _share(self.done, total))
            look = None
            if self.done + 1 in looks:
                look = self.watch.look(self.tuned) if self.watch else None
                self.stopped = bool(look and look.crossed)
            line: dict[str, Any] = {"step": self.done + 1, "loss": round(loss, 6)}
            line |= look.to_json() if look else {}
            self.log.append(line | ({"stopped": True} if self.stopped else {}))
            self._whole = True
            if self.done in looks:
                self._save()
            report(self.done, total, loss, look)

    def rescue(self) -> None:
        """Keep what was done when somebody stopped it, unless it was in the middle of a change."""
        saved = {int(path.name) for path in self._resumable()}
        if self._whole and self.done and self.done not in saved:
            self._save()

    def write(self, folder: Path) -> None:
        """The adapter as it is."""
        write_adapter(self._wrapped, folder, self.base.name)

    def _step(self, batch: Sequence[Sample], share: float) -> float:
        """One gradient step; the mean loss of the batch's reply tokens, in nats."""
        self._optimiser.param_groups[0]["lr"] = self._order.recipe.rate * share
        loss = reply_loss(self.tuned, batch, self._order.hold)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ModelError(f"the loss is not finite at step {self.done + 1}; lower --rate, or train in float32")
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for _, p in self._named]
        length = torch.nn.utils.clip_grad_norm_(parameters, self._order.recipe.clip)
        if not bool(length.isfinite()):
            raise ModelError(f"the gradient is not finite at step {self.done + 1}; lower --rate, or train in float32")
        # Until the step stands in the log, weights and log are not of the same moment.
        self._whole = False
        self._optimiser.step()
        self._optimiser.zero_grad()
        return value

    def _save(self) -> None:
        """A checkpoint, whole or not at all, then the log up to it; the state of older ones is not needed any more."""
        path = self._folder / CHECKPOINTS / f"{self.done:05d}"
        state: dict[str, Tensor] = {}
        for name, parameter in self._named:
            known = self._optimiser.state[parameter]
            state |= {f"{key}/{name}": known[key].detach().cpu().contiguous() for key in ("exp_avg", "exp_avg_sq")}
            # Adapters are written in peft's words; a training goes on from the very numbers.
            state[f"value/{name}"] = parameter.detach().cpu().contiguous()
        with replacing_folder(path) as temporary:
            self.write(temporary)
            (temporary / STATE).write_bytes(save(state))
            (temporary / LOG).write_text("".join(json.dumps(line) + "\n" for line in self.log), encoding="utf-8")
        for older in list_checkpoints(self._folder):
            if older != path:
                with suppress(OSError):
                    (older / STATE).unlink(missing_ok=True)
        write_text(self._folder / LOG, (path / LOG).read_text(encoding="utf-8"))

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        found = self._resumable()
        if not found:
            return
        try:
            state = load_file(found[-1] / STATE)
            self.log = read_log(found[-1])
            with torch.no_grad():
                for name, parameter in self._named:
                    parameter.copy_(state[f"value/{name}"])
                    moments = {key: state[f"{key}/{name}"].to(parameter) for key in ("exp_avg", "exp_avg_sq")}
                    self._optimiser.state[parameter] = {"step": torch.tensor(float(self.done)), **moments}
        except (SafetensorError, OSError, KeyError, RuntimeError) as error:
            raise OutputError(f"{found[-1]} is damaged; remove it, and the same command begins again") from error

    def _resumable(self) -> list[Path]:
        """The checkpoints that still know all that it takes to go on."""
        return [path for path in list_checkpoints(self._folder) if (path / STATE).is_file()]


def reply_loss(model: Model, batch: Sequence[Sample], hold: Steering = UNSTEERED) -> Float[Tensor, ""]:
    """Mean loss of all reply tokens of a batch, in nats; `hold` steers the tokens that they are chosen at."""
    tokens, mask = pad_left([[*sample.prompt, *sample.reply] for sample in batch], model.device)
    longest = max(len(sample.reply) for sample in batch)
    learned = torch.zeros_like(mask, dtype=torch.bool)
    for i, sample in enumerate(batch):
        learned[i, -len(sample.reply) :] = True
    chosen_at = learned.roll(-1, dims=1)
    chosen_at[:, -1] = False
    held = _holding(hold, chosen_at, model)
    logits, _ = model.forward(tokens, mask, functions=held, keep=longest + 1, gradient=True)
    wanted = learned[:, -longest:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), tokens[:, -longest:][wanted])


def _holding(hold: Steering, places: Tensor, model: Model) -> Mapping[int, list[ResidualFunction]]:
    """A steering as functions that act at some places only."""
    like = torch.empty(0, device=model.device, dtype=model.dtype)

    def at_places(edit: ResidualFunction) -> ResidualFunction:
        return lambda h: torch.where(places[..., None], edit(h), h)

    compiled = edits([hold] * len(places), like)
    return {l: [at_places(edit) for edit in steps] for l, steps in compiled.items()}


def _share(done: int, total: int) -> float:
    """The learning rate of the next step, as a share of its highest."""
    rising = max(1, total // 20)
    return min((done + 1) / rising, (total - done) / max(1, total - rising + 1))


def date_in(folder: Path) -> str:
    """The date in the model's chat template when a training in a folder was begun; empty if there is none."""
    try:
        return str(json.loads((folder / TRAINING).read_text(encoding="utf-8")).get("template_date", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _begin(folder: Path, head: Mapping[str, Any]) -> dict[str, Any] | None:
    """Say in the folder what is going to be in it, or what is in it already if it is the same training.

    Raises:
        OutputError: something else is in it.
    """
    path = folder / TRAINING
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputError(f"{folder} is there already and is no training of ours; name another folder with -o")
        write_text(path, json.dumps(head, ensure_ascii=False, indent=1) + "\n")
        return None
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        known = (*RESULTS, "fingerprint")
        changed = [key for key in {**head, **theirs} if key not in known and theirs.get(key) != head.get(key)]
        # The last bits of a fingerprint depend on the machine.
        both = [Fingerprint.from_json(each["fingerprint"]) for each in (theirs, head)]
        changed += ["model"] if both[0].difference(both[1]) is not None and "model" not in changed else []
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is damaged; remove {folder}, or name another folder with -o") from error
    if changed:
        told = ", ".join(str(WORDS.get(key, key)) for key in changed)
        raise OutputError(f"{folder} holds a training that differs in: {told}; name another folder with -o")
    return dict(theirs)


WORDS = {"shown": "samples", "sha256": "data file", "held": "what is held", "watch": "probes"} | {
    "template_date": "the date in the chat template",
    "template_variables": "variables of the chat template",
    "template_rules": "how chats become tokens",
}
"""What parts of `training.json` are called to people, where that is not what they are called there."""
RESULTS = ("state", "steps", "loss", "scores")
"""What `training.json` says when a training has ended."""


def _finish(training: _Training, head: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Put the adapter where everybody looks for it, and say that it is done."""
    last = training.log[-max(1, len(training.log) // 10) :]
    scores = next((line["scores"] for line in reversed(training.log) if "scores" in line), {})
    loss = round(sum(line["loss"] for line in last) / len(last), 6)
    state = "stopped" if training.stopped else "done"
    told = {**head, "state": state, "steps": training.done, "loss": loss, "scores": scores}
    training.write(folder)
    write_text(folder / TRAINING, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    for path in list_checkpoints(folder):
        # Nothing goes on from here any more; should that fail, nothing but room is lost.
        with suppress(OSError):
            (path / STATE).unlink(missing_ok=True)
    return told


@contextmanager
def _fitting() -> Iterator[None]:
    """Say what to do where an accelerator's memory ends."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ModelError("the samples of one step do not fit the memory; lower --batch-size") from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log so far.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {folder / LOG}: {error}; go on with the training that writes it") from error
