"""The Helm chart: linted and rendered by Helm itself, its objects checked by Kubernetes' schemas, for pairs of values.

Not checked: what a cluster makes of them. tests/test_kubernetes.py runs the rendered pod.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from allpairspy import AllPairs

from client import __version__
from client.settings import Settings
from client.triton.pace import DEADLINE_SECONDS
from embedder import EmbedderConfig
from tests.charts import CHART, container, pod, rendered

ROOT = Path(__file__).parent.parent
VERSIONS = ("1.29", "1.34")  # of Kubernetes
CHOICES: dict[str, list[Any]] = {
    "replicas": [1, 3],
    "rollout": [{}, {"maxSurge": 0, "maxUnavailable": "50%"}],
    "imageRegistry": ["", "registry.example/team"],
    "imagePullSecrets": [[], [{"name": "registry"}]],
    "offline": [False, True],
    "checkpoint": ["Qwen/Qwen3-VL-4B-Instruct", "/weights/mine"],
    "hubTokenSecret": ["", "hub"],
    "weights": [
        {},
        {"existingClaim": "shared"},
        {"accessMode": "ReadWriteOnce", "storageClass": "fast", "size": "9Gi"},
        {"existingClaim": "shared", "accessMode": "ReadWriteOncePod"},
    ],
    "gpu": [{}, {"count": 0}, {"resource": "nvidia.com/mig-2g.20gb"}],
    "apiKeySecret": ["", "keys"],
    "adapter": [
        {},
        {"image": {"digest": "sha256:" + "0" * 64}, "settings": {"ADAPTER_DEADLINE_SECONDS": 120.5}},
        {
            "image": {"tag": "x"},
            "settings": {"ADAPTER_MAX_BODY_BYTES": 67108864, "ADAPTER_TRACES_URL": "http://c:4318"},
        },
    ],
    "triton": [{}, {"settings": {"EMBED_POOLING": "mean", "EMBED_NORMALIZE": False}, "sharedMemory": "4Gi"}],
    "service": [{}, {"type": "LoadBalancer", "port": 8001, "annotations": {"balancer.example/internal": "true"}}],
    "podDisruptionBudget": [{}, {"enabled": False}, {"maxUnavailable": "25%"}],
    "networkPolicy": [{}, {"enabled": False}, {"from": [{"podSelector": {}}], "egress": [{"ports": [{"port": 4318}]}]}],
    "monitoring": [{}, {"enabled": True, "labels": {"release": "prometheus"}}],
    "autoscaling": [{}, {"kind": "hpa"}, {"kind": "keda", "min": 2}],
    "kserve": [{}, {"enabled": True}],
    "env": [{}, {"HTTPS_PROXY": "http://proxy.example:3128"}],
    "user": [1000, 2000, None],
    "podLabels": [{}, {"team": "search"}],
    "nodeSelector": [{}, {"gpu": "l40s"}],
    "tolerations": [[], [{"key": "nvidia.com/gpu", "operator": "Exists"}]],
    "runtimeClassName": ["", "nvidia"],
    "priorityClassName": ["", "high"],
}


def scaled(values: dict[str, Any]) -> bool:
    return "kind" in values.get("autoscaling", {})


def excluded(values: dict[str, Any]) -> bool:
    return (alone(values) and (scaled(values) or values.get("replicas", 1) > 1)) or (
        scaled(values) and bool(values.get("kserve"))
    )


def alone(values: dict[str, Any]) -> bool:
    return values.get("weights", {}).get("accessMode", "").startswith("ReadWriteOnce")


def pairs() -> Iterator[dict[str, Any]]:
    """Values in which each two choices meet somewhere, but for those that exclude each other."""
    for row in AllPairs(
        list(CHOICES.values()), filter_func=lambda row: not excluded(dict(zip(CHOICES, row, strict=False)))
    ):
        yield dict(zip(CHOICES, row, strict=True))


PAIRS = list(pairs())
every_pair = pytest.mark.parametrize("values", PAIRS, ids=map(str, range(len(PAIRS))))


def test_helm_has_nothing_to_say_of_it():
    report = helm_python.lint(CHART, strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == report["errors"] == []
    metadata = helm_python.Chart.load(CHART).metadata
    assert metadata["version"] == metadata["appVersion"] == __version__


@every_pair
def test_objects_are_what_kubernetes_takes(values):
    documents = rendered(values)
    checked = 0
    for document in [
        *documents,
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod(documents)},
    ]:
        if document["apiVersion"].split("/")[0] in ("v1", "apps", "policy", "autoscaling", "networking.k8s.io"):
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
            checked += 1
    assert checked >= 1
    kinds = [document["kind"] for document in documents]
    assert ("InferenceService" in kinds) == bool(values["kserve"]) != ("Deployment" in kinds)
    assert len(kinds) == len(set(kinds))


@every_pair
def test_a_pod_may_do_little_and_is_told_only_what_is_a_setting(values):
    spec = pod(rendered(values))
    assert spec["securityContext"]["runAsNonRoot"]
    chosen = {spec["securityContext"].get(name) for name in ("runAsUser", "runAsGroup", "fsGroup")}
    assert chosen == {values["user"]}  # none: the cluster's own, as OpenShift wants
    assert not spec["automountServiceAccountToken"]
    assert not spec["enableServiceLinks"]  # a Service `adapter` would be the unknown setting ADAPTER_SERVICE_HOST
    for one in spec["containers"]:
        assert one["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert one["image"].startswith(f"{values['imageRegistry']}/qwen3-vl-embed/".lstrip("/"))
        assert not one["image"].endswith(":latest")
    for name, settings in (("adapter", Settings), ("triton", EmbedderConfig)):
        prefix = settings.model_config["env_prefix"]
        told = {each["name"]: each.get("value") for each in container(spec, name)["env"]}
        known = {prefix + field.upper() for field in settings.model_fields}
        assert {each for each in told if each.startswith(("ADAPTER_", "EMBED_"))} <= known
        given = values[name].get("settings", {})
        assert len(told) == len(container(spec, name)["env"])
        assert values["env"].items() <= told.items()
        assert {
            each: json.loads(told[each]) if not isinstance(value, str) else told[each] for each, value in given.items()
        } == given
    triton = container(spec, "triton")
    told = {each["name"] for each in triton["env"]}
    assert ("EMBED_DEVICE" in told) == (values["gpu"].get("count") == 0)
    assert ({"nvidia.com/gpu", "nvidia.com/mig-2g.20gb"} & triton["resources"]["limits"].keys() == set()) == (
        values["gpu"].get("count") == 0
    )
    assert ("HF_HUB_OFFLINE" in told) == (values["offline"] or values["checkpoint"].startswith("/"))
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert volumes.keys() == {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": values["triton"].get("sharedMemory", "2Gi")}
    assert {"name": "shm", "mountPath": "/dev/shm"} in triton["volumeMounts"]


@every_pair
def test_triton_outlives_its_adapter_which_has_time_to_answer(values):
    spec = pod(rendered(values))
    adapter, triton = container(spec, "adapter"), container(spec, "triton")
    drain, outlive = (int(one["lifecycle"]["preStop"]["exec"]["command"][1]) for one in (adapter, triton))
    deadline = values["adapter"].get("settings", {}).get("ADAPTER_DEADLINE_SECONDS", DEADLINE_SECONDS)
    assert drain + deadline < outlive < spec["terminationGracePeriodSeconds"]
    assert adapter["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8080}
    assert adapter["livenessProbe"]["httpGet"] == {"path": "/health/live", "port": 8080}
    assert triton["startupProbe"]["exec"]["command"] == ["python3", "/opt/watchdog.py", "check"]


@every_pair
def test_a_pod_has_time_to_start_gets_its_claim_and_holds_no_node(values):
    documents = {document["kind"]: document["spec"] for document in rendered(values)}
    probe = container(pod(rendered(values)), "triton")["startupProbe"]
    if deployment := documents.get("Deployment"):
        assert deployment["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]
        assert (deployment["strategy"] == {"type": "Recreate"}) == alone(values)
        disks = [name for name, empty in folders_of(deployment["template"]["spec"]).items() if "medium" not in empty]
        told = deployment["template"]["metadata"]["annotations"]
        assert told["cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"] == ",".join(disks)


def folders_of(spec: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {volume["name"]: volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume}


@every_pair
def test_only_the_adapter_is_reached(values):
    documents = {document["kind"]: document for document in rendered(values)}
    spec = pod(list(documents.values()))
    labels = labels_of(documents)
    ports = {port["name"]: port["containerPort"] for one in spec["containers"] for port in one["ports"]}
    assert ports == {"http": 8080, "triton-metrics": 8002}
    if service := documents.get("Service"):
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
        assert service["spec"]["selector"].items() <= labels.items()
    if policy := documents.get("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        first, *others = policy["spec"]["ingress"]
        assert first["ports"] == [{"port": 8080}]
        assert first.get("from", []) == values["networkPolicy"].get("from", [])
        assert [set(rule) for rule in others] == [{"ports", "from"}] * bool(values["monitoring"])
        assert ("Egress" in policy["spec"]["policyTypes"]) == values["offline"]
        assert policy["spec"].get("egress", []) == (
            values["networkPolicy"].get("egress", []) if values["offline"] else []
        )
    else:
        assert values["networkPolicy"] == {"enabled": False}


def labels_of(documents: dict[str, Any]) -> dict[str, str]:
    if service := documents.get("InferenceService"):
        return service["spec"]["predictor"]["labels"]
    return documents["Deployment"]["spec"]["template"]["metadata"]["labels"]


@every_pair
def test_what_watches_and_scales_finds_the_pods(values):
    documents = {document["kind"]: document for document in rendered(values)}
    labels = labels_of(documents)
    if budget := documents.get("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert ("replicas" in documents.get("Deployment", {"spec": ["replicas"]})["spec"]) != scaled(values)
    for kind in {"HorizontalPodAutoscaler", "ScaledObject"} & documents.keys():
        assert documents[kind]["spec"]["scaleTargetRef"]["name"] == documents["Deployment"]["metadata"]["name"]
        assert "adapter_items_in_flight" in json.dumps(documents[kind])
    if not values["monitoring"]:
        assert not {"PodMonitor", "PrometheusRule"} & documents.keys()
        return
    monitor, rule = documents["PodMonitor"], documents["PrometheusRule"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {"release": "prometheus"}.items() <= monitor["metadata"]["labels"].items()
    as_compose_has_it = json.dumps(rule["spec"]).replace("search/embed-qwen3-vl-embed/adapter", "adapter")
    assert json.loads(as_compose_has_it) == yaml.safe_load((CHART / "files" / "alerts.yml").read_text())
    adapter, triton = monitor["spec"]["podMetricsEndpoints"]
    assert {"action": "labeldrop", "regex": "endpoint"} in adapter["relabelings"]  # else ours were exported_endpoint
    jobs = {endpoint["relabelings"][0]["replacement"] for endpoint in (adapter, triton)}
    asked = set(re.findall(r'job="([^"]+)"', json.dumps(rule).replace("\\", "")))
    assert asked <= jobs == {f"search/embed-qwen3-vl-embed/{name}" for name in ("adapter", "triton")}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, "replica"),
        ({"adapter": {"setings": {}}}, "setings"),
        ({"adapter": {"settings": {"ADAPTER_MAX_ITEM": 1}}}, "ADAPTER_MAX_ITEM"),
        ({"adapter": {"settings": {"ADAPTER_API_KEY": "in the open"}}}, "ADAPTER_API_KEY"),
        ({"triton": {"settings": {"EMBED_POLING": "mean"}}}, "EMBED_POLING"),
        ({"gpu": {"count": -1}}, "count"),
        ({"autoscaling": {"kind": "vpa"}}, "kind"),
        ({"weights": {"size": "20 GB"}}, "size"),
        ({"weights": {"size": "20"}}, "size"),
        ({"apiKeySecret": "a, b: c"}, "apiKeySecret"),
        ({"env": {"EMBED_POOLING": "mean"}}, "EMBED_POOLING"),
        ({"env": {"HF_TOKEN": "in the open"}}, "HF_TOKEN"),
        ({"user": 0}, "user"),
        ({"imageRegistry": "https://registry.example"}, "imageRegistry"),
        ({"adapter": {"image": {"repository": "Team/Adapter"}}}, "repository"),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": "0%"}}, "both 0"),
        ({"autoscaling": {"kind": "hpa", "min": 5}}, "autoscaling.min is larger"),
        ({"rollout": {"maxSurge": "1"}}, "maxSurge"),
        ({"weights": {"accessMode": "ReadWriteOnce"}, "replicas": 2}, "set ReadWriteMany, or replicas to 1"),
        ({"kserve": {"enabled": True}, "autoscaling": {"kind": "hpa"}}, "exclude each other"),
    ],
)
def test_an_unknown_or_impossible_value_is_refused_by_name(values, words):
    with pytest.raises(helm_python.HelmError, match=words):
        rendered(values)


@pytest.mark.parametrize("name", ["on", "null", "e1"])
def test_names_that_yaml_takes_for_something_else_stay_names(name):
    values = {
        "hubTokenSecret": name,
        "apiKeySecret": name,
        "weights": {"existingClaim": name},
        "monitoring": {"enabled": True, "namespace": name},
    }
    for document in rendered(values, name) + rendered({"weights": {"storageClass": name}}, name):
        if document["apiVersion"].split("/")[0] in ("v1", "apps", "policy", "networking.k8s.io"):
            kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("name", ["a.b", "1st", "123"])
def test_a_release_whose_name_can_be_no_services_is_refused(name):
    with pytest.raises(helm_python.HelmError, match="begin with a letter"):
        rendered({}, name)


def test_a_release_counts_its_own_pods_alone():
    [scaled] = [each for each in rendered({"autoscaling": {"kind": "keda"}}) if each["kind"] == "ScaledObject"]
    [pods] = re.findall(r'pod=~"([^"]+)"', scaled["spec"]["triggers"][0]["metadata"]["query"])
    assert re.fullmatch(pods, "embed-qwen3-vl-embed-76f5c6d8b9-x2x7k")
    assert not re.fullmatch(pods, "embed-qwen3-vl-embed-mean-76f5c6d8b9-x2x7k")


def test_every_value_and_setting_is_in_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def same(values: dict[str, Any], schema: dict[str, Any]) -> None:
        if "properties" in schema:
            assert schema["additionalProperties"] is False
            assert values.keys() == schema["properties"].keys()
            for name, value in values.items():
                if isinstance(value, dict):
                    same(value, schema["properties"][name])

    same(values, schema)
    assert CHOICES.keys() <= values.keys()
    fixed = {"ADAPTER_HOST", "ADAPTER_PORT", "ADAPTER_TRITON_URL", "ADAPTER_API_KEY", "ADAPTER_API_KEY_FILE"}
    for part, settings, held in (
        ("adapter", Settings, fixed),
        ("triton", EmbedderConfig, {"EMBED_CHECKPOINT", "EMBED_DEVICE"}),
    ):
        names = schema["properties"][part]["properties"]["settings"]["propertyNames"]["enum"]
        prefix = settings.model_config["env_prefix"]
        assert {*names} == {prefix + field.upper() for field in settings.model_fields} - held


def test_the_images_are_those_that_are_built():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in ("adapter", "triton"):
        assert container(pod(rendered({})), name)["image"] == f"{compose[name]['image']}:{__version__}"
    pushed = re.findall(r"/\$each:(\S+)", (ROOT / "docs" / "kubernetes.md").read_text())
    assert set(pushed) == {__version__}
