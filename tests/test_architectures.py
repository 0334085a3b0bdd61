"""The matrix: on every architecture steerkit's numbers are plain transformers', and its checks can fail."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from architectures import CHECKS, COLUMNS, OK, PAGE, WRONG, Row, Subject, examine, marks, outcome_of
from zoo import REFUSED, ZOO, build

ALWAYS = (
    "llama", "mistral-window", "qwen3", "gemma2", "gemma3", "gpt2", "gpt-neo", "phi4-mini", "mpt", "opt", "gpt-oss",
    "deepseek-v3", "mamba", "jamba", "qwen3-next", "gemma3-vision", "qwen2.5-vl", "X-t5", "X-llama-classifier",
)  # fmt: skip
"""One of each kind; the others have the marker `zoo`."""
MODELS = [name for name, kind in ZOO.items() if kind.expected != REFUSED]
IN_HALVES = MODELS[::3]


def named(names: list[str]) -> list[Any]:
    """Parameters of a test, most of them marked."""
    return [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.zoo) for name in names]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are built, each once."""
    return tmp_path_factory.mktemp("zoo")


def assert_as_it_should_be(row: Row) -> None:
    assert not row.faults, architectures.line(row)
    assert ("load" in row.outcomes) or row.outcomes


@pytest.mark.parametrize("name", named(list(ZOO)))
def test_it_is_right_or_refused_in_one_line(name: str, folder: Path) -> None:
    row = examine(ZOO[name], folder)
    assert_as_it_should_be(row)
    if ZOO[name].expected == REFUSED:
        assert row.outcomes["load"].verdict == "refused"
    elif row.outcomes["load"].verdict == OK:
        assert set(row.outcomes) == set(COLUMNS)


@pytest.mark.parametrize("name", named(IN_HALVES))
def test_it_is_right_in_half_precision(name: str, folder: Path) -> None:
    assert_as_it_should_be(examine(ZOO[name], folder, "bfloat16"))


def test_there_is_more_than_there_was() -> None:
    groups = {kind.group for kind in ZOO.values()}
    assert groups == {"dense", "window", "experts", "recurrent", "hybrid", "wrapper", "not causal"}
    assert len(MODELS) > 120
    assert set(ALWAYS) <= set(ZOO)


def test_the_page_has_a_row_for_every_architecture_and_a_column_for_every_check() -> None:
    text = PAGE.read_text(encoding="utf-8")
    start, end = marks("float32")
    generated = text.split(start)[1].split(end)[0]
    rows = re.findall(r"^\| ([^ ]+) \| `", generated, re.MULTILINE)
    groups = list(dict.fromkeys(kind.group for kind in ZOO.values()))
    assert rows == sorted(ZOO, key=lambda name: groups.index(ZOO[name].group))
    assert f"| architecture | class | path | {' | '.join(COLUMNS)} |" in generated
    described = text.split("| column |")[1].split("✓ right")[0]
    assert all(re.search(rf"\b{column}\b", described) for column in COLUMNS)


# The checks can fail


@pytest.fixture
def subject(folder: Path) -> Subject:
    """A model of which everything is right, loaded for one test alone."""
    return Subject(ZOO["llama"], build(ZOO["llama"], folder / "llama"))


def plant(model: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what every forward pass of a model is given."""
    forward = model.forward
    known = inspect.signature(forward)

    def changed(*arguments: Any, **named: Any) -> Any:
        bound = known.bind(*arguments, **named)
        bound.apply_defaults()
        change(bound.arguments)
        return forward(*bound.args, **bound.kwargs)

    model.forward = changed


def one_layer_on(given: dict[str, Any]) -> None:
    given["functions"] = {l - 1: steps for l, steps in (given["functions"] or {}).items() if l}


def nothing_in_steps(given: dict[str, Any]) -> None:
    if given["cache"] is not None and given["tokens"].shape[1] == 1 and len(given["tokens"]) == 1:
        given["functions"] = {l: steps[1:] for l, steps in (given["functions"] or {}).items()}


def padding_counts(given: dict[str, Any]) -> None:
    given["mask"] = torch.ones_like(given["mask"])


@pytest.mark.parametrize(
    ("change", "columns"),
    [
        (one_layer_on, ["add", "band", "ablate", "cap", "gate", "everywhere", "cache", "prefixes", "extraction"]),
        (nothing_in_steps, ["cache", "chat", "live"]),
        (padding_counts, ["padding", "prefixes", "server"]),
    ],
)  # fmt: skip
def test_a_planted_fault_is_wrong(change: Any, columns: list[str], subject: Subject) -> None:
    for column in columns:
        assert outcome_of(CHECKS[column], subject).verdict == OK, column
    plant(subject.model, change)
    for column in columns:
        found = outcome_of(CHECKS[column], subject)
        assert found.verdict == WRONG, (column, found)


def test_a_norm_that_is_left_out_is_wrong(subject: Subject) -> None:
    assert outcome_of(CHECKS["add"], subject).verdict == OK
    with torch.no_grad():
        subject.model.original.model.layers[2].post_attention_layernorm.weight.fill_(1.0)
    for column in ("tokens", "add", "extraction"):
        assert outcome_of(CHECKS[column], subject).verdict == WRONG, column


def test_a_judge_that_hooks_another_layer_disagrees(subject: Subject) -> None:
    assert outcome_of(CHECKS["add"], subject).verdict == OK
    right = subject.by_hand
    subject.by_hand = lambda operator: {l - 1: edit for l, edit in right(operator).items()}  # type: ignore[method-assign]
    assert outcome_of(CHECKS["add"], subject).verdict == WRONG
    assert outcome_of(CHECKS["bake"], subject).verdict == WRONG


def test_what_says_nothing_is_not_called_right(subject: Subject) -> None:
    subject.by_hand = lambda _operator: {}  # type: ignore[method-assign]
    found = outcome_of(CHECKS["add"], subject)
    assert (found.verdict, found.detail) == ("–", "says nothing here: add moves nothing")


def test_a_check_without_its_model_is_a_traceback_and_not_a_refusal(subject: Subject) -> None:
    def broken(_subject: Subject) -> None:
        raise IndexError("gone")

    found = outcome_of(broken, subject)
    assert found.verdict == "TRACEBACK"
    assert Row("llama", "dense", "float32", "LlamaForCausalLM", "", {"load": found}).faults


def test_a_refusal_is_a_fault_where_it_must_be_right() -> None:
    from steerkit.errors import ModelError

    def refusing(_subject: Subject) -> None:
        raise ModelError("no")

    refused = outcome_of(refusing, Subject(ZOO["llama"], Path()))
    assert refused.verdict == "refused"
    rows = {name: Row(name, "", "float32", "", "", {"cache": refused, "bake": refused}) for name in ("llama", "doge")}
    assert list(rows["llama"].faults) == ["cache"]
    assert not rows["doge"].faults
