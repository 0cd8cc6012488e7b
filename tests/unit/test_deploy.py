# SPDX-License-Identifier: Apache-2.0
"""The chart, the alerts and the dashboard in deploy/: what they say is what there is.

helm, kubernetes-validate and promtool are run where they are installed (``make test-deploy``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT
from programs import installed
from prometheus_client.parser import text_string_to_metric_families

from lipsync_fast.config_load import load
from lipsync_fast.frontend.http.app import routes
from lipsync_fast.frontend.http.metrics import metrics_text
from lipsync_fast.frontend.http.openapi import document
from lipsync_fast.histograms import Durations
from lipsync_fast.ipc.control import Load
from lipsync_fast.ipc.status import (
    AvatarStatus,
    EngineStatus,
    FrontLoad,
    FrontStatus,
    GatewayLoad,
    GatewayStatus,
    ServerStatus,
)
from lipsync_fast.supervisor.exposure import check_exposure

CHART = ROOT / "deploy" / "helm" / "lipsync-fast"
RULES, DASHBOARD = CHART / "files" / "rules.yaml", CHART / "files" / "dashboard.json"
ALL = {
    "autoscaling.enabled": "true",
    "ingress.enabled": "true",
    "gateway.enabled": "true",
    "monitoring.serviceMonitor": "true",
    "monitoring.rules": "true",
    "monitoring.dashboard": "true",
    "tokens.token": "open sesame",
    "tokens.adminToken": "admin",
    "tokens.files": "issuer",
    "avatars.volume.persistentVolumeClaim.claimName": "avatars",
    "listen.proxies": "{10.42.0.0/16}",
    "listen.origins": "{https://app.example.org}",
}
TARGET = {"instance", "namespace", "service", "pod", "job"}
"""Labels that Prometheus adds to all that it scrapes."""


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; make test-deploy brings it, promtool is Debian's")
    return found


# ---------------------------------------------------------------- metrics
def everything() -> dict[str, set[str]]:
    """All metrics that a server tells, with their labels."""
    load = Load(
        cache_bytes={"faces": 1},
        device_memory_used=1,
        device_memory_total=2,
        spent_s={"decoder": 1.0},
        store={"found": 1},
        stages={"decoder": Durations({"+Inf": 1}, 0.01)},
    )
    engine = EngineStatus(
        name="engine-1", slot=1, pid=1, device="cuda:0", state="ready", uptime_s=1.0, restarts=0,
        avatars=["demo"], capacity=100.0, silent_s=0.1, load=load,
    )  # fmt: skip
    front = FrontStatus(
        name="front-1", pid=2, state="ready", uptime_s=1.0, restarts=0,
        load=FrontLoad(
            refused={"utterance": 1}, errors={"internal": 1}, latency_counts={"+Inf": 2}
        ),
    )  # fmt: skip
    gateway = GatewayStatus(
        name="gateway-1", pid=3, state="ready", uptime_s=1.0, restarts=0, ports={},
        load=GatewayLoad(
            calls={"grpc": 1}, pictures={"grpc": 1}, bytes={"grpc": 1}, refused={"grpc": 1},
            failed={"grpc": 1}, begun={"grpc/Call": 1},
        ),
    )  # fmt: skip
    avatar = AvatarStatus(name="demo", version=1, state="current", engines=["engine-1"])
    status = ServerStatus(
        version="1", pid=1, state="serving", uptime_s=1.0, host="127.0.0.1", ports=[8084],
        http_port=8086, default_avatar="demo", engines=[engine], fronts=[front], capacity=100.0,
        speakers=3, frames_per_s=50.0, ignored=0, gateways=[gateway], avatars=[avatar],
    )  # fmt: skip
    found: dict[str, set[str]] = {}
    text, _ = metrics_text(status)
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


KNOWN = everything()
QUERIED = re.compile(r"\b(lipsync_fast_\w+)(\{[^}]*\})?")


def check_query(query: str) -> None:
    """Each metric is one that a server tells, and so is each label that is looked at."""
    names = QUERIED.findall(query)
    assert names, query
    labels: set[str] = set()
    for name, where in names:
        assert name in KNOWN, f"{name} in {query!r}: no server tells it"
        labels |= KNOWN[name]
        looked_at = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", where))
        assert looked_at <= KNOWN[name] | TARGET, f"{looked_at} of {name} in {query!r}"
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert {label.strip() for label in group.split(",")} <= labels | TARGET, query


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def dashboard_queries() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]


def test_the_dashboard_asks_for_what_there_is() -> None:
    found = list(dashboard_queries())
    assert len(found) > 25
    for query in found:
        check_query(query)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken = [p["gridPos"] for p in panels]
    for n, a in enumerate(taken):
        assert a["x"] + a["w"] <= 24
        for b in taken[n + 1 :]:
            apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]


def test_alerts_ask_for_what_there_is() -> None:
    found = rules()
    assert len(found) >= 10
    for rule in found:
        check_query(rule["expr"])
    tested = (ROOT / "deploy" / "prometheus" / "rules_test.yaml").read_text()
    for rule in found:
        name = rule["alert"]
        fires = re.search(rf"alertname: {name}\n\s+exp_alerts:\n\s+- exp_labels", tested)
        silent = re.search(rf"alertname: {name}, exp_alerts: \[\]", tested)
        assert fires, f"{name}: no test sees it go off"
        assert silent, f"{name}: no test sees it stay silent"


def test_a_query_of_something_else_is_found() -> None:
    for wrong in (
        "rate(lipsync_fast_frames_lost_total[5m])",
        'lipsync_fast_speaking{engine="e"}',
        "sum by (avatar) (lipsync_fast_speaking)",
    ):
        with pytest.raises(AssertionError):
            check_query(wrong)


def test_alerts_go_off_when_they_should() -> None:
    promtool = tool("promtool")
    file = ROOT / "deploy" / "prometheus" / "rules_test.yaml"
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---------------------------------------------------------------- balancers
FLEET = ROOT / "deploy" / "fleet"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("haproxy", ["-c", "-f", FLEET / "haproxy.cfg"]),
        ("envoy", ["--mode", "validate", "-c", FLEET / "envoy.yaml"]),
    ],
)
def test_balancers_take_their_configuration(name: str, arguments: list[Any]) -> None:
    done = subprocess.run([installed(name), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_balancers_ask_what_there_is() -> None:
    for file in FLEET.iterdir():
        (asked,) = re.findall(r"(/health/\S+?)\?unready=(\d+)", file.read_text())
        (parameter,) = document()["paths"][asked[0]]["get"]["parameters"]
        assert asked[1] in parameter["schema"]["enum"], file


# ---------------------------------------------------------------- the chart
@pytest.fixture(scope="module")
def helm() -> str:
    return tool("helm")


def rendered(helm: str, *files: str, **values: str) -> dict[str, dict[str, Any]]:
    """What the chart makes, by kind (the dashboard's ConfigMap is called Dashboard here)."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    command = [helm, "template", "x", str(CHART), "--namespace", "faces"]
    for file in files:
        command += ["--values", str(CHART / file)]
    for name, value in values.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {}
    for each in yaml.safe_load_all(done.stdout):
        if each is not None:
            board = each["metadata"]["name"].endswith("-dashboard")
            kind = "Dashboard" if board else each["kind"]
            assert kind not in found
            found[kind] = each
    return found


def container(made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(only)


def test_the_chart_is_such(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("files", [(), ("values-cpu.yaml",)], ids=["gpu", "cpu"])
def test_kubernetes_takes_what_it_makes(helm: str, files: tuple[str, ...], tmp_path: Path) -> None:
    validate = tool("kubernetes-validate")
    made = rendered(helm, *files, **ALL)
    yaml = pytest.importorskip("yaml")

    def passes(objects: list[dict[str, Any]]) -> bool:
        file = tmp_path / "all.yaml"
        file.write_text(yaml.safe_dump_all(objects))
        command = [validate, "--strict", "--kubernetes-version", "1.37", file]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode == 0

    assert passes(list(made.values()))
    wrong = json.loads(json.dumps(made["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert not passes([wrong]), "what is misspelt is found"


def test_all_of_it_is_made(helm: str) -> None:
    assert set(rendered(helm)) == {
        "ConfigMap",
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    made = rendered(helm, **ALL)
    assert set(made) == {
        "BackendTrafficPolicy",
        "ConfigMap",
        "Dashboard",
        "Deployment",
        "HTTPRoute",
        "Ingress",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "PrometheusRule",
        "ScaledObject",
        "Secret",
        "Service",
        "ServiceMonitor",
    }
    name = made["Deployment"]["metadata"]["name"]
    assert made["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == name
    assert "replicas" not in made["Deployment"]["spec"], "the autoscaler's, not the chart's"
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        made["Service"]["spec"]["selector"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        made["Deployment"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    wanted = made["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items()
    assert wanted <= made["Service"]["metadata"]["labels"].items()
    assert json.loads(made["Dashboard"]["data"]["lipsync-fast.json"])["uid"] == "lipsync-fast"
    assert [rule["alert"] for rule in made["PrometheusRule"]["spec"]["groups"][0]["rules"]] == [
        rule["alert"] for rule in rules()
    ]
    (trigger,) = made["ScaledObject"]["spec"]["triggers"]
    check_query(trigger["metadata"]["query"])


def test_the_server_takes_its_configuration(helm: str, tmp_path: Path) -> None:
    values = ALL | {"drainSeconds": "90", "utterances.diskMb": "2000000"}
    made = rendered(helm, "values-cpu.yaml", **values)
    file = tmp_path / "serve.toml"
    file.write_text(made["ConfigMap"]["data"]["serve.toml"])
    given = {each["name"]: each["value"] for each in container(made)["env"] if "value" in each}
    config = load(file, environ=given).config
    assert (config.listen.host, config.listen.ports, config.listen.http_port) == (
        "0.0.0.0",
        (8084,),
        8086,
    )
    assert (config.listen.proxies, config.engines.gpus) == (("10.42.0.0/16",), "none")
    assert config.listen.origins == ("https://app.example.org",)
    assert (config.drain_seconds, config.utterances.disk_mb) == (90.0, 2_000_000)
    assert config.limits.sessions == 1000
    check_exposure(config.listen, config.access)
    assert "sesame" not in json.dumps(made["ConfigMap"]) + json.dumps(made["Deployment"])
    secret = made["Secret"]["stringData"]
    for each in container(made)["env"]:
        if "valueFrom" in each:
            key = each["valueFrom"]["secretKeyRef"]["key"]
            name = {"token": "TOKEN", "admin-token": "ADMIN_TOKEN"}[key]
            assert each["name"] == f"LIPSYNC_FAST_LISTEN_{name}"
            assert key in secret


def test_a_pod_ends_what_is_being_said(helm: str) -> None:
    made = rendered(helm, drainSeconds="120", preStopSeconds="7")
    pod = made["Deployment"]["spec"]["template"]["spec"]
    waits = container(made)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits == 7
    assert pod["terminationGracePeriodSeconds"] >= waits + 120 + 3


def test_probes_ask_what_there_is(helm: str) -> None:
    made = rendered(helm, **ALL)
    described = document()["paths"]
    assert set(described) == {route.path for route in routes(None, None, None)}
    ports = {port["name"]: port["containerPort"] for port in container(made)["ports"]}
    for probe, path in {
        "startupProbe": "/health/ready",
        "livenessProbe": "/health/live",
        "readinessProbe": "/health/ready",
    }.items():
        asked = container(made)[probe]["httpGet"]
        assert (asked["path"], ports[asked["port"]]) == (path, 8086)
        assert path in described
    checked = made["BackendTrafficPolicy"]["spec"]["healthCheck"]["active"]["http"]["path"]
    path, _, query = checked.partition("?unready=")
    (parameter,) = described[path]["get"]["parameters"]
    assert query in parameter["schema"]["enum"]
    assert made["ServiceMonitor"]["spec"]["endpoints"][0]["path"] in described


def test_a_pod_may_do_nothing_but_serve(helm: str) -> None:
    for files in ((), ("values-cpu.yaml",)):
        made = rendered(helm, *files)
        pod = made["Deployment"]["spec"]["template"]["spec"]
        security = container(made)["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        written = {m["mountPath"] for m in container(made)["volumeMounts"] if not m.get("readOnly")}
        assert written == {"/run/lipsync-fast", "/tmp", "/dev/shm", "/var/lib/lipsync-fast"}
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], "what it writes is bounded"
        limits = container(made)["resources"]["limits"]
        assert limits.get("nvidia.com/gpu", 0) == (0 if files else 1)
        assert made["NetworkPolicy"]["spec"]["egress"] == []
