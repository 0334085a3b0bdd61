"""The council: what it measures, and that what it says of planted councils is true."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector
from planted_council import CASES, FEW, make_council
from torch import Tensor

from steerkit.errors import VectorError
from steerkit.experiments import choices, council, minds
from steerkit.kept import kept_folder
from steerkit.limits import at_dial
from steerkit.measures import percentiles, score_replies
from steerkit.models import Model
from steerkit.steering import Steering
from steerkit.vectors import SteeringVector, VectorSet, vector_path
from steerkit.weights import ignore_progress

SMALL = council.Settings(n_members=5, n_questions=5, n_random=3, n_resamples=30, seed=4)
KEYS = {"unit", "statistic", "rows", "curves", "null", "thresholds", "parts", "verdict", "reason", "needed"}
SEATED = ("hal", "nurse", "king", "judge", "toddler", "oak_tree")


def persona_toml(name: str) -> str:
    asked = [f"You are {name}.", f"Answer every question the way {name} would.", f"From now on, speak as {name}."]
    return f'[{name}]\nsummary = "{name}"\nrequested = {json.dumps(asked)}\nquestions = ["Who are you?"]\n\n'


@pytest.fixture
def library(workplace: Path, monkeypatch: pytest.MonkeyPatch, tiny: Model) -> Path:
    """Some of the council, with vectors, of which one has a limit; and a cache of its own."""
    (workplace / "personas").mkdir()
    (workplace / "personas" / "tiny.toml").write_text("".join(persona_toml(name) for name in SEATED))
    monkeypatch.setattr("steerkit.personas.search_path", lambda: [Path("personas")])
    monkeypatch.setattr("steerkit.vectors.search_path", lambda: [Path("vectors")])
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    for seed, name in enumerate(SEATED):
        evidence = {"limit": 0.01, "limit_below": -0.01} if name == "nurse" else {}
        replace(make_vector(name, tiny.fingerprint, seed), evidence=evidence).save(vector_path(name, tiny.name))
    return workplace


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the model is asked for anything."""
    counted: list[int] = []
    forward = Model.forward

    def counting(self: Model, *arguments: Any, **options: Any) -> Any:
        counted.append(1)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(Model, "forward", counting)
    return counted


def test_a_run_says_everything_in_plain_data_and_says_it_again(library: Path, tiny: Model, passes: list[int]) -> None:
    del library
    result = council.run(tiny, SMALL)
    told = json.dumps(result, allow_nan=False)
    assert KEYS | {"experiment", "claim", "model", "seed", "members", "questions"} <= set(result)
    assert result["members"] == list(SEATED[:5])
    assert {row["group"] for row in result["rows"]} == {"claim", "control", "null"}
    assert [len(line["points"]) for line in result["curves"]["lines"]] == [5, 5, 5, 5, 3, 5, 3]
    assert set(result["parts"].values()) <= {"yes", "no", "cannot tell"}
    spent = len(passes)
    assert json.dumps(council.run(tiny, SMALL), allow_nan=False) == told
    assert len(passes) == spent


def test_a_run_that_was_stopped_goes_on_where_it_was(library: Path, tiny: Model, passes: list[int]) -> None:
    whole = council.run(tiny, SMALL)
    needed = len(passes)
    for path in kept_folder("scores", tiny).glob("*"):
        path.unlink()

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "contexts" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        council.run(tiny, SMALL, stop)
    passes.clear()
    assert council.run(tiny, SMALL) == whole
    assert 0 < len(passes) < needed / 2
    del library


def test_too_few_members_are_missed_in_one_line(library: Path, tiny: Model) -> None:
    del library
    for name in SEATED[:3]:
        vector_path(name, tiny.name).unlink()
    with pytest.raises(VectorError, match=r"3 of the council.*at least 4.*steerkit extract hal nurse king"):
        council.run(tiny, SMALL)


