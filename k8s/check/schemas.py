"""Objects against their schemas, with unknown fields refused: KubeRay's kinds by its CRDs, Kubernetes' own by theirs."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from k8s.check.render import ROOT, Object, title

KUBERNETES = "1.33"
"""Whose schemas the core kinds are checked against."""
UNCHECKED = {"monitoring.coreos.com/v1"}
"""Kinds whose schema is not at hand; `k8s.check.monitoring` looks at what is in them."""

Validators = dict[tuple[str, str], jsonschema.Draft202012Validator]


def crd_folder() -> Path | None:
    """Where KubeRay's CRDs lie: KUBERAY_CRDS, or shared/crds beside the project; None where there are none."""
    folder = Path(os.environ.get("KUBERAY_CRDS") or ROOT.parent / "shared" / "crds")
    return folder if any(folder.glob("*.yaml*")) else None


@cache
def crd_validators(folder: Path) -> Validators:
    """(apiVersion, kind) -> validator, for the stored version of every CRD in the folder (.yaml or .yaml.gz)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: Validators = {}
    for path in sorted(folder.glob("*.yaml*")):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        crd = yaml.load(text, Loader=loader)
        for version in (v for v in crd["spec"]["versions"] if v["storage"]):
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            key = f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]
            found[key] = jsonschema.Draft202012Validator(schema)
    return found


def strict(schema: Any) -> Any:
    """A structural schema as JSON Schema that refuses unknown fields, as the API server does with strict validation."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: _strict_entry(key, value) for key, value in schema.items()}
    if out.pop("x-kubernetes-int-or-string", False):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if out.pop("nullable", False) and "type" in out:
        out["type"] = [out["type"], "null"]
    if "required" in out:  # the server fills defaults in before it looks
        known = out.get("properties", {})
        out["required"] = [name for name in out["required"] if "default" not in known.get(name, {})]
    open_ended = "additionalProperties" in out or out.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in out and not open_ended:
        out["additionalProperties"] = False
    return out


def _strict_entry(key: str, value: Any) -> Any:
    if key == "properties":
        return {name: strict(entry) for name, entry in value.items()}
    nested = {"items", "additionalProperties", "allOf", "anyOf", "oneOf", "not"}
    return strict(value) if key in nested else value


def check_custom(things: list[Object], validators: Validators) -> Iterator[str]:
    """Problems of KubeRay's objects; a kind of ray.io without a schema is one."""
    for thing in things:
        api, kind = str(thing.get("apiVersion")), str(thing.get("kind"))
        if not api.startswith("ray.io/"):
            continue
        if (validator := validators.get((api, kind))) is None:
            yield f"{title(thing)}: {api} is not a version that KubeRay stores"
            continue
        for error in sorted(validator.iter_errors(thing), key=lambda e: [str(part) for part in e.path]):
            yield f"{title(thing)}: {'.'.join(map(str, error.path))}: {error.message[:200]}"


def check_core(things: list[Object]) -> Iterator[str]:
    """Problems of Kubernetes' own objects."""
    import kubernetes_validate

    for thing in things:
        api = str(thing.get("apiVersion"))
        if api.startswith("ray.io/") or api in UNCHECKED:
            continue
        try:
            kubernetes_validate.validate(thing, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{title(thing)}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"{title(thing)}: Kubernetes {KUBERNETES} has no {api} {thing.get('kind')}"
