"""Steering vectors: algebra, files, and where they are found.

A file is safetensors with `directions` and `baseline` [l d] in float32 and one metadata key, `steerkit`, that holds one
JSON string. One key, because several are written in random order, and then the same vector has another hash every time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import platformdirs
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from steerkit.errors import VectorError, nearest
from steerkit.files import replacing_file
from steerkit.fingerprints import Fingerprint

FORMAT = 1
LEFT = 0.01
"""Less than this share of a displacement's length is nothing."""
ZERO = 1e-20
"""A displacement whose square is at most this is zero: scores are divided by it."""
MOST_PARTS = 8
"""A sum of more vectors is called by their number and not by their names."""
NAME = re.compile(r"[a-z_][a-z0-9_]*")


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A persona's displacement at every layer, with what is needed to trust it."""

    name: str
    """What expressions call it."""
    model: Fingerprint
    """The model it was made on; it fits no other."""
    directions: Float[Tensor, "l d"]
    """Displacement at each layer in raw residual units; dial 1 adds it once."""
    baseline: Float[Tensor, "l d"]
    """The negative persona's mean activation; a state there scores 0."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """How it was made: pair, prompts' hash, estimator, reading, counts, seed, versions, audit."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What has been measured of it; empty until it is calibrated."""

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit the model or are not finite."""
        shape = (self.model.layers, self.model.width)
        for key in ("directions", "baseline"):
            tensor = getattr(self, key)
            if not isinstance(tensor, Tensor):
                raise VectorError(f"{self.name}: {key} is no tensor; write torch.tensor(...), layers × width {shape}")
            if tuple(tensor.shape) != shape:
                raise VectorError(f"{self.name}: {key} is {tuple(tensor.shape)}, not layers × width {shape}")
            if not torch.isfinite(tensor).all():
                raise VectorError(f"{self.name}: {key} holds values that are not finite; extract it again")
        layer, last = self.evidence.get("best_layer", 0), self.model.layers - 1
        if not isinstance(layer, int) or not 0 <= layer <= last:
            raise VectorError(f"{self.name}: best_layer {layer!r} is not a layer from 0 to {last}; extract it again")
        place = self.evidence.get("place", [0, 0])
        whole = isinstance(place, list) and len(place) == 2 and all(isinstance(l, int) for l in place)
        if not whole or not 0 <= place[0] <= place[1] <= last:
            raise VectorError(f"{self.name}: place {place!r} is not a first and a last layer; calibrate it again")

    @property
    def layer(self) -> int:
        """The layer where it is read when nobody names one: the calibrated one, or the middle."""
        return int(self.evidence.get("best_layer", self.model.layers // 2))

    @property
    def place(self) -> tuple[int, int]:
        """First and last layer where it steers when nobody names any: the calibrated layer or band, or the middle."""
        first, last = self.evidence.get("place", (self.layer, self.layer))
        return int(first), int(last)

    @property
    def where(self) -> dict[str, Any]:
        """The part of the evidence that says where it works, which algebra keeps; how well must be measured again."""
        return {key: self.evidence[key] for key in ("place", "best_layer") if key in self.evidence}

    def limits(self, layers: tuple[int, int] | None = None) -> tuple[float, float] | None:
        """The lowest and highest dial before text falls apart or loops, here or at another place that was tried.

        Elsewhere than at its own place the numbers are estimates, from the KL of given replies and its growth as the
        square of the dial. None where nothing is known.
        """
        if "limit" not in self.evidence:
            return None
        below, above = float(self.evidence["limit_below"]), float(self.evidence["limit"])
        if layers is None or tuple(layers) == self.place:
            return below, above
        tried = {tuple(row["layers"]): row for row in self.evidence.get("places", ())}
        if tuple(layers) not in tried or self.place not in tried:
            return None
        both = tried[self.place], tried[tuple(layers)]
        if not all(row["dial"] > 0 and row["kl_p95"] > 0 for row in both):
            return None
        here, there = (row["dial"] / row["kl_p95"] ** 0.5 for row in both)
        return below * there / here, above * there / here

    def zeros(self, first: int, last: int) -> list[int]:
        """The layers of a band at which the displacement is zero, so that nothing can be applied or read there.

        A displacement that is being trained may begin at zero.
        """
        if self.directions.requires_grad:
            return []
        # The same as where scores are made: what is shorter than this is divided by a constant instead of by itself.
        return [l for l in range(first, last + 1) if float(self.directions[l].double().square().sum()) <= ZERO]

    def where_not_zero(self) -> str:
        """What to do about a layer that is zero, in words: name another, or make the vector again."""
        zeros = set(self.zeros(0, self.model.layers - 1))
        others = [l for l in range(self.model.layers) if l not in zeros]
        if not others:
            return "it is zero at every layer; extract it again"
        runs = [l for l in others if l - 1 in zeros or l == 0], [l for l in others if l + 1 not in others]
        bands = [f"{first}-{last}" if first != last else f"{first}" for first, last in zip(*runs, strict=True)]
        return f"choose among its other layers, {', '.join(bands)}"

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The vectors that it is a sum of, by name, with the factor of each; itself if it is none."""
        try:
            known = [(str(name), float(factor)) for name, factor in self.provenance.get("combination", ())]
        except (TypeError, ValueError):
            known = []
        # Somebody who gave it a name of its own means one thing.
        return known if known and _combined(known) == self.name else [(self.name, 1.0)]

    def __add__(self, other: SteeringVector) -> SteeringVector:
        """Displacement of both at once; the baseline is the mean of all that are added."""
        if isinstance(other, (int, float)) and other == 0:
            # What `sum` begins with.
            return self
        if not isinstance(other, SteeringVector):
            return NotImplemented
        self.require(other.model)
        parts, shares = [*self.parts, *other.parts], (len(self.parts), len(other.parts))
        return replace(
            self,
            name=_combined(parts),
            directions=self.directions + other.directions,
            baseline=(shares[0] * self.baseline + shares[1] * other.baseline) / len(parts),
            provenance={"sum_of": [*_made_of(self), *_made_of(other)], "combination": [list(part) for part in parts]},
            evidence=self.where,
        )

    __radd__ = __add__

    def __neg__(self) -> SteeringVector:
        """The opposite displacement, from the same baseline."""
        return self * -1.0

    def __sub__(self, other: SteeringVector) -> SteeringVector:
        """What one displacement has and the other has not."""
        return self + -other if isinstance(other, SteeringVector) else NotImplemented

    def __mul__(self, factor: float) -> SteeringVector:
        """The displacement `factor` times as long.

        Raises:
            VectorError: the factor is not finite.
        """
        if not isinstance(factor, Real):
            return NotImplemented
        factor = float(factor)
        if not math.isfinite(factor):
            raise VectorError(f"{self.name} cannot be made {factor} times as long; try something like 0.5")
        parts = [(name, factor * own) for name, own in self.parts]
        scaled_by = factor * float(self.provenance.get("scaled_by", 1.0))
        provenance = {**self.provenance, "scaled_by": scaled_by, "combination": [list(part) for part in parts]}
        directions = self.directions * factor
        return replace(self, name=_combined(parts), directions=directions, provenance=provenance, evidence=self.where)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> SteeringVector:
        """The displacement divided.

        Raises:
            VectorError: the divisor is 0 or not finite.
        """
        if not isinstance(divisor, Real):
            return NotImplemented
        if not divisor or not math.isfinite(divisor):
            raise VectorError(f"{self.name} cannot be divided by {divisor}; try something like 2")
        return self * (1.0 / divisor)

    def without(self, others: Sequence[SteeringVector]) -> SteeringVector:
        """What is this persona's alone: at every layer, the part that is orthogonal to the mean of other characters.

        Any persona that is not the Assistant has in common with the others that it plays a part, and small models play
        by telling stories. Doing it twice does nothing more.

        Raises:
            VectorError: there are none, or one was made on another model.
        """
        if not others:
            raise VectorError(f"name the characters that {self.name} should be without")
        for other in others:
            other.require(self.model)
        shared = torch.nn.functional.normalize(torch.stack([o.directions for o in others]).double().mean(0), dim=-1)
        along = (self.directions.double() * shared).sum(-1, keepdim=True)
        left = (self.directions.double() - along * shared).to(self.directions.dtype)
        names = [other.name for other in others]
        self._require_left(left, f"the mean of {', '.join(names)}", "name other characters")
        return replace(
            self,
            name=_less(self.name, "without", names),
            directions=left,
            provenance={**self.provenance, "without": names},
            evidence=self.where,
        )

    def apart_from(self, others: Sequence[SteeringVector]) -> SteeringVector:
        """What the displacement shares with none of some others: at every layer, its part orthogonal to them all.

        Its length is what is left, so a dial still goes as far along what is its own. Doing it twice does nothing more.

        Raises:
            VectorError: one of the others was made on another model, or nothing is left.
        """
        for other in others:
            other.require(self.model)
        shared = torch.stack([other.directions for other in others], dim=-1).double()
        own = self.directions.double()[..., None]
        left = own - shared @ (torch.linalg.pinv(shared) @ own)
        names = [other.name for other in others]
        self._require_left(left[..., 0], ", ".join(names), "leave out the ~")
        return replace(
            self,
            name=_less(self.name, "apart_from", names),
            directions=left[..., 0].to(self.directions.dtype),
            provenance={**self.provenance, "apart_from": names},
            evidence=self.where,
        )

    def _require_left(self, left: Tensor, others: str, hint: str) -> None:
        """See that of a displacement something is left where it steers."""
        first, last = self.place
        kept = left[first : last + 1].norm() / self.directions[first : last + 1].double().norm().clamp_min(1e-20)
        if float(kept) < LEFT:
            raise VectorError(f"{self.name} has nothing that {others} has not; {hint}")

    def require(self, model: Fingerprint) -> None:
        """Refuse to work with another model than its own, or its own with an adapter.

        Raises:
            VectorError: this vector was made on another model.
        """
        if not model.takes(self.model):
            reason = self.model.difference(model)
            raise VectorError(
                f"{self.name} was made on {self.model.name}, and this is {model.name} ({reason}); "
                f"make one for it: steerkit extract {self.provenance.get('persona', self.name)} -m MODEL"
            )

    def given_to(self, model: Fingerprint) -> SteeringVector:
        """The same vector as one of a tuned model's own, for evidence that holds of that model and not of its base."""
        return self if self.model.difference(model) is None else replace(self, model=model)

    def to_bytes(self) -> bytes:
        """The contents of the vector's file; the same vector always makes the same bytes."""
        described = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model.to_json(),
            "provenance": dict(self.provenance),
            "evidence": dict(self.evidence),
        }
        tensors = {"directions": self.directions, "baseline": self.baseline}
        tensors = {key: tensor.detach().float().cpu().contiguous() for key, tensor in tensors.items()}
        return save(tensors, {"steerkit": json.dumps(described, sort_keys=True, ensure_ascii=False)})

    @classmethod
    def from_bytes(cls, data: bytes, source: Path | str = "a vector") -> SteeringVector:
        """What `to_bytes` made; `source` is what errors call it.

        Raises:
            VectorError: the bytes are damaged, or of something else, or of another format.
        """
        try:
            # The library hands out metadata of files alone; its layout is a length, and a header of JSON that long.
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            tensors = load(data)
            metadata = header.get("__metadata__", {}).get("steerkit")
            if metadata is None:
                raise VectorError(
                    f"{source} is safetensors, but not a steerkit vector; make one with: steerkit extract"
                )
            described = json.loads(metadata)
            if described["format"] != FORMAT:
                raise VectorError(
                    f"{source} has format {described['format']}; this steerkit reads {FORMAT}; update steerkit"
                )
            return cls(
                name=str(described["name"]),
                model=Fingerprint.from_json(described["model"]),
                provenance=dict(described["provenance"]),
                evidence=dict(described["evidence"]),
                **{key: tensors[key] for key in ("directions", "baseline")},
            )
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise VectorError(f"{source} is damaged or not a steerkit vector ({error}); extract it again") from error

    def save(self, path: Path | str) -> None:
        """Write the file atomically.

        Raises:
            OutputError: the place cannot be written; what stood there is untouched.
        """
        data = self.to_bytes()
        with replacing_file(Path(path)) as temporary:
            temporary.write_bytes(data)


