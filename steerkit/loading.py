"""From a name to a loaded model: where its weights are, whether they are whole, and a way through them that is right.

This is the only module that imports transformer_lens.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steerkit import judge, weights
from steerkit.adapters import Adapter, find_adapter, merge_adapter, split_adapter
from steerkit.chat_templates import find_chat_template
from steerkit.errors import ModelError, SteerkitError, nearest
from steerkit.fingerprints import Fingerprint
from steerkit.forward import BatchedForward, RowForward
from steerkit.models import HookPoints, Judgement, Model, final_norm
from steerkit.networks import HFModules, LensModules, Network, is_spread, share_weights
from steerkit.no_installs import no_installs
from steerkit.runners import LeanRunner, Runner, changes_with_length, context_of, sees_everything
from steerkit.whole import causal_class, load_whole, read_config, read_tokenizer, require_numbers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENGINES = ("local", "transformer-lens")
"""Ways through the weights that `load_model` takes: the fastest that is right, or TransformerLens' hook points."""
SPREAD = "auto"
"""The device that stands for all that are there."""


def load_model(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: weights.Progress = weights.ignore_progress,
    engine: str = "local",
) -> Model:
    """Load a model: nothing for the default one, a hub id, a folder, or a `.gguf` file; with +ADAPTER, tuned.

    Args:
        name: which one
        device: `cpu`, `cuda`, `mps`, or `auto` to spread it over the devices that are there; the best one by default
        dtype: a key of `DTYPES`
        progress: told what is being fetched
        engine: one of `ENGINES`

    Raises:
        ModelError: it cannot be found, fetched or read, is not whole, is no causal language model, no way through its
            weights is right, or the adapter belongs to another.
    """
    if engine not in ENGINES:
        raise ModelError(
            f"no engine is called {engine!r}; {nearest(engine, ENGINES, 'choose ' + ' or '.join(ENGINES))}"
        )
    name, folder = split_adapter(name)
    adapter = None if folder is None else find_adapter(folder)
    place, (source, title) = _device(device, dtype), _locate(name, progress)
    with _explained(name or title, source):
        plan = _Plan(source, title, place, DTYPES[dtype], engine)
        model = _load(plan)
        if adapter is None:
            return model
        fingerprint = model.fingerprint
        # There need not be room for both.
        del model
        return _load(plan, (adapter, fingerprint))


def load_head(
    name: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: weights.Progress = weights.ignore_progress,
) -> Model:
    """Load what a model has around its blocks: tokenizer, embeddings, last norm and logits. An engine runs the blocks.

    Raises:
        ModelError: it cannot be found or read, has an adapter, or its last norm is not known.
    """
    name, folder = split_adapter(name)
    if folder is not None:
        raise ModelError(f"no engine takes an adapter ({folder}); use --engine local, or the name without +")
    place, (source, title) = _device(device, dtype), _locate(name, progress)
    with _explained(name or title, source):
        return _load_head(source, title, place, DTYPES[dtype])


def _load_head(source: str, title: str, device: torch.device | str, dtype: torch.dtype) -> Model:
    config = read_config(source)
    told: Any = config.get_text_config()
    shape = told.num_hidden_layers, told.hidden_size, context_of(config)
    told.num_hidden_layers = 0
    if getattr(told, "layer_types", None):
        told.layer_types = []
    # The blocks are somewhere else, and so are their weights.
    original = causal_class(config, title).from_pretrained(source, config=config, dtype=dtype)
    original.to(device).eval().requires_grad_(False)
    if final_norm(original) is None:
        raise ModelError(f"{title} has a last norm that steerkit does not know; use --engine local")
    # No hook points here: nobody can hook blocks that are somewhere else.
    points = HookPoints(lambda: None, _no_path)
    return Model(title, *shape, original, points, _tokenizer(source), source=source)


def _no_path(_bridge: Any) -> Runner:
    raise ModelError("the blocks are somewhere else and have no hook points here; use --engine local")


