"""Vectors of other projects, in: what a file is is seen from what is in it, and nothing in it is run.

- GGUF control vectors, of llama.cpp, repeng, saklas or steerkit
- `.pt` of persona-vectors: one row a hidden state, so that row 0 is the embedding and row l + 1 is layer l
- `.pt` of assistant-axis: an axis with the means of its ends, or one role's mean, which needs the default's beside it
- `.safetensors` of saklas, `layer_N` each, and steerkit's own, alone or in a folder for a hub
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerkit.errors import VectorError, nearest
from steerkit.exchange.controls import read_control
from steerkit.fingerprints import Fingerprint
from steerkit.vectors import SteeringVector, load_vector
from steerkit.weights import file_sha256

FORMATS = {
    "gguf": "a control vector of llama.cpp, repeng or saklas",
    "persona-vectors": "a tensor of persona-vectors, one row a hidden state",
    "assistant-axis": "an axis or a role of assistant-axis",
    "layers": "one tensor a layer, as saklas has them",
    "steerkit": "a vector of steerkit",
}
"""What can be read, by the name that `--format` takes."""
ENDINGS = re.compile(r"_(response_avg|prompt_avg|prompt_last)_diff$")


@dataclass(frozen=True)
class Arrival:
    """What somebody else's file says, before it is known which model it is for."""

    format: str
    """A key of `FORMATS`."""
    rows: Mapping[int, Float[Tensor, " d"]]
    """By the number that the file gives them, the rows of each layer."""
    name: str
    """What the vector may be called."""
    added: bool = False
    """Whether a row is what its tool adds at that layer, so that the displacement is the sum of rows so far."""
    shift: int = 0
    """What has to be added to a number to make it a layer."""
    stacked: bool = False
    """Whether the rows are one tensor, whose number of rows says whether the embedding is among them."""
    baseline: Float[Tensor, "n d"] | None = None
    """The mean state at the negative end, with rows as `rows` are numbered, where the file knows it."""
    vector: SteeringVector | None = None
    """The whole vector, where the file is steerkit's own."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says, for the provenance."""
    notes: tuple[str, ...] = ()
    """What the user should know, a line each."""


def read_arrival(path: Path, wanted: str | None = None, against: Path | None = None, measured: bool = False) -> Arrival:
    """See what a file or folder is, and read it.

    Args:
        path: the file, or a folder made for a hub
        wanted: a key of `FORMATS` that it has to be; None to take what it is
        against: the mean that a role of assistant-axis is measured from; `default.pt` beside it if None
        measured: take a control vector's tensors as what was measured behind each layer rather than what is added

    Raises:
        VectorError: there is no such file, it is damaged, would have to be unpickled, or is of another format; or what
            was asked for means nothing for what it is.
    """
    if wanted is not None and wanted not in FORMATS:
        hint = nearest(wanted, FORMATS, "choose from: " + ", ".join(FORMATS))
        raise VectorError(f"no format is called {wanted!r}; {hint}")
    if path.is_dir():
        arrival = _folder(path)
    else:
        try:
            with path.open("rb") as stream:
                head = stream.read(9)
        except OSError as error:
            raise VectorError(f"cannot read {path}: {error.strerror}; name the file of a vector") from error
        if head[:4] == b"GGUF":
            arrival = _control(path, measured)
        elif head[:2] == b"PK" or head[:1] == b"\x80":
            arrival = _checkpoint(path, against)
        elif head[8:9] == b"{":
            arrival = _safetensors(path)
        elif head.lstrip()[:1] == b"{":
            raise VectorError(f"{path} is JSON; roles and traits come in with: steerkit personas import {path}")
        else:
            raise VectorError(
                f"{path} is no vector that steerkit knows; it reads .gguf control vectors, .pt tensors and .safetensors"
            )
    if wanted is not None and arrival.format != wanted:
        raise VectorError(f"{path} is {FORMATS[arrival.format]}, not {FORMATS[wanted]}; leave out --format")
    if measured and arrival.format != "gguf":
        raise VectorError(f"{path} is {FORMATS[arrival.format]}; --measured is for control vectors, so leave it out")
    if against is not None and (arrival.format != "assistant-axis" or "role" not in arrival.said):
        raise VectorError(f"{path} is no role of assistant-axis; --against is for those, so leave it out")
    _require_rows(arrival, path)
    return arrival


def from_zero(arrival: Arrival) -> Arrival:
    """The same file, scored from zero whatever it says of where scores begin."""
    vector = arrival.vector
    if vector is not None:
        told = {**vector.provenance, "baseline": "zero"}
        vector = replace(vector, baseline=torch.zeros_like(vector.baseline), provenance=told)
    notes = () if arrival.baseline is not None else arrival.notes
    return replace(arrival, baseline=None, vector=vector, notes=notes)


