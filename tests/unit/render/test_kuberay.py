from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay import autoscaling_config
from yamllint import linter
from yamllint.config import YamlLintConfig

from cluster.config.cluster import ClusterConfig
from deployments.head.environment import ray_environment
from deployments.processes import CLUSTER_VARIABLE
from deployments.render.layout import SURGE, USER, deployed, groups, longest_request_s
from deployments.render.pods import GPU, GROUP_LABEL
from deployments.render.rayservice import RAY_VERSION, manifests
from deployments.render.serve_config import serve_config
from deployments.render.text import dump_all
from tests.unit.render.conftest import COMMIT, gpu_document, parse, read

KUBERNETES = "1.32"
LINT = "extends: default\nrules: {line-length: disable}"

Object = dict[str, Any]


@pytest.fixture
def rendered(config: ClusterConfig) -> list[Object]:
    """All objects, as whoever applies them reads them."""
    return [one for one in yaml.safe_load_all(dump_all(manifests(config))) if one is not None]


def service_of(objects: list[Object]) -> Object:
    (found,) = [one for one in objects if one["kind"] == "RayService"]
    return found


def templates(objects: list[Object]) -> dict[str, Object]:
    """Pod templates by group."""
    cluster = service_of(objects)["spec"]["rayClusterConfig"]
    found = {one["groupName"]: one["template"] for one in cluster["workerGroupSpecs"]}
    return found | {"head": cluster["headGroupSpec"]["template"]}


def containers(objects: list[Object]) -> Iterator[Object]:
    for template in templates(objects).values():
        yield from template["spec"]["containers"]
        yield from template["spec"].get("initContainers", ())


