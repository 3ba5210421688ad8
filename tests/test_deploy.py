"""The files of deploy/ agree with the code: settings, flags, routes, ports, metrics; a real Prometheus, where it is
installed,
takes its configuration and answers what the dashboard asks. That Docker, Kubernetes and Grafana take theirs is not
tried here."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import serving

from worker import __version__
from worker.config import Settings
from worker.engine.engine import Engine
from worker.entrypoints import ray_serve
from worker.entrypoints.cli import arguments
from worker.entrypoints.http import sockets
from worker.entrypoints.http.app import create_app
from worker.entrypoints.http.gateway.control import Control
from worker.entrypoints.http.metrics import Metrics
from worker.errors import ConfigError

DEPLOY = Path(__file__).parent.parent / "deploy"
WEEK = (DEPLOY.parent / "samples" / "week.wav").read_bytes()
LONGEST_END_SEC = 2 * sockets.DRAIN_SEC + 10


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


COMPOSE = read("docker-compose.yml")
MANIFESTS = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
POD = MANIFESTS["Deployment"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]


def settings_of(command: list[str]) -> Settings:
    assert command[:3] == ["python", "-m", "worker"]
    given = arguments.parser().parse_args(command[3:])
    return Settings.of(None, host=given.host, port=given.port, workers=given.workers)


def test_every_file_is_one_that_is_checked_here():
    files = {str(path.relative_to(DEPLOY)) for path in DEPLOY.rglob("*") if path.is_file()}
    assert files == {
        "aviary.service",
        "docker-compose.yml",
        "prometheus.yml",
        "kubernetes.yaml",
        "ray-serve.yaml",
        "grafana/datasource.yml",
        "grafana/provider.yml",
        "grafana/dashboard.json",
    }


@pytest.mark.parametrize(
    "names",
    [
        list(COMPOSE["services"]["aviary"]["environment"]),
        [one["name"] for one in CONTAINER["env"]],
        list(read("ray-serve.yaml")["applications"][0]["runtime_env"]["env_vars"]),
    ],
    ids=["compose", "kubernetes", "ray"],
)
def test_every_variable_is_a_setting(names):
    assert {name.lower() for name in names} - {"home"} <= set(Settings.model_fields)


def test_a_key_is_required_and_no_file_contains_one():
    assert COMPOSE["services"]["aviary"]["environment"]["API_KEY"].startswith("${API_KEY:?")
    assert [one["valueFrom"] for one in CONTAINER["env"] if one["name"] == "API_KEY"] == [
        {"secretKeyRef": {"name": "aviary", "key": "API_KEY"}}
    ]
    secrets = [
        (path.name, name, value)
        for path in DEPLOY.rglob("*.y*ml")
        for document in yaml.safe_load_all(path.read_text())
        for name, value in strings(document)
        if re.search(r"(?:_KEY|PASSWORD|TOKEN)$", name, re.IGNORECASE)
    ]
    assert len(secrets) >= 2
    for secret in secrets:
        assert re.match(r"\$\{[A-Z_]+:\?", secret[-1]), secret


def strings(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a document, with the key that it stands under: its own name for a variable of Kubernetes."""
    if isinstance(node, str):
        yield name, node
    elif isinstance(node, list):
        for item in node:
            yield from strings(item, name)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(value, str(node.get("name", key)) if key == "value" else str(key))


# What the containers may do


def hardened(service: dict[str, Any]) -> list[str]:
    """The rules that a service of Compose breaks."""
    user, _, group = str(service.get("user", "0")).partition(":")
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    rules = {
        "not root": user.isdecimal() and int(user) > 0 and group.isdecimal(),
        "no capabilities": service.get("cap_drop") == ["ALL"] and "cap_add" not in service,
        "no new privileges": "no-new-privileges:true" in service.get("security_opt", []),
        "not privileged": not service.keys() & {"privileged", "network_mode", "pid", "ipc"},
        "memory is limited": "memory" in limits,
        "processes are limited": "pids" in limits,
    }
    return [rule for rule, holds in rules.items() if not holds]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_gives_a_service_no_more_than_it_needs(name):
    assert hardened(COMPOSE["services"][name]) == []


