"""Options that mean the same everywhere, and what commands do before they start."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from steerkit.cli.console import progress, quiet_libraries, warn
from steerkit.errors import SteerkitError, nearest
from steerkit.thinking import MODES

if TYPE_CHECKING:
    from steerkit.models import Model
    from steerkit.steering import Steering
    from steerkit.vectors import VectorSet
    from steerkit.work import Known, Workers

ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", envvar="STEERKIT_MODEL", help="A hub id, a model folder or a .gguf file."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, mps, or auto for all there are; the best one by default.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")]
TrainingDtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; training takes bfloat16 on a GPU, all else float32."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Seed = Annotated[int, typer.Option("--seed", help="Makes what is drawn at random repeatable.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result is written.")]
Layers = Annotated[
    str | None, typer.Option("--layers", help="A layer or a band, as 15 or 8-23, for terms that name none.")
]
Plot = Annotated[Path | None, typer.Option("--plot", help="A picture of it, as .png, .svg or .html.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="The longest reply.")]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, help="How freely words are drawn; 0 takes the likeliest each time.")
]
TopP = Annotated[
    float, typer.Option("--top-p", min=0.0, max=1.0, help="Draw among the likeliest that together have this share.")
]

# Greedy text of a small model runs into loops, so what is made to be read is drawn. Of the likeliest nine tenths alone
# it still looped now and then; of all words it is less of a sentence.
TEMPERATURE, TOP_P = 0.7, 0.95

OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Do the work on Ray: local (processes on this machine), or a cluster: auto or HOST:PORT."
    ),
]
HowMany = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="So many workers, each with the model; without --ray, on this machine."),
]


@dataclass(frozen=True)
class Wanted:
    """Who does the work, as the user put it."""

    ray: str | None
    """Where; None for here."""
    workers: int | None
    """How many; None for as many as is sensible."""

    def __bool__(self) -> bool:
        """Whether it is anybody else than this process."""
        return self.ray is not None or self.workers is not None


@contextmanager
def engage(
    wanted: Wanted,
    name: str | None,
    device: str | None,
    dtype: str,
    loaded: Model | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Iterator[Workers]:
    """Whoever does the work, with the model that the user named.

    Args:
        wanted: who
        name: of the model
        device: where it is loaded
        dtype: its precision
        loaded: the model, where it is needed here too; the workers' must be the same
        files: what workers find in their folders

    Raises:
        SteerkitError: they are wanted together with an engine that has its own.
    """
    if not wanted:
        from steerkit.work import Here

        yield Here(loaded or open_model(name, device, dtype))
        return
    if (_chosen.get() or Engine()).name != "local":
        raise SteerkitError(
            "workers run the model in their own way; leave out --ray and --workers, or --engine; "
            "vLLM has workers of its own, as --tensor-parallel says"
        )
    from steerkit.engines.clusters import LOCAL, Pool
    from steerkit.engines.ray import RayWorkers
    from steerkit.work import Known

    thinking = thinking_chosen()
    pool = Pool(wanted.ray or LOCAL, wanted.workers, name, device, dtype, thinking.mode, thinking.include)
    with ExitStack() as stack:
        with progress() as tell, quiet_libraries():
            known = None if loaded is None else Known.of(loaded)
            workers = stack.enter_context(RayWorkers(pool, known, files, tell))
        yield workers


@dataclass(frozen=True)
class Engine:
    """Who runs a model's blocks."""

    name: Annotated[str, typer.Option("--engine", help="What runs the model: local, transformer-lens or vllm.")] = (
        "local"
    )
    """`local`, the fastest way that is right; `transformer-lens`, through its hook points; or `vllm`."""
    url: Annotated[str, typer.Option("--url", help="Of a running 'vllm serve' that has vllm-lens beside it.")] = ""
    """Of a server that runs already; without one, workers are started."""
    tensor_parallel: Annotated[
        int, typer.Option("--tensor-parallel", min=1, help="Workers of vLLM that share every layer.")
    ] = 1
    """Workers that share every layer."""
    pipeline_parallel: Annotated[
        int, typer.Option("--pipeline-parallel", min=1, help="Groups of workers of vLLM that share the layers out.")
    ] = 1
    """Groups of workers that share the layers out."""

    def check(self) -> None:
        """Refuse what goes together badly.

        Raises:
            SteerkitError: there is no such engine, or it does not take the other options.
        """
        if self.name not in ENGINES:
            hint = nearest(self.name, ENGINES, "choose local, transformer-lens or vllm")
            raise SteerkitError(f"no engine is called {self.name!r}; {hint}")
        if self.name != "vllm" and replace(self, name="local") != Engine():
            raise SteerkitError("the options of vLLM go with --engine vllm; add it, or leave them out")
        if self.url and max(self.tensor_parallel, self.pipeline_parallel) > 1:
            raise SteerkitError("a server that runs has its workers already; leave out --url, or how many there are")


