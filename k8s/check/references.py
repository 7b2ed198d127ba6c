"""Names that must meet: selectors and labels, Secrets, ConfigMaps, volumes, Services, accounts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from k8s.check.render import ROOT, Object, containers, pod_templates, ray_cluster, title

PAGE = ROOT / "docs" / "cluster.md"
GIVEN = {"kube-root-ca.crt"}
"""ConfigMaps that Kubernetes itself puts into every namespace."""

Name = tuple[str, str]
"""(kind, name)."""


def check_references(things: list[Object], page: Path = PAGE) -> Iterator[str]:
    """Everything named is made by these manifests or explained on the page, in a table row or backquotes."""
    made = (
        {(str(t["kind"]), str(t["metadata"]["name"])) for t in things} | _claims(things) | _by_kuberay(things)
    )
    explained = set(re.findall(r"`([a-z0-9.-]+)`", page.read_text())) if page.exists() else set()
    for thing in things:
        for kind, name in sorted(_named(thing)):
            if (kind, name) not in made and name not in GIVEN | (explained if kind != "Service" else set()):
                yield f"{title(thing)}: {kind} {name} is neither made here nor explained in {page.name}"


def _claims(things: list[Object]) -> set[Name]:
    return {
        ("PersistentVolumeClaim", f"{claim['metadata']['name']}-{thing['metadata']['name']}-0")
        for thing in things
        for claim in thing.get("spec", {}).get("volumeClaimTemplates", [])
    }


def _by_kuberay(things: list[Object]) -> set[Name]:
    """Services that the operator makes."""
    made = {("Service", f"{t['metadata']['name']}-serve-svc") for t in things if t["kind"] == "RayService"}
    return made | {
        ("Service", f"{t['metadata']['name']}-head-svc") for t in things if ray_cluster(t) is not None
    }


def _named(thing: Object) -> set[Name]:
    found: set[Name] = set()
    for _, template in pod_templates(thing):
        spec = template["spec"]
        if account := spec.get("serviceAccountName"):
            found.add(("ServiceAccount", account))
        for volume in spec.get("volumes", []):
            found |= _of_volume(volume)
        for container in containers(template):
            found |= _of_environment(container)
    if (cluster := ray_cluster(thing)) is not None:
        found |= _of_cluster(cluster)
    if thing.get("kind") == "Ingress":
        found |= _of_ingress(thing["spec"])
    return found


def _of_volume(volume: Object) -> set[Name]:
    found = set()
    if "secret" in volume:
        found.add(("Secret", volume["secret"]["secretName"]))
    if "configMap" in volume:
        found.add(("ConfigMap", volume["configMap"]["name"]))
    if "persistentVolumeClaim" in volume:
        found.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for source in volume.get("projected", {}).get("sources", []):
        found |= _of_volume(
            {k: ({"secretName": v["name"]} if k == "secret" else v) for k, v in source.items()}
        )
    return found


def _of_environment(container: Object) -> set[Name]:
    found = set()
    for source in container.get("envFrom", []):
        for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if key in source:
                found.add((kind, source[key]["name"]))
    for entry in container.get("env", []):
        for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
            if key in entry.get("valueFrom", {}):
                found.add((kind, entry["valueFrom"][key]["name"]))
    return found


def _of_cluster(cluster: Object) -> set[Name]:
    found = set()
    if secret := cluster.get("authOptions", {}).get("secretName"):
        found.add(("Secret", secret))
    options = cluster.get("gcsFaultToleranceOptions", {})
    if address := options.get("redisAddress"):
        found.add(("Service", address.removeprefix("redis://").partition(":")[0].partition(".")[0]))
    if password := options.get("redisPassword", {}).get("valueFrom", {}).get("secretKeyRef"):
        found.add(("Secret", password["name"]))
    return found


def _of_ingress(spec: Object) -> set[Name]:
    found = {("Secret", tls["secretName"]) for tls in spec.get("tls", []) if "secretName" in tls}
    for rule in spec.get("rules", []):
        found |= {("Service", path["backend"]["service"]["name"]) for path in rule["http"]["paths"]}
    return found


def check_selectors(things: list[Object]) -> Iterator[str]:
    """Every selector of pods in this namespace selects some; budgets select none of other owners' counts."""
    pods = [
        template.get("metadata", {}).get("labels", {}) for t in things for _, template in pod_templates(t)
    ]
    for thing in things:
        for where, selector in _selectors(thing):
            if selector and not any(selects(selector, labels) for labels in pods):
                yield f"{title(thing)}: {where} selects no pod: {selector}"
        if thing.get("kind") == "PodDisruptionBudget" and not isinstance(
            thing["spec"].get("minAvailable"), int
        ):
            yield f"{title(thing)}: pods of a Ray cluster have no scale subresource: give minAvailable as a number"


def _selectors(thing: Object) -> Iterator[tuple[str, Object]]:
    spec, kind = thing.get("spec", {}), thing.get("kind")
    if kind == "Service":
        yield "spec.selector", {"matchLabels": spec.get("selector", {})}
    elif kind in {"StatefulSet", "Deployment", "PodDisruptionBudget", "PodMonitor"}:
        yield "spec.selector", spec["selector"]
    elif kind == "NetworkPolicy":
        yield "spec.podSelector", spec["podSelector"]
        for side, peers in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(side, []):
                for peer in rule.get(peers, []):
                    if "podSelector" in peer and "namespaceSelector" not in peer:
                        yield f"spec.{side}", peer["podSelector"]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) takes a pod with these labels."""
    wanted = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    return all(_expression(entry, labels) for entry in selector.get("matchExpressions", []))


def _expression(entry: Object, labels: dict[str, str]) -> bool:
    value, values = labels.get(entry["key"]), entry.get("values", [])
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[entry["operator"]]
