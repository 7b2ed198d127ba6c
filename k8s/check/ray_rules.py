"""What KubeRay's operator refuses or quietly does otherwise, beyond the schemas; and the versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from k8s.check.render import ROOT, Object, containers, pod_templates, ray_cluster, title

LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
"""The operator adds suffixes, and pods' names end at 63."""
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
CONSTRAINTS = ROOT / "k8s" / "image" / "constraints.txt"
FIRST_WITH_TOKENS = Version("2.52")
RESERVED_ENV = {
    "RAY_REDIS_ADDRESS": "gcsFaultToleranceOptions.redisAddress",
    "REDIS_PASSWORD": "gcsFaultToleranceOptions.redisPassword",
    "RAY_enable_autoscaler_v2": "autoscalerOptions.version",
    "RAY_AUTH_TOKEN": "authOptions.secretName",
    "RAY_AUTH_MODE": "authOptions.mode",
}


def locked_ray(path: Path = CONSTRAINTS) -> str:
    """The version of Ray that the image installs."""
    found = re.search(r"^ray==(\S+)$", path.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{path}: no line ray==VERSION")
    return found.group(1)


def project_ray(path: Path = ROOT / "pyproject.toml") -> Requirement:
    """What the project asks of Ray."""
    import tomllib

    wanted = tomllib.loads(path.read_text())["project"]["dependencies"]
    return next(r for r in map(Requirement, wanted) if r.name == "ray")


def check_names(things: list[Object]) -> Iterator[str]:
    """Names of KubeRay's objects: characters and length."""
    for thing in things:
        limit = LONGEST_NAME.get(str(thing.get("kind")))
        name = str(thing["metadata"]["name"])
        if limit and not DNS_LABEL.fullmatch(name):
            yield f"{title(thing)}: the name must be lower-case letters, digits and hyphens, a letter first"
        if limit and len(name) > limit:
            yield f"{title(thing)}: {len(name)} characters, at most {limit} leave room for the operator's suffixes"


def check_versions(things: list[Object]) -> Iterator[str]:
    """rayVersion is the image's Ray, which the project allows; every cluster runs one image of a fixed version."""
    locked = locked_ray()
    if not project_ray().specifier.contains(locked):
        yield f"{CONSTRAINTS.name}: ray=={locked} is outside pyproject's {project_ray().specifier}"
    for thing in things:
        cluster = ray_cluster(thing)
        if cluster is None:
            continue
        if str(cluster.get("rayVersion")) != locked:
            yield f"{title(thing)}: rayVersion {cluster.get('rayVersion')} but the image has {locked}"
        images = {c["image"] for _, template in pod_templates(thing) for c in containers(template)}
        if len(images) > 1:
            yield f"{title(thing)}: several images in one cluster: {', '.join(sorted(images))}"
    yield from _floating(things)


def _floating(things: list[Object]) -> Iterator[str]:
    for thing in things:
        for where, template in pod_templates(thing):
            for container in containers(template):
                _, _, tag = str(container["image"]).rpartition("/")[2].partition(":")
                if not tag or tag == "latest":
                    yield f"{title(thing)}: {where}: image {container['image']} names no version"


def check_cluster(things: list[Object]) -> Iterator[str]:
    """Settings of a Ray cluster that the operator refuses, and ours that must not get lost."""
    for thing in things:
        cluster = ray_cluster(thing)
        if cluster is None:
            continue
        for problem in (
            *_head(cluster),
            *_autoscaler(cluster),
            *_authentication(cluster),
            *_reserved(cluster),
        ):
            yield f"{title(thing)}: {problem}"


def _head(cluster: Object) -> Iterator[str]:
    if str(cluster["headGroupSpec"].get("rayStartParams", {}).get("num-cpus")) != "0":
        yield 'headGroupSpec.rayStartParams.num-cpus must be "0": work on the head can take the GCS down'


def _autoscaler(cluster: Object) -> Iterator[str]:
    if (
        not cluster.get("enableInTreeAutoscaling")
        or cluster.get("autoscalerOptions", {}).get("version") != "v2"
    ):
        yield "enableInTreeAutoscaling and autoscalerOptions.version v2 are wanted"
    for group in cluster.get("workerGroupSpecs", []):
        name, low, high = group.get("groupName"), group.get("minReplicas"), group.get("maxReplicas")
        if low is None or high is None or not low <= group.get("replicas", low) <= high:
            yield f"group {name}: minReplicas <= replicas <= maxReplicas does not hold ({low}, {high})"
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"group {name}: restartPolicy must be Never or absent with autoscaler v2"
        gpus = {
            resources.get("nvidia.com/gpu", "0")
            for container in group["template"]["spec"]["containers"]
            for resources in container.get("resources", {}).values()
        }
        if gpus != {"0"} and low:
            yield f"group {name}: GPU groups start from zero, minReplicas is {low}"


def _authentication(cluster: Object) -> Iterator[str]:
    options = cluster.get("authOptions", {})
    if options.get("mode") != "token" or not options.get("secretName"):
        yield "authOptions: mode token with a secretName is wanted; Ray's ports run anybody's code otherwise"
    try:
        if Version(str(cluster.get("rayVersion"))) < FIRST_WITH_TOKENS:
            yield f"authOptions: tokens need rayVersion {FIRST_WITH_TOKENS} or later"
    except InvalidVersion:
        yield f"rayVersion: {cluster.get('rayVersion')!r} is not a version"


def _reserved(cluster: Object) -> Iterator[str]:
    groups = [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]
    for group in groups:
        if "labels" in group.get("rayStartParams", {}):
            yield "rayStartParams.labels is refused by the operator; use the group's labels"
        for container in containers(group["template"]):
            for entry in container.get("env", []):
                if entry["name"] in RESERVED_ENV:
                    yield f"env {entry['name']}: set {RESERVED_ENV[entry['name']]} instead"


def check_jobs(things: list[Object]) -> Iterator[str]:
    """RayJobs end, clean up after themselves, and try again; services keep the GCS's state outside the head."""
    for thing in things:
        spec, kind = thing.get("spec", {}), thing.get("kind")
        if kind == "RayJob":
            for key in ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"):
                if not spec.get(key):
                    yield f"{title(thing)}: spec.{key} must be set and above 0"
            if not spec.get("shutdownAfterJobFinishes"):
                yield f"{title(thing)}: spec.shutdownAfterJobFinishes: the cluster would stay, and its GPUs with it"
        cluster = ray_cluster(thing)
        if kind in {"RayService", "RayCluster"} and cluster and not cluster.get("gcsFaultToleranceOptions"):
            yield f"{title(thing)}: gcsFaultToleranceOptions: a lost head would lose everything that runs"
