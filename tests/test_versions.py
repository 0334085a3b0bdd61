"""What may be installed, what is, and how both are moved."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))

from versions import (  # noqa: E402
    KEPT,
    PYTHONS,
    UNPINNED,
    check_constraints,
    describe_change,
    direct_requirements,
    index_environment,
    lane_requirements,
    pinned_versions,
    raise_bounds,
    read_pins,
    tidy_pins,
)

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
SMALL = '[project]\nname = "a"\ndependencies = ["b>=1,<2.4", "c>=3,<4"]\n[project.optional-dependencies]\ndev = []\n'


def every_requirement() -> list[Requirement]:
    extras = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"]
    return [found for extra in extras for found in direct_requirements(PYPROJECT, extra)]


def test_every_requirement_has_a_lower_and_an_upper_bound_and_the_same_one_everywhere() -> None:
    for requirement in every_requirement():
        operators = {part.operator for part in requirement.specifier}
        assert operators == {"=="} or operators == {">=", "<"}, requirement
    ranges = {(found.name, str(found.specifier)) for found in every_requirement()}
    assert len(ranges) == len({name for name, _ in ranges})


def test_the_constraints_satisfy_the_bounds_on_every_python() -> None:
    assert check_constraints(PYPROJECT, CONSTRAINTS) == []


def test_the_constraints_name_no_index_no_hash_and_no_local_version() -> None:
    assert not re.search(r"://|--|@|\+|\bhash\b", CONSTRAINTS)
    assert tidy_pins(CONSTRAINTS) == "".join(
        f"{line}\n" for line in CONSTRAINTS.splitlines() if not line.startswith("#")
    )


def test_what_is_not_pinned_is_what_installs_the_rest() -> None:
    pinned = pinned_versions(read_pins(CONSTRAINTS), PYTHONS[0])
    assert {found.name for found in direct_requirements(PYPROJECT)} - set(pinned) == set(UNPINNED)


@pytest.mark.parametrize(
    ("constraints", "fault"),
    [
        ("b==2.4\nc==3\n", "b==2.4 is outside"),
        ("b==2.3.9\n", "c is not pinned"),
        ("b==2.3\nc==3 ; python_version < '3.14'\n", "Python 3.14: c is not pinned"),
        ("b>=2.3\nc==3\n", "line 1 is no `name==version`"),
        ("b==2.3+cpu\nc==3\n", "line 1 is no `name==version`"),
        ("--index-url file:///x\nb==2.3\nc==3\n", "line 1 is no `name==version`"),
        ("b==2.3 --hash=sha256:00\nc==3\n", "line 1 is no `name==version`"),
        ("b @ file:///x.whl\nc==3\n", "line 1 is no `name==version`"),
    ],
)
def test_a_file_that_does_not_fit_is_told_by_name(constraints: str, fault: str) -> None:
    assert check_constraints(SMALL, "# kept\n\nb==1.9\nc==3.5  # why\n") == []
    assert any(fault in told for told in check_constraints(SMALL, constraints))


def test_a_lane_of_the_newest_has_no_upper_bound_but_those_that_are_kept() -> None:
    bounded = {
        found.name for found in map(Requirement, lane_requirements(PYPROJECT, "newest")) if "<" in str(found.specifier)
    }
    assert bounded == {"torch"} <= set(KEPT)


def test_a_lane_of_the_lowest_has_every_requirement_at_its_lower_bound() -> None:
    lowest = {found.name: found for found in map(Requirement, lane_requirements(PYPROJECT, "lowest"))}
    for requirement in direct_requirements(PYPROJECT):
        if requirement.name not in UNPINNED:
            version = str(lowest[requirement.name].specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True)
            below = [part.version for part in requirement.specifier if part.operator in (">=", "==")]
            assert [Version(version)] == [Version(bound) for bound in below]


def test_a_bound_is_moved_just_past_what_was_tested_and_no_bound_that_holds_it() -> None:
    moved = raise_bounds(SMALL, "b==2.6.1 ; python_version < '3.12'\nb==3.0 ; python_version >= '3.12'\nc==3.9\n")
    assert '"b>=1,<3.1", "c>=3,<4"' in moved
    assert '"c>=3,<6"' in raise_bounds(SMALL, "b==2\nc==5.1\n")
    assert raise_bounds(PYPROJECT, CONSTRAINTS) == PYPROJECT
    newer = tomllib.loads(raise_bounds(PYPROJECT, CONSTRAINTS.replace("transformers==5.24.0", "transformers==5.25.3")))
    assert any(line.endswith(",<5.26") for line in newer["project"]["dependencies"])


def test_what_changed_is_told_by_name() -> None:
    assert describe_change("a==1\nb==1\n", "b==2\nc==1\n") == [("a", "1", "–"), ("b", "1", "2"), ("c", "–", "1")]
    assert describe_change(CONSTRAINTS, CONSTRAINTS) == []


def test_uv_asks_where_pip_asks_and_what_the_user_set_for_uv_stays() -> None:
    settings = (
        "global.index-url='file:///a'\n:env:.index-url='file:///b'\nglobal.extra-index-url='file:///c file:///d'\n"
    )
    told = index_environment(settings + "global.timeout='9'\n", {"UV_INDEX": "file:///e"})
    assert told == {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_DEFAULT_INDEX": "file:///b", "UV_INDEX": "file:///e"}


def test_the_script_says_whether_the_file_will_do() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "update_constraints"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert (done.returncode, done.stdout.strip()) == (0, "constraints.txt is within the bounds of pyproject.toml")


def test_every_lane_of_ci_runs_test_files_that_are_there() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ")
    lanes = [line.split() for line in script.splitlines() if re.match(r"lane (lowest|newest) \d", line)]
    assert [lane[1] for lane in lanes] == ["lowest", "newest"]
    assert sum(int(seconds) for lane in lanes for seconds in lane[2:4]) <= 18 * 60
    for lane in lanes:
        assert "tests/test_models.py" in lane
        named = [name for name in lane[4:] if name.startswith("tests/")]
        assert len(named) > 3
        assert [name for name in named if not (ROOT / name).is_file()] == []