def load_tuned(base: Model, adapter: Adapter) -> Model:
    """Load a model again, with an adapter merged into its weights; `base` stays as it is.

    Raises:
        ModelError: the adapter belongs to another model, or is damaged.
    """
    with _explained(base.name, base.source):
        plan = _Plan(base.source, base.name, base.device, base.dtype)
        tuned = _load(plan, (adapter, base.fingerprint))
    # What is compared with the base reads the same texts, with the same date in them.
    tuned.template_options, tuned.include_thoughts = base.template_options, base.include_thoughts
    return tuned


def model_kind(name: str | None) -> str:
    """What kind of model a name stands for, such as `llama`, from its configuration alone; empty if there is none here.

    Neither weights nor anything from the network are loaded.
    """
    name, _ = split_adapter(name)
    default = name is None or weights.model_title(name) == weights.DEFAULT_MODEL.name
    try:
        source = str(weights.default_folder()) if default or name is None else _locate(name, weights.ignore_progress)[0]
        return str(read_config(source, local=True).model_type)
    except (SteerkitError, OSError, ValueError, KeyError):
        return ""


@contextmanager
def _explained(name: str, source: str) -> Iterator[None]:
    """Say in one line why there is no model, and let transformers say nothing."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except SteerkitError:
        raise
    except Exception as error:
        # transformers and its hub client raise dozens of types here; each of them means that there is no model.
        raise ModelError(_explain(name, source, error)) from error


@dataclass(frozen=True)
class _Plan:
    """What is loaded, where to and how."""

    source: str
    title: str
    device: torch.device | str
    dtype: torch.dtype
    engine: str = "local"


def _load(plan: _Plan, tuned: tuple[Adapter, Fingerprint] | None = None) -> Model:
    """Load a model, and find the fastest way through its weights that computes what plain Hugging Face computes."""
    started, timer = time.perf_counter(), judge.Timer()
    config = read_config(plan.source)
    original = load_whole(plan.source, plan.title, config, plan.device, plan.dtype)
    if tuned is not None:
        original = merge_adapter(original, *tuned)
    require_numbers(original, plan.title)
    tokenizer = _tokenizer(plan.source)

    def lens_path(bridge: Any) -> Runner:
        blocks, reference = judge.take_reference(original)
        return _find_path(plan, config, original, blocks, reference, [LensModules(bridge, reference.tokens.device)])[0]

    notes: list[str] = []
    points = HookPoints(lambda: _boot(plan.source, original, tokenizer, notes), lens_path)
    bridge = points.bridge if plan.engine == "transformer-lens" else None
    blocks, width, runner, more = _best_path(plan, config, original, bridge, timer)
    notes += more
    if is_spread(original):
        places = sorted({str(place) for place in getattr(original, "hf_device_map", {}).values()})
        notes.append(f"{plan.title} is spread over {', '.join(places)}; what is not on an accelerator makes it slow")
    model = Model(
        plan.title,
        len(blocks),
        width,
        context_of(config),
        original,
        points,
        tokenizer,
        notes,
        runner,
        source=plan.source,
        blocks=blocks,
        judgement=Judgement(runner.path, timer.seconds, time.perf_counter() - started),
    )
    if tuned is not None:
        adapter, model.base = tuned
        model.name, model.adapter = f"{plan.title}+{adapter.name}", adapter.digest
    return model


def _tokenizer(source: str) -> Any:
    """A model's tokenizer, with the chat template that its files have for it, wherever they have it."""
    tokenizer = read_tokenizer(source)
    tokenizer.chat_template = find_chat_template(source, tokenizer)
    return tokenizer