def _combined(parts: Sequence[tuple[str, float]]) -> str:
    """What a sum of vectors is called: a word that expressions can use.

    >>> _combined([("hal", 1.0), ("pirate", -0.5)]), _combined([("hal", -1.0)])
    ('hal_minus_pirate_times_0_5', 'minus_hal')
    """
    if len(parts) > MOST_PARTS:
        return f"sum_of_{len(parts)}"
    words = []
    for i, (name, factor) in enumerate(parts):
        sign = "minus_" if factor < 0 else "plus_" if i else ""
        size = f"{abs(factor):.6g}".replace(".", "_").replace("-", "m").replace("+", "")
        words.append(sign + name + ("" if size == "1" else f"_times_{size}"))
    return "_".join(words)


def _less(name: str, word: str, others: Sequence[str]) -> str:
    """What a vector is called that has lost something: by what, or by how many if they are many.

    >>> _less("hal", "without", ["pirate", "bully"]), _less("hal", "without", list("abcdefghi"))
    ('hal_without_pirate_bully', 'hal_without_9')
    """
    return "_".join([name, word, *(others if len(others) <= MOST_PARTS else [str(len(others))])])


def _made_of(vector: SteeringVector) -> list[dict[str, Any]]:
    """How the parts of a sum were made; a sum that was scaled stays one part."""
    provenance = dict(vector.provenance)
    listed = provenance.get("sum_of")
    return list(listed) if isinstance(listed, list) and "scaled_by" not in provenance else [provenance]


