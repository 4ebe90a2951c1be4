"""Dashboard, alarms and compose's monitoring profile ask for figures that exist; docs/operations.md explains them."""

import json
import re
from pathlib import Path

import httpx
import pytest
import yaml

from tests.charts import CHART
from tests.waits import LIMIT_SECONDS

FOLDER = Path("deploy/monitoring")
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboard.json").read_text())
ALERTS = yaml.safe_load((CHART / "files" / "alerts.yml").read_text())["groups"][0]["rules"]
COMPOSE = yaml.safe_load(Path("docker-compose.yml").read_text())
OPERATIONS = Path("docs/operations.md").read_text()
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [alert["expr"] for alert in ALERTS]

# Prometheus makes `up` itself; Triton has the others on machines with a GPU only (its documentation, "GPU metrics").
ELSEWHERE = {"up", "nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}


def asked_for(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", "", expression)
    return set(re.findall(r"\b(?:up|(?:adapter|nv)_\w+)\b", bare))


def existing(url: str) -> set[str]:
    return set(re.findall(r"^(\w+)[{ ]", httpx.get(f"{url}/metrics", timeout=LIMIT_SECONDS).text, re.MULTILINE))


def test_every_figure_that_is_asked_for_exists(stack):
    httpx.post(f"{stack.adapter_url}/txt/embed", json={"input": "red"}, timeout=60).raise_for_status()
    there = existing(stack.adapter_url) | existing(f"http://{stack.triton_metrics}") | ELSEWHERE
    assert set().union(*map(asked_for, EXPRESSIONS)) <= there


def test_every_expression_asks_for_something_and_selects_labels_that_exist(stack):
    assert all(asked_for(expression) for expression in EXPRESSIONS)
    labels = {name for expression in EXPRESSIONS for name in re.findall(r"(\w+)(?:=~|!=|=)\"", expression)}
    assert labels <= {"job", "status", "reason", "endpoint", "model"}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_no_alarm_mixes_the_figures_of_several_releases(alert):
    sums = re.findall(r"\b(?:sum|min|max)\b( by \(job\b)?", alert["expr"])
    assert all(sums)
    assert sums or "job=" in alert["expr"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alarm_says_what_to_do(alert):
    assert alert["annotations"]["summary"].endswith(".")
    assert f"**{alert['alert']}**" in OPERATIONS


def test_panels_lie_side_by_side_and_none_on_another():
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_it_loads_by_itself():
    source = yaml.safe_load((FOLDER / "grafana" / "datasource.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    for name in ("prometheus", "grafana"):
        service = COMPOSE["services"][name]
        assert service["profiles"] == ["monitoring"]
        assert re.search(r"^\$\{[A-Z]+_IMAGE:-[a-z/]+:v?\d+\.\d+\.\d+\}$", service["image"])
        files = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert all(Path(file).is_file() for file in files)
    provider = yaml.safe_load((FOLDER / "grafana" / "dashboards.yml").read_text())["providers"][0]
    assert any(f":{provider['options']['path']}/" in volume for volume in COMPOSE["services"]["grafana"]["volumes"])


def test_it_is_published_to_this_machine_alone():
    assert "ports" not in COMPOSE["services"]["prometheus"]
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"]["grafana"]["ports"])


def test_prometheus_asks_every_service_on_its_port_with_the_adapters_key():
    jobs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    found = {name: (job, entry["port"]) for job in jobs for entry in job["dns_sd_configs"] for name in entry["names"]}
    assert found.keys() <= COMPOSE["services"].keys()
    assert {name: port for name, (_, port) in found.items()} == {
        "adapter": 8000,
        "adapter-cpu": 8000,
        "triton": 8002,
        "triton-cpu": 8002,
    }
    key = next(volume for volume in COMPOSE["services"]["prometheus"]["volumes"] if "API_KEY_FILE" in volume)
    assert found["adapter"][0]["authorization"]["credentials_file"] == key.split(":")[-2]
    assert all(key in COMPOSE["services"][name]["volumes"] for name in ("adapter", "adapter-cpu"))
