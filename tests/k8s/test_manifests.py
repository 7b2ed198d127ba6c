"""Every manifest as kustomize renders it, and mistakes that the checks must find."""

import copy
import re

import pytest

from k8s.check import schemas
from k8s.check.__main__ import CHECKS, problems
from k8s.check.render import ROOT, overlays, ray_cluster, render, render_overlay, renderer
from perpcs.config import load_config

pytestmark = pytest.mark.skipif(renderer() is None, reason="neither kubectl nor kustomize is here")


@pytest.fixture(scope="module")
def rendered():
    return {name: render_overlay(name) for name in overlays()}


@pytest.fixture
def gpu(rendered):
    """The gpu overlay's objects, by (kind, name); a test may change them."""
    return {(t["kind"], t["metadata"]["name"]): copy.deepcopy(t) for t in rendered["gpu"]}


def test_the_overlays_are_what_the_docs_say(rendered):
    assert set(rendered) == {"cpu-dev", "gpu", "gpu-spot"}
    for overlay, things in rendered.items():
        jobs = {t["metadata"]["name"] for t in things if t["kind"] == "RayJob"}
        swept = {"perpcs-sweep"} if overlay == "cpu-dev" else set()
        assert jobs == {"perpcs-pipeline", "perpcs-sharers"} | swept
        kinds = [thing["kind"] for thing in things]
        assert "RayCluster" in kinds and "RayService" in kinds
        assert "component" not in {t["metadata"]["name"] for t in things}, "patterns are never applied"
        assert "shape" not in {t["metadata"]["name"] for t in things}


@pytest.mark.parametrize("overlay", ["cpu-dev", "gpu", "gpu-spot"])
def test_nothing_is_wrong(rendered, overlay):
    assert not problems(rendered[overlay])


def test_kuberays_schemas_are_here():
    if schemas.crd_folder() is None:
        pytest.skip("KubeRay's CRDs are not here (KUBERAY_CRDS, or shared/crds beside the project)")
    kinds = schemas.crd_validators(schemas.crd_folder())
    assert {("ray.io/v1", kind) for kind in ("RayCluster", "RayJob", "RayService")} <= set(kinds)


def test_workers_of_the_config_fit_the_overlay(rendered):
    for name in ("cpu-dev", "gpu"):
        config = load_config(f"k8s/overlays/{name}/setup/experiment.yaml")
        job = next(t for t in rendered[name] if t["metadata"]["name"] == "perpcs-pipeline")
        group = ray_cluster(job)["workerGroupSpecs"][0]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert config.ray.workers * config.ray.gpus <= group["maxReplicas"] * float(
            limits.get("nvidia.com/gpu", 0)
        )
        assert config.ray.workers * config.ray.cpus <= group["maxReplicas"] * float(limits["cpu"])


def put(kind, name, path, value):
    """A change: set or, with the value None, remove what lies at the path."""

    def change(things):
        *way, last = path
        place = things[kind, name]
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        elif last == "append":
            place.append(value)
        else:
            place[last] = value

    return change


