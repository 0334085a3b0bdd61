"""The server, asked by OpenAI's own client: what it says, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import ASKED, BODY, Live, alone, create, fault, live

from steerkit.generation import Sampling, complete
from steerkit.models import Model
from steerkit.server.stops import Stopper
from steerkit.steering import Steering
from steerkit.vectors import VectorSet

pytestmark = pytest.mark.usefixtures("shelf")


# What is said


@pytest.mark.parametrize("steer", ["", "2 hal", "-1 hal @1-4 + 1 pirate", "set(hal, 1)"])
def test_a_reply_is_what_the_model_says_alone(steer: str, server: Live, talker: Model) -> None:
    reply = create(server, steer)
    wanted = alone(talker, steer, Sampling(8))
    assert reply.choices[0].message.content.strip() == wanted.text
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 8
    assert reply.usage.prompt_tokens == len(wanted.prompt)
    assert reply.steerkit["steer"] == steer
    assert not hasattr(reply.choices[0], "steerkit")


def test_a_stream_says_the_same_with_the_scores_of_every_token(server: Live, talker: Model) -> None:
    wanted = alone(talker, "2 hal", Sampling(8), ("hal", "warmth"))
    options = {"extra": {"read": ["hal", "warmth"]}, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(create(server, "2 hal", **options))
    assert chunks[0].steerkit["steer"] == "2 hal"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices).strip() == wanted.text
    tokens = [token for c in chunks if c.choices for token in getattr(c.choices[0], "steerkit", {}).get("tokens", [])]
    for token, scores in zip(tokens, wanted.readout.scores.tolist(), strict=True):
        assert [token["scores"]["hal"], token["scores"]["warmth"]] == pytest.approx(scores, abs=1e-3)
    last = [c for c in chunks if c.choices][-1].choices[0]
    assert last.finish_reason == "length"
    assert last.steerkit["scores"] == pytest.approx(wanted.readout.means(), abs=1e-3)
    assert chunks[-1].usage.total_tokens == len(wanted.prompt) + 8
    assert all(c.usage is None for c in chunks[:-1])


def test_choices_are_seeds_and_a_seed_that_was_told_repeats_them(server: Live, talker: Model) -> None:
    reply = create(server, "1 hal", n=3, temperature=1.5, top_p=0.9)
    seed = reply.steerkit["seed"]
    for i, choice in enumerate(reply.choices):
        assert choice.index == i
        assert choice.message.content.strip() == alone(talker, "1 hal", Sampling(8, 1.5, 0.9, seed + i)).text
    assert len({choice.message.content for choice in reply.choices}) > 1
    again = create(server, "1 hal", n=3, temperature=1.5, top_p=0.9, seed=seed)
    assert [c.message.content for c in again.choices] == [c.message.content for c in reply.choices]
    assert reply.usage.completion_tokens == 24


def test_many_at_once_are_each_what_they_are_alone(server: Live, talker: Model) -> None:
    texts = ["", "2 hal", "-2 hal", "1 warmth @2", "ablate(pirate)", "rotate(hal, 1.5)", "cap(hal, -3)"] * 3
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        reply = create(server, texts[i], max_tokens=5 + i, seed=i, temperature=i % 2)
        found[i] = reply.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, text in enumerate(texts):
        assert found[i].strip() == alone(talker, text, Sampling(5 + i, i % 2, seed=i)).text


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_ends_before_a_stop_text_that_lies_across_tokens(stream: bool, server: Live, talker: Model) -> None:
    whole = alone(talker, "2 hal", Sampling(30))
    pieces = whole.readout.tokens
    stop = (pieces[9] + pieces[10])[: len(pieces[9]) + 1]
    before = "".join(pieces).split(stop)[0]
    reply = create(server, "2 hal", max_tokens=30, stop=[stop, "never said"], stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in reply]
        text, reason = "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert reply.usage.completion_tokens <= 11
    assert text == before
    assert reason == "stop"
    server.until(lambda: server.metric("steerkit_rows_running") == 0)


def test_a_beginning_of_a_stop_text_that_stays_one_is_said_in_the_end() -> None:
    stopper = Stopper(["</s>", "END"])
    assert [stopper.push(text) for text in ("a <", "/", "x E", "N")] == [
        ("a ", False), ("", False), ("</x ", False), ("", False)
    ]  # fmt: skip
    assert stopper.rest() == "EN"
    assert Stopper(["aab"]).push("aaab") == ("a", True)


def test_log_probabilities_are_given_where_they_are_asked_for(server: Live) -> None:
    reply = create(server, "2 hal", logprobs=True, top_logprobs=3)
    entries = reply.choices[0].logprobs.content
    assert len(entries) == 8
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0
        assert bytes(entry.bytes).decode() == entry.token
    chunks = list(create(server, "2 hal", logprobs=True, stream=True))
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [entry.logprob for entry in streamed] == pytest.approx([entry.logprob for entry in entries], abs=1e-4)


def test_completions_take_texts_and_tokens(server: Live, talker: Model) -> None:
    client, name = server.client(), talker.name
    tokens = talker.tokenizer("You are").input_ids
    steering = Steering.parse("2 hal", VectorSet(talker.fingerprint))
    wanted = complete(talker, [tokens], [steering], sampling=Sampling(6))[0].text
    options: dict[str, Any] = {"model": name, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    for prompt in ("You are", ["You are", "I will"], tokens, [tokens, tokens[:1]]):
        reply = client.completions.create(prompt=prompt, extra_body={"steer": "2 hal", "read": ["hal"]}, **options)
        assert reply.choices[0].text.strip() == wanted
        assert len(reply.choices) == (2 if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1)
        assert len(reply.choices[0].logprobs.token_logprobs) == 6
        assert len(reply.choices[-1].steerkit["tokens"]) == 6
    chunks = client.completions.create(prompt="You are", stream=True, extra_body={"steer": "2 hal"}, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks).strip() == wanted


def test_requests_that_name_no_steering_get_the_default_and_an_empty_one_gets_none(talker: Model) -> None:
    steering = Steering.parse("3 hal", VectorSet(talker.fingerprint))
    with live(talker, steering=steering) as server:
        assert create(server).choices[0].message.content.strip() == alone(talker, "3 hal", Sampling(8)).text
        assert create(server, "").choices[0].message.content.strip() == alone(talker, "", Sampling(8)).text
        reply = server.post({**BODY, "everywhere": True}).json()
        everywhere = replace(steering, everywhere=True)
        wanted = complete(talker, [talker.chat_tokens(ASKED)], [everywhere], sampling=Sampling(8))[0].text
        assert reply["steerkit"]["everywhere"] is True
        assert reply["choices"][0]["message"]["content"].strip() == wanted


# What is refused


@pytest.mark.parametrize(
    ("body", "status", "param", "told"),
    [
        ({**BODY, "steer": "0.8 hall"}, 400, "steer", "did you mean hal"),
        ({**BODY, "steer": "0.8 hal +"}, 400, "steer", "column"),
        ({**BODY, "steer": "1 hal @99"}, 400, "steer", "layers"),
        ({**BODY, "steer": '1 "/etc/passwd"'}, 400, "steer", "is a path"),
        ({**BODY, "steer": "(" * 1999}, 400, "steer", "column"),
        ({**BODY, "steer": "1 hal + " * 300 + "1 hal"}, 400, "steer", "2000"),
        ({**BODY, "read": ["nobody"]}, 400, "read", "no vector is called"),
        ({**BODY, "read": ["../../secret.safetensors"]}, 400, "read", "is a path"),
        ({**BODY, "model": "gpt-4"}, 404, "model", "this server speaks as"),
        ({**BODY, "messages": [{"role": "user", "content": "word " * 3000}]}, 400, "messages", "holds 512"),
        ({**BODY, "messages": [{"role": "user", "content": " "}]}, 400, "messages", "empty"),
        ({**BODY, "messages": []}, 400, "messages", "at least 1"),
        ({**BODY, "messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages", "role"),
        ({**BODY, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages", "only text"),
        ({**BODY, "tools": [{"type": "function"}]}, 400, "tools", "not supported"),
        ({**BODY, "response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
        ({**BODY, "audio": {"voice": "x"}}, 400, "audio", "not supported"),
        ({**BODY, "presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
        ({**BODY, "temperature": -1}, 400, "temperature", "greater"),
        ({**BODY, "temperature": "hot"}, 400, "temperature", "number"),
        ({**BODY, "max_tokens": 0}, 400, "max_tokens", "greater"),
        ({**BODY, "seed": 2**70}, 400, "seed", "less"),
        ({**BODY, "n": 65}, 400, "n", "this server holds 64"),
        ({**BODY, "stop": ["a"] * 17}, 400, "stop", "16"),
        ({**BODY, "stop": ""}, 400, "stop", "at least 1"),
        ({**BODY, "top_logprobs": 3}, 400, "top_logprobs", "needs logprobs"),
        (b"{", 400, None, "JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, None, "JSON"),
        (b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}', 400, "temperature", "finite"),
        (b"[" * 5000, 400, None, "JSON"),
        (b"\xff\xfe", 400, None, "JSON"),
        (b"[]", 400, None, "object"),
        ({"prompt": "x"}, 400, "messages", "required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_and_the_server_goes_on(
    body: Any, status: int, param: str | None, told: str, server: Live
) -> None:
    answer = server.post(body)
    error = fault(answer)
    assert answer.status_code == status, error
    assert told in error["message"]
    assert error["param"] == param
    assert server.post(BODY).status_code == 200


def test_the_error_is_the_one_that_the_command_line_says(server: Live, talker: Model) -> None:
    from steerkit.errors import SteerkitError

    for text in ("0.8 hall", "0.8 hal +", "cap(hal)", "1 hal @99"):
        with pytest.raises(SteerkitError) as raised:
            Steering.parse(text, VectorSet(talker.fingerprint))
        with pytest.raises(openai.BadRequestError) as refused:
            create(server, text)
        assert refused.value.body["message"] == str(raised.value)  # type: ignore[index]


@pytest.mark.parametrize(
    "prompt",
    [
        [], [[]], [[5, 6], []], 3, True, None, {}, [99999], [-1], [400], [[5, 6], [400]], [2**31], [2**63], [-(2**70)],
        [10**400], [True, False], [[5, True]], [5.5], [5.0], [5, "6"], [5, None], [[["5"]]], [5, [6]],
    ],
)  # fmt: skip
def test_prompts_that_are_none_are_refused(prompt: Any, server: Live) -> None:
    answer = server.post({"prompt": prompt, "max_tokens": 2}, "/v1/completions")
    assert answer.status_code == 400
    told = fault(answer)
    assert told["param"] == "prompt"
    assert "\n" not in told["message"]
    assert len(told["message"]) < 300
    assert server.post({"prompt": [5, 399], "max_tokens": 2}, "/v1/completions").status_code == 200


def test_a_token_that_the_model_does_not_have_is_refused_and_disturbs_nobody(tmp_path: Path) -> None:
    """A tokenizer may have been given tokens for which the model was never given embeddings."""
    from scripted import scripted

    model = scripted(tmp_path, "I am fine", added=[f"<|extra_{i}|>" for i in range(200)], ends=False)
    beyond = model.tokenizer.convert_tokens_to_ids("<|extra_199|>")
    assert beyond >= 512
    bodies: list[tuple[str, Any]] = [
        ("/v1/completions", {"prompt": [5, beyond]}),
        ("/v1/completions", {"prompt": "so <|extra_199|>"}),
        ("/v1/completions", {"prompt": ["Who?", "so <|extra_199|>"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "so <|extra_199|>"}]}),
    ]
    with live(model) as server:
        others: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: others.append(server.post({**BODY, "max_tokens": 300})))
        thread.start()
        server.until(lambda: server.metric("steerkit_rows_running") == 1)
        for path, body in bodies:
            told = fault(server.post({**body, "max_tokens": 4}, path))
            assert f"token {beyond}" in told["message"] or "<|extra_199|>" in told["message"]
            assert "\n" not in told["message"]
        thread.join(60)
        assert others[0].json()["choices"][0]["finish_reason"] == "length"
        assert others[0].json()["choices"][0]["message"]["content"].startswith("I am fine")


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_fields_of_tokens_that_would_change_what_is_said_are_refused(name: str, server: Live) -> None:
    value = {"99999": 5} if name == "logit_bias" else [99999]
    told = fault(server.post({**BODY, name: value}))
    assert told["param"] == name
    assert "not supported" in told["message"]


def test_a_body_over_the_limit_is_refused_however_it_comes(server: Live) -> None:
    long = json.dumps({**BODY, "padding": "x" * (1 << 17)}).encode()
    assert server.post(long).status_code == 413

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(long), 1000):
            yield long[start : start + 1000]

    answer = httpx.post(f"{server.url}/v1/chat/completions", content=pieces())
    assert answer.status_code == 413
    assert fault(answer)["code"] == "too_large"


def test_fields_that_change_nothing_are_taken_and_unknown_ones_are_named(server: Live) -> None:
    reply = server.post({**BODY, "user": "me", "tools": [], "logit_bias": {}, "steering": "1 hal"}).json()
    (warning,) = reply["steerkit"]["warnings"]
    assert "'steering'" in warning
    assert "did you mean steer?" in warning
    capped = server.post({**BODY, "max_tokens": 5000}).json()
    assert "lowered to 400" in capped["steerkit"]["warnings"][0]


def test_a_wrong_or_missing_key_is_refused(talker: Model) -> None:
    with live(talker, key="sesame") as server:
        assert server.client("sesame").models.list().data[0].id == talker.name
        for client in (server.client("sesam"), server.client("sesame2"), server.client("ключ".encode().hex())):
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        for path in ("/v1/models", "/metrics", "/v1/steerkit/vectors", "/nowhere"):
            assert httpx.get(server.url + path).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_other_peoples_pages_may_not_ask(server: Live) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 403
    assert httpx.get(f"{server.url}/v1/models", headers={"Origin": server.url}).status_code == 200


def test_unknown_routes_are_answered_in_the_same_shape(server: Live) -> None:
    assert fault(httpx.get(f"{server.url}/v1/nothing"))["code"] == "unknown_route"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert server.client().models.retrieve(server.desk.planner.model.name).owned_by == "steerkit"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-4")


# Stop texts in the last token that a reply may have


def last_word(talker: Model) -> tuple[int, str]:
    """A number of tokens, and a stop text that comes only in the last of them."""
    pieces = alone(talker, "", Sampling(20)).readout.tokens
    return next((i + 1, piece) for i, piece in enumerate(pieces) if i > 3 and piece not in "".join(pieces[:i]))


@pytest.mark.parametrize("read", [[], ["hal"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_in_the_last_token_costs_no_other_choice(
    stream: bool, read: list[str], server: Live, talker: Model
) -> None:
    n_tokens, stop = last_word(talker)
    options: dict[str, Any] = {"max_tokens": n_tokens, "stop": [stop], "extra": {"read": read}}
    if stream:
        options["stream_options"] = {"include_usage": True}
        chunks = list(create(server, "", n=3, stream=True, **options))
        texts, reasons = ["", "", ""], []
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunks[-1].usage
    else:
        reply = create(server, "", n=3, **options)
        texts, usage = [choice.message.content for choice in reply.choices], reply.usage
        reasons = [choice.finish_reason for choice in reply.choices]
    before = "".join(alone(talker, "", Sampling(n_tokens)).readout.tokens).split(stop)[0]
    assert [text.strip() for text in texts] == [before.strip()] * 3
    assert reasons == ["stop"] * 3
    assert usage.completion_tokens == 3 * n_tokens


@pytest.mark.parametrize("read", [[], ["hal"]])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_stops_in_its_last_token_does_not_cut_off_another(
    stream: bool, read: list[str], server: Live, talker: Model
) -> None:
    n_tokens, stop = last_word(talker)
    prompts = [list(talker.chat_tokens(ASKED)), [5, 6, 7, 8, 9]]
    other = complete(talker, [prompts[1]], [Steering()], sampling=Sampling(n_tokens))[0].readout.tokens
    assert stop not in "".join(other)
    body = {"prompt": prompts, "max_tokens": n_tokens, "temperature": 0, "stop": stop, "stream": stream, "read": read}
    answer = server.post(body, "/v1/completions")
    texts, reasons = ["", ""], ["", ""]
    events = [json.loads(event) for event in answer.text.split("data: ")[1:-1]] if stream else [answer.json()]
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"] or reasons[choice["index"]]
    assert texts[1].strip() == "".join(other).strip()
    assert reasons == ["stop", "length"]


def test_a_choice_that_is_over_is_over_once() -> None:
    """Whatever the engine tells of it afterwards."""
    from steerkit.batching import Ask, Done
    from steerkit.server.planning import Plan
    from steerkit.server.replies import Listener

    async def listen() -> list[int]:
        listener = Listener(Plan((Ask([1]), Ask([1])), (), {}, 2))
        for number in (0, 0, 1):
            listener.hear(number, Done("length"))
        return [piece.number async for piece in listener.pieces()]

    assert asyncio.run(listen()) == [0, 1]


# What is bounded


def test_an_expression_of_hundreds_of_terms_is_refused_in_one_line(server: Live) -> None:
    assert server.post({**BODY, "steer": "+".join(["hal"] * 32)}).status_code == 200
    answer = server.post({**BODY, "steer": "+".join(["hal"] * 400)})
    assert answer.status_code == 400
    assert "400 terms" in fault(answer)["message"]
    assert "at most 32" in fault(answer)["message"]


def test_bytes_are_given_only_of_whole_characters(talker: Model) -> None:
    from steerkit.batching import Ask, Said
    from steerkit.server.planning import Plan
    from steerkit.server.replies import Piece, Writer

    half, whole = (talker.tokenizer(text, add_special_tokens=False).input_ids[-1] for text in "éa")
    writer = Writer(Plan((Ask([1], likeliest=1),), (), {}, 1), talker, chat=True)
    for token in (half, whole):
        writer.take(Piece(0, "", Said(token, "", chance=-1.0, likeliest=((half, -1.0),)), None))
    entries = writer.whole()["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [None, list(b"a")]
    assert entries[1]["top_logprobs"][0]["bytes"] is None


def test_a_key_with_spaces_around_it_is_the_key_without(talker: Model) -> None:
    with live(talker, key=" sesame ") as server:
        assert server.client("sesame").models.list().data[0].id == talker.name


def test_addresses_that_are_none_are_refused(server: Live) -> None:
    for headers in ({"Host": "["}, {"Origin": "http://["}):
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 403
