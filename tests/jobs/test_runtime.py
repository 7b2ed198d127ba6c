"""Starting and joining Ray, and one function in one task."""

import logging
import os
import signal
import time

import pytest

from jobs import runtime
from jobs.runtime import cluster_address, cluster_arguments, connect, run_remote, workers_that_fit
from perpcs.config.schema import RayConfig
from perpcs.errors import ConfigError, DataError, PerpcsError


@pytest.mark.parametrize(
    ("configured", "env", "address"),
    [
        ("local", {}, None),
        ("auto", {}, "auto"),
        ("10.0.0.1:6379", {}, "10.0.0.1:6379"),
        ("local", {"RAY_ADDRESS": "10.0.0.2:6379"}, "10.0.0.2:6379"),
        ("local", {"RAY_ADDRESS": "http://10.0.0.2:8265"}, None),
    ],
)
def test_which_cluster(configured, env, address):
    assert cluster_address(configured, env) == address


def test_a_submitted_job_keeps_its_own_runtime_environment():
    assert "runtime_env" not in cluster_arguments("auto", {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"})
    path = cluster_arguments("auto", {"PYTHONPATH": "/more"})["runtime_env"]["env_vars"]["PYTHONPATH"]
    assert path.endswith(f"platform{os.pathsep}/more")


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "room"),
    [
        ([{"CPU": 2.0}], 1.0, 0.0, 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2.0, 0.0, 2),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], 1.0, 0.25, 4),
        ([{"CPU": 0.3}], 0.1, 0.0, 3),
        ([{"CPU": 8.0}], 1.0, 1.0, 0),
    ],
)
def test_how_many_workers_fit(nodes, cpus, gpus, room):
    assert workers_that_fit(nodes, cpus=cpus, gpus=gpus) == room


def test_a_request_that_can_never_be_met_is_refused_at_once(local_ray):
    with (
        pytest.raises(ConfigError, match=r"^ray.workers: 9 with 1 CPU each cannot run here"),
        connect(RayConfig(workers=9)),
    ):
        pass


def test_a_cluster_that_grows_is_not_refused_for_what_it_has_now(local_ray, monkeypatch):
    assert not runtime.grows(), "a Ray of our own has no autoscaler"
    monkeypatch.setattr(runtime, "grows", lambda: True)
    runtime.require_room(RayConfig(workers=9, gpus=1))


def test_a_running_ray_is_used_and_left_running(local_ray):
    with connect(RayConfig()):
        assert local_ray.is_initialized()
    assert local_ray.is_initialized()


def threads_and_home():
    import torch

    import perpcs

    return torch.get_num_threads(), perpcs.__file__


def test_a_function_in_a_task(local_ray):
    import perpcs

    threads, home = run_remote(threads_and_home, cfg=RayConfig(cpus=2.0))
    assert threads == 2
    assert home == perpcs.__file__, "workers import the packages of this checkout"


def refuse(user):
    raise DataError(f"user {user}: no items")


def test_our_errors_come_back_as_themselves(local_ray):
    with pytest.raises(DataError) as caught:
        run_remote(refuse, "u1", cfg=RayConfig())
    assert type(caught.value) is DataError and str(caught.value) == "user u1: no items"


def divide():
    return 1 // 0


def test_other_errors_keep_the_remote_traceback(local_ray):
    with pytest.raises(ZeroDivisionError, match="in divide"):
        run_remote(divide, cfg=RayConfig())


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_whose_process_dies_says_so_in_one_line(local_ray):
    with pytest.raises(PerpcsError, match=r"^die: its process died 1 times"):
        run_remote(die, cfg=RayConfig(retries=0))


def test_a_task_that_dies_after_much_talk_is_started_again_and_its_result_counts(local_ray, tmp_path, caplog):
    flag = tmp_path / "died"

    def talk_and_die():
        log = logging.getLogger("perpcs.some.module")
        if flag.exists():
            return 7
        for n in range(12):
            log.info("line %d", n)
        flag.touch()
        time.sleep(1)  # until the lines are heard
        return os.kill(os.getpid(), signal.SIGKILL)

    with caplog.at_level("INFO"):
        assert run_remote(talk_and_die, cfg=RayConfig(retries=1)) == 7
    assert "line 11" in caplog.text and "talk_and_die: its process died and is started again" in caplog.text


def test_no_cluster_where_one_was_named(monkeypatch):
    def init(**_):
        raise ConnectionError("nobody")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError, match=r"'10.0.0.1:6379': no Ray cluster answers there"):
        runtime._join("10.0.0.1:6379")
