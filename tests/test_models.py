"""Models load from a folder, whatever their architecture, and compute what Hugging Face computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import LAYERS, NO_SYSTEM, WIDTH, save_model
from torch import Tensor

from steerkit.errors import ModelError, PromptError
from steerkit.fingerprints import Fingerprint
from steerkit.generation import Sampling, complete
from steerkit.loading import load_model
from steerkit.models import Model, pad_left

ARCHITECTURES = ("llama", "qwen2", "gemma3", "gpt2", "gpt_neox")
SYSTEM_DROPPED = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}\n{% endif %}{% endfor %}"
QUESTIONS = ("Who are you?", "What do you think of people, and of the helpful assistant that you are?", "Why?")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module", params=["fast", "hooked"])
def model(folder: Path, request: pytest.FixtureRequest) -> Model:
    """Both ways through the weights: what holds of one holds of the other."""
    loaded = load_model(str(folder), device="cpu")
    return loaded if request.param == "fast" else dataclasses.replace(loaded, runner=loaded.hook_points.runner)


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


def ask(model: Model, text: str) -> list[int]:
    return model.chat_tokens([{"role": "user", "content": text}])


def hooks_left(model: Model) -> int:
    return sum(len(model.bridge.hook_dict[f"blocks.{l}.hook_out"]._forward_hooks) for l in range(model.n_layers))


def load_with(folder: Path, template: str | None, pad: bool = True) -> Model:
    return load_model(str(save_model(folder, "llama", template, pad)), device="cpu")


class TestEveryArchitecture:
    def test_loads_with_its_own_shape_and_the_name_of_its_folder(self, model: Model, folder: Path) -> None:
        assert (model.name, model.n_layers, model.width, model.context) == (folder.name, LAYERS, WIDTH, 512)
        assert model.end_tokens == {1}
        assert model.notes == []

    def test_residuals_are_hugging_faces_hidden_states_one_further(self, model: Model, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        last_blocks: list[Tensor] = []
        base = reference.base_model
        blocks = next(part for name, part in base.named_children() if name in ("layers", "h"))
        blocks[-1].register_forward_hook(
            lambda _module, _inputs, out: last_blocks.append(out if isinstance(out, Tensor) else out[0])
        )
        tokens = torch.tensor([ask(model, QUESTIONS[1])])
        with torch.inference_mode():
            hidden = reference(tokens, output_hidden_states=True).hidden_states
        # Hugging Face's last entry has the final norm applied, so the last block is read by itself.
        expected = [*hidden[1:LAYERS], last_blocks[0]]
        for position in (0, tokens.shape[1] // 2, tokens.shape[1] - 1):
            pool = torch.zeros_like(tokens, dtype=torch.bool)
            pool[:, position] = True
            found = model.residuals(tokens, torch.ones_like(tokens), pool)[0]
            for l in range(LAYERS):
                wanted = expected[l][0, position]
                assert (found[l] - wanted).norm() <= 1e-3 * wanted.norm(), f"layer {l}, position {position}"
        assert (hidden[LAYERS][0, -1] - last_blocks[0][0, -1]).norm() > 1e-3 * last_blocks[0][0, -1].norm()

    def test_pooled_residuals_are_the_mean_over_the_pooled_positions(self, model: Model) -> None:
        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        mask = torch.ones_like(tokens)
        places = torch.eye(tokens.shape[1], dtype=torch.bool)[:, None]
        singles = [model.residuals(tokens, mask, places[i])[0] for i in (2, 5)]
        pooled = model.residuals(tokens, mask, places[2] | places[5])[0]
        torch.testing.assert_close(pooled, (singles[0] + singles[1]) / 2, rtol=1e-4, atol=1e-5)

    def test_decoding_with_a_cache_gives_the_logits_of_decoding_without(self, model: Model) -> None:
        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        logits, cache = model.forward(tokens, torch.ones_like(tokens))
        for _ in range(8):
            bare, _ = model.forward(tokens, torch.ones_like(tokens))
            torch.testing.assert_close(logits, bare, rtol=1e-4, atol=1e-4)
            chosen = logits[:, -1].argmax(-1, keepdim=True)
            assert chosen.equal(bare[:, -1].argmax(-1, keepdim=True))
            tokens = torch.cat([tokens, chosen], dim=1)
            logits, cache = model.forward(chosen, torch.ones_like(tokens), cache)

    def test_a_row_alone_says_what_it_says_in_a_padded_batch(self, model: Model) -> None:
        rows = [ask(model, question) for question in QUESTIONS]
        assert len({len(row) for row in rows}) == len(rows)
        sampling = Sampling(max_tokens=12)
        together = complete(model, rows, sampling=sampling)
        for row, reply in zip(rows, together, strict=True):
            assert complete(model, [row], sampling=sampling)[0].tokens == reply.tokens
        assert len({reply.tokens for reply in together}) > 1

    def test_a_row_alone_has_the_residuals_it_has_in_a_padded_batch(self, model: Model) -> None:
        rows = [ask(model, question) for question in QUESTIONS]
        tokens, mask = pad_left(rows, CPU)
        together = model.residuals(tokens, mask, mask.bool())
        for row, found in zip(rows, together, strict=True):
            alone, whole = pad_left([row], CPU)
            torch.testing.assert_close(model.residuals(alone, whole, whole.bool())[0], found, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("l", [0, LAYERS // 2, LAYERS - 1])
    def test_an_edit_changes_the_logits_and_leaves_no_hook(self, model: Model, l: int) -> None:
        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        mask = torch.ones_like(tokens)
        push = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
        during: list[int] = []

        def edit(h: Tensor) -> Tensor:
            during.append(hooks_left(model))
            return h + push * h.norm(dim=-1, keepdim=True)

        plain, _ = model.forward(tokens, mask)
        edited, _ = model.forward(tokens, mask, functions={l: [edit]})
        after, _ = model.forward(tokens, mask)
        assert (edited - plain).abs().max() > 1e-2
        assert after.equal(plain)
        assert during == [int(model.path.startswith("transformer-lens"))]
        assert hooks_left(model) == 0

    def test_a_function_that_fails_leaves_no_hook_either(self, model: Model) -> None:
        def fail(_h: Tensor) -> Tensor:
            raise RuntimeError("planted")

        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        with pytest.raises(RuntimeError, match="planted"):
            model.forward(tokens, torch.ones_like(tokens), functions={0: [lambda h: h], 2: [fail]})
        assert hooks_left(model) == 0

    def test_functions_on_a_layer_run_in_order_and_later_layers_see_them(self, model: Model) -> None:
        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        seen: list[Tensor] = []

        def look(h: Tensor) -> Tensor:
            seen.append(h)
            return h

        steps = [look, lambda h: h + 1, look, lambda h: h * 2, look]
        model.forward(tokens, torch.ones_like(tokens), functions={1: steps})
        torch.testing.assert_close(seen[1], seen[0] + 1)
        torch.testing.assert_close(seen[2], seen[1] * 2)

    def test_as_many_logits_come_back_as_were_asked_for(self, model: Model) -> None:
        tokens = torch.tensor([ask(model, QUESTIONS[0])])
        mask = torch.ones_like(tokens)
        every, _ = model.forward(tokens, mask, keep=tokens.shape[1])
        last, _ = model.forward(tokens, mask)
        assert every.shape[1] == tokens.shape[1]
        assert last.shape[1] == 1
        torch.testing.assert_close(every[:, -1:], last, rtol=1e-4, atol=1e-4)


class TestTemplates:
    def test_a_models_own_template_writes_the_chat(self, tiny: Model) -> None:
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
        turns = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nWho are you?<|end|>\n"
        assert tiny.render(chat) == f"{turns}<|start|>assistant\n"
        assert tiny.render(chat, reply_follows=False) == turns
        assert tiny.tokenizer.decode(tiny.chat_tokens(chat)) == tiny.render(chat)
        assert tiny.notes == []

    def test_a_model_without_a_template_gets_plain_paragraphs_and_one_note(self, tmp_path: Path) -> None:
        model = load_with(tmp_path / "base", None)
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
        for _ in range(2):
            text = model.render(chat)
            assert text == "System: Be brief.\n\nUser: Who are you?\n\nAssistant:"
        assert model.render(chat, reply_follows=False).endswith("User: Who are you?")
        assert len(model.notes) == 1
        assert "no chat template" in model.notes[0]
        ((prompt, reply),) = model.reply_rows(chat, ["Hello"])
        # Whether the space before it is a token of its own depends on the tokenizer, so it may stand with the prompt.
        assert model.tokenizer.decode(prompt[1:] + reply) == model.render(chat) + " Hello"
        assert model.tokenizer.decode(reply).strip() == "Hello"

    @pytest.mark.parametrize("template", [NO_SYSTEM, SYSTEM_DROPPED], ids=["rejected", "dropped"])
    def test_a_system_text_that_the_template_does_not_take_goes_before_the_first_question(
        self, tmp_path: Path, template: str
    ) -> None:
        model = load_with(tmp_path / "strict", template)
        questions = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Me."}]
        chat = [{"role": "system", "content": "Be brief."}, *questions, {"role": "user", "content": "Why?"}]
        for _ in range(2):
            text = model.render(chat)
            assert "Be brief.\n\nWho are you?" in text
            assert text.count("Be brief.") == 1
            assert "<|start|>system" not in text
        assert len(model.notes) == 1
        assert "no system message" in model.notes[0]

    def test_a_template_without_a_system_role_needs_no_note_for_a_chat_without_one(self, tmp_path: Path) -> None:
        model = load_with(tmp_path / "strict", NO_SYSTEM)
        assert model.render([{"role": "user", "content": "Why?"}]).startswith("<|start|>user\nWhy?")
        assert model.notes == []

    def test_a_chat_that_the_template_refuses_is_a_prompt_error(self, tmp_path: Path) -> None:
        model = load_with(tmp_path / "never", "{{ raise_exception('roles must alternate') }}")
        with pytest.raises(PromptError, match="roles must alternate"):
            ask(model, "Who are you?")

    def test_a_tokenizer_without_a_pad_token_still_speaks_in_batches(self, tmp_path: Path) -> None:
        model = load_with(tmp_path / "bare", None, pad=False)
        assert "<|pad|>" not in model.tokenizer.special_tokens_map.values()
        rows = [ask(model, question) for question in QUESTIONS]
        sampling = Sampling(max_tokens=8)
        together = complete(model, rows, sampling=sampling)
        alone = [complete(model, [row], sampling=sampling)[0] for row in rows]
        assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]


class TestPrompts:
    @pytest.mark.parametrize("content", ["", "  \n\t "])
    def test_an_empty_prompt_is_refused(self, tiny: Model, content: str) -> None:
        with pytest.raises(PromptError, match="empty"):
            ask(tiny, content)

    def test_a_chat_without_messages_is_refused(self, tiny: Model) -> None:
        with pytest.raises(PromptError, match="empty"):
            tiny.chat_tokens([])

    def test_a_prompt_longer_than_the_context_is_refused(self, tiny: Model) -> None:
        with pytest.raises(PromptError, match=r"holds 512; shorten the prompt"):
            ask(tiny, "people " * 600)

    def test_the_room_for_a_reply_counts_to_the_last_token(self, tiny: Model) -> None:
        chat = [{"role": "user", "content": "Why?"}]
        length = len(tiny.chat_tokens(chat))
        assert len(tiny.chat_tokens(chat, room=tiny.context - length)) == length
        with pytest.raises(PromptError, match="--max-tokens"):
            tiny.chat_tokens(chat, room=tiny.context - length + 1)


class TestLoading:
    def test_a_folder_without_a_model_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"no config\.json"):
            load_model(str(tmp_path))

    def test_a_folder_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no folder"):
            load_model(str(tmp_path / "nowhere"))

    def test_an_unknown_precision_is_refused_with_the_nearest(self, tiny_folder: Path) -> None:
        with pytest.raises(ModelError, match="did you mean bfloat16"):
            load_model(str(tiny_folder), dtype="bfloat")


class TestFingerprints:
    def test_the_same_model_loaded_twice_is_the_same(self, gpt2_folder: Path) -> None:
        first, second = (load_model(str(gpt2_folder), device="cpu").fingerprint for _ in range(2))
        assert first.difference(second) is None
        assert (first.layers, first.width, first.dtype) == (LAYERS, WIDTH, "float32")
        assert len(first.behaviour) == 3
        assert any(abs(x) > 1e-2 for row in first.behaviour for x in row)

    def test_other_weights_of_the_same_shape_are_another_model(self, gpt2_folder: Path) -> None:
        model = load_model(str(gpt2_folder), device="cpu")
        other = load_model(str(gpt2_folder), device="cpu")
        with torch.no_grad():
            for weight in other.bridge.original_model.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)))
        assert "compute different things" in str(model.fingerprint.difference(Fingerprint.of(other)))

    def test_another_shape_is_another_model(self, tiny: Model) -> None:
        wider = dataclasses.replace(tiny.fingerprint, width=WIDTH * 2)
        assert tiny.fingerprint.difference(wider) == f"{LAYERS} layers × {WIDTH} against {LAYERS} × {WIDTH * 2}"

    def test_the_name_alone_makes_no_difference(self, tiny: Model) -> None:
        assert tiny.fingerprint.difference(dataclasses.replace(tiny.fingerprint, name="elsewhere")) is None

    def test_half_precision_is_compared_roughly(self, gpt2_folder: Path) -> None:
        whole = load_model(str(gpt2_folder), device="cpu").fingerprint
        half = load_model(str(gpt2_folder), device="cpu", dtype="bfloat16").fingerprint
        assert half.dtype == "bfloat16"
        assert whole.difference(half) is None
        assert half.difference(whole) is None

    def test_a_fingerprint_survives_a_file(self, tiny: Model) -> None:
        assert Fingerprint.from_json(json.loads(json.dumps(tiny.fingerprint.to_json()))) == tiny.fingerprint

    def test_a_model_that_computes_no_numbers_is_another_model(self, tiny: Model) -> None:
        broken = tuple(tuple(float("nan") for _ in row) for row in tiny.fingerprint.behaviour)
        assert dataclasses.replace(tiny.fingerprint, behaviour=broken).difference(tiny.fingerprint) is not None
