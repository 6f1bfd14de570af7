"""`pointsman precision measure`: what it refuses, and what it shows."""

from __future__ import annotations

import json

import pytest
import yaml

from cluster.config.precision import KvQuality
from deployments.cli import measure_child, measuring
from deployments.cli.errors import CliError
from deployments.cli.kv_quality import snippet
from deployments.cli.measure_messages import Done, Failed, Figure, Quality, Step, Task
from deployments.models.kv_prompts import MAX_PROMPTS


@pytest.fixture
def config(tmp_path) -> str:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    path = tmp_path / "models.yaml"
    path.write_text(
        f"""
models:
  here: {{kind: dense, roles: [strong, fast, fluency], source: "path:{folder}"}}
  lost: {{kind: dense, roles: [facts], source: "path:{tmp_path}/lost"}}
  vectors: {{kind: encoder, roles: [embedding], source: "embedded:encoder"}}
  made_up: {{kind: mini, roles: [verifier], source: "embedded:mini", engine: {{type: simulated}}}}
  outside:
    {{kind: external, roles: [large_context], upstream: {{base_url: "https://models.example.com/v1", model: big}}}}
"""
    )
    return str(path)


def figure(value: float) -> Figure:
    return Figure(value, value * 0.9, min(1.0, value * 1.1))


def done(agreement: float = 0.9512345, kl: float = 0.01234567) -> Done:
    found = Quality(figure(agreement), figure(kl), figure(0.4), 0.9, 60, 3000)
    itself = Quality(figure(1.0), figure(0.0), figure(1.0), 1.0, 60, 3000)
    return Done("bfloat16", {"fp8": found}, itself, 557, 128)


@pytest.fixture
def measured(monkeypatch):
    """Makes the child find what it is called with."""

    def prepare(found: Done) -> list[Task]:
        tasks: list[Task] = []

        def run_task(task, on_step):
            tasks.append(task)
            on_step(Step("reading at fp8", 0.5))
            return found

        monkeypatch.setattr(measuring, "run_task", run_task)
        return tasks

    return prepare


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("huge", "here, lost, vectors, made_up, outside"),
        ("vectors", "of type encoder"),
        ("made_up", "of type simulated"),
        ("outside", "of type external"),
    ],
)
def test_a_model_without_a_kv_cache_is_refused(invoke, config, measured, model, words):
    tasks = measured(done())
    refused = invoke("precision", "measure", model, "--config", config)
    assert refused.exit_code == 2
    assert words in refused.stderr
    assert refused.stdout == ""
    assert tasks == []


def test_a_model_that_cannot_be_had_is_refused(invoke, config):
    refused = invoke("precision", "measure", "lost", "--config", config)
    assert refused.exit_code == 1
    assert "lost is not a folder" in refused.stderr


def test_figures_with_intervals_and_lines_for_the_config(invoke, config, measured):
    tasks = measured(done())
    shown = invoke("precision", "measure", "here", "--config", config, "--prompts", "9", "--tokens", "8")
    assert shown.exit_code == 0, shown.output
    (task,) = tasks
    assert (task.model, task.prompts, task.tokens) == ("here", 9, 8)
    assert "95.1% [85.6%, 100.0%]" in shown.stdout
    assert "0.012 [0.011, 0.014]" in shown.stdout
    assert "bfloat16 again" in shown.stdout
    assert "reading at fp8" in shown.stderr
    assert "fp8: good enough" in shown.stderr
    lines = yaml.safe_load(shown.stdout[shown.stdout.index("models:") :])
    quality = KvQuality.model_validate(lines["models"]["here"]["precision"]["kv_quality"]["fp8"])
    assert quality == KvQuality(agreement=0.9512, kl=0.0123, consistency=0.4)


def test_no_more_prompts_are_offered_than_there_is_text_for(invoke, config):
    refused = invoke("precision", "measure", "here", "--config", config, "--prompts", str(MAX_PROMPTS + 1))
    assert refused.exit_code == 2
    assert str(MAX_PROMPTS) in refused.stderr


def test_figures_past_the_bounds_are_said_to_be(invoke, config, measured):
    measured(done(agreement=0.85, kl=0.2))
    shown = invoke("precision", "measure", "here", "--config", config)
    assert shown.exit_code == 0
    assert "below precision.min_agreement 0.9 and KL is above precision.max_kl 0.1" in shown.stderr


def test_json_for_scripts(invoke, config, measured):
    measured(done())
    told = json.loads(invoke("precision", "measure", "here", "--config", config, "--json").stdout)
    assert set(told) == {"model", "own", "quality", "itself", "longest_prompt", "block_tokens"}
    assert told["model"] == "here"
    assert told["quality"]["fp8"]["kl"]["value"] == 0.01234567
    assert told["itself"]["kl"]["value"] == 0.0


@pytest.mark.parametrize("kl", [0.0, 3.2e-9, 0.00123456, 0.5, 12.3456])
def test_the_config_can_read_any_divergence(kl):
    read = KvQuality.model_validate(yaml.safe_load(snippet(done(kl=kl).quality["fp8"])))
    assert read.kl == pytest.approx(kl, rel=0.01)


def test_what_the_child_could_not_do_is_told(tmp_path):
    task = Task("here", str(tmp_path), '{"kind": "dense", "roles": ["strong"], "engine": {"max_model_len": 64}}', 3, 48)
    with pytest.raises(CliError, match="no prompts to measure here with"):
        measuring.run_task(task, lambda _step: None)


def test_a_child_that_breaks_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CliError, match="status 1"):
        measuring.run_task(Task("a", "b", "{}", 3, 4), lambda _step: None)


def test_a_failure_has_its_remedy(monkeypatch):
    failed = Failed("the KV precision of a cannot change while it runs: CUDA graphs", "Leave it")
    told = []
    monkeypatch.setattr(measure_child, "_measure", lambda task, tell: told.append(task) or failed)
    monkeypatch.setattr("sys.argv", ["child", '{"model": "a", "path": "b", "config": "{}", "prompts": 3, "tokens": 4}'])
    monkeypatch.setattr("os.dup", lambda _file: 1)
    monkeypatch.setattr("os.dup2", lambda _one, _other: 1)
    monkeypatch.setattr("os.write", lambda _file, line: told.append(line))
    assert measure_child.main() == 1
    assert told[0].model == "a"
    assert b"CUDA graphs" in told[1]