def _best_path(
    plan: _Plan, config: Any, original: Any, bridge: Any, timer: judge.Timer
) -> tuple[list[Any], int, Runner, list[str]]:
    """The fastest way through the weights that agrees with the judge; `timer` counts what judging takes.

    Returns:
        The model's blocks, the width of the stream behind them, the way, and what the user should know about it.

    Raises:
        ModelError: none agrees.
    """
    notes: list[str] = []
    one_place = LeanRunner.fits(config) and changes_with_length(config) is None and not is_spread(original)
    if bridge is None and one_place:
        lean = LeanRunner(original)
        with timer.running():
            right = _lean_agrees(lean, original)
        if right:
            return list(original.model.layers), int(config.hidden_size), lean, notes
        notes.append(
            f"the written-out path disagrees with {judge.versions()} on {plan.title}; transformers' modules are used"
        )
    with timer.running():
        blocks, reference = judge.take_reference(original)
    networks: list[Network] = [HFModules.of(original, blocks, places) for places in (None, False)]
    if bridge is not None:
        networks = [LensModules(bridge, reference.tokens.device)]
    with timer.running():
        runner, more = _find_path(plan, config, original, blocks, reference, networks)
    return blocks, int(reference.states.shape[-1]), runner, notes + more


def _find_path(
    plan: _Plan,
    config: Any,
    original: Any,
    blocks: Sequence[Any],
    reference: judge.Reference,
    networks: Sequence[Network],
) -> tuple[Runner, list[str]]:
    """The fastest way through some modules that agrees with the judge."""
    runner = next(_candidates(networks, config, reference), None)
    middle = len(blocks) // 2
    # On transformers' own modules the hook is the judge's; hook points have been elsewhere than the stream.
    elsewhere = isinstance(networks[0], LensModules)
    if runner is None or (elsewhere and not judge.edits_agree(original, reference, blocks[middle], middle, runner)):
        raise ModelError(
            f"no way through {plan.title} ({type(original).__name__}) by {networks[0].name} computes what the model "
            f"computes without a cache ({judge.versions()}); it may look ahead, or these versions do not fit each "
            "other: install those of constraints.txt"
        )
    if not isinstance(runner, RowForward):
        return runner, []
    how = "one after another" if runner.cached else "from its first token at every step, because no cache fits it"
    return runner, [f"{plan.title} runs each row of a batch {how}; that is slower, and right"]


def _candidates(networks: Sequence[Network], config: Any, reference: judge.Reference) -> Iterator[Runner]:
    """Ways that agree with the judge, the fastest first."""
    threshold, grows = changes_with_length(config) or (None, False)
    if threshold is None:
        for network in networks:
            batched = BatchedForward(network)
            if judge.agrees(reference, batched) and judge.continues(reference, batched):
                plain = judge.keeps_every_token(reference, network)
                holes = plain and sees_everything(config) and judge.continues(reference, batched, inside=True)
                # What padding does to a state that runs on is less than rounding at first, and more in a longer text.
                if plain or reference.exact:
                    yield BatchedForward(network, holes)
    network = networks[-1]
    cached = RowForward(network, cached=True, continues=True, threshold=threshold, grows=grows)
    if network.has_cache and judge.agrees(reference, cached):
        told = reference.exact or judge.keeps_every_token(reference, network)
        yield RowForward(network, True, told and judge.continues(reference, cached), threshold, grows)
    alone = RowForward(network, cached=False, continues=False)
    if judge.agrees(reference, alone):
        yield alone


def _lean_agrees(lean: LeanRunner, original: Any) -> bool:
    """Whether the written-out path is right: its blocks have the weights of the model's, and two of them are judged.

    Blocks differ in their weights alone, so what one does with its own holds for all; a pass through every one of them
    would cost a tenth of the loading.
    """
    if not lean.has_weights_of(original):
        return False
    few = sorted({0, original.config.num_hidden_layers - 1})
    _, reference = judge.take_reference(judge.only(original, few), judge.SHORT)
    return judge.agrees(reference, lean.only(few), keep=0)


