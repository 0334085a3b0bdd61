"""What is kept comes back as it was, to the model it was measured on, and a damaged file is as good as none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steerkit.kept import keep, kept_folder, kept_path, load_kept
from steerkit.models import Model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_what_is_kept_comes_back_as_it_was(tiny: Model) -> None:
    path, tensors = kept_path("things", tiny, "one", [1, "a"]), {"x": torch.randn(3, 2), "y": torch.ones(1)}
    assert load_kept(path, tiny) is None
    keep(path, tiny, tensors, {"reply": "“Yes.”"})
    found = load_kept(path, tiny)
    assert found is not None
    assert found[1]["reply"] == "“Yes.”"
    assert all(torch.equal(found[0][key], tensor) for key, tensor in tensors.items())
    assert list(kept_folder("things", tiny).iterdir()) == [path]


def test_the_name_changes_with_what_a_measurement_depends_on_and_with_nothing_else(tiny: Model) -> None:
    assert kept_path("things", tiny, "one", [1, {"a": 2}]) == kept_path("things", tiny, "one", [1, {"a": 2}])
    assert kept_path("things", tiny, "one", [1]) != kept_path("things", tiny, "one", [2])


def test_another_model_of_the_same_name_does_not_get_it(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept_path("things", tiny, "one", [])
    keep(path, tiny, {"x": torch.ones(1)})
    theirs = tuple(tuple(x + 0.5 for x in row) for row in tiny.fingerprint.behaviour)
    monkeypatch.setattr(tiny, "fingerprint", replace(tiny.fingerprint, behaviour=theirs))
    assert load_kept(path, tiny) is None


@pytest.mark.parametrize("size", [0, 7, 60])
def test_a_damaged_file_is_as_good_as_none(tiny: Model, size: int) -> None:
    path = kept_path("things", tiny, "one", [])
    keep(path, tiny, {"x": torch.ones(1)})
    path.write_bytes(path.read_bytes()[:size])
    assert load_kept(path, tiny) is None
