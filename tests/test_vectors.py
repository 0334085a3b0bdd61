"""Vectors: algebra, files, and the model they belong to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_vector
from safetensors import safe_open

from steerkit.errors import VectorError
from steerkit.fingerprints import Fingerprint
from steerkit.models import Model
from steerkit.vectors import SteeringVector, VectorSet, cosines, find_vector, load_vector, vector_path


@pytest.fixture
def hal(tiny: Model) -> SteeringVector:
    return replace(make_vector("hal", tiny.fingerprint), provenance={"persona": "hal"}, evidence={"best_layer": 2})


def test_saving_and_loading_gives_the_same_vector(hal: SteeringVector, tmp_path: Path) -> None:
    hal.save(tmp_path / "hal.safetensors")
    back = load_vector(tmp_path / "hal.safetensors")
    assert torch.equal(back.directions, hal.directions)
    assert torch.equal(back.baseline, hal.baseline)
    assert (back.name, back.model, back.provenance, back.evidence) == (
        hal.name,
        hal.model,
        hal.provenance,
        hal.evidence,
    )
    assert back.layer == 2


def test_the_same_vector_always_makes_the_same_bytes_under_one_metadata_key(
    hal: SteeringVector, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in paths:
        hal.save(path)
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], framework="pt") as file:
        assert list(file.metadata()) == ["steerkit"]


def test_vectors_add_subtract_scale_and_negate(tiny: Model) -> None:
    a, b = make_vector("a", tiny.fingerprint, 1), make_vector("b", tiny.fingerprint, 2)
    assert torch.allclose((a + b - b).directions, a.directions, atol=1e-5)
    assert torch.equal((-a).directions, -a.directions)
    assert torch.equal((2 * a).directions, (a / 0.5).directions)
    known = replace(a, evidence={"limit": 1.0, "place": [1, 2], "best_layer": 1, "reliable": True})
    for made in (2 * known, -known, known + a, known.without([b])):
        assert made.evidence == {"place": [1, 2], "best_layer": 1}, "where it works is kept, how well is not"


def test_a_vector_of_another_model_is_refused(tiny: Model, hal: SteeringVector) -> None:
    here = tiny.fingerprint
    hal.require(here)
    wider = replace(here, width=here.width + 1)
    other = replace(here, behaviour=tuple(tuple(x + 0.5 for x in row) for row in here.behaviour))
    for fingerprint, reason in ((wider, "32"), (other, "compute different things")):
        with pytest.raises(VectorError, match=reason):
            hal.require(fingerprint)


def test_noise_in_the_last_digits_does_not_make_another_model(tiny: Model, hal: SteeringVector) -> None:
    here = tiny.fingerprint
    hal.require(replace(here, behaviour=tuple(tuple(x * (1 + 1e-5) for x in row) for row in here.behaviour)))


def test_a_fingerprint_survives_its_file(tiny: Model) -> None:
    assert Fingerprint.from_json(tiny.fingerprint.to_json()) == tiny.fingerprint


def test_a_set_finds_vectors_by_name_and_by_path(hal: SteeringVector, tiny: Model, workplace: Path) -> None:
    hal.save(vector_path("hal", tiny.name))
    hal.save(workplace / "elsewhere.safetensors")
    found = VectorSet(tiny.fingerprint)
    assert list(found) == ["hal"]
    assert len(found) == 1
    assert "hal" in found
    assert "warmth" not in found
    assert torch.equal(found["hal"].directions, found["elsewhere.safetensors"].directions)
    with pytest.raises(VectorError, match="did you mean hal"):
        find_vector("hall", tiny.name)


def test_cosines_are_one_with_oneself_and_need_one_model(hal: SteeringVector, tiny: Model) -> None:
    table = cosines([hal, -hal, make_vector("b", tiny.fingerprint, 5)], 1)
    assert torch.allclose(table.diagonal(), torch.ones(3))
    assert table[0, 1] == pytest.approx(-1)
    with pytest.raises(VectorError, match="layers 0 to 5"):
        cosines([hal], 6)


def test_shapes_and_values_that_cannot_be_are_refused(hal: SteeringVector) -> None:
    with pytest.raises(VectorError, match="not layers × width"):
        replace(hal, directions=hal.directions[:-1])
    with pytest.raises(VectorError, match="not finite"):
        replace(hal, baseline=hal.baseline * float("nan"))