JOB, SERVICE, LAB = ("RayJob", "perpcs-pipeline"), ("RayService", "perpcs"), ("RayCluster", "perpcs-lab")
CLUSTER = ("spec", "rayClusterSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
CONTAINER = (*WORKERS, "template", "spec", "containers", 0)
HEAD_LABELS = ("spec", "rayClusterConfig", "workerGroupSpecs", 0, "template", "metadata", "labels")

BY_SCHEMA = {
    "a misspelt field": (put(*JOB, ("spec", "backofLimit"), 2), r"backofLimit"),
    "a misspelt field deep inside": (put(*JOB, (*CONTAINER, "resorces"), {}), r"resorces"),
    "a field of a wrong place": (put(*LAB, ("spec", "autoscalerOptions", "minReplicas"), 1), r"minReplicas"),
    "a wrong type": (put(*JOB, (*WORKERS, "maxReplicas"), "8"), r"maxReplicas: '8' is not of type 'integer'"),
    "a value outside the list": (
        put(*LAB, ("spec", "autoscalerOptions", "version"), "v3"),
        r"'v3' is not one of",
    ),
    "a missing part": (put(*LAB, ("spec", "headGroupSpec"), None), r"'headGroupSpec' is a required property"),
    "an old API": (put(*JOB, ("apiVersion",), "ray.io/v1alpha1"), r"ray.io/v1alpha1 is not a version"),
}


@pytest.mark.parametrize("mistake", BY_SCHEMA)
def test_the_schemas_find(gpu, mistake):
    if schemas.crd_folder() is None:
        pytest.skip("KubeRay's CRDs are not here (KUBERAY_CRDS, or shared/crds beside the project)")
    change, words = BY_SCHEMA[mistake]
    change(gpu)
    found = [*schemas.check_custom(list(gpu.values()), schemas.crd_validators(schemas.crd_folder()))]
    assert len(found) >= 1 and any(re.search(words, problem) for problem in found), found


POLICY = ("NetworkPolicy", "perpcs-callers")
REDIS = ("StatefulSet", "perpcs-redis")
SERVE = ("spec", "serveConfigV2")
MISTAKES = {
    "a core field misspelt": ("core kinds", put(*REDIS, ("spec", "replica"), 1), r"'replica' was unexpected"),
    "no such core API": (
        "core kinds",
        put("Ingress", "perpcs", ("apiVersion",), "networking.k8s.io/v2"),
        r"has no networking",
    ),
    "a long name": ("names", put(*JOB, ("metadata", "name"), "p" * 48), r"48 characters, at most 47"),
    "a name with capitals": ("names", put(*LAB, ("metadata", "name"), "Lab"), r"must be lower-case"),
    "another Ray than the image's": (
        "versions",
        put(*JOB, (*CLUSTER, "rayVersion"), "2.59.0"),
        r"rayVersion 2.59.0 but the image has",
    ),
    "two images in a cluster": (
        "versions",
        put(*JOB, (*CONTAINER, "image"), "perpcs:0.0.9"),
        r"several images in one cluster",
    ),
    "an image without a version": (
        "versions",
        put(*REDIS, ("spec", "template", "spec", "containers", 0, "image"), "redis"),
        r"names no version",
    ),
    "work on the head": (
        "clusters",
        put(*JOB, (*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus"), "2"),
        r"num-cpus must be",
    ),
    "autoscaler v1": (
        "clusters",
        put(*JOB, (*CLUSTER, "autoscalerOptions", "version"), "v1"),
        r"version v2 are wanted",
    ),
    "GPUs that never go": ("clusters", put(*JOB, (*WORKERS, "minReplicas"), 1), r"(from zero|does not hold)"),
    "an open cluster": ("clusters", put(*LAB, ("spec", "authOptions"), None), r"mode token"),
    "the operator's variable": (
        "clusters",
        put(*JOB, (*CONTAINER, "env", "append"), {"name": "RAY_AUTH_TOKEN", "value": "x"}),
        r"set authOptions.secretName instead",
    ),
    "a job without an end": (
        "jobs",
        put(*JOB, ("spec", "activeDeadlineSeconds"), None),
        r"activeDeadlineSeconds must be set",
    ),
    "a cluster that stays": (
        "jobs",
        put(*JOB, ("spec", "shutdownAfterJobFinishes"), False),
        r"the cluster would stay",
    ),
    "a service that forgets": (
        "jobs",
        put(*SERVICE, ("spec", "rayClusterConfig", "gcsFaultToleranceOptions"), None),
        r"a lost head",
    ),
    "a module that is not there": (
        "entry points",
        put(*JOB, ("spec", "entrypoint"), "python -m jobs.pipelin /etc/perpcs/config/experiment.yaml"),
        r"there is no module jobs.pipelin",
    ),
    "a config that is not mounted": (
        "entry points",
        put(*JOB, ("spec", "entrypoint"), "python -m jobs.pipeline configs/quickstart.yaml"),
        r"not among the mounted files",
    ),
    "a loop for the wrong shell": (
        "entry points",
        put(*JOB, ("spec", "entrypoint"), 'bash -c "for s in a b; do python -m jobs.$s; done"'),
        r"read by the submitter's shell",
    ),
    "a runtime environment's key": (
        "runtime environments",
        put(*JOB, ("spec", "runtimeEnvYAML"), "env_var: {A: b}"),
        r"env_var: no such key",
    ),
    "a runtime environment's type": (
        "runtime environments",
        put(*JOB, ("spec", "runtimeEnvYAML"), "env_vars: {A: 1}"),
        r"runtimeEnvYAML: ",
    ),
    "a Serve key": (
        "Serve",
        put(*SERVICE, SERVE, "applications: [{name: a, import_path: 'serve.app:build', max_replicas: 2}]"),
        r"applications.max_replicas: no such key",
    ),
    "a Serve key inside a deployment": (
        "Serve",
        put(
            *SERVICE,
            SERVE,
            "applications: [{name: a, import_path: 'm:b', deployments: [{name: d, autoscaling_config: {max_replica: 2}}]}]",
        ),
        r"max_replica: no such key",
    ),
    "a builder that is not there": (
        "Serve",
        put(*SERVICE, SERVE, "applications: [{name: a, import_path: 'jobs.pipeline:buid'}]"),
        r"jobs.pipeline has no buid",
    ),
    "a setting misspelt in a config": (
        "configs",
        put("ConfigMap", "perpcs-config", ("data", "experiment.yaml"), "lora: {rnak: 8}"),
        r"experiment.yaml: .*rnak: no such key",
    ),
    "a setting misspelt for the service": (
        "configs",
        put("ConfigMap", "perpcs-config", ("data", "serve.yaml"), "replicas: {gpu: 1}"),
        r"serve.yaml: .*gpu: no such key",
    ),
    "a secret nobody makes": (
        "references",
        put(*LAB, ("spec", "authOptions", "secretName"), "perpcs-other"),
        r"Secret perpcs-other is neither",
    ),
    "a config map nobody makes": (
        "references",
        put(*JOB, (*WORKERS, "template", "spec", "volumes", 2, "configMap", "name"), "other"),
        r"ConfigMap other is neither",
    ),
    "Redis at another name": (
        "references",
        put(*LAB, ("spec", "gcsFaultToleranceOptions", "redisAddress"), "redis:6379"),
        r"Service redis is neither",
    ),
    "an ingress to nowhere": (
        "references",
        put("RayService", "perpcs", ("metadata", "name"), "other"),
        r"Service perpcs-serve-svc is neither",
    ),
    "a policy for nobody": (
        "selectors",
        put(*POLICY, ("spec", "podSelector", "matchLabels", "perpcs/role"), "wroker"),
        r"selects no pod",
    ),
    "a budget for nobody": (
        "selectors",
        put(*SERVICE, (*HEAD_LABELS, "perpcs/role"), "other"),
        r"PodDisruptionBudget/perpcs-service: spec.selector selects no pod",
    ),
    "a budget Kubernetes cannot count": (
        "selectors",
        put("PodDisruptionBudget", "perpcs-service", ("spec", "minAvailable"), "50%"),
        r"as a number",
    ),
    "a token for everybody": (
        "pods",
        put(*JOB, (*WORKERS, "template", "spec", "automountServiceAccountToken"), True),
        r"automountServiceAccountToken",
    ),
    "root": (
        "pods",
        put(*JOB, (*WORKERS, "template", "spec", "securityContext", "runAsNonRoot"), False),
        r"runAsNonRoot",
    ),
    "a writable root": (
        "pods",
        put(*JOB, (*CONTAINER, "securityContext", "readOnlyRootFilesystem"), False),
        r"readOnlyRootFilesystem",
    ),
    "requests below limits": (
        "pods",
        put(*JOB, (*CONTAINER, "resources", "requests", "cpu"), "1"),
        r"differ from limits",
    ),
    "a mount without a volume": (
        "pods",
        put(*JOB, (*CONTAINER, "volumeMounts", 0, "name"), "experiment"),
        r"no volume experiment",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_checks_find(gpu, mistake):
    check, change, words = MISTAKES[mistake]
    before = list(CHECKS[check](list(gpu.values())))
    change(gpu)
    new = [problem for problem in CHECKS[check](list(gpu.values())) if problem not in before]
    assert any(re.search(words, problem) for problem in new), new


def test_the_page_counts_them():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert f"The tests plant {len(BY_SCHEMA) + len(MISTAKES)} mistakes" in page


def test_a_kustomization_that_cannot_be_rendered_is_one_line(tmp_path):
    (tmp_path / "kustomization.yaml").write_text("resources: [gone.yaml]\n")
    with pytest.raises(RuntimeError, match=r"gone.yaml"):
        render(tmp_path)