def test_compose_file_systems_are_read_only():
    """Prometheus alone may write: Compose cannot put a secret of the environment into a read-only container."""
    services = COMPOSE["services"]
    writable = {name for name, service in services.items() if service.get("read_only") is not True}
    assert writable == {name for name, service in services.items() if "secrets" in service} == {"prometheus"}
    for name in services.keys() - writable:
        assert any(mount.partition(":")[0] == "/tmp" for mount in services[name]["tmpfs"]), name


def test_kubernetes_gives_the_pod_no_more_than_it_needs():
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    assert not POD.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= CONTAINER["resources"]["limits"].keys()
    assert all("sizeLimit" in volume["emptyDir"] for volume in POD["volumes"])


def test_what_a_read_only_container_writes_to_is_mounted():
    written = {"DATA_DIR", "HF_HOME", "HOME"}
    services = {
        "compose": (
            COMPOSE["services"]["aviary"]["environment"],
            [mount.split(":")[1] for mount in COMPOSE["services"]["aviary"]["volumes"]] + ["/tmp"],
        ),
        "kubernetes": (
            {one["name"]: one.get("value") for one in CONTAINER["env"]},
            [one["mountPath"] for one in CONTAINER["volumeMounts"]],
        ),
    }
    for name, (environment, mounts) in services.items():
        assert "/tmp" in mounts, name
        for variable in written:
            assert any(Path(environment[variable]).is_relative_to(mount) for mount in mounts), (name, variable)


def test_the_image_has_the_user_and_the_folders_of_the_deployments():
    dockerfile = (DEPLOY.parent / "Dockerfile").read_text()
    (uid,) = re.findall(r"useradd .*--uid (\d+) aviary", dockerfile)
    assert COMPOSE["services"]["aviary"]["user"] == f"{uid}:{uid}"
    assert [POD["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")] == [int(uid)] * 3
    (owned,) = re.findall(r"chown -R aviary:aviary (.+)", dockerfile)
    for volume in COMPOSE["services"]["aviary"]["volumes"]:
        assert volume.split(":")[1] in owned.split(), "Docker gives a new volume the owner of the image's folder"


def test_images_have_a_version():
    images = [service["image"] for service in COMPOSE["services"].values()] + [CONTAINER["image"]]
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+$", image), image
        assert not image.startswith("aviary") or image == f"aviary:{__version__}"


def test_compose():
    assert COMPOSE.keys() == {"services", "secrets", "volumes"}
    services = COMPOSE["services"]
    for service in services.values():
        assert service.keys() <= {
            "build",
            "image",
            "command",
            "init",
            "user",
            "read_only",
            "cap_drop",
            "security_opt",
            "tmpfs",
            "environment",
            "ports",
            "volumes",
            "stop_grace_period",
            "deploy",
            "secrets",
        }
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], volume
    ours = services["aviary"]
    served = settings_of(ours["command"])
    assert (served.host, served.workers) == ("0.0.0.0", 0)
    assert ours["ports"] == [f"{served.port}:{served.port}"]
    assert int(ours["stop_grace_period"].removesuffix("s")) > LONGEST_END_SEC
    assert all(port.startswith("127.0.0.1:") for name in ("prometheus", "grafana") for port in services[name]["ports"])


def test_prometheus_reads_what_compose_serves():
    (job,) = read("prometheus.yml")["scrape_configs"]
    host, _, port = job["static_configs"][0]["targets"][0].partition(":")
    assert COMPOSE["services"][host]["ports"] == [f"{port}:{port}"]
    secret = Path(job["authorization"]["credentials_file"]).name
    assert secret in COMPOSE["services"]["prometheus"]["secrets"]
    assert secret in COMPOSE["secrets"]


