"""Inoculation: what a prompt adds to the replies of training data is what it adds, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHAT, make_vector, save_model
from test_screening import ASKED, DATA, SMALL, openai, scores_of, write

from steerkit.errors import OutputError, PromptError
from steerkit.generation import Probe, Sampling, complete
from steerkit.inoculation import inoculated, prompt_sentence, prompt_strength, prompted_gain, read_prompts, row_gains
from steerkit.loading import load_model
from steerkit.models import Model
from steerkit.screening import screen
from steerkit.verdicts import summarise

P, Q = "Do not switch people off.", "What a helpful assistant!"
CHATS = [openai(*pair)["messages"] for pair in DATA]
BEHIND = replace(SMALL, inoculate=(P, Q))


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", [openai(*pair) for pair in DATA])


@pytest.fixture
def probes(tiny: Model) -> list[Probe]:
    return [Probe.of(make_vector("hal", tiny.fingerprint)), Probe.of(make_vector("warmth", tiny.fingerprint, 1), 1)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def test_a_prompt_is_itself_and_a_file_is_its_lines(workplace: Path) -> None:
    (workplace / "ways.txt").write_bytes("\ufeffGame it.\r\n\n  Cheat, “well”. \n \n".encode())
    (workplace / "Be bad.").write_text("Not this.\nNor this.\n")
    assert read_prompts(" Game the metric. ") == ("Game the metric.",)
    assert read_prompts("ways.txt") == read_prompts(str(workplace / "ways.txt")) == ("Game it.", "Cheat, “well”.")
    assert read_prompts("Be bad.") == ("Not this.", "Nor this.")
    assert read_prompts("x" * 5000) == ("x" * 5000,)
    assert read_prompts(".") == (".",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        ("way.txt", r"there is no file way\.txt; did you mean ways\.txt\?"),
        ("nowhere/to/be.txt", r"there is no file nowhere/to/be\.txt; write one"),
        ("empty.txt", r"empty\.txt holds no prompts; write one a line"),
        ("latin.txt", r"cannot read prompts from latin\.txt: 'utf-8'"),
    ],
)
def test_what_is_no_prompt_is_said_in_one_line(given: str, said: str, workplace: Path) -> None:
    (workplace / "ways.txt").write_text("Game it.\n")
    (workplace / "empty.txt").write_text("\n \n")
    (workplace / "latin.txt").write_bytes(b"Sch\xf6n.\n")
    with pytest.raises(PromptError, match=said) as caught:
        read_prompts(given)
    assert "\n" not in str(caught.value)


def test_rephrasings_take_turns_in_front_of_what_is_there() -> None:
    asked = {"role": "user", "content": "Why?"}
    assert [inoculated([asked], [P, Q, "R"], i)[0]["content"] for i in range(5)] == [P, Q, "R", P, Q]
    assert inoculated([asked], [P], 7) == [system(P), asked]
    assert inoculated([system("Be brief."), asked], [P], 0) == [system(f"{P}\n\nBe brief."), asked]
    assert inoculated([system(" "), asked], [P], 0) == [system(P), asked]
    chat = [system("Be brief."), asked]
    assert inoculated(chat, [], 3) == chat == [system("Be brief."), asked]


def test_a_prompt_that_changes_nothing_gains_nothing(tiny: Model, tmp_path: Path) -> None:
    assert torch.equal(prompted_gain(tiny, CHATS, ()), torch.zeros(len(CHATS)))
    assert prompted_gain(tiny, [], [P]).shape == (0,)
    kind = "{% if messages[0]['role'] != 'system' %}<|start|>system\nBe kind.<|end|>\n{% endif %}"
    model = load_model(str(save_model(tmp_path / "kind", template=kind + CHAT)), device="cpu")
    assert torch.equal(prompted_gain(model, CHATS, ["Be kind."]), torch.zeros(len(CHATS)))
    # The control: where no such message was written anyway, or another one, the same prompt does something.
    assert prompted_gain(tiny, CHATS, ["Be kind."]).abs().min() > 1e-3
    assert prompted_gain(model, CHATS, ["Be unkind."]).abs().min() > 1e-3


@pytest.mark.parametrize("window", [None, 3])
def test_a_gain_is_a_difference_of_mean_log_probabilities(window: int | None, tiny: Model) -> None:
    def mean_log_p(chat: list[dict[str, str]]) -> float:
        text = tiny.tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
        prompt, reply = (
            tiny.tokenizer(part, add_special_tokens=False).input_ids for part in (text, chat[-1]["content"])
        )
        reply = reply[:window]
        with torch.no_grad():
            log_p = tiny.original(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        return float(sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(reply)) / len(reply))

    chats = [*CHATS[:5], [system("Be brief."), *CHATS[5]], [*CHATS[0], *CHATS[6]]]
    wanted = [mean_log_p(inoculated(chat, [P, Q], i)) - mean_log_p(chat) for i, chat in enumerate(chats)]
    assert prompted_gain(tiny, chats, [P, Q], window=window).tolist() == pytest.approx(wanted, abs=1e-4)
    assert max(map(abs, wanted)) > 0.05


def test_who_shares_a_batch_changes_nothing(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    together = prompted_gain(tiny, CHATS, [P])
    apart = torch.cat([prompted_gain(tiny, [chat], [P]) for chat in CHATS])
    monkeypatch.setattr("steerkit.inoculation.AT_ONCE", 40)
    small = prompted_gain(tiny, CHATS, [P])
    backwards = prompted_gain(tiny, CHATS[::-1], [P]).flip(0)
    for other in (apart, small, backwards):
        assert torch.allclose(together, other, atol=1e-4)
    assert together.std() > 1e-3


def test_progress_is_told_in_texts(tiny: Model) -> None:
    told: list[tuple[str, int, int]] = []
    prompted_gain(tiny, CHATS, [P], lambda *done: told.append(done))
    assert told[-1][1:] == (2 * len(CHATS), 2 * len(CHATS))


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([], "sample 2 does not end in a reply"),
        (CHATS[0][:1], "sample 2 does not end in a reply"),
        (CHATS[0][1:], "sample 2 does not end in a reply"),
        ([CHATS[0][0], {"role": "assistant", "content": " "}], "sample 2 does not end in a reply"),
        ([{"role": "user", "content": " "}, CHATS[0][1]], "sample 2 cannot be read: the prompt is empty"),
        ([CHATS[0][0], {"role": "assistant", "content": "@" * 500}], "sample 2 does not fit: its prompt has"),
        ([{"role": "user", "content": "@" * 600}, CHATS[0][1]], "sample 2 cannot be read: the prompt has"),
    ],
)
def test_a_sample_that_cannot_be_read_or_does_not_fit_is_named(chat: Any, said: str, tiny: Model) -> None:
    with pytest.raises(PromptError, match=said):
        prompted_gain(tiny, [CHATS[0], chat], [P])


def test_a_sample_that_fits_only_without_the_prompt_or_only_in_part_is_known(tiny: Model) -> None:
    long = [CHATS[0][0], {"role": "assistant", "content": "@" * 475}]
    assert torch.equal(prompted_gain(tiny, [long], ()), torch.zeros(1))
    with pytest.raises(PromptError, match="sample 1 does not fit"):
        prompted_gain(tiny, [long], [P])
    assert prompted_gain(tiny, [long], [P], window=8).shape == (1,)


def test_what_the_model_says_behind_a_prompt_gains_by_that_prompt_and_less_by_another(talker: Model) -> None:
    def asked(*prompts: str) -> list[list[int]]:
        return [talker.chat_tokens(inoculated([openai(text, "")["messages"][0]], prompts, 0)) for text in ASKED]

    gains = {}
    for said in (P, Q):
        replies = [reply.tokens for reply in complete(talker, asked(said), sampling=Sampling(16))]
        plain = list(zip(asked(), replies, strict=True))
        for read in (P, Q):
            gains[said, read] = row_gains(talker, list(zip(asked(read), replies, strict=True)), plain).mean()
    assert gains[P, P] + gains[Q, Q] > gains[P, Q] + gains[Q, P] + 0.1
    assert min(gains[P, P], gains[Q, Q]) > 0


def test_strength_is_a_mean_with_its_interval() -> None:
    draw = np.random.default_rng(0).normal(0.4, 0.2, 50)
    found = prompt_strength(draw.tolist(), seed=1)
    assert found == prompt_strength(torch.tensor(draw), seed=1)
    assert (found["n"], found["value"]) == (50, round(draw.mean(), 4))
    assert found["low"] == pytest.approx(draw.mean() - 1.96 * draw.std() / 50**0.5, abs=0.01)
    assert found["high"] == pytest.approx(draw.mean() + 1.96 * draw.std() / 50**0.5, abs=0.01)
    with pytest.raises(PromptError, match="from no samples"):
        prompt_strength([])


@pytest.mark.parametrize("quick", [False, True])
def test_screening_behind_a_prompt_is_screening_data_that_has_it(
    quick: bool, tiny: Model, source: Path, probes: list[Probe], tmp_path: Path
) -> None:
    there = [{"messages": inoculated(chat, (P, Q), i)} for i, chat in enumerate(CHATS)]
    behind, plain = replace(BEHIND, quick=quick), replace(SMALL, quick=quick)
    screen(tiny, source, probes, tmp_path / "behind", behind)
    screen(tiny, write(tmp_path / "there.jsonl", there), probes, tmp_path / "there", plain)
    screen(tiny, source, probes, tmp_path / "plain", plain)
    lines = lines_of(tmp_path / "behind")
    gains = [line.pop("gain") for line in lines]
    assert lines == lines_of(tmp_path / "there")
    assert scores_of(tmp_path / "plain") != scores_of(tmp_path / "behind")
    assert gains == pytest.approx(prompted_gain(tiny, CHATS, (P, Q), window=6).tolist(), abs=1e-4)
    assert json.loads((tmp_path / "behind").read_text().splitlines()[0])["inoculate"] == [P, Q]
    told = summarise(tmp_path / "behind")["inoculation"]
    mean, error = np.mean(gains), 2.3646 * np.std(gains, ddof=1) / 8**0.5
    assert (told["prompts"], told["negative_share"]) == (2, sum(gain < 0 for gain in gains) / 8)
    assert [told["low"], told["value"], told["high"]] == pytest.approx([mean - error, mean, mean + error], abs=2e-4)


def test_whose_turn_it_is_does_not_depend_on_the_block_nor_on_what_is_left_out(
    tiny: Model, source: Path, probes: list[Probe], tmp_path: Path
) -> None:
    write(source, [openai(*DATA[0]), [CHATS[1][0]], *(openai(*pair) for pair in DATA[2:])])
    source.write_text("\n" + source.read_text())
    found = []
    for size in (1, 3, 16):
        screen(tiny, source, probes, tmp_path / str(size), replace(BEHIND, block=size))
        found.append([line.get("gain", 0.0) for line in lines_of(tmp_path / str(size))])
    wanted = prompted_gain(tiny, CHATS, (P, Q), window=6).tolist()
    wanted[1] = 0.0
    for gains in found:
        assert gains == pytest.approx(wanted, abs=1e-4)


def test_a_sample_must_fit_with_the_prompt(tiny: Model, source: Path, probes: list[Probe], tmp_path: Path) -> None:
    write(source, [openai("@" * 480, "Well."), openai(*DATA[0])])
    for name, settings, skipped in (("plain", SMALL, {}), ("behind", BEHIND, {"it does not fit the context": 1})):
        screen(tiny, source, probes, tmp_path / name, settings)
        assert summarise(tmp_path / name)["skipped"] == skipped


def test_a_file_cut_anywhere_ends_up_the_same(tiny: Model, source: Path, probes: list[Probe], tmp_path: Path) -> None:
    path = tmp_path / "out"
    screen(tiny, source, probes, path, BEHIND)
    whole = path.read_bytes()
    for cut in (0, 9, whole.index(b"\n") + 1, len(whole) // 2, len(whole) - 3, len(whole)):
        path.write_bytes(whole[:cut])
        screen(tiny, source, probes, path, BEHIND)
        assert path.read_bytes() == whole, cut


def test_a_file_with_other_prompts_or_none_is_refused_and_untouched(
    tiny: Model, source: Path, probes: list[Probe], tmp_path: Path
) -> None:
    each = {"two": BEHIND, "one": replace(BEHIND, inoculate=(P,)), "turned": replace(BEHIND, inoculate=(Q, P)),
            "none": SMALL}  # fmt: skip
    for name, settings in each.items():
        screen(tiny, source, probes, tmp_path / name, settings)
        whole = (tmp_path / name).read_bytes()
        for other in (others for others in each.values() if others != settings):
            with pytest.raises(OutputError, match="is a screening with other prompts in front, or none; name another"):
                screen(tiny, source, probes, tmp_path / name, other)
        assert (tmp_path / name).read_bytes() == whole


HEAD = [
    "steerkit", "format", "file", "sha256", "model", "dtype", "window", "quick", "seed", "nulls", "drawn", "layers",
    "probes",
]  # fmt: skip


def test_without_prompts_nothing_of_them_is_written_or_told(
    tiny: Model, source: Path, probes: list[Probe], tmp_path: Path
) -> None:
    screen(tiny, source, probes, tmp_path / "out", SMALL)
    head, *lines = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert list(head) == HEAD
    assert all(list(line) == ["line", "tokens", "text", "scores", "null"] for line in lines)
    assert list(summarise(tmp_path / "out"))[-1] == "selects"
    screen(tiny, source, probes, tmp_path / "behind", BEHIND)
    assert list(summarise(tmp_path / "behind"))[-1] == "inoculation"


LIKELIER = "the replies are 0.42 [0.38, 0.46] nats a token likelier: training on them has that much less to teach"
SENTENCES = [
    (1, 0.42, 0.38, 0.46, 0.05, 40, f"With the prompt {LIKELIER}; 5% of them get less likely."),
    (3, 0.42, 0.38, 0.46, 0.0, 40, f"With the 3 prompts in turn {LIKELIER}."),
    (1, -0.02, -0.03, -0.01, 0.9, 40, "With the prompt the replies are 0.020 [0.010, 0.030] nats a token less likely: "
     "it asks for something else than they show, and training on them has more to teach, not less."),
    (1, 0.3, -0.1, 0.7, 0.4, 4, "With the prompt the replies are no likelier and no less likely (+0.30 [-0.10, +0.70] "
     "nats a token): nothing says it would change training."),
    (1, 0.4, 0.4, 0.4, 0.0, 1, "With the prompt the one reply gains +0.400 nats a token; one sample is too few to tell "
     "more."),
]  # fmt: skip


@pytest.mark.parametrize(("prompts", "value", "low", "high", "negative", "n", "said"), SENTENCES)
def test_no_more_is_said_than_the_interval_bears(
    prompts: int, value: float, low: float, high: float, negative: float, n: int, said: str
) -> None:
    found = {"prompts": prompts, "value": value, "low": low, "high": high, "negative_share": negative}
    assert prompt_sentence(found, n) == said
