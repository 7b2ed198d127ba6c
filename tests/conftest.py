"""Settings for every test: small, offline, and the same on any machine."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

# Before anything imports Ray or torch: both read their environment once.
os.environ |= {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_worker_niceness": "0",  # workers that must wait behind all other tests would only make these longer
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(config, items):
    """For several workers (make test): files with whole flows first, so that the workers end together; tests that share
    the session's local Ray in one worker, others file by file. Of the first, files that start a Ray of their own come
    before those that share one, which stays: a process can be connected to one only."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    shares = {item.path for item in items if "local_ray" in item.fixturenames}
    items.sort(key=lambda item: (item.path not in slow, item.path in shares))
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            group = "local ray" if "local_ray" in item.fixturenames else str(item.path)
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server with a bucket `pools`: `moto_server`, from the dev dependency moto[server]."""
    program = os.environ.get("MOTO_SERVER") or shutil.which("moto_server", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("no moto_server here (pip install 'moto[server]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "-H", "127.0.0.1", "-p", str(port)],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/pools", method="PUT"), timeout=5)
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def s3_environment(s3_server):
    """What a program needs in its environment to use the server."""
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_REGION": "us-east-1",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