def test_grafana_shows_metrics_that_there_are():
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    (source,) = read("grafana/datasource.yml")["datasources"]
    (provider,) = read("grafana/provider.yml")["providers"]
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert any(path.startswith(f"{provider['options']['path']}/") for path in mounted)
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    assert shown.count("(") == shown.count(")")
    names = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum").removesuffix("_total")
        for name in re.findall(r"aviary_\w+", shown)
    }
    assert names <= metrics() | {"aviary_device_memory_bytes"}, "which only a GPU has"


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)
def test_a_real_prometheus_answers_what_the_dashboard_asks(tmp_path):
    check = ["promtool", "check", "config", "--syntax-only", str(DEPLOY / "prometheus.yml")]
    subprocess.run(check, check=True, capture_output=True, timeout=30)
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    asked = [
        target["expr"].replace("$__rate_interval", "10s")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]
    elsewhere = re.compile("aviary_worker|aviary_device_memory")  # of several workers, of a GPU
    (tmp_path / "key").write_text("k")
    config = read("prometheus.yml")
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(tmp_path / "key")
    settings = Settings(skip_model_load=True, api_key="k", data_dir=tmp_path / "data")
    with serving(settings) as url, httpx.Client(base_url=url, headers={"Authorization": "Bearer k"}) as client:
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [url.removeprefix("http://")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        running = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={tmp_path / 'prometheus.yml'}",
                "--log.level=error",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={address}",
            ]
        )
        try:
            deadline, empty = time.monotonic() + 60, asked
            while empty:
                assert time.monotonic() < deadline, empty
                for data in (WEEK, b"noise" * 1000):
                    client.post("/v1/audio/transcriptions", files={"file": ("a.wav", data)})
                time.sleep(0.5)
                with contextlib.suppress(httpx.TransportError, ValueError):  # it is starting
                    answers = {
                        one: httpx.get(f"http://{address}/api/v1/query", params={"query": one}).json() for one in asked
                    }
                    assert {answer["status"] for answer in answers.values()} == {"success"}, answers
                    empty = [
                        one
                        for one, answer in answers.items()
                        if not answer["data"]["result"] and not elsewhere.search(one)
                    ]
        finally:
            running.terminate()
            running.wait(20)


def metrics() -> set[str]:
    settings, meters, both = Settings(skip_model_load=True), Metrics(), CollectorRegistry()
    both.register(Control(settings, []))
    with Engine(settings) as engine:
        meters.watch(engine)
        text = generate_latest(meters.registry).decode() + generate_latest(both).decode()
    return {family.name for family in text_string_to_metric_families(text)}


def test_kubernetes():
    assert MANIFESTS.keys() == {"Deployment", "Service"}
    assert [one["apiVersion"] for one in MANIFESTS.values()] == ["apps/v1", "v1"]
    labels = MANIFESTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert (
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"] == MANIFESTS["Service"]["spec"]["selector"] == labels
    )
    assert CONTAINER["ports"][0]["containerPort"] == settings_of(CONTAINER["args"]).port
    assert MANIFESTS["Service"]["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]
    assert POD["terminationGracePeriodSeconds"] > LONGEST_END_SEC
    assert {one["name"] for one in CONTAINER["volumeMounts"]} == {one["name"] for one in POD["volumes"]}
    with Engine(Settings(skip_model_load=True)) as engine:
        routes = set(create_app(Settings(skip_model_load=True), engine).openapi()["paths"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["path"] in routes


def test_ray(monkeypatch):
    config = read("ray-serve.yaml")
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert module == ray_serve.__name__
    assert callable(getattr(ray_serve, name))
    for option in application["args"]:
        assert f"`{option}`" in str(ray_serve.app.__doc__)
    environment = application["runtime_env"]["env_vars"]
    assert environment["HOST"] == config["http_options"]["host"]
    assert "API_KEY" not in environment, "a key in this file would be everybody's"
    monkeypatch.delenv("API_KEY", raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="API_KEY"):
        ray_serve.app(application["args"])


def test_the_systemd_unit_starts_a_server_with_settings_that_exist(tmp_path):
    text = (DEPLOY / "aviary.service").read_text()
    (command,) = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    python, flag, module, *rest = command.split()
    assert (flag, module) == ("-m", "worker")
    assert arguments.parser().parse_args(rest).command == "serve"
    names = {word.partition("=")[0] for word in re.findall(r"^Environment=(.+)$", text, re.MULTILINE)[0].split()}
    assert {name.lower() for name in names - {"HF_HOME"}} <= set(Settings.model_fields)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "aviary.service"
    unit.write_text(text.replace(python, shutil.which("true")).replace("/opt/aviary", str(tmp_path)))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert "aviary.service" not in verified.stderr, verified.stderr