def _locate(name: str | None, progress: weights.Progress) -> tuple[str, str]:
    """Where a named model's files are, and what to call it."""
    if name is None or name.lower() in (weights.DEFAULT_MODEL.name.lower(), "default"):
        return str(weights.get_default_model(progress)), weights.DEFAULT_MODEL.name
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return str(weights.get_gguf_model(path, progress)), weights.model_title(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} holds no model (no config.json); name a folder that transformers can load")
        return str(path), weights.model_title(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no folder {path}; -m takes a hub id, a model folder or a .gguf file")
    return name, weights.model_title(name)


def _boot(source: str, original: Any, tokenizer: Any, notes: list[str]) -> Any:
    """A bridge on a loaded model's weights; nothing of them is copied, and the model's own modules stay as they are.

    What it wanted to install is told in `notes`.

    Raises:
        ModelError: TransformerLens does not have this architecture, or not with this transformers.
    """
    from transformer_lens.model_bridge import TransformerBridge

    logging.getLogger("transformer_lens").setLevel(logging.ERROR)
    try:
        # It would install what it lacks for pictures, which text needs nothing of.
        with no_installs() as refused:
            bridge = TransformerBridge.boot_transformers(  # type: ignore[attr-defined]
                source,
                hf_model=share_weights(original),
                tokenizer=copy.deepcopy(tokenizer),
                device=original.device,
                dtype=next(original.parameters()).dtype,
            )
    except Exception as error:
        # It raises whatever it stumbles over; all of it means that it does not have this model.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ModelError(
            f"TransformerLens has no hook points for {type(original).__name__} ({judge.versions()}: {reason}); "
            "leave out --engine transformer-lens, and transformers' own modules are hooked"
        ) from error
    notes += [
        f"TransformerLens wanted to run `{command}`, which was not done; text needs nothing of it"
        for command in refused
    ]
    _pass_cache(bridge)
    bridge.eval()
    bridge.requires_grad_(False)
    return bridge


def _pass_cache(bridge: Any) -> None:
    """Let the bridge's attention find the cache, which transformers has called `cache` since 5.24.

    TransformerLens 4.3 looks for its earlier names, and attention that finds none sees only the newest token.
    """

    def named(options: dict[str, Any]) -> dict[str, Any]:
        renamed = options.get("cache") is not None and options.get("past_key_values") is None
        return options | {"past_key_values": options["cache"]} if renamed else options

    def finding(update: Callable[..., Any]) -> Callable[..., Any]:
        return lambda keys, values, **options: update(keys, values, **named(options))

    for module in bridge.modules():
        if hasattr(module, "_update_kv_cache"):
            module._update_kv_cache = finding(module._update_kv_cache)
        if any(kind.__name__ == "MLAAttentionBridge" for kind in type(module).__mro__):
            # It takes its cache from its own arguments.
            module.register_forward_pre_hook(lambda _module, given, options: (given, named(options)), with_kwargs=True)


def _device(name: str | None, dtype: str) -> torch.device | str:
    """Where a model goes, of which it is also seen that its precision is one."""
    if dtype not in DTYPES:
        raise ModelError(f"no dtype is called {dtype!r}; {nearest(dtype, DTYPES, 'choose from: ' + ', '.join(DTYPES))}")
    if name == SPREAD:
        return SPREAD
    try:
        device = torch.device(name or best_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"no device {name!r} on this machine; use --device {best_device()}") from error
    return device


def best_device() -> str:
    """The fastest place for a model on this machine, as torch calls it."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _explain(name: str, source: str, error: Exception) -> str:
    """One line for a model that does not load: what was asked, and what is here."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if Path(source).is_dir():
        return f"cannot load the model in {source}: {reason}; fetch it again or choose another with -m"
    known = [weights.DEFAULT_MODEL.name, *(path.name for path in weights.cache_folder().glob("[!.]*") if path.is_dir())]
    hint = nearest(name, {entry.lower() for entry in known}, f"without -m you get {weights.DEFAULT_MODEL.name}")
    return f"no model {name!r} on this machine and none could be fetched from the hub ({reason}); {hint}"
