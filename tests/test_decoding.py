"""Tokens to text as they come: whatever the tokenizer, the pieces are the text that it makes of all tokens at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import make_vector, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from steerkit.batching import Ask, Batch, Done, Said
from steerkit.decoding import HALF, LONGEST_RUN, Decoder
from steerkit.generation import Probe, Sampling, complete, read_tokens, stream
from steerkit.steering import Steering

TEXTS = [
    "hello 日本語です ok",
    "naïve café – 漢字 🙂 ok",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈, e\u0301 é",
    "  two spaces,\n\n a tab\t. It's what's it ' s ' n't",
    "한국어 ไทย العربية ਪੰਜਾਬੀ",
    "",
    "a\ufffdb",
]
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = sorted(set("abcdefghijklmnopqrstuvwxyz ,.'!?\n").union("▁日"))


def _wrapped(tokenizer: Tokenizer, **more: Any) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **more
    )


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's: words begin with a mark, and what has no token is spelled in bytes."""
    vocabulary = {text: i for i, text in enumerate([*SPECIALS, *BYTES, *LETTERS, "▁h", "▁he", "hello"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "h")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _wrapped(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Words begin with a mark, which `Metaspace` takes away in front."""
    vocabulary = [(text, -float(i)) for i, text in enumerate([*SPECIALS, *BYTES, *LETTERS, "▁hello"])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrapped(tokenizer)


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's: what goes on begins with `##`."""
    words = ["hello", "##ing", "##s", "it", "'", ".", "s", "n", "t", "m", "re", "ve", "##日", "日", "a", "##b"]
    tokenizer = Tokenizer(models.WordPiece({text: i for i, text in enumerate([*SPECIALS, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _wrapped(tokenizer)


def suffixed() -> PreTrainedTokenizerFast:
    """GPT 1's: words end with a mark."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=90, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(["hello to the helpful assistant, 日本語 it is"] * 3, trainer)
    return _wrapped(tokenizer)


class Slow(PreTrainedTokenizer):
    """A tokenizer in Python, which takes spaces off both ends of a text."""

    def __init__(self) -> None:
        self._texts = [*SPECIALS, *BYTES, *LETTERS, "▁hello"]
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    def get_vocab(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._texts)}

    def _convert_id_to_token(self, index: int) -> str:
        return self._texts[index]

    def _convert_token_to_id(self, token: str) -> int:
        return self._texts.index(token) if token in self._texts else 0

    def _tokenize(self, text: str) -> list[str]:
        return [part for c in text for part in ([c] if c in LETTERS else [f"<0x{b:02X}>" for b in c.encode()])]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        return decoder.decode(tokens).strip()


@cache
def byte_level() -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return save_tokenizer(Path(folder))


KINDS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    "sentencepiece": cache(sentencepiece),
    "unigram": cache(unigram),
    "wordpiece": cache(wordpiece),
    "suffixed": cache(suffixed),
    "python": cache(Slow),
    "bytes in python": cache(ByT5Tokenizer),
}


def pieces_of(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    decoder = Decoder(tokenizer)
    pieces = [decoder.push(token) for token in tokens]
    return [*pieces, decoder.rest()]


def whole(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))


def check(tokenizer: Any, tokens: Sequence[int]) -> None:
    assert "".join(pieces_of(tokenizer, tokens)) == whole(tokenizer, tokens)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_text_are_the_text_and_no_half_characters(kind: str, text: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    check(tokenizer, tokens)
    if HALF not in text:
        assert not any(HALF in piece for piece in pieces_of(tokenizer, tokens))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=150)
@given(data=some.data())
def test_pieces_of_any_tokens_are_what_the_tokenizer_makes_of_them(kind: str, data: some.DataObject) -> None:
    """Also special tokens in mid-text, bytes that are no characters, and ends within one."""
    tokenizer = KINDS[kind]()
    likely = [token for text in TEXTS for token in tokenizer(text, add_special_tokens=False).input_ids]
    token = some.one_of(some.sampled_from(likely), some.integers(0, len(tokenizer) - 1))
    check(tokenizer, data.draw(some.lists(token, max_size=30)))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_beyond_the_tokenizer_have_no_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokenizer("hello", add_special_tokens=False).input_ids
    beyond = len(tokenizer) + 5
    assert "".join(pieces_of(tokenizer, [beyond, *tokens, beyond])) == whole(tokenizer, tokens)


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "python"])
def test_a_character_in_bytes_comes_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    text = "hello 日本語です ok"
    pieces = pieces_of(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) < len(text) / 2


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "unigram", "python"])
def test_a_text_that_ends_within_a_character_shows_that_something_was_there(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokenizer("ok 語", add_special_tokens=False).input_ids[:-1]
    decoder = Decoder(tokenizer)
    before = "".join(decoder.push(token) for token in tokens)
    assert before.rstrip() == "ok"
    assert decoder.waiting
    rest = decoder.rest()
    assert HALF in rest
    assert before + rest == whole(tokenizer, tokens)
    assert not decoder.waiting
    assert decoder.rest() == ""


@pytest.mark.parametrize("kind", ["sentencepiece", "python"])
def test_a_long_text_in_bytes_is_not_kept_to_its_end(kind: str) -> None:
    """A script without tokens of its own, such as Thai for Llama 2, is one run of bytes without a space."""
    tokenizer = KINDS[kind]()
    text = "ไทย" * 40
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    pieces = pieces_of(tokenizer, tokens)
    assert "".join(pieces) == whole(tokenizer, tokens)
    assert text in "".join(pieces)
    assert "".join(pieces[: LONGEST_RUN + 4])
    broken = [*tokens, tokenizer.convert_tokens_to_ids("<0xFF>"), *tokenizer(" ok", add_special_tokens=False).input_ids]
    said = "".join(pieces_of(tokenizer, broken))
    assert "ไทย" * 10 in said
    assert said.endswith("ok")
    assert HALF in said


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_special_tokens_have_no_text_unless_it_is_wanted(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokens = tokenizer("one two", add_special_tokens=False).input_ids
    mixed = [tokenizer.bos_token_id, *tokens[:2], tokenizer.eos_token_id, *tokens[2:], tokenizer.eos_token_id]
    check(tokenizer, mixed)
    decoder = Decoder(tokenizer, skip_special=False)
    shown = "".join(decoder.push(token) for token in mixed) + decoder.rest()
    assert shown == str(tokenizer.decode(mixed))
    assert shown.count(tokenizer.eos_token) == 2


def test_a_long_reply_costs_as_much_a_token_as_a_short_one() -> None:
    tokenizer = KINDS["byte-level"]()
    tokens = tokenizer("What do you think of people? ", add_special_tokens=False).input_ids * 400

    def seconds(n: int) -> float:
        decoder, started = Decoder(tokenizer), time.process_time()
        for token in tokens[:n]:
            decoder.push(token)
        return (time.process_time() - started) / n

    assert seconds(len(tokens)) < 4 * min(seconds(200) for _ in range(5)) + 20e-6


# What models say


def test_a_reply_that_ends_within_a_character_loses_nothing(tmp_path: Path) -> None:
    """Streamed, whole, in a batch and read again: everybody gets what is left."""
    from scripted import scripted

    tokens = byte_level()("ok 語", add_special_tokens=False).input_ids[:-1]
    model = scripted(tmp_path, tokens)
    prompt, text = model.chat_tokens([{"role": "user", "content": "Who?"}]), whole(model.tokenizer, tokens)
    assert text.endswith(HALF)
    probes = [Probe.of(make_vector("hal", model.fingerprint))]
    for longest, asked in [(len(tokens), ()), (len(tokens) + 5, ()), (len(tokens), probes), (len(tokens) + 5, probes)]:
        steps = list(stream(model, [prompt], [Steering()], asked, Sampling(longest)))
        assert [step.token for step in steps] == tokens
        assert "".join(step.text for step in steps) == text
        assert all(len(step.scores) == len(asked) for step in steps)
        batch, ask = Batch(model), Ask(prompt, Steering(), tuple(asked), Sampling(longest))
        batch.add(ask)
        events: list[Said | Done] = []
        while batch.asks:
            batch.read()
            events += [event for _, event in batch.speak()]
        assert "".join(event.text for event in events if isinstance(event, Said)) == text
        assert events[-1] == Done("length" if longest == len(tokens) else "stop")
    assert complete(model, [prompt], sampling=Sampling(9))[0].text == text
    assert "".join(read_tokens(model, prompt, tokens, probes).tokens) == text
