"""Check the manifests without a cluster: `python -m k8s.check [OVERLAY…]`, all overlays by default.

Rendered by kubectl or kustomize; looked at: KubeRay's CRDs (KUBERAY_CRDS, or shared/crds beside the project),
Kubernetes' own schemas, KubeRay's rules, versions, embedded configurations, references, pod security, monitoring.
Exit status 0: nothing found. 2: problems, one a line on standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from k8s.check import embedded, monitoring, pods, ray_rules, references, schemas
from k8s.check.render import Object, overlays, render_overlay

CHECKS: dict[str, Callable[[list[Object]], Iterator[str]]] = {
    "core kinds": schemas.check_core,
    "names": ray_rules.check_names,
    "versions": ray_rules.check_versions,
    "clusters": ray_rules.check_cluster,
    "jobs": ray_rules.check_jobs,
    "entry points": embedded.check_entrypoints,
    "runtime environments": embedded.check_runtime_envs,
    "Serve": embedded.check_serve,
    "configs": embedded.check_configs,
    "references": references.check_references,
    "selectors": references.check_selectors,
    "pods": pods.check_pods,
    "monitoring": monitoring.check_rules,
}
"""All that need no CRDs."""


def problems(things: list[Object]) -> list[str]:
    """Everything that is wrong with one overlay's objects, once each."""
    folder = schemas.crd_folder()
    custom = schemas.check_custom(things, schemas.crd_validators(folder)) if folder else ()
    found = [*custom, *(problem for check in CHECKS.values() for problem in check(things))]
    return list(dict.fromkeys(found))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m k8s.check", description=__doc__)
    parser.add_argument("overlays", metavar="OVERLAY", nargs="*", help=f"of {', '.join(overlays())}")
    names = parser.parse_args().overlays or overlays()
    if unknown := set(names) - set(overlays()):
        sys.stderr.write(f"{unknown.pop()}: no such overlay; there are {', '.join(overlays())}\n")
        return 2
    if schemas.crd_folder() is None:
        sys.stderr.write(
            "KubeRay's CRDs are not here (KUBERAY_CRDS): its kinds are not held against their schemas\n"
        )
    bad = False
    for name in names:
        try:
            things = render_overlay(name)
        except RuntimeError as error:
            sys.stderr.write(f"{error}\n")
            return 2
        found = problems(things)
        bad |= bool(found)
        sys.stderr.writelines(f"{name}: {problem}\n" for problem in found)
        sys.stdout.write(f"{name}: {len(things)} objects, {len(found)} problems\n")
    return 2 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
