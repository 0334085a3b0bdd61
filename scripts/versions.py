"""What pyproject.toml allows, what constraints.txt names, and what the lanes of `.ci/run` install.

Text in, text out; whatever asks a package index or starts a process says so in its docstring.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT, CONSTRAINTS = ROOT / "pyproject.toml", ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
EXTRA = "dev"
"""Includes every other extra but `vllm`, which needs an environment of its own."""
UNPINNED = {"pip": "it installs the others, and on Windows it cannot replace itself"}
KEPT = {
    "torch": "newer ones are built for CUDA alone on some indexes",
    "xllamacpp": "its structures are written out in the tests",
}
"""Upper bounds that hold in the newest lane, too, and why."""
HEADER = """\
# One tested version of everything that `pip install -e '.[dev]'` brings, for Python 3.11 to 3.14.
# Written by scripts/update_constraints; see CONTRIBUTING.md.
"""


def direct_requirements(pyproject: str, extra: str = EXTRA) -> list[Requirement]:
    r"""The package's own requirements and an extra's, each as it is written, with extras of extras opened.

    >>> text = '[project]\nname = "a"\ndependencies = ["b>=1"]\n[project.optional-dependencies]\n'
    >>> [str(found) for found in direct_requirements(text + 'dev = ["a[c]", "d"]\nc = ["e<2"]\n')]
    ['b>=1', 'e<2', 'd']
    """
    project = tomllib.loads(pyproject)["project"]
    own = canonicalize_name(project["name"])

    def opened(lines: Iterable[str]) -> list[Requirement]:
        found: list[Requirement] = []
        for requirement in map(Requirement, lines):
            if canonicalize_name(requirement.name) == own:
                for name in sorted(requirement.extras):
                    found += opened(project["optional-dependencies"][name])
            else:
                found.append(requirement)
        return found

    return opened([*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])])


def read_pins(constraints: str) -> list[Requirement]:
    """The lines of a constraints file.

    Raises:
        ValueError: a line is more than `name==version` and a marker: an address, an option, a hash, a local version.
    """
    pins = []
    for number, line in enumerate(constraints.splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            pin = Requirement(text)
        except InvalidRequirement as error:
            raise ValueError(f"line {number} is no `name==version`: {text}") from error
        if pin.url or pin.extras or not re.fullmatch(r"==[0-9][0-9a-z.!]*", str(pin.specifier)):
            raise ValueError(f"line {number} is no `name==version`: {text}")
        pins.append(pin)
    return pins


def pinned_versions(pins: Iterable[Requirement], python: str, platform: str = "linux") -> dict[str, Version]:
    """What a constraints file names for one Python on one platform, by canonical name."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": platform, "implementation_name": "cpython"}
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    return {canonicalize_name(pin.name): Version(str(pin.specifier)[2:]) for pin in chosen}


def check_constraints(pyproject: str, constraints: str) -> list[str]:
    """What is wrong with a constraints file beside pyproject.toml, a line each; nothing if it will do."""
    try:
        pins = read_pins(constraints)
    except ValueError as error:
        return [str(error)]
    faults = []
    for python in PYTHONS:
        versions = pinned_versions(pins, python)
        environment = {"python_version": python, "sys_platform": "linux", "extra": ""}
        for requirement in direct_requirements(pyproject):
            name = canonicalize_name(requirement.name)
            if name in UNPINNED or (requirement.marker and not requirement.marker.evaluate(environment)):
                continue
            if name not in versions:
                faults.append(f"Python {python}: {name} is not pinned")
            elif not requirement.specifier.contains(versions[name], prereleases=True):
                faults.append(f"Python {python}: {name}=={versions[name]} is outside {requirement.specifier}")
    return faults


def tidy_pins(resolved: str) -> str:
    r"""A constraints file from what a resolver prints: no options, no hashes, no local versions, nothing unpinned.

    >>> print(tidy_pins("--index-url x\ntorch==2.13.0+cpu ; python_version < '3.12'\npip==26.3\n"), end="")
    torch==2.13.0 ; python_version < '3.12'
    """
    lines = []
    for line in resolved.splitlines():
        text = line.partition("#")[0].strip()
        if text and not text.startswith("-") and canonicalize_name(Requirement(text).name) not in UNPINNED:
            lines.append(re.sub(r"^([^;]*?==[^;+\s]+)\+[^;\s]+", r"\1", text))
    return "".join(f"{line}\n" for line in lines)


