from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from deployments.cli import build_child
from deployments.cli.build_messages import Building, Job
from deployments.cli.errors import CliError
from deployments.cli.obtain import obtain_models, run_job


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("POINTSMAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def config(tmp_path, checkpoint) -> str:
    path = tmp_path / "models.yaml"
    path.write_text(
        f"""
models:
  here: {{kind: dense, roles: [strong, fast, fluency], source: "path:{checkpoint}"}}
  lost: {{kind: dense, roles: [facts], source: "path:{tmp_path}/lost"}}
  later: {{kind: mini, roles: [verifier], source: "embedded:mini"}}
  outside:
    {{kind: external, roles: [large_context], upstream: {{base_url: "https://models.example.com/v1", model: big}}}}
"""
    )
    return str(path)


def test_the_list_says_what_is_here(invoke, config, checkpoint):
    done = invoke("models", "--config", config, "--json")
    assert done.exit_code == 0, done.output
    listed = {model["name"]: model for model in json.loads(done.stdout)["models"]}
    assert (listed["here"]["files"], listed["here"]["path"], listed["here"]["bytes"]) == ("here", str(checkpoint), 6)
    assert "is not a folder" in listed["lost"]["files"]
    assert listed["later"]["files"] == "not built"
    assert listed["outside"]["files"] == "none needed"
    table = invoke("models", "list", "--config", config).stdout
    assert "https://models.example.com/v1" in table
    assert "embedded:mini" in table


def test_build_reports_each_model(invoke, config, checkpoint):
    done = invoke("models", "build", "here", "lost", "--config", config)
    assert done.exit_code == 1
    assert f"here  ready  {checkpoint}" in done.stdout
    assert "lost is not a folder" in done.stdout
    report = json.loads(invoke("models", "build", "here", "outside", "--config", config, "--json").stdout)
    assert report == {"models": {"here": str(checkpoint)}, "failed": {}}


def test_verify_reads_in_a_child(invoke, config, checkpoint):
    done = invoke("models", "verify", "here", "--config", config)
    assert done.exit_code == 0, done.output
    assert "intact" in done.stdout


def test_a_model_that_the_config_does_not_have(invoke, config):
    done = invoke("models", "build", "huge", "--config", config)
    assert done.exit_code == 2
    assert "here, lost, later, outside" in done.stderr


def test_the_child_tells_of_its_progress_and_of_what_it_cannot_do(tmp_path):
    heard: list[Building] = []
    job = Job({"a": "embedded:encoder", "b": "embedded:no-such", "c": f"path:{tmp_path}/lost"})
    paths, failed = run_job(job, heard.append)
    assert list(paths) == ["a"]
    assert paths["a"].is_dir()
    assert {one.model for one in failed} == {"b", "c"}
    assert heard[-1].model == "a"
    assert heard[-1].fraction == 1.0
    again, none = obtain_models({"a": "embedded:encoder"}, lambda work: pytest.fail(work.message))
    assert (again, none) == (paths, ())


def test_a_child_that_breaks_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CliError, match="status 1"):
        run_job(Job({"a": "embedded:dense"}), lambda _work: None)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    taken = tmp_path / "taken"
    taken.touch()
    monkeypatch.setenv("POINTSMAN_CACHE", str(taken))
    paths, failed = run_job(Job({"a": "embedded:encoder"}), lambda _work: None)
    assert paths == {}
    (one,) = failed
    assert str(taken) in one.problem
    assert "POINTSMAN_CACHE" in one.remedy


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "Free some space"), (errno.EACCES, "writable")])
def test_the_child_says_what_to_do_about_a_disk(number, words):
    assert words in build_child._remedy(OSError(number, os.strerror(number), "/cache"))
