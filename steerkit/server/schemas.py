"""What a request may say: OpenAI's fields as far as they make sense here, and three of ours."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steerkit.errors import nearest
from steerkit.server.faults import ApiFault

W = TypeVar("W", bound="Wish")
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Token = Annotated[int, Field(strict=True)]
"""A token's number, which `true` is not."""
NOTHING = (None, [], {}, False, "")
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tools", "functions", "audio", "web_search_options", "logit_bias", "echo", "suffix"), NOTHING),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids", "bad_words", "prompt_embeds", "prompt_logprobs"), NOTHING),
    **dict.fromkeys(("tool_choice", "function_call"), (None, "none", "auto")),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_p", "min_tokens", "length_penalty"), (None, 0)),
    **dict.fromkeys(("repetition_penalty", "best_of"), (None, 1)),
    "top_k": (None, 0, -1),
    **dict.fromkeys(("ignore_eos", "use_beam_search"), (None, False)),
}
"""Fields that would change what is said, which is not done here; with the values at which they change nothing."""
HARMLESS = (
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prediction", "reasoning_effort", "verbosity",
    "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
)  # fmt: skip
"""Fields that change nothing of what is said."""

MOST_NOTES = 10
"""So many unknown fields are named."""


class StreamOptions(BaseModel):
    """How a stream is written."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = None


class Wish(BaseModel):
    """What both endpoints take."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())
    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**62), le=2**62)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    steer: str | None = Field(None, max_length=2000)
    read: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=32)
    everywhere: bool | None = None
    steer_thoughts: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which a reply ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def longest(self) -> int | None:
        """The longest reply that is wanted."""
        return self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """For how many tokens log probabilities are wanted beside the one chosen; None for none at all."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What of it is ignored.

        Raises:
            ApiFault: something in it would change the meaning, and is not done here.
        """
        unknown: list[str] = []
        for name, value in (self.model_extra or {}).items():
            if name in UNSUPPORTED:
                if value not in UNSUPPORTED[name]:
                    raise ApiFault(400, f"{name} is not supported here; leave it out", name, "unsupported_field")
            elif name not in HARMLESS and value is not None:
                unknown.append(name[:60])
        notes = []
        for name in unknown[:MOST_NOTES]:
            hint = nearest(name, type(self).model_fields)
            notes.append(f"the field {name!r} is unknown and was ignored" + (f"; {hint}" if hint else ""))
        more = len(unknown) - MOST_NOTES
        return [*notes, f"{more} more fields are unknown and were ignored"] if more > 0 else notes


class Part(BaseModel):
    """A piece of a message."""

    model_config = ConfigDict(extra="allow")
    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def plain(self, place: int) -> dict[str, str]:
        """As the model takes it. Raises ApiFault for what is not text."""
        extra = self.model_extra or {}
        if extra.get("tool_calls") or extra.get("function_call") or extra.get("audio"):
            raise ApiFault(400, f"message {place} calls tools or speaks; only text is read here", "messages")
        parts = [] if isinstance(self.content, str) else self.content or []
        for part in parts:
            if part.type != "text" or part.text is None:
                message = f"message {place} has a part of type {part.type[:40]!r}; only text is read here"
                raise ApiFault(400, message, "messages", "unsupported_content")
        text = self.content if isinstance(self.content, str) else "\n".join(part.text or "" for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatWish(Wish):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    thinking: Literal["on", "off", "auto"] | bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def mode(self) -> str | None:
        """Whether the model is to think: `on`, `off` or `auto`; None where nothing is said of it.

        Raises:
            ApiFault: the template is to be given something else.
        """
        given = dict(self.chat_template_kwargs or {})
        asked = [self.thinking, *(given.pop(name, None) for name in ("enable_thinking", "thinking"))]
        if given:
            name = next(iter(given))[:40]
            raise ApiFault(400, f"chat_template_kwargs takes enable_thinking, and not {name!r}", "chat_template_kwargs")
        first = next((each for each in asked if each is not None), None)
        return first if isinstance(first, str) or first is None else "on" if first else "off"

    @property
    def longest(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def likeliest(self) -> int | None:
        """Raises ApiFault where `top_logprobs` is asked for without `logprobs`."""
        if self.top_logprobs and not self.logprobs:
            raise ApiFault(400, "top_logprobs needs logprobs: true", "top_logprobs")
        return self.top_logprobs or 0 if self.logprobs else None


class TextWish(Wish):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def likeliest(self) -> int | None:
        """As many as `logprobs` says."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt, as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


def read_wish(kind: type[W], body: bytes) -> W:
    """Read a request's body.

    Raises:
        ApiFault: it is not JSON, or a field has a value that it cannot have; the message names the field.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # Of a field that may be of several types, the one that it nearly is tells most.
        first = min(found, key=lambda problem: problem["type"].endswith("_type"))
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained")))
        field = str(first["loc"][0]) if first["loc"] else None
        told = f"{place}: {first['msg']}" if place else f"the body is not right: {first['msg']}"
        raise ApiFault(400, told, field, "invalid_value" if field else "invalid_json") from error
