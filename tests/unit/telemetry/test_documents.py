"""What the documents list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from cluster.telemetry import names

ROOT = Path(__file__).parents[3]


def test_every_identifier_that_a_log_line_may_carry_is_listed():
    text = (ROOT / "docs" / "logs.md").read_text()
    listed = re.search(r"These are: ([^;]+?)\.\n- ", text, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == sorted(names.LOG_IDENTIFIERS)


def test_every_policy_of_the_collector_is_told():
    text = (ROOT / "docs" / "tracing.md").read_text()
    section = text.partition("## Keeping what matters")[2].partition("\n## ")[0]
    config = yaml.safe_load((ROOT / "infra" / "otel" / "collector.yaml").read_text())
    policies = {policy["name"] for policy in config["processors"]["tail_sampling"]["policies"]}
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", section)) == policies
    assert "5 in 100" in section


def test_nothing_reads_or_hands_on_baggage():
    """Global propagators would: they follow OTEL_PROPAGATORS, whose default has baggage in it."""
    for folder in ("cluster", "deployments"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"opentelemetry(\.| import )(baggage|propagate)\b", path.read_text()), path