@dataclass(frozen=True)
class Thinking:
    """What becomes of what a model thinks before it replies."""

    mode: Annotated[
        str,
        typer.Option("--thinking", help="on, off or auto: whether a model that can think before it replies does so."),
    ] = "auto"
    """`on` or `off` where the chat template has a switch; `auto` is as it does by itself, and off for measuring."""
    include: Annotated[
        bool, typer.Option("--steer-thoughts", help="Steer and score thoughts too; otherwise only replies.")
    ] = False
    """Whether thoughts are steered and scored as replies are."""

    def check(self) -> None:
        """Raises SteerkitError: there is no such mode."""
        if self.mode not in MODES:
            raise SteerkitError(f"--thinking {self.mode!r} means nothing; {nearest(self.mode, MODES, 'on, off, auto')}")

    def applied(self, model: Model) -> Model:
        """A model that does so."""
        return model if self == Thinking() else model.with_thinking(self.mode, self.include)


ENGINES = ("local", "transformer-lens", "vllm")
_chosen: ContextVar[Engine | None] = ContextVar("engine", default=None)
_thinking: ContextVar[Thinking | None] = ContextVar("thinking", default=None)


def with_engine(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of engines, which are for `open_model` and nobody else."""
    return _with_options(command, Engine, "engine", _chosen)


def with_thinking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of thinking, which are for models that it opens and nobody else."""
    return _with_options(command, Thinking, "thinking", _thinking)


def thinking_chosen() -> Thinking:
    """What the command was told of thinking."""
    return _thinking.get() or Thinking()


def _with_options(
    command: Callable[..., None], kind: type[Engine] | type[Thinking], prefix: str, chosen: ContextVar[Any]
) -> Callable[..., None]:
    """Give a command options that it does not see itself."""
    told = {each.name: each for each in fields(kind)}
    annotations = get_type_hints(kind, include_extras=True)

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        names = {name: f"{prefix}_{name}" for name in told}
        found = kind(**{name: options.pop(option) for name, option in names.items() if option in options})
        found.check()
        token = chosen.set(found)
        try:
            command(*arguments, **options)
        finally:
            chosen.reset(token)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(
            f"{prefix}_{name}", inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=annotations[name]
        )
        for name, each in told.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, **{each.name: each.annotation for each in added}}
    return run


class Signed(TyperCommand):
    """A command whose argument may begin with a minus, as a steering does: `-0.5 hal` is no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put what begins like a negative number behind everything that may be an option."""
        if "--" not in args:
            options = [each for each in self.params if each.param_type_name == "option"]
            taking = {name for each in options if not getattr(each, "is_flag", False) for name in each.opts}
            before = ["", *args]
            signed = [i for i, a in enumerate(args) if re.match(r"-[\s\d.]", a) and before[i] not in taking]
            rest = [a for i, a in enumerate(args) if i not in signed]
            args = [*rest, "--", *(args[i] for i in signed)]
        return super().parse_args(ctx, args)


def same_model(model: str | None) -> str:
    """What the next command has to say to get the same model: nothing for the default one."""
    from steerkit.weights import DEFAULT_MODEL, model_title

    return "" if model is None or model_title(model) == DEFAULT_MODEL.name else f" -m {shlex.quote(model)}"


def open_model(name: str | None, device: str | None, dtype: str) -> Model:
    """Load the model that the user named, with a bar for what takes long, in the engine that the command was given.

    It thinks before its replies as the command was told.

    Raises:
        SteerkitError: it cannot be loaded, or has no switch for thinking and was to have one.
    """
    return thinking_chosen().applied(_open(name, device, dtype))


def _open(name: str | None, device: str | None, dtype: str) -> Model:
    engine = _chosen.get() or Engine()
    with progress() as tell, quiet_libraries():
        if engine.name == "vllm":
            from steerkit.engines.opening import load_from_server, load_in_vllm

            if engine.url:
                return load_from_server(engine.url, name, device, dtype, tell)
            return load_in_vllm(name, device, dtype, tell, engine.tensor_parallel, engine.pipeline_parallel)
        from steerkit.loading import load_model

        return load_model(name, device, dtype, tell, engine.name)


def training_dtype(device: str | None, dtype: str | None) -> str:
    """The precision in which a model is trained if nobody says: half of it where that is fast."""
    from steerkit.loading import best_device

    return dtype or ("bfloat16" if (device or best_device()).startswith("cuda") else "float32")


def say_notes(model: Model | Known) -> None:
    """Tell what the user should know about how the model was used, once."""
    for note in model.notes:
        warn(note)
    model.notes.clear()


def parse_steering(text: str, vectors: VectorSet, layers: str | None, everywhere: bool) -> Steering:
    """Read an expression and give the terms that name no layers those of `--layers`."""
    from steerkit.expressions import parse_layers
    from steerkit.steering import Steering

    if not text.strip():
        return Steering((), everywhere)
    steering = Steering.parse(text, vectors, everywhere)
    if layers is None:
        return steering
    band = parse_layers(layers)
    return replace(steering, terms=tuple(replace(t, layers=t.layers or band) for t in steering.terms))
