from __future__ import annotations

import json
import time

import pytest

from cluster.keys import KeyRecord, verify
from deployments.access.keys_file import KeysFile
from deployments.access.usage import KeyUsage, UsageBook
from deployments.paths import usage_path


def add(invoke, *options: str) -> dict[str, object]:
    done = invoke("keys", "add", "alice", "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_key_is_printed_once_and_opens(invoke, state_dir):
    done = invoke("keys", "add", "alice", "--tenant", "lab", "--requests-per-minute", "5", "--concurrency", "2")
    assert done.exit_code == 0, done.output
    key = done.stdout.strip()
    path = state_dir / "keys.jsonl"
    assert key not in path.read_text()
    assert key not in done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    record = verify([f"Bearer {key}"], KeysFile(path).load())
    assert isinstance(record, KeyRecord)
    assert (record.name, record.tenant, record.limits.requests_per_minute) == ("alice", "lab", 5)
    assert (record.limits.tokens_per_minute, record.limits.concurrency) == (None, 2)


def test_list_and_revoke(invoke):
    first, second = add(invoke), add(invoke)
    done = invoke("keys", "revoke", str(first["id"]))
    assert done.exit_code == 0
    listed = json.loads(invoke("keys", "list", "--json").stdout)
    assert {key["id"]: key["revoked"] is not None for key in listed} == {first["id"]: True, second["id"]: False}
    table = invoke("keys", "list").stdout
    assert "revoked" in table
    assert "valid" in table
    assert str(first["key"]) not in table


def test_an_id_that_is_none(invoke):
    assert invoke("keys", "revoke", "nothing1").exit_code == 2
    assert invoke("keys", "usage", "nothing1").exit_code == 2


@pytest.mark.parametrize("options", [("--tenant", "no spaces"), ("--requests-per-minute", "0")])
def test_wrong_fields(invoke, options, state_dir):
    assert invoke("keys", "add", "alice", *options).exit_code == 2
    assert not (state_dir / "keys.jsonl").exists()


def test_usage(invoke, state_dir):
    key = add(invoke)
    unused = add(invoke)
    book = UsageBook(usage_path(state_dir))
    book.add(str(key["id"]), KeyUsage(requests=3, rejected=1, prompt_tokens=40, completion_tokens=5))
    assert book.flush()
    used = {entry["id"]: entry for entry in json.loads(invoke("keys", "usage", "--json").stdout)}
    assert used[key["id"]]["requests"] == 3
    assert used[key["id"]]["last_used"] == pytest.approx(time.time(), abs=60)
    assert used[unused["id"]]["requests"] == 0
    table = invoke("keys", "usage", str(key["id"])).stdout
    assert "40" in table
    assert str(unused["id"]) not in table


def test_a_damaged_file_is_named(invoke, state_dir):
    path = state_dir / "keys.jsonl"
    path.write_text("nonsense\n")
    path.chmod(0o600)
    for command in (["list"], ["add", "bob"], ["usage"]):
        done = invoke("keys", *command)
        assert done.exit_code == 1
        assert "line 1" in done.stderr


def test_the_path_of_a_config_is_used(invoke, config_file, tmp_path):
    path = tmp_path / "own.jsonl"
    config_file.write_text(config_file.read_text() + f"keys: {{path: {path}}}\n")
    done = invoke("keys", "add", "alice", "--config", str(config_file))
    assert done.exit_code == 0, done.output
    assert path.exists()
    assert path.stat().st_mode & 0o077 == 0
