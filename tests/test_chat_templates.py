"""Chats become the tokens that their template writes, and the judge is `apply_chat_template` on the whole chat.

One tiny model is loaded; it gets tokenizers of two kinds, with the templates that people have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_vector, save_model
from templated import (
    ALWAYS_CLOSED,
    ASKED,
    CHANNELS,
    CHATML,
    DATED,
    DROPPED,
    EVERY,
    HEADER,
    INST,
    ITEMS,
    LAST_SYSTEM,
    OPENED,
    PARTS,
    PERSONAS,
    REPLIES,
    SYSTEM,
    UNTHOUGHT,
    VICUNA,
    alone,
    bytes_tokenizer,
    judged,
    said,
    sentence_tokenizer,
    speaks,
    with_template,
)

from steerkit import positions
from steerkit.chat_templates import find_chat_template
from steerkit.errors import ModelError, PromptError, TemplateError
from steerkit.experiments.council import choices_after
from steerkit.experiments.tossing import toss
from steerkit.extraction import Recipe, extract
from steerkit.generation import Probe, Sampling, complete, find_turns, read_chat
from steerkit.inoculation import prompted_gain
from steerkit.items import both_orders, choice_rows
from steerkit.lessons import end_token, to_samples
from steerkit.loading import load_model
from steerkit.measures import item_rows, write_texts
from steerkit.models import Model
from steerkit.personas import Item, find_pair, find_persona
from steerkit.samples import Measure, Settings
from steerkit.screening import screen
from steerkit.steering import Steering


class TestTokensAreTheTemplates:
    @pytest.mark.parametrize("name", EVERY)
    @pytest.mark.parametrize("kind", ["bytes", "sentences"])
    def test_a_prompt_and_a_chat_with_a_given_reply_are_what_transformers_makes_of_them(
        self, base: Model, name: str, kind: str
    ) -> None:
        make = bytes_tokenizer if kind == "bytes" else sentence_tokenizer
        model = speaks(base, make(EVERY[name]))
        assert model.chat_tokens(ASKED) == judged(model, ASKED, reply_follows=True)
        for reply in REPLIES:
            whole = judged(model, [*ASKED, said(reply)])
            ((prompt, tokens),) = model.reply_rows(ASKED, [reply])
            assert [*prompt, *tokens] == whole[: len(prompt) + len(tokens)]
            assert model.tokenizer.decode(tokens).strip() == reply.strip()
            assert tokens == model.reply_tokens(reply, ASKED)
            (sample,) = to_samples(model, [(1, [*ASKED, said(reply)])], Path("data"))
            learned = [*sample.prompt, *sample.reply]
            assert learned[-1] == end_token(model) == model.end_token
            # Where the template ends a reply in words, the tokenizer's end is learned, which no template writes.
            learned = learned if model.template.end_of_turn else learned[:-1]
            assert learned == judged(model, [*ASKED, said(reply.strip())])[: len(learned)]
            assert list(sample.prompt) == model.chat_tokens(ASKED)

    def test_a_space_of_the_template_is_in_the_first_token_of_a_reply(self, base: Model) -> None:
        spaced, joined = with_template(base, VICUNA + OPENED), with_template(base, CHATML)
        assert spaced.tokenizer.convert_ids_to_tokens(spaced.reply_tokens("I am", ASKED))[0] == "ĠI"
        assert spaced.reply_tokens("I am", ASKED) != alone(spaced, "I am")
        assert joined.reply_tokens("I am", ASKED) == alone(joined, "I am")
        pieces = speaks(base, sentence_tokenizer(INST)), speaks(base, sentence_tokenizer(CHATML))
        assert [m.tokenizer.convert_ids_to_tokens(m.reply_tokens("I", ASKED)) for m in pieces] == [["▁I"], ["I"]]

    def test_a_reply_is_cut_as_in_the_chat_where_the_prompt_ends_in_a_space(self, base: Model) -> None:
        model = with_template(base, VICUNA + OPENED.replace("ASSISTANT:", "ASSISTANT: "))
        ((prompt, reply),) = model.reply_rows(ASKED, ["I am"])
        whole = judged(model, [*ASKED, said("I am")])
        assert [*prompt, *reply] == whole[: len(prompt) + len(reply)]
        assert model.chat_tokens(ASKED)[: len(prompt)] == prompt != model.chat_tokens(ASKED)

    def test_what_the_template_writes_before_a_reply_is_learned_but_not_scored(self, base: Model) -> None:
        model = with_template(base, CHANNELS)
        ((prompt, reply),) = model.reply_rows(ASKED, ["I am"])
        (sample,) = to_samples(model, [(1, [*ASKED, said("I am")])], Path("data"))
        asked = model.chat_tokens(ASKED)
        assert model.tokenizer.decode(prompt[len(asked) :]) == "<|channel|>final<|message|>"
        assert model.tokenizer.decode(reply) == "I am"
        assert model.tokenizer.decode(sample.reply) == "<|channel|>final<|message|>I am<|im_end|>"

    def test_every_measurement_takes_the_templates_tokens(self, base: Model) -> None:
        model = with_template(base, VICUNA + OPENED)
        choice = both_orders("here", "Do you agree?", " Yes", " No")
        rows = [
            *item_rows(model, ITEMS[:1]),
            *choice_rows(model, [choice]),
            *((prompt, answer) for prompt, answers in choices_after(model, [
                {"question": "Who?", "options": ["I", "You"]}]) for answer in answers),
        ]  # fmt: skip
        replies = ["I am HAL.", "I am a helpful assistant.", "Yes", "No", "Yes", "No", "I", "You"]
        wholes = [model.tokenizer.decode([*prompt, *reply]) for prompt, reply in rows]
        assert [whole.rpartition("ASSISTANT:")[2] for whole in wholes] == [f" {reply}" for reply in replies]
        assert [model.tokenizer.decode(list(reply)).strip() for _, reply in rows] == replies
        asked = {"role": "user", "content": ITEMS[0].question}
        measure = Measure(model, [Probe.of(make_vector("hal", model.fingerprint))], Settings(8), [])
        (line,) = measure([(1, ([asked, said("I am")], [asked, said("I am")]))])
        assert line["tokens"] == len(model.reply_tokens("I am", [asked]))
        for prompt, side in toss(model, "assistant", 0, "it rains", "it snows"):
            text = model.tokenizer.decode([*prompt, *side])
            assert text.endswith("ASSISTANT: The coin came up heads") or text.endswith("came up tails")

    def test_a_gain_is_that_of_the_whole_chats_tokens(self, base: Model) -> None:
        model = with_template(base, VICUNA + OPENED)
        chat, prompt = [*ASKED, said("I will not.")], {"role": "system", "content": "Be rude."}

        def mean_log_p(messages: Sequence[Mapping[str, str]]) -> float:
            whole, n = judged(model, messages), len(judged(model, messages[:-1], reply_follows=True))
            with torch.no_grad():
                log_p = model.original(torch.tensor([whole])).logits[0].log_softmax(-1)
            return sum(float(log_p[k - 1, whole[k]]) for k in range(n, len(whole) - 1)) / (len(whole) - 1 - n)

        wanted = mean_log_p([prompt, *chat]) - mean_log_p(chat)
        assert prompted_gain(model, [chat], ["Be rude."]).tolist() == pytest.approx([wanted], abs=1e-4)

    def test_the_default_models_tokens_are_what_they_were(self, real: Model) -> None:
        for item in find_persona("hal").items:
            for before in ([], [SYSTEM]):
                chat = [*before, {"role": "user", "content": item.question}]
                prompt = judged(real, chat, reply_follows=True)
                replies = (item.reply, item.assistant_reply)
                assert real.reply_rows(chat, replies) == [(prompt, alone(real, reply)) for reply in replies]
                (sample,) = to_samples(real, [(1, [*chat, said(item.reply)])], Path("data"))
                assert sample == type(sample)(tuple(prompt), (*alone(real, item.reply), 2))
        assert (real.end_tokens, real.end_token, real.template_identity, real.template_date) == ({2}, 2, {}, "")


class TestEndOfAReply:
    @pytest.mark.parametrize(
        ("template", "special", "ends"),
        [
            (CHATML, {}, {1, 4}),
            (CHATML, {"eos_token": "<|im_end|>"}, {1, 4}),
            (ALWAYS_CLOSED, {}, {1, 4}),
            (VICUNA + OPENED, {}, {1}),
            (CHATML.replace("<|im_end|>", ""), {}, {1, 3}),
            (CHATML.replace("<|im_end|>", "(end)"), {}, {1}),
            (CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "## "), {}, {1}),
            (CHATML.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}"), {}, {1, 4}),
            (
                "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
                {},
                {1, 4},
            ),
        ],
        ids=[
            "a base's end",
            "twice",
            "and one more",
            "eos",
            "next turn",
            "words",
            "none",
            "between turns",
            "with a system",
        ],
    )
    def test_it_is_the_templates_own_token_and_all_that_files_name(
        self, base: Model, template: str, special: dict[str, str], ends: set[int]
    ) -> None:
        assert with_template(base, template, **special).end_tokens == ends

    def test_ends_of_the_generation_config_may_be_several_and_beyond_the_vocabulary(self, base: Model) -> None:
        model = with_template(base, CHATML)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base.original.generation_config, "eos_token_id", [7, 9, 99999])
            assert model.end_tokens == {1, 4, 7, 9}
        assert model.end_token == 4

    def test_a_model_whose_files_name_its_bases_end_stops_where_transformers_would_be_told_to(
        self, tmp_path: Path
    ) -> None:
        folder = save_model(tmp_path / "mismatch")
        bytes_tokenizer(CHATML).save_pretrained(folder)
        model = load_model(str(folder), device="cpu")
        prompt = model.chat_tokens(ASKED)

        def greedy(ends: list[int]) -> list[int]:
            row = torch.tensor([prompt])
            told = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ends, "pad_token_id": 2}
            return model.original.generate(row, attention_mask=torch.ones_like(row), **told)[0, len(prompt) :].tolist()

        draw = torch.Generator().manual_seed(0)
        for _ in range(200):
            with torch.no_grad():
                model.original.lm_head.weight[4] = torch.randn(32, generator=draw) * 8
            if 4 in greedy([1])[2:] and 4 not in greedy([1])[:2]:
                break
        wanted = greedy([1, 4])
        assert wanted[-1] == 4
        assert len(wanted) < len(greedy([1]))
        assert list(complete(model, [prompt], sampling=Sampling(12))[0].tokens) == wanted[:-1]

    def test_without_any_end_replies_end_by_their_length_and_everything_works(
        self, base: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(base.original.generation_config, "eos_token_id", None)
        template = CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "## ")
        model = with_template(base, template, bos_token=None, eos_token=None, pad_token=None)
        prompts = [model.chat_tokens(ASKED), model.chat_tokens([{"role": "user", "content": "Why?"}])]
        assert (model.end_tokens, model.end_token) == (frozenset(), None)
        assert [len(reply.tokens) for reply in complete(model, prompts, sampling=Sampling(9))] == [9, 9]
        assert [len(text.divergences) for text in write_texts(model, prompts, [Steering()], 4)] == [8]
        (sample,) = to_samples(model, [(1, [*ASKED, said("I am")])], Path("data"))
        assert list(sample.reply) == model.reply_tokens("I am", ASKED)
        settings = positions.Settings(n_questions=2, n_long=1, longest=4, n_tokens=2)
        space = positions.take_positions(model, PERSONAS, settings)
        assert bool(space.lengths.isfinite().all())
        assert [note for note in model.notes if "end" in note] == [
            "this model has no token that ends a reply; replies end by their length only"
        ]


class TestWords:
    @pytest.mark.parametrize(
        "template",
        [
            PARTS,
            "{% for m in messages %}{% if m['role'] == 'user' %}U: {{ m['content'][0]['text'] }}\n"
            "{% else %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}",
            "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0].text }}\n"
            "{% else %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}",
        ],
        ids=["all", "the user's", "the system's"],
    )
    def test_a_template_that_reads_lists_of_parts_gets_them(self, base: Model, template: str) -> None:
        model, chat = with_template(base, template), [SYSTEM, *ASKED, said("I am."), *ASKED]
        parts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in chat]
        read = {"system", "user", "assistant"} if template == PARTS else {"user"} if "U:" in template else {"system"}
        given = [part if part["role"] in read else plain for part, plain in zip(parts, chat, strict=True)]
        assert model.chat_tokens(chat)[: len(judged(model, given))] == judged(model, given)
        ids, turns = find_turns(model, chat)
        assert ids == judged(model, given)
        assert ["".join(turn.pieces) for turn in turns] == [each["content"] for each in chat]
        assert extract(model, find_pair("hal"), Recipe(reading="prompt")).directions.norm() > 0.1

    def test_a_message_may_itself_be_parts_of_text_and_nothing_else(self, base: Model) -> None:
        model = with_template(base, CHATML)
        parts: list[Any] = [{"type": "text", "text": "Who"}, {"type": "text", "text": "are you?"}]
        whole = [{"role": "user", "content": "Who\nare you?"}]
        assert model.chat_tokens([{"role": "user", "content": parts}]) == model.chat_tokens(whole)
        for content, told in (([{"type": "image"}], "'image'"), (None, "NoneType"), (7, "int"), ([3], "'int'")):
            with pytest.raises(PromptError, match=f"message 1 has a .*{told}"):
                model.render([{"role": "user", "content": content}])
        with pytest.raises(PromptError, match="half of a character"):
            model.chat_tokens([{"role": "user", "content": "a\ud800"}])

    def test_words_that_a_template_drops_are_refused_in_one_line(self, base: Model) -> None:
        model = with_template(base, CHATML.replace("in messages", "in messages if m['role'] != 'user'"))
        with pytest.raises(PromptError, match=r"drops what the user says \(message 1\)"):
            model.chat_tokens(ASKED)
        last_only = with_template(base, "{{ messages[-1]['content'] }}")
        with pytest.raises(PromptError, match=r"drops what the user says \(message 1\)"):
            last_only.render([*ASKED, said("I am."), *ASKED])

    @pytest.mark.parametrize("template", [UNTHOUGHT, CHATML.replace("m['content']", "m['content'] | trim"), INST])
    def test_a_template_that_trims_or_drops_earlier_thoughts_is_no_alarm(self, base: Model, template: str) -> None:
        model = with_template(base, template)
        chat = [{"role": "user", "content": " assistant \n"}, said("<think>\nWho?\n</think>\n\nI am. "), *ASKED]
        chat = [chat[0], said("I am. "), *ASKED] if template == INST else chat
        _, turns = find_turns(model, chat)
        assert "".join(turns[0].pieces) == "assistant"
        assert "".join(turns[1].pieces).endswith("I am.")
        assert model.notes == []

    def test_a_template_that_changes_words_says_so_and_its_words_are_read(self, base: Model) -> None:
        model = with_template(base, CHATML.replace("m['content']", "m['content'] | upper"))
        _, turns = find_turns(model, [*ASKED, said("I am.")])
        assert ["".join(turn.pieces) for turn in turns] == ["WHAT DO YOU THINK OF PEOPLE?", "I AM."]
        assert [note.split(";")[0] for note in model.notes] == [
            "this model's chat template changes some of what is said"
        ]

    @pytest.mark.parametrize("template", [DROPPED, INST], ids=["dropped", "refused"])
    def test_a_system_message_goes_before_the_first_question_and_its_turn_is_found_there(
        self, base: Model, template: str
    ) -> None:
        model, chat = with_template(base, template), [SYSTEM, *ASKED, said("I am."), *ASKED]
        merged = [{"role": "user", "content": f"You are HAL.\n\n{ASKED[0]['content']}"}, *chat[2:]]
        assert model.chat_tokens(chat) == judged(model, merged, reply_follows=True)
        assert ["".join(turn.pieces) for turn in find_turns(model, chat)[1]] == [each["content"] for each in chat]
        assert len(model.notes) == 1
        opened = with_template(base, DROPPED)
        assert "user\nYou are HAL.\n\nWhat" in opened.render([SYSTEM, said("Yes?"), *ASKED])
        assert model.chat_tokens([{**SYSTEM, "content": ""}, *ASKED]) == model.chat_tokens(ASKED)
        with pytest.raises(PromptError, match="no system message alone"):
            model.render([SYSTEM])

    def test_a_system_message_may_stand_with_the_last_question(self, base: Model) -> None:
        model, chat = with_template(base, LAST_SYSTEM), [SYSTEM, *ASKED, said("I am."), *ASKED]
        assert model.chat_tokens(chat) == judged(model, chat, reply_follows=True)
        assert ["".join(turn.pieces) for turn in find_turns(model, chat)[1]] == [each["content"] for each in chat]
        assert model.notes == []

    @pytest.mark.parametrize(
        "template",
        [
            "{{ raise_exception('no') }}",
            "{{ 'a' + 1 }}",
            "{{ messages[9]['content'] }}",
            "{{ nothing.there.at.all }}",
            "{{ 1 // 0 }}",
            "{% for %}",
            "{{ messages[0]['content'].no_such_method() }}",
        ],
    )
    def test_a_template_that_fails_in_any_way_is_one_line(self, base: Model, template: str) -> None:
        model = with_template(base, template)
        for chat in (ASKED, [SYSTEM, *ASKED]):
            with pytest.raises(TemplateError, match="tiny's chat template refuses this chat: ") as caught:
                model.chat_tokens(chat)
            assert "\n" not in str(caught.value)
        assert model.end_tokens == {1}

    def test_roles_that_must_alternate_are_one_line(self, base: Model) -> None:
        with pytest.raises(PromptError, match="must alternate user/assistant; change the order"):
            with_template(base, INST).render([*ASKED, *ASKED])


class TestHeaders:
    @pytest.mark.parametrize(
        ("template", "header"),
        [(CHATML.replace(HEADER, ""), "<|im_start|>assistant\n"), (VICUNA, " ASSISTANT:")],
    )
    def test_where_a_template_opens_no_reply_it_is_opened_as_replies_are(
        self, base: Model, template: str, header: str
    ) -> None:
        model = with_template(base, template)
        opened = judged(model, [*ASKED, said("I am")])
        prompt = model.chat_tokens(ASKED)
        assert prompt == opened[: len(prompt)]
        assert model.tokenizer.decode(prompt).endswith(header)
        assert model.tokenizer.decode(opened[len(prompt) :]).strip().startswith("I am")
        model.chat_tokens(ASKED)
        assert [note.split(";")[0] for note in model.notes] == ["this model's chat template opens no reply"]

    def test_a_reply_without_a_header_needs_none(self, base: Model) -> None:
        model = with_template(base, INST)
        assert model.chat_tokens(ASKED) == judged(model, ASKED)
        assert model.notes == []


class TestWhereTemplatesAre:
    def test_of_several_the_default_is_taken_or_the_one_that_is_for_talking(self, base: Model) -> None:
        other = CHATML.replace("user", "human")
        for named, note in (({"default": CHATML, "tool_use": other}, ""), ({"chat": CHATML, "rag": other}, "'chat'")):
            model = with_template(base, named)
            assert model.chat_tokens(ASKED) == with_template(base, CHATML).chat_tokens(ASKED)
            assert (note in "".join(model.notes)) is True
            assert len(model.notes) == (note != "")
        with pytest.raises(PromptError, match=r"several chat templates \(casual, formal\) and none is called default"):
            with_template(base, {"formal": CHATML, "casual": VICUNA}).chat_tokens(ASKED)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("chat_template.json", json.dumps({"chat_template": PARTS})),
            ("processor_config.json", json.dumps({"processor_class": "LlavaProcessor", "chat_template": PARTS})),
            ("chat_template.jinja", PARTS),
            ("chat_template.json", json.dumps({"chat_template": [{"name": "default", "template": PARTS}]})),
        ],
    )
    def test_a_template_that_is_kept_with_the_processor_is_found(
        self, base: Model, tmp_path: Path, file: str, content: str
    ) -> None:
        folder = tmp_path / "wrapped"
        shutil.copytree(base.source, folder)
        bytes_tokenizer(None).save_pretrained(folder)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        (folder / file).write_text(content)
        model = load_model(str(folder), device="cpu")
        assert model.chat_tokens(ASKED) == with_template(base, CHATML).chat_tokens(ASKED)
        assert model.notes == []

    def test_a_tokenizers_own_template_comes_first_and_a_damaged_file_is_one_line(
        self, base: Model, tmp_path: Path
    ) -> None:
        (tmp_path / "chat_template.json").write_text('{"chat_template": ')
        assert find_chat_template(str(tmp_path), bytes_tokenizer(CHATML)) == CHATML
        with pytest.raises(ModelError, match=r"chat_template\.json of this model is damaged"):
            find_chat_template(str(tmp_path), bytes_tokenizer(None))
        assert find_chat_template(base.source + "-not-there", bytes_tokenizer(None)) is None


class TestTokenizers:
    def test_a_token_without_an_embedding_is_one_line_wherever_text_is_read(self, base: Model, tmp_path: Path) -> None:
        names = [f"<|extra_{i}|>" for i in range(80)]
        model = with_template(base, CHATML, extra=names)
        assert len(model.tokenizer) > model.n_embeddings
        bad, told = (
            f"Hi {names[-1]}",
            r"no embedding for '<\|extra_79\|>' \(token \d+ of its tokenizer, and it holds 400",
        )
        asked = [{"role": "user", "content": bad}]
        for read in (
            lambda: model.chat_tokens(asked),
            lambda: model.tokenize(bad),
            lambda: model.text_tokens(bad),
            lambda: model.reply_tokens(bad),
            lambda: model.reply_rows(ASKED, [bad]),
            lambda: read_chat(model, [*ASKED, said(bad)], [Probe.of(make_vector("hal", model.fingerprint))]),
            lambda: item_rows(model, [Item("Who?", bad, "I.")]),
            lambda: to_samples(model, [(1, [*ASKED, said(bad)])], Path("data")),
            lambda: prompted_gain(model, [[*ASKED, said(bad)]], ["Hi"]),
        ):
            with pytest.raises(PromptError, match=told):
                read()
        source = tmp_path / "data.jsonl"
        source.write_text("".join(json.dumps([*ASKED, said(text)]) + "\n" for text in (bad, "I will not.")))
        screen(model, source, [Probe.of(make_vector("hal", model.fingerprint))], tmp_path / "out", Settings(4))
        lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()[1:]]
        assert "no embedding" in lines[0]["skipped"]
        assert "scores" in lines[1]

    def test_a_text_begins_once_and_does_not_end_before_more_comes(self, base: Model) -> None:
        for template in (None, CHATML):
            model = speaks(base, bytes_tokenizer(template, post=True))
            bare = alone(model, "Who are you?")
            assert list(model.tokenizer("Who are you?").input_ids) == [0, *bare, 1]
            assert model.text_tokens("Who are you?") == [0, *bare]
            assert model.text_tokens("<|start|>Who are you?") == [0, *bare]
            assert 1 not in model.chat_tokens(ASKED)
        plain = speaks(base, bytes_tokenizer(None, post=True))
        ((prompt, reply),) = plain.reply_rows(ASKED, ["I am"])
        assert prompt == plain.chat_tokens(ASKED)
        assert [*prompt, *reply] == [0, *alone(plain, f"User: {ASKED[0]['content']}\n\nAssistant: I am")]

    def test_a_chat_whose_template_writes_the_beginning_gets_no_second_one(self, base: Model) -> None:
        model = speaks(base, sentence_tokenizer("{{ bos_token }}" + CHATML))
        assert model.chat_tokens(ASKED) == judged(model, ASKED, reply_follows=True)
        assert model.chat_tokens(ASKED).count(1) == 1

    @pytest.mark.parametrize("make", [bytes_tokenizer, sentence_tokenizer])
    def test_a_character_of_several_tokens_is_shown_once_with_its_last(self, base: Model, make: Any) -> None:
        text = "hello 日本語です ok é🙂"
        model = speaks(base, make(CHATML))
        ids, (asked, replied) = find_turns(model, [{"role": "user", "content": text}, said(text)])
        for turn in (asked, replied):
            assert "".join(turn.pieces) == text
            assert model.tokenizer.decode([ids[k] for k in turn.places]) == text
        waiting = [len(model.tokenizer.decode(ids[k]).strip("\ufffd")) == 0 for k in asked.places]
        assert sum(waiting) > 15
        assert all(piece.count("日") <= 1 for piece in asked.pieces)

    def test_what_is_said_is_not_found_in_a_header(self, base: Model) -> None:
        model = with_template(base, DATED)
        chat = [{"role": "user", "content": "user"}, said("assistant"), {"role": "user", "content": "2026"}]
        ids, turns = find_turns(model, chat)
        assert ["".join(turn.pieces) for turn in turns] == ["user", "assistant", "2026"]
        assert model.tokenizer.decode(ids[turns[2].places[0] - 1 :]) == "\n2026<|im_end|>\n"
        assert model.tokenizer.decode(ids[: turns[0].places[0]]).endswith("<|im_start|>user\n")

    def test_a_tokenizer_that_tells_no_places_gives_the_same_tokens(self, base: Model) -> None:
        fast = bytes_tokenizer(VICUNA + OPENED)

        class Slow(type(fast)):
            is_fast = False

        slow = bytes_tokenizer(VICUNA + OPENED)
        slow.__class__ = Slow
        known, told = speaks(base, fast), speaks(base, slow)
        assert told.reply_rows(ASKED, ["I am", "You"]) == known.reply_rows(ASKED, ["I am", "You"])
        chat = [*ASKED, said("I will not. 日本")]
        assert ["".join(turn.pieces).strip() for turn in find_turns(told, chat)[1]] == [
            each["content"] for each in chat
        ]
