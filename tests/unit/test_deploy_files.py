"""Images, Compose, Kubernetes and make: what can be checked without an engine or a cluster."""

import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from deploy.kafka_distribution import kafka_version
from deploy.local_milvus import TICK_MS
from encoder.settings import PREFIX, load_settings
from mindstream.cli import app
from mindstream.exit_codes import EXIT_DIFFERENT, EXIT_MISCONFIGURED

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted(ROOT.glob("deploy/*.Dockerfile"))
MANIFESTS = sorted(ROOT.glob("deploy/kubernetes/*.yaml"))
KUBERNETES = ["1.34", kubernetes_validate.latest_version()]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def check_compose(document: object) -> None:
    package = importlib.resources.files("check_jsonschema")
    schema = package / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(document, json.loads(schema.read_text()))


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run(
        [program, "--no-color", "--failure-threshold", "style", dockerfile],
        capture_output=True,
        text=True,
        check=False,
    )


def objects() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every pod specification with its single container."""
    for document in objects():
        spec = document.get("spec", {})
        if document["kind"] == "CronJob":
            spec = spec["jobTemplate"]["spec"]
        if "template" in spec:
            pod = spec["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


def check_settings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    load_settings()


def check_command(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, [*arguments, "--help"]).exit_code == 0, arguments


def make(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    program = shutil.which("make")
    assert program
    environment = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_validators_find_faults(tmp_path: Path) -> None:
    """A misspelt field or an unpinned image does not pass: the other tests can fail."""
    with pytest.raises(jsonschema.ValidationError):
        check_compose({"services": {"worker": {"imge": "mindstream"}}})
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"accessMode": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(claim, KUBERNETES[0], strict=True)
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM python\nRUN cd /tmp\n")
    assert "DL3006" in hadolint(dockerfile).stdout


def test_compose_follows_its_specification() -> None:
    """The file is valid by the schema of the Compose specification."""
    check_compose(COMPOSE)


def test_compose_names_only_what_it_has() -> None:
    """Dependencies are services (healthy ones have a check), volumes are declared and used."""
    used = set()
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in SERVICES[needed]
        used |= {volume.split(":")[0] for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_compose_is_reachable_from_this_machine_only() -> None:
    """Every published port is bound to loopback."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_pins_what_others_built() -> None:
    """Images that are not built here have a version, and Kafka's is the local broker's."""
    foreign = {name: one["image"] for name, one in SERVICES.items() if "build" not in one}
    assert all(re.search(r":\S*\d", image) for image in foreign.values())
    assert foreign["kafka"] == f"apache/kafka:{kafka_version()}"


@pytest.mark.parametrize("name", OURS)
def test_compose_runs_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dockerfile, command and settings of our services exist."""
    service = OURS[name]
    assert ROOT / service["build"]["dockerfile"] in DOCKERFILES
    check_command(service["command"])
    check_settings(service["environment"], monkeypatch)


def test_compose_has_the_time_tick_that_is_tested() -> None:
    """Rows can be read as soon as on the server that tests and benchmarks start."""
    assert SERVICES["milvus"]["environment"]["PROXY_TIMETICKINTERVAL"] == str(TICK_MS)


def test_compose_gives_the_worker_time_to_stop() -> None:
    """Docker waits longer than the worker's own budget before it kills."""
    grace_s = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > load_settings().worker.stop_budget_s