def without_upper_bounds(requirement: Requirement) -> Requirement:
    """A requirement that any newer version meets.

    >>> str(without_upper_bounds(Requirement("numpy>=2,<2.6")))
    'numpy>=2'
    """
    lifted = Requirement(str(requirement))
    lifted.specifier = SpecifierSet(
        ",".join(str(part) for part in requirement.specifier if part.operator in (">=", "!="))
    )
    return lifted


def at_lower_bound(requirement: Requirement) -> Requirement:
    """A requirement that only its oldest version meets.

    >>> str(at_lower_bound(Requirement("numpy>=2,<2.6")))
    'numpy==2'
    """
    fixed = Requirement(str(requirement))
    lowest = [part.version for part in requirement.specifier if part.operator in (">=", "==")]
    fixed.specifier = SpecifierSet(f"=={max(lowest, key=Version)}" if lowest else "")
    return fixed


def lane_requirements(pyproject: str, lane: str) -> list[str]:
    """What a lane of `.ci/run` installs: `newest` or `lowest`."""
    requirements = [found for found in direct_requirements(pyproject) if found.name not in UNPINNED]
    if lane == "lowest":
        return [str(at_lower_bound(requirement)) for requirement in requirements]
    return [str(found if found.name in KEPT else without_upper_bounds(found)) for found in requirements]


def describe_change(before: str, after: str) -> list[tuple[str, str, str]]:
    r"""What changed between two constraints files: name, old versions, new versions.

    >>> describe_change("a==1\nb==2\n", "a==1\nb==3 ; python_version < '3.12'\nb==4 ; python_version >= '3.12'\n")
    [('b', '2', '3, 4')]
    """

    def versions(text: str) -> dict[str, list[str]]:
        named: dict[str, list[str]] = {}
        for pin in read_pins(text):
            named.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier)[2:])
        return named

    old, new = versions(before), versions(after)
    return [
        (name, ", ".join(old.get(name, ["–"])), ", ".join(new.get(name, ["–"])))
        for name in sorted(old | new)
        if old.get(name) != new.get(name)
    ]


def raise_bounds(pyproject: str, constraints: str) -> str:
    r"""pyproject.toml with each upper bound moved just past what is pinned, where that lies at or beyond it.

    >>> raise_bounds('[project]\nname = "a"\ndependencies = ["b>=1,<2.4"]\n', "b==2.6.1\n").splitlines()[-1]
    'dependencies = ["b>=1,<2.7"]'
    """
    newest: dict[str, Version] = {}
    for pin in read_pins(constraints):
        name, version = canonicalize_name(pin.name), Version(str(pin.specifier)[2:])
        newest[name] = max(version, newest.get(name, version))

    def moved(match: re.Match[str]) -> str:
        version, bound = newest.get(canonicalize_name(match["name"])), match["bound"]
        if version is None or version < Version(bound):
            return match[0]
        parts = [*version.release, 0, 0][: len(bound.split("."))]
        return f"{match['start']}<{'.'.join(map(str, [*parts[:-1], parts[-1] + 1]))}"

    return re.sub(
        r'(?P<start>"(?P<name>[A-Za-z0-9._-]+)(?:\[[a-z,]+\])?[^"<;]*)<(?P<bound>[0-9][0-9.]*)', moved, pyproject
    )


def index_environment(settings: str, environment: Mapping[str, str]) -> dict[str, str]:
    r"""The environment in which uv asks the indexes that `pip config list` tells of, choosing among them as pip does.

    >>> index_environment("global.find-links='/a /b'\nglobal.index-url='file:///c'\n", {"PATH": "/bin"})
    {'PATH': '/bin', 'UV_INDEX_STRATEGY': 'unsafe-best-match', 'UV_FIND_LINKS': '/a,/b', 'UV_DEFAULT_INDEX': 'file:///c'}
    """
    found = {}
    for line in settings.splitlines():
        key, _, value = line.partition("=")
        # Later lines win, as they do with pip, whose environment variables come last.
        found[key.rpartition(".")[2]] = " ".join(str(ast.literal_eval(value)).split())
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
    told = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for key, value in found.items():
        if key in names:
            told[names[key]] = value.replace(" ", ",") if key == "find-links" else value
    return {**environment, **{name: value for name, value in told.items() if name not in environment}}


def uv(*arguments: str, python: str = sys.executable) -> str:
    """Run this environment's uv with pip's own index settings; what it prints is returned.

    Raises:
        SystemExit: it failed; its own words were printed.
    """
    settings = subprocess.run([python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    environment = index_environment(settings.stdout, os.environ)
    done = subprocess.run([python, "-m", "uv", *arguments], env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"uv {' '.join(arguments)} failed")
    return done.stdout