def variables(container: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_core_objects_fit_the_schemas_of_kubernetes(rendered: list[Object]) -> None:
    kinds = []
    for one in rendered:
        if one["kind"] != "RayService":
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
            kinds.append(one["kind"])
    assert set(kinds) == {"ConfigMap", "PersistentVolumeClaim", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for template in templates(rendered).values():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "pod", **template["metadata"]},
            "spec": template["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_service_fits_the_schema_of_kuberay(rendered: list[Object], service_schema: Object) -> None:
    validator = jsonschema_rs.validator_for(service_schema)
    service = service_of(rendered)
    assert [str(error) for error in validator.iter_errors(service)] == []
    service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert not validator.is_valid(service)


def test_it_is_yaml_that_linters_take(config: ClusterConfig) -> None:
    problems = linter.run(dump_all(manifests(config)), YamlLintConfig(LINT))
    assert [str(problem) for problem in problems] == []


def test_every_object_has_the_namespace_and_a_name_of_its_own(rendered: list[Object], config: ClusterConfig) -> None:
    assert config.deployment is not None
    assert {one["metadata"]["namespace"] for one in rendered} == {config.deployment.namespace}
    names = [(one["kind"], one["metadata"]["name"]) for one in rendered]
    assert len(set(names)) == len(names)


def test_pods_are_restricted(rendered: list[Object]) -> None:
    for template in templates(rendered).values():
        spec = template["spec"]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == context["fsGroup"] == USER
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName"}
        assert not any("hostPath" in volume for volume in spec["volumes"])
    autoscaler = service_of(rendered)["spec"]["rayClusterConfig"]["autoscalerOptions"]
    for container in [*containers(rendered), autoscaler]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and context["capabilities"] == {"drop": ["ALL"]}
        assert context["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_only_the_autoscaler_gets_a_token_of_kubernetes(rendered: list[Object]) -> None:
    tokens = [
        name for name, one in templates(rendered).items() if "serviceAccountToken" in json.dumps(one["spec"]["volumes"])
    ]
    assert tokens == ["head"]
    assert not any(mount["name"] == "autoscaler-token" for one in containers(rendered) for mount in one["volumeMounts"])


def test_what_is_written_to_is_a_volume(rendered: list[Object]) -> None:
    for container in containers(rendered):
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        told = variables(container)
        assert {"/tmp", "/dev/shm", told["HOME"], told["POINTSMAN_STATE_DIR"]} <= writable  # noqa: S108 - volumes of a pod
        # One pod writes the models' files, before anything else starts.
        assert (told["POINTSMAN_CACHE"] in writable) == (container["name"] == "models")
        assert told["HF_HOME"].startswith(told["POINTSMAN_CACHE"])
        assert ("HF_HUB_OFFLINE" in told) == (container["name"] != "models")


def test_ray_asks_for_a_token_everywhere(rendered: list[Object], config: ClusterConfig) -> None:
    assert config.deployment is not None
    secret = config.deployment.ray_token_secret
    cluster = service_of(rendered)["spec"]["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": secret}
    for container in [*containers(rendered), cluster["autoscalerOptions"]]:
        told = variables(container)
        assert told["RAY_AUTH_MODE"] == "token"
        assert told["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"key": "auth_token", "name": secret}}


def test_no_secret_is_written(rendered: list[Object]) -> None:
    assert not any(one["kind"] == "Secret" for one in rendered)
    cluster = service_of(rendered)["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisPassword"].keys() == {"valueFrom"}
    for container in containers(rendered):
        for name, value in variables(container).items():
            if any(word in name for word in ("TOKEN", "PASSWORD", "API_KEY")):
                assert isinstance(value, dict), name


def test_pods_run_in_the_environment_of_the_head_process(rendered: list[Object]) -> None:
    expected = ray_environment("", False)
    del expected[CLUSTER_VARIABLE]
    for container in containers(rendered):
        assert expected.items() <= variables(container).items()


def test_nothing_is_exposed_but_the_ingress_to_the_gateway(rendered: list[Object], config: ClusterConfig) -> None:
    services = [one for one in rendered if one["kind"] == "Service"]
    assert [one["spec"]["type"] for one in services] == ["ClusterIP"]
    assert services[0]["spec"]["selector"][GROUP_LABEL] == "ingress"
    assert service_of(rendered)["spec"]["rayClusterConfig"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    policies = {
        one["metadata"]["name"].removeprefix(f"{config.name}-"): one["spec"]
        for one in rendered
        if one["kind"] == "NetworkPolicy"
    }
    assert policies["deny"] == {
        "podSelector": policies["inside"]["podSelector"], "ingress": [], "egress": [], "policyTypes": ["Ingress", "Egress"],
    }  # fmt: skip
    for template in templates(rendered).values():
        assert policies["deny"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    from_outside = {
        name: [port["port"] for rule in spec["ingress"] for port in rule["ports"]]
        for name, spec in policies.items()
        if any("namespaceSelector" in peer for rule in spec.get("ingress", ()) for peer in rule["from"])
    }
    assert from_outside == {"callers": [config.ingress.port], "operator": [8265]}
    # Nobody may send to everywhere: what leaves the cluster names its port.
    assert all("ports" in rule or "to" in rule for spec in policies.values() for rule in spec.get("egress", ()))


def test_servers_outside_are_reached_by_those_that_need_them() -> None:
    objects = manifests(parse(gpu_document()))
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    hosted = policies["production-model-hosted-out"]
    assert hosted["egress"] == [{"ports": [{"port": 8443, "protocol": "TCP"}]}]
    assert hosted["podSelector"]["matchLabels"][GROUP_LABEL] == "model-hosted"
    assert {port["port"] for port in policies["production-head-out"]["egress"][0]["ports"]} == {443, 6443, 6380}
    (container,) = templates(objects)["model-hosted"]["spec"]["containers"]
    assert "UPSTREAM_API_KEY" in variables(container)
    (other,) = templates(objects)["model-minilm"]["spec"]["containers"]
    assert "UPSTREAM_API_KEY" not in variables(other)


def test_a_pod_may_take_as_long_as_the_longest_request(rendered: list[Object], config: ClusterConfig) -> None:
    longest = longest_request_s(config)
    for name, template in templates(rendered).items():
        if name == "head":
            continue
        grace = template["spec"]["terminationGracePeriodSeconds"]
        (container,) = template["spec"]["containers"]
        drain = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert longest <= drain < grace
    drains = {
        f"model-{name.replace('.', '-')}": model.replicas.drain_timeout_s for name, model in config.models.items()
    }
    assert all(
        templates(rendered)[name]["spec"]["terminationGracePeriodSeconds"] > drain for name, drain in drains.items()
    )
    assert service_of(rendered)["spec"]["rayClusterDeletionDelaySeconds"] > longest


def test_the_last_replica_is_not_evicted(rendered: list[Object], config: ClusterConfig) -> None:
    budgets = {
        one["spec"]["selector"]["matchLabels"][GROUP_LABEL]: one["spec"]["minAvailable"]
        for one in rendered
        if one["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {group.name: max(1, group.min - 1) for group in groups(deployed(config)) if group.min}


def test_ray_reads_from_the_groups_what_the_replicas_ask_for(rendered: list[Object], config: ClusterConfig) -> None:
    """By the code of Ray's own autoscaler for KubeRay."""
    cluster = service_of(rendered)["spec"]["rayClusterConfig"]
    offered = {
        one["groupName"]: autoscaling_config._get_ray_resources_from_group_spec(one, is_head=False)
        for one in cluster["workerGroupSpecs"]
    }
    head = autoscaling_config._get_ray_resources_from_group_spec(
        cluster["headGroupSpec"] | {"groupName": "head"}, is_head=True
    )
    assert head["CPU"] == 0
    homes = {
        resource: name
        for name, resources in offered.items()
        for resource in resources
        if resource.startswith("pointsman_")
    }
    assert len(homes) == len(offered)
    for application in serve_config(deployed(config), placed=True)["applications"]:
        for deployment in application["deployments"]:
            options = deployment["ray_actor_options"]
            ((resource, count),) = options["resources"].items()
            node = offered[homes[resource]]
            assert node[resource] == count == 1
            assert node["CPU"] >= options["num_cpus"] and node.get("GPU", 0) >= options.get("num_gpus", 0)
            assert node["memory"] >= options.get("memory", 0)


def test_a_replica_that_is_split_over_gpus_has_all_of_them_in_its_pod() -> None:
    config = parse(gpu_document())
    objects = manifests(config)
    assert config.deployment is not None
    for name, model in config.models.items():
        template = templates(objects)[f"model-{name.replace('.', '-')}"]
        (container,) = template["spec"]["containers"]
        gpus = int(container["resources"]["limits"].get(GPU, 0))
        assert gpus == model.replicas.gpus == (model.engine.tensor_parallel_size if gpus else 0)
        assert container["image"] == (config.deployment.gpu_image if gpus else config.deployment.image)
        assert ("tolerations" in template["spec"]) == bool(gpus)


def test_another_model_or_another_number_of_replicas_is_another_cluster() -> None:
    # KubeRay makes a new cluster where pods are others, and brings a number of replicas to a new cluster alone.
    def pods(**dense: Any) -> tuple[Object, list[Object]]:
        document = read("kubernetes")
        document["models"]["dense"] |= dense
        cluster = service_of(manifests(parse(document)))["spec"]["rayClusterConfig"]
        return cluster["headGroupSpec"]["template"], [one["template"] for one in cluster["workerGroupSpecs"]]

    head, workers = pods()
    assert pods(source=f"hf:org/name@{COMMIT}")[0] != head
    replicas = read("kubernetes")["models"]["dense"]["replicas"]
    more_head, more = pods(replicas=replicas | {"max": 9})
    assert more_head == head
    assert sum(one != other for one, other in zip(workers, more, strict=True)) == 1


def test_groups_have_room_for_a_replica_that_is_replaced(rendered: list[Object], config: ClusterConfig) -> None:
    groups_of = {one["groupName"]: one for one in service_of(rendered)["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    named = {"num-cpus", "num-gpus", "memory", "resources", "labels"}
    # KubeRay refuses a group that has these in both places.
    assert not any(one["rayStartParams"].keys() & named for one in groups_of.values())
    for name, model in config.models.items():
        group = groups_of[f"model-{name.replace('.', '-')}"]
        assert (group["minReplicas"], group["maxReplicas"]) == (model.replicas.min, model.replicas.max + SURGE)
        if model.pools is not None:
            pools = groups_of[f"pools-{name}"]
            assert pools["minReplicas"] == model.pools.count * model.pools.min
            assert int(pools["resources"]["CPU"]) == math.ceil(model.pools.cpus)


def test_the_ingress_is_asked_whether_it_can_answer(rendered: list[Object], config: ClusterConfig) -> None:
    (container,) = templates(rendered)["ingress"]["spec"]["containers"]
    port = config.ingress.port
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": port}
    asked = container["readinessProbe"]
    assert asked["httpGet"] == {"path": "/readyz?exclude=models", "port": port}
    # By then Kubernetes has noticed that it stops.
    assert config.ingress.lame_duck_s > asked["periodSeconds"] * asked["failureThreshold"]
    slowest = max(model.replicas.start_timeout_s for model in config.models.values())
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] > slowest


def test_the_version_of_ray_is_the_one_that_is_locked() -> None:
    import ray

    assert ray.__version__ == RAY_VERSION