def settle(
    arrival: Arrival, model: Fingerprint, name: str, baseline: Float[Tensor, "l d"] | None = None
) -> SteeringVector:
    """Make a steering vector for a model of what a file says.

    Args:
        arrival: what the file says
        model: the model it is for; a file of another project does not know
        name: what it is called
        baseline: where it scores 0, if the file does not say [l d]; zeros if None

    Raises:
        VectorError: it does not fit the model.
    """
    if arrival.vector is not None:
        arrival.vector.require(model)
        return replace(arrival.vector, name=name)
    rows, shift = dict(arrival.rows), arrival.shift
    widths = sorted({len(row) for row in rows.values()})
    if widths != [model.width]:
        found = " and ".join(map(str, widths))
        raise VectorError(f"this vector is {found} wide, and {model.name} is {model.width}; name its model with -m")
    if arrival.stacked and len(rows) == model.layers + 1:
        rows.pop(0)
        shift = -1
    elif arrival.stacked and len(rows) != model.layers:
        raise VectorError(
            f"this vector has {len(rows)} rows, and {model.name} has {model.layers} layers; name its model with -m"
        )
    placed = {number + shift: row for number, row in rows.items()}
    if wrong := [l for l in placed if not 0 <= l < model.layers]:
        raise VectorError(
            f"this vector has layer {max(wrong, key=abs)}, and {model.name} has 0 to {model.layers - 1}; "
            "name its model with -m"
        )
    directions = torch.zeros(model.layers, model.width)
    for l, row in placed.items():
        directions[l] = row
    # A file may list layers at which it has nothing; a band that began there would be said to steer them.
    placed = {l: row for l, row in placed.items() if row.any()}
    first, last = min(placed), max(placed)
    evidence: dict[str, Any] = {}
    if arrival.added:
        # A band of telescoping layers adds increments, so of sums it adds the rows again, which is what the file means.
        directions = directions.double().cumsum(0).float()
        evidence = {"place": [first, last], "best_layer": (first + last + 1) // 2}
    elif len(placed) < model.layers:
        evidence = {"best_layer": sorted(placed)[len(placed) // 2]}
    known = arrival.baseline
    if known is not None:
        baseline = known[-model.layers :]
    where = "the file" if known is not None else "zero" if baseline is None else "the Assistant's own replies"
    provenance = {"estimator": "imported", "baseline": where, "model": model.name, "imported": dict(arrival.said)}
    zeros = torch.zeros(model.layers, model.width)
    return SteeringVector(name, model, directions, zeros if baseline is None else baseline, provenance, evidence)


def _require_rows(arrival: Arrival, path: Path) -> None:
    """See that the rows are finite vectors, and that something can come of them."""
    if arrival.vector is not None:
        return
    for number, row in arrival.rows.items():
        if row.dim() != 1 or not torch.isfinite(row).all():
            raise VectorError(f"{path}: the row of layer {number} is no finite vector; it is damaged")
    if not arrival.rows:
        raise VectorError(f"{path} has no tensors, so there is nothing to import; make it again")
    if not any(row.any() for row in arrival.rows.values()):
        raise VectorError(f"{path} holds nothing but zeros, which steer nowhere; make it again")


def _called(path: Path) -> str:
    """A name for what a file holds."""
    name = re.sub(r"[^a-z0-9]+", "_", ENDINGS.sub("", path.stem.lower())).strip("_")
    return name if re.match(r"[a-z]", name) else "imported"


def _said(path: Path, format: str, **more: Any) -> dict[str, Any]:
    return {"file": path.name, "sha256": file_sha256(path), "format": format, **more}


def _control(path: Path, measured: bool) -> Arrival:
    control = read_control(path)
    notes = []
    if control.measured_after and not measured:
        notes.append(
            "llama.cpp's own generator wrote this file; direction.N in it was measured behind block N−1 and llama.cpp "
            "adds it behind block N, as here; --measured takes each at the layer where it was measured"
        )
    if 0 in control.rows and not control.measured_after:
        notes.append("this file has a direction.0, with which llama.cpp itself refuses it; here it is layer 0")
    shift = -control.measured_after if measured else 0
    name = str(control.ours.get("name") or _called(path))
    read_as = "measured" if measured else "added"
    said = {**control.ours, **_said(path, "gguf", hint=control.hint, read_as=read_as)}
    return Arrival("gguf", control.rows, name, not measured, shift, said=said, notes=tuple(notes))


def _load(path: Path) -> Any:
    """What torch saved, if it is nothing but tensors and plain data."""
    import pickle
    import warnings

    try:
        with warnings.catch_warnings():
            # Of pickles that torch did not write itself it warns before it refuses them.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VectorError(
            f"{path} would have to be unpickled, which can run anything that is in it; "
            "save its tensors alone, with torch.save(tensor, file)"
        ) from error
    except Exception as error:
        # A damaged archive raises whatever its parser stumbles over.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise VectorError(f"{path} is damaged ({reason}); fetch it again") from error


def _checkpoint(path: Path, against: Path | None) -> Arrival:
    data = _load(path)
    if isinstance(data, Tensor):
        return Arrival(
            "persona-vectors", _rows(path, data), _called(path), stacked=True, said=_said(path, "persona-vectors")
        )
    if isinstance(data, dict) and isinstance(data.get("axis"), Tensor):
        return _axis(path, data)
    if isinstance(data, dict) and isinstance(data.get("vector"), Tensor):
        return _role(path, data, against)
    if isinstance(data, dict) and not data:
        raise VectorError(f"{path} has no tensors, so there is nothing to import; make it again")
    if isinstance(data, dict) and all(isinstance(row, Tensor) for row in data.values()):
        return _layers(path, data)
    raise VectorError(f"{path} holds no tensor that steerkit knows as a vector; see: steerkit import --help")


def _rows(path: Path, tensor: Tensor) -> dict[int, Tensor]:
    if tensor.dim() != 2 or not tensor.is_floating_point():
        shape = " × ".join(map(str, tensor.shape)) or "a single number"
        raise VectorError(f"{path} is {shape}, not layers × width; save one row a layer")
    return dict(enumerate(tensor.float()))


def _count(value: Any) -> int | None:
    """A whole number, as itself or as a tensor of one; None for anything else, which no vector's file could hold."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _axis(path: Path, data: Mapping[str, Any]) -> Arrival:
    """From the mean of all roles to the Assistant."""
    counts = {key: _count(data.get(key)) for key in ("n_default", "n_roles")}
    said = _said(path, "assistant-axis", **{key: count for key, count in counts.items() if count is not None})
    roles = data.get("role_mean")
    rows = _rows(path, data["axis"])
    if isinstance(roles, Tensor):
        if roles.shape != data["axis"].shape:
            raise VectorError(f"{path}: axis and role_mean differ in shape; it is damaged")
        roles = roles.float()
    stands = roles if isinstance(roles, Tensor) else None
    notes = () if stands is None else ("score 1 is the default Assistant and 0 the mean of all roles",)
    return Arrival("assistant-axis", rows, _called(path), stacked=True, baseline=stands, said=said, notes=notes)


def _role(path: Path, data: Mapping[str, Any], against: Path | None) -> Arrival:
    """From the default's mean to a role's: a mean state alone is no direction."""
    other = against or path.with_name("default.pt")
    if not other.is_file() or other.resolve() == path.resolve():
        raise VectorError(
            f"{path} is a role's mean state, which alone is no direction; name the Assistant's: --against default.pt"
        )
    default = _load(other)
    stands = default.get("vector") if isinstance(default, dict) else None
    if not isinstance(stands, Tensor) or stands.shape != data["vector"].shape:
        raise VectorError(f"{other} is no mean state like {path}; name the default's file with --against")
    rows = _rows(path, data["vector"].float() - stands.float())
    role = str(data.get("role", path.stem))
    said = _said(path, "assistant-axis", role=role, type=str(data.get("type", "")), against=other.name)
    called = _called(Path(role))
    return Arrival("assistant-axis", rows, called, stacked=True, baseline=stands.float(), said=said)


def _layers(path: Path, tensors: Mapping[Any, Tensor]) -> Arrival:
    """One tensor a layer, by its number: `layer_12`, `12` or 12."""
    rows: dict[int, Tensor] = {}
    for key, row in tensors.items():
        number = re.fullmatch(r"(?:layers?[_.])?(\d+)", str(key))
        if number is None or not row.is_floating_point():
            raise VectorError(f"{path} has a tensor {str(key)[:40]!r}, whose layer nobody can tell; name them layer_N")
        if row.dim() != 1 and (row.dim() != 2 or len(row) != 1):
            shape = " × ".join(map(str, row.shape)) or "a single number"
            raise VectorError(f"{path}: {str(key)[:40]} is {shape}, not one row; save one vector a layer")
        if int(number[1]) in rows:
            raise VectorError(f"{path} has layer {int(number[1])} twice; save one vector a layer")
        rows[int(number[1])] = row.float().reshape(-1)
    return Arrival("layers", rows, _called(path), said=_said(path, "layers"))


def _safetensors(path: Path) -> Arrival:
    try:
        with safe_open(path, framework="pt") as file:
            if "steerkit" in (file.metadata() or {}):
                vector = load_vector(path)
                return Arrival("steerkit", {}, vector.name, vector=vector)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise VectorError(f"{path} is damaged ({error}); fetch it again") from error
    return _layers(path, tensors)


def _folder(path: Path) -> Arrival:
    """A folder for a hub holds one vector and a card."""
    if (path / "config.json").is_file():
        raise VectorError(f"{path} is a model, not a vector; use it with -m {path}")
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise VectorError(f"{path} has {len(found)} .safetensors files; name the vector's own file")
    return _safetensors(found[0])