def test_dockerfiles_were_found() -> None:
    """The two images are there."""
    assert [path.stem for path in DOCKERFILES] == ["serving", "training"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_are_clean(dockerfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linting finds nothing; the image runs an existing command as somebody other than root."""
    linted = hadolint(dockerfile)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    text = dockerfile.read_text()
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001"
    (command,) = re.findall(r"^CMD (.+)", text, re.MULTILINE)
    check_command(json.loads(command))
    check_settings(dict(re.findall(rf"\b({PREFIX}\w+)=(\S+)", text)), monkeypatch)


def test_images_differ_by_the_extra_alone() -> None:
    """Both install the locked versions with the same uv; only the trainer gets its extra.

    Both read and write releases in object stores.
    """
    serving, training = (path.read_text() for path in DOCKERFILES)
    for text in (serving, training):
        syncs = re.findall(r"uv sync (.+)", text)
        assert len(syncs) == 2
        assert all(sync.startswith("--locked --no-dev") for sync in syncs)
    assert "--extra training" not in serving
    assert training.count("--extra training") == 2
    assert serving.count("--extra s3") == training.count("--extra s3") == 2
    assert re.findall(r"uv==\S+", serving) == re.findall(r"uv==\S+", training)


def test_the_serving_image_has_no_torch() -> None:
    """By the lock file, nothing that serving installs leads to torch or onnx."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text())
    packages = {package["name"]: package for package in lock["package"]}
    extras = packages["mindstream"]["optional-dependencies"]
    found, to_do = set(), ["mindstream", *(needed["name"] for needed in extras["s3"])]
    while to_do:
        name = to_do.pop()
        if name not in found:
            found.add(name)
            to_do += [needed["name"] for needed in packages[name].get("dependencies", [])]
    assert "onnxruntime" in found
    assert not found & {"torch", "onnx", "onnxscript"}
    assert "torch" in packages


def test_the_build_context_has_the_packages() -> None:
    """Whatever the wheel is made of is let through to the build, and nothing but named things."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {rule[1:].split("/")[0] for rule in rules if rule.startswith("!")}
    assert "*" in rules
    assert allowed == {*packages, "pyproject.toml", "uv.lock", "README.md"}


@pytest.mark.parametrize("release", KUBERNETES)
def test_kubernetes_objects_are_valid(release: str) -> None:
    """Each object is valid, unknown fields included, by the API's own schema."""
    kinds = []
    for document in objects():
        kubernetes_validate.validate(document, release, strict=True)
        kinds.append(document["kind"])
    assert {"StatefulSet", "CronJob", "Job", "Service", "ConfigMap"} <= set(kinds)


def test_kustomize_applies_every_manifest() -> None:
    """The kustomization lists the files beside it, and gives every image a version."""
    kustomization = yaml.safe_load((ROOT / "deploy/kubernetes/kustomization.yaml").read_text())
    listed = {*kustomization["resources"], "kustomization.yaml"}
    assert listed == {path.name for path in MANIFESTS}
    assert all(image["newTag"] for image in kustomization["images"])
    used = {container["image"] for _, container in pods()}
    assert used == {image["name"] for image in kustomization["images"]}


def test_pods_run_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and settings exist, those from secrets and from the pod's name included."""
    documents = list(objects())
    (shared,) = (one["data"] for one in documents if one["kind"] == "ConfigMap")
    for _, container in pods():
        check_command(container["args"])
        own = {entry["name"]: "worker-0" for entry in container.get("env", [])}
        check_settings({**shared, **own}, monkeypatch)


def test_no_secret_is_written_down() -> None:
    """Passwords and tokens come from a Secret that is kept elsewhere."""
    for _, container in pods():
        for entry in container.get("env", []):
            if re.search("PASSWORD|TOKEN", entry["name"]):
                assert set(entry["valueFrom"]) == {"secretKeyRef"}
    assert "Secret" not in {document["kind"] for document in objects()}


def test_pods_are_confined() -> None:
    """Not root, no more privileges, a root file system that cannot be written, bounded memory."""
    for pod, container in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_worker_set_has_static_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's name is its identity in the group; its probes and its time to stop fit the worker."""
    (worker,) = (one for one in objects() if one["kind"] == "StatefulSet")
    pod = worker["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {entry["name"]: entry for entry in container["env"]}
    identity = environment["MINDSTREAM_WORKER__INSTANCE_ID"]["valueFrom"]
    assert identity == {"fieldRef": {"fieldPath": "metadata.name"}}
    monkeypatch.delenv("MINDSTREAM_WORKER__HTTP_PORT", raising=False)
    settings = load_settings().worker
    assert container["ports"] == [{"name": "http", "containerPort": settings.http_port}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert pod["terminationGracePeriodSeconds"] > settings.stop_budget_s
    services = [one for one in objects() if one["kind"] == "Service"]
    assert worker["spec"]["serviceName"] in {one["metadata"]["name"] for one in services}
    labels = worker["spec"]["template"]["metadata"]["labels"]
    assert all(one["spec"]["selector"].items() <= labels.items() for one in services)


def test_a_refused_release_is_not_trained_again() -> None:
    """Nor what is misconfigured; a run that was killed goes on from what it has kept."""
    (trainer,) = (one for one in objects() if one["kind"] == "CronJob")
    job = trainer["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (rule,) = (one for one in job["podFailurePolicy"]["rules"] if one["action"] == "FailJob")
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert rule["onExitCodes"]["operator"] == "In"
    assert rule["onExitCodes"]["values"] == [EXIT_DIFFERENT, EXIT_MISCONFIGURED]
    assert pod["restartPolicy"] == "Never"  # Kubernetes takes a podFailurePolicy with no other
    (cache,) = (one for one in pod["volumes"] if one["name"] == "cache")
    claims = {one["metadata"]["name"] for one in objects() if "Claim" in one["kind"]}
    assert cache["persistentVolumeClaim"]["claimName"] in claims
    (image,) = (path.read_text() for path in DOCKERFILES if path.stem == "training")
    (kept,) = re.findall(r"RELEASES__CACHE=(\S+)", image)
    mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    assert mounts["cache"] == kept
    assert f"trainer:{kept}" in SERVICES["trainer"]["volumes"]


def test_the_monitor_is_one_and_is_found_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Port, probes and what Prometheus scrapes agree; Compose publishes the same port."""
    (monitor,) = (one for one in objects() if one["metadata"]["name"] == "monitor")
    assert (monitor["kind"], monitor["spec"]["replicas"]) == ("Deployment", 1)
    template = monitor["spec"]["template"]
    (container,) = template["spec"]["containers"]
    monkeypatch.delenv("MINDSTREAM_MONITOR__HTTP_PORT", raising=False)
    settings = load_settings()
    port = settings.monitor.http_port
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert template["metadata"]["annotations"]["prometheus.io/port"] == str(port)
    assert template["spec"]["terminationGracePeriodSeconds"] > settings.worker.stop_budget_s
    assert SERVICES["monitor"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f":{port}/livez" in SERVICES["monitor"]["healthcheck"]["test"][-1]


def test_make_describes_itself() -> None:
    """Plain ``make`` lists every target that people use, with what it does."""
    listed = re.findall(r"^  make ([\w-]+) +\S+", make().stdout, re.MULTILINE)
    (phony,) = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {*listed, "python"} == set(phony.split())


def test_make_gives_its_options_to_pytest() -> None:
    """And nothing else; without any, two processes share the files of tests."""
    plain, given = make("-n", "test").stdout, make("-n", "test", "ARGS=-k window").stdout
    assert ".venv/bin/pytest -k window\n" in given
    assert ".venv/bin/pytest -n 2 --dist loadfile" in plain
    for checked in ("ruff check", "ruff format --check", "mypy", "deploy.audit_dependencies"):
        assert checked in plain
        assert checked in given


def test_make_names_a_python_that_is_too_old(tmp_path: Path) -> None:
    """Where only an old Python is found, the error says what is needed and what was found."""
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\n[ $1 = --version ] && echo Python 3.9.2\nexit 1\n")
    python.chmod(0o755)
    for tool in ("bash", "awk"):
        program = shutil.which(tool)
        assert program
        (tmp_path / tool).symlink_to(program)
    made = make("setup", path=str(tmp_path))
    assert made.returncode != 0
    assert re.search(r"needs Python 3\.11, 3\.12 or 3\.13, .*\(Python 3\.9\.2\)", made.stderr)


def test_continuous_integration_runs_what_people_run() -> None:
    """``.ci/run`` can be executed, and calls the target that the README names."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"
