"""Tokens to text, as they come."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

HALF = "\ufffd"
"""What stands for a part of a character."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A token for one byte of a character that has no token of its own (byte fallback)."""
LONGEST_RUN = 64
"""So many bytes are waited for: whether bytes are text is decided for a whole run of them, which may be long."""


class Decoder:
    """Turns tokens into text as they come, never showing half a character.

    All pieces and the `rest` together are what the tokenizer makes of all tokens at once, without special tokens.
    """

    def __init__(self, tokenizer: Any, skip_special: bool = True) -> None:
        """A decoder of one text.

        Args:
            tokenizer: a Hugging Face tokenizer
            skip_special: whether special tokens have no text
        """
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._backend = getattr(tokenizer, "backend_tokenizer", None) if _is_plain(tokenizer) else None
        self._step = self._step_from([])
        self._tokens: list[int] = []
        self._shown: list[str] = []
        self._run: list[int] = []
        self._n_settled = 0

    def push(self, token: int) -> str:
        """Take one token and return the text that it completes."""
        self._tokens.append(token)
        self._run.append(token)
        goes_on = self._is_byte(token) or (len(self._run) > 1 and not self.decode([token]))
        # Only the end of a run says what it is: one wrong byte in it spoils every character.
        if goes_on and (len(self._run) < LONGEST_RUN or self.decode(self._run).endswith(HALF)):
            return ""
        run, self._run = self._run, []
        try:
            text = self._step(run)
        except Exception:
            # A run that was too long to be waited for turned out to be no text after all.
            self._step = self._step_from(run[-1:])
            text = self.decode(run)
        return self._show(text or "")

    @property
    def waiting(self) -> bool:
        """Whether something has been taken that is not text yet, as the beginning of a character."""
        pending = self._tokens[self._n_settled :]
        return bool(pending) and bool(self._run or self.decode(pending))

    def rest(self) -> str:
        """What is left when no more tokens come: half a character is shown as the tokenizer shows it."""
        pending = self._tokens[self._n_settled :]
        if not pending:
            return ""
        whole, shown = self.decode(self._tokens), "".join(self._shown)
        self._run = []
        return self._show(whole[len(shown) :] if whole.startswith(shown) else self.decode(pending))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some tokens, as the tokenizer gives it at once."""
        if self._backend is not None:
            return str(self._backend.decode(list(tokens), skip_special_tokens=self._skip_special))
        # A model may have more tokens than its tokenizer; those have no text, but not every tokenizer says so.
        known = [token for token in tokens if token < len(self._tokenizer)]
        return str(
            self._tokenizer.decode(known, skip_special_tokens=self._skip_special, clean_up_tokenization_spaces=False)
        )

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
            self._n_settled = len(self._tokens)
        return text

    def _is_byte(self, token: int) -> bool:
        if self._backend is not None:
            written = self._backend.id_to_token(token)
        else:
            written = self._tokenizer.convert_ids_to_tokens(token) if 0 <= token < len(self._tokenizer) else None
        return isinstance(written, str) and BYTE.fullmatch(written) is not None

    def _step_from(self, tokens: list[int]) -> Callable[[list[int]], str | None]:
        """What gives the text that tokens add, a few at a time, behind some that have been shown."""
        if self._backend is None:
            return _Window(self.decode, tokens, len(tokens)).step
        from tokenizers.decoders import DecodeStream

        return partial(DecodeStream(ids=tokens, skip_special_tokens=self._skip_special).step, self._backend)


@dataclass
class _Window:
    """The same for a tokenizer that is not of that library: what its latest tokens add to the text of those before."""

    decode: Callable[[Sequence[int]], str]
    tokens: list[int]
    n_before: int
    """How many of the tokens have been shown."""

    def step(self, run: list[int]) -> str | None:
        """The text that some tokens add; None while it may still change.

        Raises:
            ValueError: they change what has been shown.
        """
        before = self.decode(self.tokens[: self.n_before])
        self.tokens += run
        text = self.decode(self.tokens)
        if text.endswith(HALF) or len(text) <= len(before):
            return None
        if not text.startswith(before):
            raise ValueError(f"{text!r} does not begin with {before!r}")
        self.tokens = self.tokens[self.n_before :]
        self.n_before = len(self.tokens)
        return text[len(before) :]


def _is_plain(tokenizer: Any) -> bool:
    """Whether a tokenizer's text is what the library below it says, and not what a class of its own makes of that."""
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    kind = type(tokenizer)
    return kind.decode is PreTrainedTokenizerBase.decode and kind._decode is PreTrainedTokenizerFast._decode
