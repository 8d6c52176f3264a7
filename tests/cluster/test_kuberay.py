"""KubeRay's YAML against KubeRay's schemas, made strict: a name that is not known is an error."""

from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cluster.documents import documents, pins

JOB, CLUSTER = documents("kuberay/job.yaml")[0], documents("kuberay/cluster.yaml")[0]
VOLUME, WEIGHTS = documents("kuberay/storage.yaml")
GROUPS = [CLUSTER["spec"]["headGroupSpec"], *CLUSTER["spec"]["workerGroupSpecs"]]
PODS = [group["template"]["spec"] for group in GROUPS] + [WEIGHTS["spec"]["template"]["spec"]]


def schema(kind: str) -> dict[str, Any]:
    """The v1 schema of KubeRay's custom resource without its descriptions, made strict."""
    packed = Path(__file__).with_name(f"{kind}-v1.schema.json.gz").read_bytes()
    return strict(json.loads(gzip.decompress(packed)))


def strict(part: Any) -> Any:
    if isinstance(part, list):
        return [strict(item) for item in part]
    if not isinstance(part, dict):
        return part
    closed = {"additionalProperties": False} if isinstance(part.get("properties"), dict) else {}
    return closed | {name: strict(value) for name, value in part.items()}


def complaints(document: Any, against: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(against).iter_errors(document)]


@pytest.mark.parametrize(("kind", "document"), [("rayjobs", JOB), ("rayclusters", CLUSTER)])
def test_kuberay_knows_every_field(kind, document):
    assert complaints(document, schema(kind)) == []


def test_a_field_that_is_not_known_is_found():
    job = copy.deepcopy(JOB)
    job["spec"]["entrypont"] = job["spec"].pop("entrypoint")
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolicies"] = "Always"
    assert sorted(message.split("'")[1] for message in complaints(job, schema("rayjobs"))) == [
        "entrypont",
        "imagePullPolicies",
    ]


def test_storage_is_what_kubernetes_knows():
    pod = schema("rayclusters")["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
    assert complaints(WEIGHTS["spec"]["template"], pod) == []
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="a volume and a job are not checked: pip install kubernetes-validate (72 MB)"
    )
    for document in (VOLUME, WEIGHTS):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_a_job_has_the_cluster_of_cluster_yaml():
    assert JOB["spec"]["rayClusterSpec"] == CLUSTER["spec"]


def test_a_job_ends_its_cluster_and_is_tried_again():
    spec = JOB["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["backoffLimit"] > 0
    assert spec["submissionMode"] == "HTTPMode"


def test_versions_and_modes():
    spec = CLUSTER["spec"]
    assert spec["rayVersion"] == pins()["ray"]
    assert spec["authOptions"] == {"mode": "token"}
    # A group's idleTimeoutSeconds is read by version 2 alone.
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"


def test_the_head_offers_nothing_and_workers_come_when_they_are_asked_for():
    head, *workers = GROUPS
    assert head["rayStartParams"] == {"num-cpus": "0"}
    assert "nvidia.com/gpu" not in str(head)
    for group in workers:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("group", GROUPS, ids=["head", "gpu", "gpu-spot"])
def test_shared_memory_holds_the_object_store_and_is_part_of_the_limit(group):
    pod = group["template"]["spec"]
    container = pod["containers"][0]
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert shm["medium"] == "Memory"
    memory = container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["memory"] == memory
    limit, size = int(memory.removesuffix("Gi")), int(shm["sizeLimit"].removesuffix("Gi"))
    # Ray's own share for the object store, and room for the processes.
    assert 0.3 * limit <= size <= 0.5 * limit


@pytest.mark.parametrize("pod", PODS, ids=["head", "gpu", "gpu-spot", "weights"])
def test_pods_have_no_more_rights_than_they_need(pod):
    assert pod["securityContext"]["runAsNonRoot"]
    assert all(not container["securityContext"]["allowPrivilegeEscalation"] for container in pod["containers"])
    for variable in (variable for container in pod["containers"] for variable in container["env"]):
        is_secret = variable["name"].startswith("AWS_") or variable["name"].endswith("TOKEN")
        assert is_secret == ("secretKeyRef" in variable.get("valueFrom", {})), variable


@pytest.mark.parametrize("pod", PODS[:3], ids=["head", "gpu", "gpu-spot"])
def test_a_run_has_time_to_say_how_it_goes_on(pod):
    assert pod["terminationGracePeriodSeconds"] >= 30


def test_the_weights_that_are_fetched_are_those_of_a_recipe(monkeypatch):
    """With the embedded models in place of the recipe's: the code has to load whatever a recipe names."""
    from datadream import recipes
    from datadream.models.clip import load as clip
    from datadream.models.diffusion import pipeline as diffusion

    loaded = []
    for module, name in ((clip, "load_clip"), (diffusion, "load_pipeline")):
        load = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *about, load=load: loaded.append(load(*about)))
    monkeypatch.setitem(recipes.RECIPES, "paper", recipes.digits)
    (code,) = WEIGHTS["spec"]["template"]["spec"]["containers"][0]["args"]
    exec(compile(code, "storage.yaml", "exec"), {})
    assert [type(model).__name__ for model in loaded] == ["StableDiffusionPipeline", "ClipModel"]
