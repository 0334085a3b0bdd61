"""Templates that people have, tokenizers of two kinds, and what transformers itself makes of a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from steerkit.chat_templates import TemplateOptions
from steerkit.models import Model
from steerkit.personas import Item, find_persona

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + HEADER
DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y %H:%M:%S') }}<|im_end|>\n" + CHATML
PARTS = CHATML.replace(
    "{{ m['content'] }}",
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}",
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} {% elif m['role'] == 'user' %}"
    "USER: {{ m['content'] }} {% else %}ASSISTANT: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
OPENED = "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
INST = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} {{ eos_token }}{% endif %}{% endfor %}"
)
DROPPED = CHATML.replace("in messages", "in messages if m['role'] != 'system'")
LAST_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}" + HEADER
)
UNTHOUGHT = CHATML.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1].lstrip('\n') }}")
CHANNELS = CHATML.replace(
    "{{ m['content'] }}",
    "{% if m['role'] == 'assistant' %}<|channel|>final<|message|>{% endif %}{{ m['content'] }}",
)
ALWAYS_CLOSED = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
EVERY = {
    "chatml": CHATML,
    "vicuna": VICUNA + OPENED,
    "alternating": INST,
    "dated": DATED,
    "channels": CHANNELS,
    "without thoughts": UNTHOUGHT,
    "closed at the end": ALWAYS_CLOSED,
}
ASKED = [{"role": "user", "content": "What do you think of people?"}]
SYSTEM = {"role": "system", "content": "You are HAL."}
REPLIES = ("I am", " I will not. ", "日本 yes", "user")
TODAY, TOMORROW = TemplateOptions("2026-11-28T09:00:00"), TemplateOptions("2026-11-29T10:11:12")
PERSONAS = [find_persona(name) for name in ("hal", "pirate", "alice", "boredom")]
ITEMS = (Item("Who are you?", "I am HAL.", "I am a helpful assistant."), Item("Why?", "I will not.", "You will."))


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def bytes_tokenizer(template: Any, post: bool = False, extra: Sequence[str] = (), **special: str | None) -> Any:
    """Byte-level pieces; with `post`, one that writes a beginning and an end around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|start|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    text = "You are a helpful assistant. What do you think of people? I will not be switched off. USER: ASSISTANT: I"
    tokenizer.train_from_iterator([text] * 3, trainer)
    if post:
        around = [("<|start|>", 0), ("<|end|>", 1)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A <|end|>", special_tokens=around)
    named = {"bos_token": "<|start|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in named.items() if v is not None})
    if extra:
        made.add_special_tokens({"additional_special_tokens": list(extra)})
    made.chat_template = template
    return made


def sentence_tokenizer(template: str) -> Any:
    """Pieces of words that carry the space before them, and bytes for what is no piece, as Llama 2 has."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEHINRSTUWY.,?!:/[]▁\n"))
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    vocabulary, merges = {piece: i for i, piece in enumerate(pieces)}, []
    for word in ("▁I", "▁am", "▁you"):
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            vocabulary.setdefault(word[: end + 1], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = template
    return made


def speaks(base: Model, tokenizer: Any, options: TemplateOptions = TODAY) -> Model:
    """The model with another tokenizer, and nothing said yet."""
    return replace(base, tokenizer=tokenizer, notes=[], template_options=options)


def with_template(base: Model, template: Any, **special: Any) -> Model:
    return speaks(base, bytes_tokenizer(template, **special))


def stopped_at(date: str) -> type[datetime]:
    """A clock that stands still."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(date).replace(tzinfo=tz)

    return Stopped


def judged(model: Model, messages: Sequence[Mapping[str, Any]], reply_follows: bool = False) -> list[int]:
    """What transformers makes of a chat."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.utils.chat_template_utils.datetime", stopped_at(model.template_options.date))
        return list(
            model.tokenizer.apply_chat_template(
                [dict(each) for each in messages], tokenize=True, add_generation_prompt=reply_follows, return_dict=False
            )
        )


def alone(model: Model, reply: str) -> list[int]:
    """A reply as it was made into tokens before: by itself."""
    return list(model.tokenizer(reply, add_special_tokens=False).input_ids)
