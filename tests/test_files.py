"""Writing is all or nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from steerkit.errors import OutputError
from steerkit.files import replacing_file, replacing_folder, write_text

Replacing = Callable[[Path], AbstractContextManager[Path]]
both = pytest.mark.parametrize("replacing", [replacing_file, replacing_folder])


def put(target: Path, text: str) -> None:
    """Write text to a file, or into the folder that a temporary one is."""
    (target / "part" if target.is_dir() else target).write_text(text)


def get(target: Path) -> str:
    return (target / "part" if target.is_dir() else target).read_text()


def make_old(replacing: Replacing, path: Path) -> None:
    if replacing is replacing_folder:
        path.mkdir()
        (path / "stale").write_text("of the old one only")
    put(path, "old")


@both
def test_what_was_written_takes_the_path(replacing: Replacing, tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "out"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        assert not path.exists()
        put(temporary, "whole")
        assert not path.exists()
    assert get(path) == "whole"
    assert os.listdir(path.parent) == ["out"]


@both
def test_the_old_one_is_replaced_and_nothing_of_it_stays(replacing: Replacing, tmp_path: Path) -> None:
    path = tmp_path / "out"
    make_old(replacing, path)
    with replacing(path) as temporary:
        put(temporary, "new")
        assert get(path) == "old"
    assert get(path) == "new"
    assert not (path / "stale").exists()
    assert os.listdir(tmp_path) == ["out"]


@both
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_one_and_no_temporary(
    replacing: Replacing, tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "out"
    make_old(replacing, path)

    def write_half() -> None:
        with replacing(path) as temporary:
            put(temporary, "half")
            raise error("planted")

    with pytest.raises(error, match="planted"):
        write_half()
    assert get(path) == "old"
    assert os.listdir(tmp_path) == ["out"]


@both
def test_an_exception_leaves_nothing_where_nothing_was(replacing: Replacing, tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "out") as temporary:
            put(temporary, "half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write_half()
    assert os.listdir(tmp_path) == []


@both
def test_a_full_disk_is_an_output_error_and_leaves_the_old_one(replacing: Replacing, tmp_path: Path) -> None:
    path = tmp_path / "out"
    make_old(replacing, path)

    def write_too_much() -> None:
        with replacing(path) as temporary:
            put(temporary, "half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"cannot write .*out: No space left on device; choose another place"):
        write_too_much()
    assert get(path) == "old"
    assert os.listdir(tmp_path) == ["out"]


@both
def test_a_place_below_a_file_is_an_output_error(replacing: Replacing, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"), replacing(tmp_path / "file" / "out"):
        pytest.fail("there is no place to write to")
    assert (tmp_path / "file").read_text() == "in the way"


@both
def test_a_rename_that_fails_is_an_output_error_and_leaves_no_temporary(
    replacing: Replacing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"), replacing(tmp_path / "out") as temporary:
        put(temporary, "whole")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_of_a_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "out", "text")
    assert (tmp_path / "out").is_dir()
    assert os.listdir(tmp_path) == ["out"]


def test_files_and_folders_get_the_permissions_that_others_get(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        write_text(tmp_path / "file", "text")
        with replacing_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755


def test_text_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "− × α …")
    assert (tmp_path / "file").read_bytes() == "− × α …".encode()


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    make_old(replacing_folder, path)
    rename = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if (self / "part").exists() and get(self) == "new":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="Permission denied"), replacing_folder(path) as temporary:
        put(temporary, "new")
    assert get(path) == "old"
    assert os.listdir(tmp_path) == ["out"]
