"""`pointsman up` where a model's files cannot be had."""

from pathlib import Path

from deployments.head.state import read_state


def without_checkpoints(config_file: Path, tmp_path: Path, count: int) -> Path:
    """The config with the first `count` models on engines whose checkpoints are nowhere."""
    text = config_file.read_text()
    for source in ("embedded:dense", "embedded:mini")[:count]:
        text = text.replace(f"source: {source}", f"source: path:{tmp_path}/nowhere")
    path = tmp_path / "lost.yaml"
    path.write_text(text.replace("engine: {type: simulated}", "engine: {}", count))
    return path


def test_a_model_that_cannot_be_had_is_named_and_the_others_start(invoke, fake_head, config_file, tmp_path, state_dir):
    fake_head("ready")
    done = invoke("up", "--config", str(without_checkpoints(config_file, tmp_path, 1)))
    assert done.exit_code == 0, done.output
    assert "large cannot be had, and the others start without it" in done.stderr
    assert "nowhere is not a folder" in done.stderr
    assert read_state(state_dir) is not None
    assert invoke("down").exit_code == 0


def test_where_no_model_can_be_had_nothing_is_started(invoke, fake_head, config_file, tmp_path, state_dir):
    fake_head("ready")
    done = invoke("up", "--config", str(without_checkpoints(config_file, tmp_path, 2)))
    assert done.exit_code == 1
    assert "no model can be had" in done.stderr
    assert "large" in done.stderr and "small" in done.stderr
    assert read_state(state_dir) is None