def load_vector(path: Path | str) -> SteeringVector:
    """Read a vector's file.

    Raises:
        VectorError: there is none, or it is damaged, hand-edited or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise VectorError(f"no vector at {path}; make one with: steerkit extract PERSONA -o {path}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VectorError(f"{path} is damaged or not a steerkit vector ({error}); extract it again") from error
    return SteeringVector.from_bytes(data, path)


def model_slug(name: str) -> str:
    """A model's name as a folder name.

    >>> model_slug("SmolLM2-135M-Instruct")
    'smollm2-135m-instruct'
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.") or "model"


def search_path() -> list[Path]:
    """Folders that hold vectors, one subfolder a model; the first one that has a name wins."""
    beside = Path(__file__).resolve().parent.parent / "vectors"
    folders = [Path("vectors"), platformdirs.user_data_path("steerkit") / "vectors", beside]
    return [folder for i, folder in enumerate(folders) if folder.resolve() not in {f.resolve() for f in folders[:i]}]


def vector_path(name: str, model_name: str) -> Path:
    """Where `extract` puts a vector when nobody says where."""
    return Path("vectors") / model_slug(model_name) / f"{name}.safetensors"


def list_vectors(model_name: str | None = None) -> dict[tuple[str, str], Path]:
    """Every vector on the search path, by (model folder, name)."""
    found: dict[tuple[str, str], Path] = {}
    pattern = f"{model_slug(model_name)}/*.safetensors" if model_name else "*/*.safetensors"
    for folder in search_path():
        for path in sorted(folder.glob(pattern)):
            found.setdefault((path.parent.name, path.stem), path)
    return found


