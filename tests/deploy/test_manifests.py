"""What a person copies is well formed, asks for a token, and names only what this project has."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from orchestrator.cli.main import edit
from orchestrator.cli.serve_command import serve_command
from orchestrator.run.run_config import RunConfig
from orchestrator.service.config import ServeConfig
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
jsonschema = pytest.importorskip("jsonschema")
kubernetes_validate = pytest.importorskip("kubernetes_validate")
KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def claim() -> dict[str, Any]:
    return _documents("rayjob.yaml")["PersistentVolumeClaim"]


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    return _documents("rayjob.yaml")["RayJob"]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def ray_job_schema() -> dict[str, Any]:
    return json.loads((ROOT / "tests" / "data" / "rayjob.schema.json").read_text())


def _documents(name: str) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / name).read_text())}


def _validate(ray_job: dict[str, Any], schema: dict[str, Any]) -> None:
    """The job's own fields by the schema at hand, its pods by Kubernetes' own, in which an unknown field is an error."""
    jsonschema.validate(ray_job, schema)
    cluster = ray_job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pods"}, "template": group["template"]}
        kubernetes_validate.validate(pods, KUBERNETES, strict=True)
        for amounts in group["template"]["spec"]["containers"][0]["resources"].values():
            assert all(re.fullmatch(r"\d+([KMGT]i?|m)?", amount) for amount in amounts.values()), amounts


def test_the_ray_job_follows_the_schemas_of_kuberay_and_kubernetes(
    ray_job: dict[str, Any], claim: dict[str, Any], ray_job_schema: dict[str, Any]
) -> None:
    jsonschema.Draft202012Validator.check_schema(ray_job_schema)
    _validate(ray_job, ray_job_schema)
    kubernetes_validate.validate(claim, KUBERNETES, strict=True)


_POD = ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "ultraedit"),
        (("spec", "backoffLimit"), "5"),
        (("spec", "submissionMode"), "JobMode"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "rayStartParams", "num-cpus"), 0),
        ((*_POD, "containers", 0, "volumeMount"), []),
        ((*_POD, "containers", 0, "volumeMounts", 0, "mountPath"), 1),
        ((*_POD, "volumes", 0, "persistentVolumeClaim"), {"claim": "ultraedit-shared"}),
        ((*_POD, "tolerations", 0, "tolerationSeconds"), "60"),
        ((*_POD, "securityContext", "runAsNonRoot"), "yes"),
        ((*_POD, "containers", 0, "resources", "limits", "memory"), "32 GB"),
    ],
)
def test_the_schemas_find_mistakes(ray_job: dict[str, Any], ray_job_schema: dict[str, Any], path: tuple[str | int, ...], value: object) -> None:
    wrong: Any = copy.deepcopy(ray_job)
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError, AssertionError)):
        _validate(wrong, ray_job_schema)


@pytest.mark.parametrize("name", ["groupName", "minReplicas", "maxReplicas", "template"])
def test_the_schema_finds_what_is_missing(ray_job: dict[str, Any], ray_job_schema: dict[str, Any], name: str) -> None:
    wrong = copy.deepcopy(ray_job)
    del wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0][name]
    with pytest.raises(jsonschema.ValidationError, match=name):
        jsonschema.validate(wrong, ray_job_schema)


def test_a_retry_of_the_ray_job_finds_its_state_on_shared_storage(ray_job: dict[str, Any], claim: dict[str, Any]) -> None:
    spec = ray_job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    options = _options(spec["entrypoint"])
    assert options["resume"] == "auto"
    for pod in _pods(ray_job):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert all(options[name].startswith("/shared/") for name in ("model", "edits", "output"))


def test_the_ray_job_has_the_gpus_that_it_asks_for(ray_job: dict[str, Any]) -> None:
    options = _options(ray_job["spec"]["entrypoint"])
    (group,) = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert group["replicas"] * gpus == int(options["shards"]) * int(options["replicas"])


def test_the_ray_job_is_locked_and_runs_without_root(ray_job: dict[str, Any]) -> None:
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["mode"] == "token"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in _pods(ray_job))


def test_the_entrypoint_is_a_command_of_this_project(ray_job: dict[str, Any]) -> None:
    options = _options(ray_job["spec"]["entrypoint"])
    options.pop("resume")
    RunConfig.build(options)


def test_the_cluster_follows_rays_own_schema(cluster: dict[str, Any]) -> None:
    autoscaler = pytest.importorskip("ray.autoscaler")
    jsonschema.validate(cluster, json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text()))
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_the_clusters_gpus_are_on_workers_only(cluster: dict[str, Any]) -> None:
    nodes = dict(cluster["available_node_types"])
    assert not nodes.pop(cluster["head_node_type"])["resources"].get("GPU")
    assert all(node["resources"]["GPU"] for node in nodes.values())


def test_every_node_of_the_cluster_starts_with_the_token(cluster: dict[str, Any]) -> None:
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    starts = [line for kind in ("head", "worker") for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all(line.index("export RAY_AUTH_MODE=token") < line.index("ray start") for line in starts)
    assert "GRPC_ENABLE_FORK_SUPPORT=0" in starts[0], "the head forks the servers of its clients"


def test_the_clusters_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    (head,) = (line for line in cluster["head_start_ray_commands"] if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in (DEPLOY / "cluster.yaml").read_text()


def test_the_shared_folder_is_mounted_before_the_container_starts(cluster: dict[str, Any]) -> None:
    assert any("mount -t nfs4" in line and "/shared" in line for line in cluster["initialization_commands"])
    assert "--volume=/shared:/shared" in cluster["docker"]["run_options"]


def test_one_version_of_ray_everywhere(ray_job: dict[str, Any]) -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_the_image_is_pinned_small_and_without_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    assert re.fullmatch(r"FROM python:3\.11\.\d+-slim-\w+", base)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]
    assert any("-c constraints.txt" in line and "[distributed,tracking,service,export]" in line for line in lines)
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line


def test_live_editing_follows_kubernetes_schemas_and_its_commands_exist() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "live.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    deployments = [document for document in documents if document["kind"] == "Deployment"]
    assert {deployment["spec"]["replicas"] for deployment in deployments} == {2}
    for deployment in deployments:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        program, verb, *arguments = container["command"]
        assert (program, verb) == ("ultraedit", "serve")
        serve_command.make_context("serve", arguments)
    settings = yaml.safe_load(next(document["data"]["serve.yaml"] for document in documents if document["kind"] == "ConfigMap"))
    assert ServeConfig.build(settings).allowed_hosts == ("ultraedit-live",)


def test_the_script_is_valid_bash() -> None:
    script = DEPLOY / "submit.sh"
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "set -euo pipefail" in script.read_text()


def test_the_readme_names_every_file_and_no_other() -> None:
    named = set(re.findall(r"`(?:deploy/)?([\w.]+\.(?:sh|yaml)|Dockerfile)`", (DEPLOY / "README.md").read_text()))
    assert named == {path.name for path in DEPLOY.iterdir()} - {"README.md"}


def _pods(ray_job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def _options(command: str) -> dict[str, Any]:
    """The options of a command line, those that were given."""
    program, verb, *arguments = shlex.split(command)
    assert (program, verb) == ("ultraedit", "edit")
    context: click.Context = edit.make_context("edit", arguments)
    return {name: value for name, value in context.params.items() if value is not None}
