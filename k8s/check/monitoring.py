"""Alerts and the dashboard: they ask only for metrics that exist, and every alert leads to a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from k8s.check.render import ROOT, Object, title

DASHBOARD = ROOT / "k8s" / "monitoring" / "dashboard.json"
OURS = re.compile(r"\bray_perpcs_\w+|\bperpcs_\w+")
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")
"""What exporters add to a name."""


def declared() -> set[str]:
    """Names of our metrics, counters without the _total that exporters add."""
    from jobs import metrics as jobs_metrics
    from serve.metrics import METRICS

    ours = {*jobs_metrics.COUNTERS, *jobs_metrics.GAUGES, *jobs_metrics.HISTOGRAMS}
    return ours | {family.name for family in METRICS.registry.collect()}


def undeclared(expression: str, names: set[str]) -> Iterator[str]:
    """Metrics of ours in a PromQL expression that no module declares. Ray exports perpcs_x as ray_perpcs_x."""
    for metric in sorted(set(OURS.findall(expression))):
        name = metric.removeprefix("ray_")
        if name not in names and SUFFIX.sub("", name) not in names:
            yield f"{metric} is declared in no metrics module"


def check_rules(things: list[Object]) -> Iterator[str]:
    """Alerts: known metrics, a duration, a severity, a summary, and a heading of docs/operations.md to read."""
    names = declared()
    for thing in (t for t in things if t.get("kind") == "PrometheusRule"):
        for rule in (rule for group in thing["spec"]["groups"] for rule in group["rules"]):
            for problem in (*undeclared(rule["expr"], names), *_form(rule)):
                yield f"{title(thing)}: {rule.get('alert') or rule.get('record')}: {problem}"


def _form(rule: Object) -> Iterator[str]:
    if "alert" not in rule:
        return
    if not rule.get("for"):
        yield "for: how long must it hold?"
    if rule.get("labels", {}).get("severity") not in {"page", "ticket"}:
        yield "labels.severity must be page or ticket"
    notes = rule.get("annotations", {})
    if not notes.get("summary") or not str(notes.get("runbook", "")).startswith("docs/operations.md#"):
        yield "annotations: a summary and a runbook docs/operations.md#… are wanted"


def check_dashboard(path: Path = DASHBOARD) -> Iterator[str]:
    """Problems of the dashboard: unknown metrics, panels without a title, unit, description or query."""
    names, board = declared(), json.loads(path.read_text())
    for panel in (p for p in board["panels"] if p["type"] != "row"):
        where = f"{path.name}: {panel.get('title') or panel.get('id')}"
        if not (panel.get("title") and panel.get("description") and panel.get("targets")):
            yield f"{where}: title, description and targets are wanted"
        if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
            yield f"{where}: no unit"
        for target in panel.get("targets", []):
            for problem in undeclared(target["expr"], names):
                yield f"{where}: {problem}"
