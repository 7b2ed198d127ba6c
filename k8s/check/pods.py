"""Rules for every pod: no rights it does not need, requests equal limits, volumes that fit together."""

from __future__ import annotations

from collections.abc import Iterator

from k8s.check.render import Object, containers, pod_templates, ray_cluster, title

AUTOSCALER_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"


def check_pods(things: list[Object]) -> Iterator[str]:
    """All rules of this page over every pod template."""
    for thing in things:
        for where, template in pod_templates(thing):
            for problem in (
                *_pod(template["spec"]),
                *_volumes(template["spec"], _sidecar_mounts(thing, where)),
            ):
                yield f"{title(thing)}: {where}: {problem}"
            for container in containers(template):
                for problem in (*_security(container), *_resources(container)):
                    yield f"{title(thing)}: {where}: {container['name']}: {problem}"
        if (cluster := ray_cluster(thing)) is not None:
            for problem in _autoscaler(cluster):
                yield f"{title(thing)}: autoscalerOptions: {problem}"


def _pod(spec: Object) -> Iterator[str]:
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken must be false"
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "securityContext: runAsNonRoot true with a runAsUser is wanted"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "securityContext: seccompProfile RuntimeDefault is wanted"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} must not be set"


def _security(container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "securityContext: allowPrivilegeEscalation false is wanted"
    if "ALL" not in context.get("capabilities", {}).get("drop", []):
        yield "securityContext: capabilities.drop [ALL] is wanted"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "securityContext: readOnlyRootFilesystem true is wanted"


def _resources(holder: Object) -> Iterator[str]:
    """Requests equal limits, so that a pod is never killed or slowed for its neighbours' sake."""
    resources = holder.get("resources", {})
    requests, limits = resources.get("requests"), resources.get("limits")
    if not limits or not {"cpu", "memory", "ephemeral-storage"} <= set(limits):
        yield "resources.limits must name cpu, memory and ephemeral-storage"
    if requests != limits:
        yield f"resources: requests {requests} differ from limits {limits}"


def _autoscaler(cluster: Object) -> Iterator[str]:
    options = cluster.get("autoscalerOptions", {})
    yield from _security(options)
    yield from _resources(options)
    if not any(mount["mountPath"] == AUTOSCALER_TOKEN for mount in options.get("volumeMounts", [])):
        yield f"volumeMounts: without the token at {AUTOSCALER_TOKEN} the autoscaler cannot reach Kubernetes"


def _sidecar_mounts(thing: Object, where: str) -> list[Object]:
    cluster = ray_cluster(thing)
    return cluster.get("autoscalerOptions", {}).get("volumeMounts", []) if cluster and where == "head" else []


def _volumes(spec: Object, more: list[Object]) -> Iterator[str]:
    """Mounts name volumes, volumes are mounted, and no path is mounted twice."""
    have = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}  # a StatefulSet's template
    used = {mount["name"] for mount in more}
    for container in (*spec.get("initContainers", []), *spec.get("containers", [])):
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        if len(paths) != len(set(paths)):
            yield f"{container['name']}: a path is mounted twice"
        used |= {mount["name"] for mount in container.get("volumeMounts", [])}
    for name in sorted(used - have):
        yield f"volumeMounts: no volume {name}"
    for name in sorted(have - used - {"data"}):
        yield f"volumes: {name} is mounted nowhere"
