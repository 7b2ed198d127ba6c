"""The manifests as Kubernetes would get them: every part of every overlay, rendered by kustomize."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
"""One Kubernetes object."""

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ROOT / "k8s" / "overlays"
BESIDE = {"gpu-spot": ("gpu/setup", "gpu/service")}
"""Overlays that are used beside parts of another."""


def renderer() -> list[str] | None:
    """The command that renders a kustomization, or None where there is neither kubectl nor kustomize."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            return command
    return None


def overlays() -> list[str]:
    """Names of the overlays."""
    return sorted(path.name for path in OVERLAYS.iterdir() if path.is_dir())


def parts(overlay: str) -> list[Path]:
    """Folders of an overlay that can be applied: those whose kustomization is not a component."""
    return [
        path.parent
        for path in sorted((OVERLAYS / overlay).glob("*/kustomization.yaml"))
        if yaml.safe_load(path.read_text()).get("kind") == "Kustomization"
    ]


def render(folder: Path) -> list[Object]:
    """The objects of one kustomization. Raises RuntimeError with kustomize's message where it cannot be rendered."""
    command = renderer()
    if command is None:
        raise RuntimeError("neither kubectl nor kustomize is here to render manifests; install one of them")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def render_overlay(overlay: str) -> list[Object]:
    """Everything that an overlay puts into one namespace, ingress and monitoring included."""
    folders = parts(overlay)
    folders += [OVERLAYS / part for part in BESIDE.get(overlay, ())]
    folders += [ROOT / "k8s" / "base" / "ingress", ROOT / "k8s" / "monitoring"]
    return [thing for folder in folders for thing in render(folder)]


def title(thing: Object) -> str:
    """`Kind/name`, as messages begin."""
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def ray_cluster(thing: Object) -> Object | None:
    """The RayCluster spec inside a RayCluster, RayJob or RayService."""
    spec = thing.get("spec", {})
    places = {
        "RayCluster": spec,
        "RayJob": spec.get("rayClusterSpec"),
        "RayService": spec.get("rayClusterConfig"),
    }
    return places.get(str(thing.get("kind")))


def pod_templates(thing: Object) -> Iterator[tuple[str, Object]]:
    """(where, pod template) of everything in this object that becomes pods."""
    spec = thing.get("spec", {})
    if (cluster := ray_cluster(thing)) is not None:
        yield "head", cluster["headGroupSpec"]["template"]
        for group in cluster.get("workerGroupSpecs", []):
            yield f"group {group.get('groupName')}", group["template"]
    if "submitterPodTemplate" in spec:
        yield "submitter", spec["submitterPodTemplate"]
    if thing.get("kind") in {"StatefulSet", "Deployment", "DaemonSet", "Job"}:
        yield "pods", spec["template"]


def containers(template: Object) -> Iterator[Object]:
    """Containers and init containers of a pod template."""
    spec = template.get("spec", {})
    yield from spec.get("initContainers", [])
    yield from spec.get("containers", [])
