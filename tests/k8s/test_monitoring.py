"""Alerts and dashboard ask for metrics that the code declares."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from k8s.check.monitoring import DASHBOARD, check_dashboard, check_rules, declared, undeclared
from k8s.check.render import ROOT

RULES = yaml.safe_load((ROOT / "k8s" / "monitoring" / "alerts.yaml").read_text())


def test_the_dashboard_is_sound():
    assert not list(check_dashboard())


def test_the_alerts_are_sound():
    assert RULES["spec"]["groups"] and not list(check_rules([RULES]))


def test_the_alerts_lead_to_headings():
    page = (ROOT / "docs" / "operations.md").read_text()
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", page, re.M)
    }
    for rule in (rule for group in RULES["spec"]["groups"] for rule in group["rules"]):
        assert rule["annotations"]["runbook"].partition("#")[2] in headings, rule["alert"]
        assert rule["alert"] in page, f"{rule['alert']} is not explained"


def test_every_panel_asks_for_something_of_ours_or_of_ray():
    board = json.loads(DASHBOARD.read_text())
    exprs = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert any("ray_perpcs_jobs_" in e for e in exprs) and any("ray_perpcs_serve_" in e for e in exprs)


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("rate(ray_perpcs_jobs_users_total[5m])", []),
        ("histogram_quantile(0.9, rate(ray_perpcs_jobs_pack_seconds_bucket[5m]))", []),
        ("rate(ray_perpcs_jobs_user_total[5m])", ["ray_perpcs_jobs_user_total"]),
        ("perpcs_jobs_users_left + ray_perpcs_gone", ["ray_perpcs_gone"]),
    ],
)
def test_an_undeclared_metric_is_found(expression, wrong):
    found = list(
        undeclared(expression, {"perpcs_jobs_users", "perpcs_jobs_users_left", "perpcs_jobs_pack_seconds"})
    )
    assert [problem.split()[0] for problem in found] == wrong


def test_names_come_from_the_code():
    assert {"perpcs_jobs_users", "perpcs_jobs_pack_seconds", "perpcs_serve_requests"} <= declared()


def test_a_dashboard_of_undeclared_metrics_fails(tmp_path):
    board = {"panels": [{"type": "timeseries", "title": "a", "targets": [{"expr": "ray_perpcs_none"}]}]}
    path = tmp_path / "board.json"
    path.write_text(json.dumps(board))
    found = " ".join(check_dashboard(path))
    assert "ray_perpcs_none" in found and "no unit" in found and "description" in found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (Debian's package prometheus)")
def test_prometheus_reads_the_alerts(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": RULES["spec"]["groups"]}))
    done = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
