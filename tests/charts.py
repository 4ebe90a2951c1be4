"""The Helm chart, rendered by Helm itself."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parent.parent / "deploy" / "helm" / "qwen3-vl-embed"


def rendered(values: dict[str, Any], name: str = "embed") -> list[dict[str, Any]]:
    """The objects of a release of that name, as `helm template` gives them.

    Raises:
        helm_python.HelmError: a value is unknown or impossible.
    """
    return deepcopy(_rendered(json.dumps(values), name))


@cache
def _rendered(values: str, name: str) -> list[dict[str, Any]]:
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(json.loads(values))
        files = chart.render(json.loads(values), name=name, namespace="search")
    documents = [each for path, text in files.items() if path.endswith(".yaml") for each in yaml.safe_load_all(text)]
    return [document for document in documents if document]


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The specification of its pods."""
    found = {document["kind"]: document["spec"] for document in documents}
    if predictor := found.get("InferenceService", {}).get("predictor"):
        return {key: value for key, value in predictor.items() if key not in EXTENSIONS}
    return found["Deployment"]["template"]["spec"]


EXTENSIONS = ("minReplicas", "maxReplicas", "labels", "annotations", "deploymentStrategy")  # KServe's own beside it


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """One of the pod's two."""
    names = {name, "kserve-container"} if name == "adapter" else {name}
    [found] = [each for each in spec["containers"] if each["name"] in names]
    return found
