"""The `openai` Python client, as it is, against real engines."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.clusters import RunningCluster
from tests.integration.dense_engine import WEATHER

pytestmark = pytest.mark.timeout(500)

FRANCE = "What is the name of the capital of France?"
CODE = "```python\ndef area(r):\n    return 3.14 * r * r\n```\nWhat does this function return?"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colour": {"enum": ["red", "green"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(running_cluster: RunningCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running_cluster.url}/v1", api_key="anything", max_retries=0, timeout=60.0) as made:
        yield made


def ask(client: OpenAI, text: str, model: str = "dense", **more: Any) -> Any:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **settings)


@pytest.mark.parametrize("model", ["dense", "sparse"])
def test_the_capital_of_france(client: OpenAI, model: str) -> None:
    answer = ask(client, FRANCE, model)
    assert "Paris" in answer.choices[0].message.content
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 24
    assert answer.pointsman["model"] == model
    assert answer.pointsman["engine"] == "vllm"


def test_the_mini_model_answers(client: OpenAI) -> None:
    assert ask(client, FRANCE, "mini").choices[0].message.content.strip()


def test_a_stream_with_usage_says_the_same(client: OpenAI) -> None:
    plain = ask(client, FRANCE).choices[0].message.content
    chunks = list(ask(client, FRANCE, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain
    assert chunks[-1].choices == []
    assert 0 < chunks[-1].usage.completion_tokens <= 24
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    # Chunks come as they are made, not all at the end.
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3
    assert all(chunk.usage is None for chunk in ask(client, FRANCE, stream=True))


def test_the_clients_own_stream_helper(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": FRANCE}]
    with client.chat.completions.stream(model="dense", messages=messages, temperature=0, max_tokens=24) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert "Paris" in (final.choices[0].message.content or "")


def test_logprobs(client: OpenAI) -> None:
    answer = ask(client, FRANCE, max_tokens=4, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 4
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        # Greedy: the token chosen is the likeliest.
        assert token.token == token.top_logprobs[0].token
    chunks = list(ask(client, FRANCE, max_tokens=4, logprobs=True, top_logprobs=1, stream=True))
    assert sum(len(c.choices[0].logprobs.content) for c in chunks if c.choices and c.choices[0].logprobs) == 4


def test_n_choices(client: OpenAI) -> None:
    answer = ask(client, "Name an animal.", n=3, temperature=1.0, seed=5, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_stop(client: OpenAI) -> None:
    whole = ask(client, "Count from 1 to 9, separated by commas.", max_tokens=40).choices[0]
    assert "4" in whole.message.content
    stopped = ask(client, "Count from 1 to 9, separated by commas.", max_tokens=40, stop=["4"]).choices[0]
    assert stopped.message.content == whole.message.content.partition("4")[0]
    assert stopped.finish_reason == "stop"


def test_seed(client: OpenAI) -> None:
    texts = [
        ask(client, "Tell a short story.", temperature=1.0, seed=seed, max_tokens=30).choices[0].message.content
        for seed in (11, 11, 12)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_tools_that_must_be_called(client: OpenAI, choice: Any, stream: bool) -> None:
    made = ask(
        client, "What is the weather in Paris?", tools=[WEATHER], tool_choice=choice, max_tokens=150, stream=stream
    )
    if stream:
        calls = [call for chunk in made if chunk.choices for call in chunk.choices[0].delta.tool_calls or ()]
        name = "".join(call.function.name or "" for call in calls)
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        call = made.choices[0].message.tool_calls[0]
        assert call.id
        name, arguments = call.function.name, call.function.arguments
    assert name == "get_weather"
    assert set(json.loads(arguments)) == {"city", "unit"}
    assert json.loads(arguments)["unit"] in ("celsius", "fahrenheit")


def test_tools_that_may_be_called_and_their_results(client: OpenAI) -> None:
    answer = ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="auto", max_tokens=60)
    message = answer.choices[0].message
    assert message.content or message.tool_calls
    made = ask(client, "What is the weather in Paris?", tools=[WEATHER], tool_choice="required", max_tokens=150)
    call = made.choices[0].message.tool_calls[0]
    # A bound tighter than the guided arguments may fill up is no use here: the history is made up of what came back.
    messages: Any = [
        {"role": "user", "content": "What is the weather in Paris?"},
        made.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees and sunny"},
    ]
    after = client.chat.completions.create(model="dense", messages=messages, tools=[WEATHER], max_tokens=20)
    assert after.choices[0].message.content or after.choices[0].message.tool_calls


@pytest.mark.parametrize("model", ["dense", "mini"])
def test_json_schema(client: OpenAI, model: str) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = ask(client, "Describe a person named Ada.", model, response_format=form, max_tokens=80)
    person = json.loads(answer.choices[0].message.content)
    assert set(person) == {"name", "age", "colour"}
    assert isinstance(person["age"], int)
    assert person["colour"] in ("red", "green")


def test_json_object(client: OpenAI) -> None:
    form = {"type": "json_object"}
    answer = ask(client, 'Answer with the JSON {"capital": "Paris"}.', response_format=form, max_tokens=100)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(
        model="dense", prompt=["The capital of France is", "One, two, three,"], max_tokens=5, temperature=0, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or ()) == 5
    pieces = list(client.completions.create(model="dense", prompt="One, two,", max_tokens=5, stream=True))
    assert len([piece for piece in pieces if piece.choices and piece.choices[0].text]) > 1
    echoed = client.completions.create(model="dense", prompt="One, two,", max_tokens=2, echo=True)
    assert echoed.choices[0].text.startswith("One, two,")


def test_embeddings(client: OpenAI) -> None:
    texts = ["Paris is in France.", "The capital of France is Paris.", "def f(x): return x"]
    floats = client.embeddings.create(model="encoder", input=texts, encoding_format="float")
    vectors = [entry.embedding for entry in floats.data]
    assert [len(vector) for vector in vectors] == [384] * 3
    assert all(abs(sum(x * x for x in vector) - 1) < 1e-3 for vector in vectors)
    near, far = (sum(a * b for a, b in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    assert near > far + 0.3
    # Left to itself the client asks for base64 and decodes it.
    default = client.embeddings.create(model="encoder", input=texts)
    raw: Any = client.embeddings.create(model="embedding", input=texts, encoding_format="base64")
    for entry, packed, vector in zip(default.data, raw.data, vectors, strict=True):
        unpacked = struct.unpack("<384f", base64.b64decode(packed.embedding))
        assert max(abs(a - b) for a, b in zip(entry.embedding, vector, strict=True)) < 1e-4
        assert max(abs(a - b) for a, b in zip(unpacked, vector, strict=True)) < 1e-4
    assert floats.usage.prompt_tokens > 10
    assert client.embeddings.create(model="auto", input="Hello").model == "encoder"


def test_models(client: OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"dense", "sparse", "mini", "encoder"}
    one: Any = client.models.retrieve("sparse")
    assert (one.id, one.kind, one.roles) == ("sparse", "sparse", ["code", "fluency"])
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("wanted", "text", "max_tokens", "model", "role"),
    [
        ("dense", FRANCE, 5, "dense", None),
        ("strong", FRANCE, 5, "dense", "strong"),
        ("fast", FRANCE, 5, "mini", "fast"),
        ("fluency", FRANCE, 5, "sparse", "fluency"),
        ("auto", FRANCE, 5, "mini", "fast"),
        ("auto", FRANCE, None, "dense", "strong"),
        ("auto", CODE, 5, "sparse", "code"),
        ("auto", "The sun rose over the quiet hills. " * 40, 5, "dense", "strong"),
    ],
)
def test_model_is_a_name_a_role_or_auto(
    client: OpenAI, wanted: str, text: str, max_tokens: int | None, model: str, role: str | None
) -> None:
    settings: dict[str, Any] = {"max_tokens": max_tokens} if max_tokens else {"max_tokens": openai.omit}
    answer = ask(client, text, wanted, **settings)
    assert (answer.pointsman["model"], answer.pointsman["role"]) == (model, role)
    assert answer.model == model
    assert answer.pointsman["reason"]


def test_errors(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, FRANCE, "gpt-9")
    assert unknown.value.code == "model_not_found"
    assert "dense" in unknown.value.message
    with pytest.raises(openai.BadRequestError) as field:
        ask(client, FRANCE, temperature=7)
    assert field.value.param == "temperature"
    for text in ("word " * 30_000, "a b c d " * 600):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as long:
                ask(client, text, stream=stream)
            assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as vectors:
        client.embeddings.create(model="dense", input="Hello")
    assert vectors.value.param == "model"
    assert "encoder" in vectors.value.message
    with pytest.raises(openai.BadRequestError) as chat:
        ask(client, FRANCE, "encoder")
    assert chat.value.param == "model"
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError) as schema:
        ask(client, FRANCE, response_format=wrong)
    assert schema.value.status_code == 400


def test_many_at_once(running_cluster: RunningCluster) -> None:
    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{running_cluster.url}/v1", api_key="x", max_retries=0) as client:

            async def one(model: str) -> str:
                messages: Any = [{"role": "user", "content": FRANCE}]
                stream: Any = await client.chat.completions.create(
                    model=model, messages=messages, max_tokens=16, temperature=0, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            return await asyncio.gather(*(one(model) for model in ("dense", "sparse", "mini") for _ in range(6)))

    texts = asyncio.run(all_of_them())
    assert len(texts) == 18
    assert all(texts)
    assert all("Paris" in text for text in texts[:6])