def find_path(name: str, model_name: str) -> Path:
    """Where a vector's file is, by its persona's name or as a path.

    Raises:
        VectorError: no vector is called that; the message names the nearest.
    """
    if name.endswith(".safetensors") or "/" in name:
        return Path(name).expanduser()
    found = {stem: path for (_, stem), path in list_vectors(model_name).items()}
    if name not in found:
        hint = nearest(name, found)
        make = f"make it with: steerkit extract {name}"
        raise VectorError(f"no vector is called {name!r} for {model_name}; {hint + ' or ' if hint else ''}{make}")
    return found[name]


def find_vector(name: str, model_name: str) -> SteeringVector:
    """Load a vector by its persona's name, or by the path of its file.

    Raises:
        VectorError: there is none; the message names the nearest.
    """
    return load_vector(find_path(name, model_name))


class VectorSet(Mapping[str, SteeringVector]):
    """The vectors that fit one model, loaded when they are asked for.

    Looking up a name that is not there raises `VectorError`, which says what is nearby, rather than `KeyError`.
    """

    def __init__(self, model: Fingerprint) -> None:
        self._model = model
        self._loaded: dict[str, SteeringVector] = {}

    def __getitem__(self, name: str) -> SteeringVector:
        """Load a vector by name or path, and check that it was made on this model or its base."""
        if name not in self._loaded:
            vector = load_vector(self.path(name))
            vector.require(self._model)
            self._loaded[name] = vector
        return self._loaded[name]

    def path(self, name: str) -> Path:
        """Where a vector's file is: a tuned model's own if it has one that fits, else its base's.

        Raises:
            VectorError: no vector is called that, or its file is damaged.
        """
        if self._model.base is None:
            return find_path(name, self._model.name)
        # Two adapters may have folders of one name; what was made on the other does not hide what fits both.
        own = {stem: path for (_, stem), path in list_vectors(self._model.name).items()}
        if name in own and self._model.takes(load_vector(own[name]).model):
            return own[name]
        return find_path(name, self._model.base.name)

    def place(self, name: str) -> Path:
        """Where a vector that was measured anew is written: in its own file, if that is the user's, of this model."""
        source = self.path(name)
        named = name.endswith(".safetensors") or "/" in name
        own = self[name].model.difference(self._model) is None and (named or source.parts[0] == "vectors")
        return source if own else vector_path(self[name].name, self._model.name)

    def __contains__(self, name: object) -> bool:
        """Whether a name is on the search path; whether its file fits this model is seen when it is loaded."""
        return name in self._loaded or name in set(self)

    def __iter__(self) -> Iterator[str]:
        """Names that are on the search path."""
        owners = [self._model, *([self._model.base] if self._model.base else [])]
        return iter(sorted({stem for owner in owners for _, stem in list_vectors(owner.name)}))

    def __len__(self) -> int:
        """How many there are."""
        return len(list(iter(self)))


def cosines(vectors: Sequence[SteeringVector], layer: int) -> Float[Tensor, "n n"]:
    """Cosine of every two vectors' directions at one layer.

    Raises:
        VectorError: they are of different models, or the layer does not exist.
    """
    for vector in vectors[1:]:
        vector.require(vectors[0].model)
    if not 0 <= layer < vectors[0].model.layers:
        last = vectors[0].model.layers - 1
        raise VectorError(f"layer {layer} is out of range; {vectors[0].model.name} has layers 0 to {last}")
    units = torch.nn.functional.normalize(torch.stack([v.directions[layer] for v in vectors]), dim=-1)
    return units @ units.T
