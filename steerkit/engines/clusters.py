"""Ray on this machine or on a cluster: how to get there, and what room there is for workers."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass, replace
from typing import Any

from steerkit.errors import SteerkitError

LOCAL = "local"
ASIDE = "aside"
"""Who is asked how far they are answers from another thread than the one that works."""
ANSWER = 5
"""Seconds in which a cluster answers."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Under `uv run` Ray would have every worker install an environment of its own.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
BESIDE = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Pool:
    """Who is wanted."""

    address: str = LOCAL
    """`local` for processes on this machine, or a cluster's: `auto` or HOST:PORT."""
    n: int | None = None
    """How many workers; one for each GPU if nobody says, else one for every four cores, and never fewer than two."""
    model: str | None = None
    """What `load_model` takes, on the workers' machines too."""
    device: str | None = None
    """Likewise."""
    dtype: str = "float32"
    """Likewise."""
    thinking: str = "auto"
    """Whether the model thinks before its replies, as `Model.with_thinking` takes it."""
    include_thoughts: bool = False
    """Likewise, whether that is steered and scored as replies are."""


@dataclass(frozen=True)
class Room:
    """Where workers are going to be."""

    ray: Any
    """The connected library."""
    place: str
    """What errors call it."""
    owned: bool
    """Whether the connection was made here, and ends here."""
    n: int
    """How many workers."""
    device: str | None
    """Where each loads its model."""
    threads: int
    """Of each."""
    gpus: int
    """Of each."""
    voice: Any = None
    """What Ray speaks with; taken from it while the connection is ours."""

    def leave(self) -> None:
        """End the connection if it was made here, and with it whatever was started for it."""
        if self.owned:
            self.ray.shutdown()
            _give_voice(self.ray, self.voice)

    @property
    def options(self) -> dict[str, Any]:
        """What Ray wants to know of each worker."""
        return {
            "num_cpus": 1,
            "num_gpus": self.gpus,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
            "concurrency_groups": {ASIDE: 1},
            "runtime_env": {"env_vars": {**BESIDE, "OMP_NUM_THREADS": str(self.threads)}},
        }


def join(pool: Pool) -> Room:
    """Connect, and see what room there is.

    Raises:
        SteerkitError: Ray is not installed, nobody answers, or there is not room for so many workers.
    """
    ray, place = _import_ray(), "this machine" if pool.address == LOCAL else pool.address
    owned = not ray.is_initialized()
    voice = _connect(ray, pool, place) if owned else None
    try:
        return replace(_room(ray, pool, place), owned=owned, voice=voice)
    except BaseException:
        if owned:
            ray.shutdown()
            _give_voice(ray, voice)
        raise


def _import_ray() -> Any:
    """Ray, told before it is imported to keep quiet."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SteerkitError("Ray is not installed; install it with: pip install 'persona-steerkit[ray]'") from error
    return ray


def _connect(ray: Any, pool: Pool, place: str) -> Any:
    """Start Ray on this machine, or join a cluster; what it spoke with is returned."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if pool.address == LOCAL:
            ray.init(address=LOCAL, num_cpus=max(pool.n or 0, 2, _cores()), include_dashboard=False, **quiet)
        else:
            _probe(pool.address)
            ray.init(address=pool.address, **quiet)
    # Ray ends the process where it cannot reach a cluster that seemed to be there.
    except (OSError, ValueError, RuntimeError, SystemExit) as error:
        none = pool.address == "auto" and isinstance(error, ConnectionError)
        said = "none runs here" if none else " ".join(str(error).split())[:200]
        raise SteerkitError(f"no Ray at {place} ({said}); --ray takes local, auto or HOST:PORT") from error
    # Of workers that die Ray tells on stdout, where results go; we tell of them ourselves.
    return _give_voice(ray, lambda *_said, **_how: None)


def _give_voice(ray: Any, voice: Any) -> Any:
    """Exchange what Ray prints to this process's streams with, for which there is no setting."""
    before = getattr(ray._private.worker, "print_to_stdstream", None)
    if before is not None and voice is not None:
        ray._private.worker.print_to_stdstream = voice
    return before


def _room(ray: Any, pool: Pool, place: str) -> Room:
    """How many workers there are going to be, on what, and what each of them takes."""
    have, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    on_gpu = pool.device.startswith("cuda") if pool.device else gpus > 0
    most, what = (gpus, "GPUs") if on_gpu else (cpus, "CPUs")
    n = pool.n or (gpus if on_gpu else max(2, cpus // 4))
    if n > most:
        hint = f"try --workers {most}" if most else "leave out --device, or name another machine"
        raise SteerkitError(f"{place} has {most} {what}, and each of {n} workers needs one; {hint}")
    smallest = min(int(node["Resources"].get("CPU", 1)) for node in nodes)
    cores = _cores() if pool.address == LOCAL else smallest
    # Who wants the very bits of another run says with how many threads that was.
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(said) if said.isdecimal() and int(said) else max(1, cores // -(-n // len(nodes)))
    return Room(ray, place, False, n, "cuda" if on_gpu else pool.device, threads, int(on_gpu))


def _probe(address: str) -> None:
    """See whether anybody answers, because Ray takes two minutes to give up.

    Raises:
        ValueError: it is no address.
        OSError: nobody does.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal() and int(port) < 2**16) or "/" in host:
        raise ValueError("that is no address")
    socket.create_connection((host, int(port)), timeout=ANSWER).close()


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
