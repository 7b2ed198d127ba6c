"""The deploy file, and the settings that may change without a restart."""

from pathlib import Path

import pytest
import yaml

from perpcs.errors import ConfigError
from serve.check import check_file, check_tree, main
from serve.config import ServeConfig, load_args, reconfigured

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["configs/serve/deploy.yaml"]) == 0
    assert capsys.readouterr().out.endswith("ok\n")
    assert (
        (ROOT / "configs/serve/deploy.yaml")
        .read_text()
        .startswith("# serve deploy configs/serve/deploy.yaml")
    )


def tree(**changes):
    app = {"name": "perpcs", "import_path": "serve.app:build", "route_prefix": "/", "args": {}}
    return {"http_options": {"host": "127.0.0.1"}, "applications": [app | changes.pop("app", {})], **changes}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"http_option": {}}, "http_option: no such key; did you mean http_options?"),
        ({"http_options": {"hosts": "127.0.0.1"}}, "http_options.hosts: no such key; did you mean host?"),
        ({"http_options": {"port": 8000}}, "listens on all interfaces"),
        ({"http_options": {"host": "127.0.0.1", "port": "x"}}, "http_options.port"),
        ({"app": {"import_pathh": "x"}}, r"applications\[0\].import_pathh: no such key"),
        ({"app": {"import_path": "other:app"}}, "none has import_path"),
        ({"app": {"args": {"engine.slotz": 3}}}, "engine.slotz: no such key; did you mean engine.slots"),
        ({"app": {"args": {"engine": {"slots": 3}}}}, "is no text or number"),
        ({"app": {"deployments": [{"name": "Htp"}]}}, "there are Http and Engine"),
        ({"app": {"deployments": [{"name": "Http", "num_replica": 2}]}}, "did you mean num_replicas"),
        (
            {"app": {"deployments": [{"name": "Http", "user_config": {"engine": {"slots": 3}}}]}},
            "cannot change without a restart",
        ),
        (
            {"app": {"deployments": [{"name": "Http", "autoscaling_config": {"max_replica": 3}}]}},
            "max_replica",
        ),
        (
            {"http_options": {"host": "192.0.2.1"}, "app": {"args": {"auth.open_on_loopback": True}}},
            "without asking for tokens",
        ),
    ],
)
def test_what_is_wrong_is_named(change, says):
    check_tree(tree(), "f")
    with pytest.raises(ConfigError, match=says):
        check_tree(tree(**change), "f")


def test_all_interfaces_may_be_meant():
    check_tree(tree(http_options={"host": "0.0.0.0"}), "f", all_interfaces=True)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\xff"])
def test_a_file_that_is_none(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        check_file(str(path))


def test_the_shipped_file_assembles_as_the_experiment_did():
    shipped = yaml.safe_load((ROOT / "configs/serve/deploy.yaml").read_text())
    for app in shipped["applications"]:
        for deployment in app["deployments"]:
            changed = reconfigured(ServeConfig(), deployment["user_config"], deployment=deployment["name"])
            assert changed.assembly == ServeConfig().assembly
        assert not [key for key in app["args"] if key.startswith("assembly")]


def test_user_config_changes_limits_and_defaults_only():
    changed = reconfigured(ServeConfig(), {"limits": {"burst": 7}, "assembly.top_k": 2}, deployment="Http")
    assert (changed.limits.burst, changed.assembly.top_k) == (7, 2)
    assert changed.engine == ServeConfig().engine
    for wrong in ({"limits": {"burst": 0}}, {"limits": {"brst": 1}}, {"replicas.max": 2}):
        with pytest.raises(ConfigError):
            reconfigured(ServeConfig(), wrong, deployment="Http")
    with pytest.raises(ConfigError, match=r"assembly\.waiting: has no effect on Http; give it to Engine"):
        reconfigured(ServeConfig(), {"assembly.waiting": 3}, deployment="Http")
    assert reconfigured(ServeConfig(), {"assembly.waiting": 3}, deployment="Engine").assembly.waiting == 3


def test_build_says_in_one_line_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean replicas\.max"):
        load_args({"replicas.mx": 2})
    from serve.app import build

    with pytest.raises(ConfigError, match="make a token"):
        build({"experiment": str(tmp_path)})
