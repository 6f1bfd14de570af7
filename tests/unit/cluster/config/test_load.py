from collections.abc import Iterator
from typing import Any

import pytest

from cluster.config.engine import EngineType
from cluster.config.load import config_schema, parse_config
from cluster.config.mistakes import ConfigError, Mistake

GOOD = """
name: small
models:
  dense:
    kind: dense
    roles: [strong, fast, fluency]
    source: embedded:dense
    engine: {max_model_len: 2048}
  encoder: {kind: encoder, roles: [embedding], source: "embedded:encoder"}
  hosted:
    kind: external
    roles: [big]
    upstream: {base_url: "https://example.com/v1", model: m, api_key_env: KEY}
contracts:
  strong: {max_prompt_tokens: 1024, max_completion_tokens: 1024, fallback: [big]}
  big: {max_prompt_tokens: 1024, max_completion_tokens: 1024, fallback: [dense]}
telemetry: {traces: off}
"""


def mistakes(text: str) -> tuple[Mistake, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "test.yaml")
    assert str(caught.value).startswith("test.yaml: ")
    return caught.value.mistakes


def paths(text: str) -> list[str]:
    return [mistake.path for mistake in mistakes(text)]


def test_a_config_is_read_and_the_engine_follows_the_kind() -> None:
    # `dense` falls back to itself through `big`, which a cycle check over roles must not mistake for the role `strong`.
    config = parse_config(GOOD, "test.yaml")
    assert config.models["dense"].engine.type is EngineType.VLLM
    assert config.models["encoder"].engine.type is EngineType.ENCODER
    assert config.models["hosted"].engine.type is EngineType.EXTERNAL
    assert config.telemetry.traces == "off"
    assert not config.keys_required


def test_all_mistakes_are_named_at_once_with_path_line_and_remedy() -> None:
    text = GOOD.replace("name: small", "nmae: small").replace("2048", "1024") + "ray: {num_cpus: many}\n"
    found = mistakes(text)
    assert {mistake.path for mistake in found} == {"nmae", "ray.num_cpus", "contracts.strong.max_prompt_tokens"}
    unknown = next(mistake for mistake in found if mistake.path == "nmae")
    assert unknown.line == 2
    assert unknown.remedy == "did you mean name?"


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("kind: dense", "kind: dens", "models.dense.kind"),
        ("roles: [strong", "rolse: [strong", "models.dense.rolse"),
        ("max_model_len: 2048", "max_model_len: '2048'", "models.dense.engine.max_model_len"),
        ("max_model_len: 2048", "max_model_len: true", "models.dense.engine.max_model_len"),
        ("max_model_len: 2048", "max_model_len: 8", "models.dense.engine.max_model_len"),
        ("max_model_len: 2048", "max_model_len: 20.5", "models.dense.engine.max_model_len"),
        ("name: small", "name: 3", "name"),
        ("  dense:\n", "  Dense Model:\n", "models.Dense Model"),
        ("  encoder: {", "  encoder: {kind: encoder, ", "models.encoder.kind"),
        ("max_completion_tokens: 1024, fallback: [big]", "fallback: [big]", "contracts.strong.max_completion_tokens"),
        ("fallback: [big]", "fallback: big", "contracts.strong.fallback"),
        ("fallback: [big]", "fallback: ['big !']", "contracts.strong.fallback.0"),
        ("traces: off", "traces: nowhere", "telemetry.traces"),
        ("telemetry: {traces: off}", "telemetry: {sample_ratio: .nan}", "telemetry.sample_ratio"),
        ("telemetry: {traces: off}", "telemetry: {sample_ratio: 1e999}", "telemetry.sample_ratio"),
        ("telemetry: {traces: off}", f"telemetry: {{sample_ratio: {'9' * 100}}}", "telemetry.sample_ratio"),
        ("name: small", "name: !!python/object:os.system x", "name"),
        ("name: small", "7: small", ""),
        ("api_key_env: KEY", "api_key_env: sk-very-secret", "models.hosted.upstream.api_key_env"),
    ],
)
def test_a_mistake_is_found_at_its_path(old: str, new: str, path: str) -> None:
    assert old in GOOD
    assert path in paths(GOOD.replace(old, new))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "[1, 2]",
        "just text",
        "a: [",
        "a: 'open",
        "\t- x",
        "a: \x07",
        "--- a\n--- b\n",
        "a: &x [1]\nb: *x",
        "[" * 9999,
    ],
)
def test_what_is_no_config_document_is_refused_as_a_whole(text: str) -> None:
    assert paths(text) == [""]


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
    )
    assert "aliases" in mistakes(bomb)[0].message


def test_a_file_over_the_limit_is_refused_unread() -> None:
    assert "larger" in mistakes("#" * 1_048_577)[0].message


def test_yaml_mistakes_carry_line_and_column() -> None:
    (mistake,) = mistakes("name: x\nmodels: [\n")
    assert mistake.line == 3
    assert "column 1" in mistake.message


def test_duplicate_keys_at_every_level_are_named() -> None:
    text = (
        GOOD.replace("source: embedded:dense", "source: embedded:dense\n    source: embedded:dense") + "name: again\n"
    )
    assert set(paths(text)) == {"name", "models.dense.source"}


@pytest.mark.parametrize(
    "secret", ["https://user:hunter2@example.com/v1", "hunter2 is no url", "http://hunter2.example.com"]
)
def test_secrets_are_never_repeated(secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(GOOD.replace("https://example.com/v1", secret).replace("KEY", "hunter2"), "f")
    assert {mistake.path for mistake in caught.value.mistakes} >= {"models.hosted.upstream.api_key_env"}
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.mistakes)


UNITS = (
    "second", "byte", "token", "count", "number", "gpu", "cpu core", "core number", "thread", "sequence", "replica", "request",
    "0 to 1", "niceness", "days", "kv blocks", "yes or no", "true ",
)  # fmt: skip


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    schema = config_schema()
    for section in [schema, *(part for part in schema["$defs"].values() if "properties" in part)]:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            yield f"{section['title']}.{name}", field


def kinds(field: dict[str, Any]) -> set[str]:
    return {str(option.get("type")) for option in (field, *field.get("anyOf", ()))}


def test_every_field_is_described() -> None:
    found = dict(fields())
    assert len(found) > 90
    assert [name for name, field in found.items() if len(field.get("description", "")) < 8] == []


def test_every_number_says_its_unit() -> None:
    numbers = {name: field for name, field in fields() if kinds(field) & {"integer", "number", "boolean"}}
    assert len(numbers) > 60
    assert [name for name, field in numbers.items() if not any(u in field["description"].lower() for u in UNITS)] == []
