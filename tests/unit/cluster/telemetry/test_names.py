import re

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, service_attributes

from cluster.telemetry import names
from cluster.telemetry.metric_table import MetricType, all_metrics

OLD = {names.ENGINE_INPUT_TOKENS, names.ENGINE_OUTPUT_TOKENS}


def constants() -> dict[str, str]:
    return {name: value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)}


def test_genai_names_are_those_of_the_conventions() -> None:
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    ours = {
        value
        for value in constants().values()
        if value.startswith("gen_ai.") and not value.startswith("gen_ai.latency.")
    }
    assert ours <= known


def test_general_names_are_those_of_the_conventions() -> None:
    assert names.ERROR_TYPE == error_attributes.ERROR_TYPE
    assert names.HTTP_METHOD == http_attributes.HTTP_REQUEST_METHOD
    assert names.HTTP_ROUTE == http_attributes.HTTP_ROUTE
    assert names.HTTP_STATUS == http_attributes.HTTP_RESPONSE_STATUS_CODE
    assert names.SERVICE_NAME == service_attributes.SERVICE_NAME


def test_no_two_constants_say_the_same() -> None:
    values = list(constants().values())
    assert sorted(values) == sorted(set(values))


def test_metrics_follow_prometheus_rules() -> None:
    metrics = all_metrics()
    assert len({metric.name for metric in metrics}) == len(metrics) > 20
    for metric in metrics:
        assert re.fullmatch(r"pointsman_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
        assert metric.help.endswith(".")
        assert bool(metric.buckets) == (metric.type is MetricType.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(re.fullmatch(r"[a-z]+", label) for label in metric.labels)