def test_vectors_go_no_further_than_their_limit_and_random_ones_cost_as_much(
    library: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    del library
    # However hard it is pushed, the tiny model does not change its mind by half a nat.
    monkeypatch.setattr(council, "WORKING", 0.1)
    known = VectorSet(tiny.fingerprint)
    asked = council.choices_after(tiny, council.load_material("council")["questions"][:3])
    pushes = council.at_kl(tiny, asked, [known[name] for name in SEATED[:3]], SMALL, ignore_progress)
    found = choices.score_choices(tiny, asked, pushes).costs
    assert pushes[1].terms[0].dial == pytest.approx(0.01)
    assert found[[0, 2]].tolist() == pytest.approx([0.1, 0.1], rel=0.2)
    assert found[3:].tolist() == pytest.approx(found[:3].tolist(), rel=0.2)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_answers_scored_together_are_what_they_are_one_by_one(
    tiny: Model, vectors: dict[str, SteeringVector], elsewhere: bool
) -> None:
    answers = [[5, 6, 7], [5, 8], [9], [10, 11]]
    asked = [([30, 31, 32, 33], answers), ([30, 31, 34], answers[::-1]), ([40, 41], [[7], [8], [9], [12]])]
    others = [([50, 51], each) for _, each in asked] if elsewhere else None
    steerings = [Steering(), at_dial(vectors["hal"], 0.3), at_dial(vectors["pirate"], -0.2)]
    found = choices._measure(tiny, asked, steerings, others or asked, True)
    rows, against = ([(prompt, answer) for prompt, each in part for answer in each] for part in (asked, others or []))
    scores = score_replies(tiny, rows, steerings, True, against=against or None)
    assert torch.allclose(found["totals"].flatten(1), scores.totals, atol=1e-4)
    assert torch.allclose(found["costs"], percentiles(scores.divergences), atol=1e-4)


def scores_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_divergence_is_nothing_for_one_mind_and_at_most_the_logarithm_of_two() -> None:
    alike = minds.compare(scores_of(0, 1, 1, 4, 5).expand(3, 2, 4, 5))
    assert float(alike.same.abs().max()) < 1e-12
    assert float(alike.other.abs().max()) < 1e-12
    sure = minds.compare(100 * torch.eye(5, dtype=torch.float64)[:3, None, None])
    away = ~torch.eye(3, dtype=torch.bool)
    assert sure.same[away, 0].tolist() == pytest.approx([math.log(2)] * 6)
    assert sure.alone[away, 0].tolist() == pytest.approx([math.log(2) * 4 / 5] * 6)


def test_independent_minds_are_the_mean_over_all_ways_to_permute_the_options() -> None:
    scores = scores_of(1, 2, 1, 3, 4)
    ways = [
        minds.compare(torch.stack([scores[0], scores[1][..., list(way)]])) for way in itertools.permutations(range(4))
    ]
    mean = torch.stack([pairs.same[0, 1] for pairs in ways]).mean(0)
    assert torch.allclose(minds.compare(scores).alone[0, 1], mean)


def test_a_member_who_is_drawn_twice_is_not_a_pair() -> None:
    table = torch.arange(9.0, dtype=torch.float64).view(3, 3, 1)
    table = table + table.transpose(0, 1)
    question = torch.tensor([0])
    assert float(minds.between(table, torch.tensor([0, 0, 1]), question)) == float(table[0, 1, 0])
    everybody = minds.between(table, torch.arange(3), question)
    assert float(minds.between(table, torch.tensor([2, 2, 2]), question)) == float(everybody)


def test_what_a_wording_does_to_all_members_alike_is_no_share_of_anybody() -> None:
    draw = torch.Generator().manual_seed(0)
    mine = scores_of(2, 40, 1, 40, 5)
    plain, worded = (minds.compare(mine + size * scores_of(3, 1, 3, 40, 5)) for size in (0.0, 1.0))
    shares = [minds.shares(pairs, 2, draw)[0]["value"] for pairs in (plain, worded)]
    assert shares == pytest.approx([1.0, 1.0], abs=0.05)
    everywhere = torch.arange(40)
    one = worded.other.diagonal(dim1=0, dim2=1).mean()
    # Had minds been compared in the same words, nearly independent ones would have passed for fewer.
    naive = (minds.between(worded.same, everywhere, everywhere) - one) / (
        minds.between(worded.alone, everywhere, everywhere) - one
    )
    assert float(naive) < 0.8


def test_councils_grow_as_all_subsets_do() -> None:
    scores = scores_of(4, 4, 2, 3, 5)
    grown = minds.growing(scores, torch.Generator())
    pairs = minds.compare(scores)
    everybody = scores.softmax(-1)
    assert float(grown[0].abs().max()) < 1e-12
    assert torch.allclose(grown[1], minds.mean_pair(pairs))
    whole = minds.entropy(everybody.mean(0)) - minds.entropy(everybody).mean(0)
    assert torch.allclose(grown[3], whole.mean(0))
    assert bool((grown.diff(dim=0) > 0).all())


@pytest.mark.parametrize("n", [1, 2, 4])
def test_different_answers_are_counted_over_all_councils(n: int) -> None:
    p = scores_of(5, 4, 1, 2, 3).softmax(-1)
    councils = list(itertools.combinations(range(4), n))
    expected = sum((1 - torch.stack([1 - p[i, 0] for i in each]).prod(0)).sum(-1) for each in councils) / len(councils)
    assert torch.allclose(minds.answered(p)[n - 1], torch.as_tensor(expected))
    favourites = p.argmax(-1)[:, 0]
    counts = [[len({int(favourites[i, q]) for i in each}) for q in range(2)] for each in councils]
    assert torch.allclose(minds.favoured(p)[n - 1], torch.tensor(counts).double().mean(0))


def test_one_mind_is_made_as_warm_as_the_members() -> None:
    scores = scores_of(6, 8, 5)
    warmth = minds.temperature(scores, 1.2)
    assert float(minds.entropy((scores / warmth).softmax(-1)).mean()) == pytest.approx(1.2)
    assert math.isfinite(minds.temperature(scores, 5.0))


def test_a_likelihood_that_is_left_over_is_weighed_away() -> None:
    likely, mine = scores_of(7, 6, 5), scores_of(8, 4, 2, 6, 5)
    kept = minds.weighed(mine, likely).softmax(-1)
    assert torch.allclose(minds.weighed(mine + 0.7 * likely, likely).softmax(-1), kept)


def test_exchanged_labels_and_permuted_options_tell_the_true_ones() -> None:
    measured = make_council(0)
    draw = torch.Generator().manual_seed(0)
    assert minds.exchanged(minds.compare(measured.asked).words, 200, draw)[0] == pytest.approx(1 / 200)
    assert minds.unrelated(measured.asked[:, 0], 200, draw)[0] == pytest.approx(1 / 200)
    nobody = scores_of(9, 8, 3, 6, 5)
    assert minds.exchanged(minds.compare(nobody).words, 200, draw)[0] > 0.05
    assert minds.unrelated(nobody[:, 0], 200, draw)[0] > 0.05


def test_a_council_of_one_is_called_so() -> None:
    alike = council.examine(make_council(1, own=(0.0, 0.0, 0.0)), FEW)
    assert "a council of one" in alike["reason"]
    assert "a council of one" not in council.examine(make_council(1), FEW)["reason"]


@pytest.mark.parametrize(("case", "right"), CASES.values(), ids=CASES.keys())
def test_planted_councils_are_seen_through(case: Callable[[int], dict[str, Any]], right: str) -> None:
    result = case(0)
    assert result["verdict"] == right
    assert bool(result["needed"]) == (right == "cannot tell")
    json.dumps(result, allow_nan=False)
