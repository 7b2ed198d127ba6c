"""A Ray cluster as KubeRay would run it: token, head without work, autoscaler v2 from zero, the GCS's state in Redis."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from k8s.rehearsal.network import RAY, Machine, add_machine, address, power_off

HEAD, REDIS, WORKERS = 1, 2, tuple(range(11, 21))
ROOT = Path(__file__).resolve().parents[2]
IDLE_MINUTES = 1.0
KEEP_S = 1.0
"""Between two looks at whether the head's process is there."""


@dataclass
class Cluster:
    """The head (started anew when it ends, as Kubernetes does), Redis, and the machines of the autoscaler."""

    folder: Path
    """For configurations and logs."""
    gpus: int = 1
    """Fake ones, of each worker."""
    most: int = 3
    """Workers."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when heads are no longer replaced."""
    head: Machine = field(init=False)
    redis: Machine = field(init=False)

    @property
    def env(self) -> dict[str, str]:
        """Of every process of the cluster, as KubeRay and the image set it."""
        keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return keep | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
            "RAY_worker_niceness": "0",  # Ray gives its workers the last place behind all other work
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def start(self) -> None:
        """Machines, Redis, head."""
        for number in (HEAD, REDIS, *WORKERS):
            add_machine(number)
        self.start_redis()
        self.start_head()
        threading.Thread(target=self._keep_head, name="operator", daemon=True).start()

    def start_redis(self) -> None:
        """A Redis that keeps every second's changes, with a password."""
        server = shutil.which("redis-server")
        if server is None:
            raise RuntimeError("no redis-server here (apt-get install redis-server)")
        config = self.folder / "redis.conf"
        config.write_text(
            f"bind {address(REDIS)}\nrequirepass {self.password}\nappendonly yes\ndir {self.folder}\n"
        )
        self.redis = Machine.start(REDIS, [server, str(config)], os.environ, folder=self.folder)

    def start_head(self) -> None:
        """`ray start --head` in the foreground; what a restarted head pod does too."""
        config = self.folder / "autoscaler.json"
        config.write_text(json.dumps(self._autoscaler()))
        command = [
            *RAY, "start", "--head", "--block", "--disable-usage-stats", "--node-ip-address", address(HEAD),
            "--port", "6379", "--num-cpus", "0", "--num-gpus", "0", "--object-store-memory", "150000000",
            "--dashboard-host", "0.0.0.0", "--autoscaling-config", str(config),
            "--redis-password", self.password,
        ]  # fmt: skip
        env = self.env | {
            "RAY_REDIS_ADDRESS": f"{address(REDIS)}:6379",
            "RAY_external_storage_namespace": "rehearsal",
            "RAY_CLOUD_INSTANCE_ID": "head",
            "RAY_NODE_TYPE_NAME": "ray.head.default",
        }
        self.head = Machine.start(HEAD, command, env, folder=self.folder)

    def _keep_head(self) -> None:
        """What the operator does: where the head's process has ended, start another."""
        while not self.stopped.wait(KEEP_S):
            if self.head.process.poll() is not None:
                self.head.kill()
                self.start_head()

    def _autoscaler(self) -> dict[str, Any]:
        lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands",
                 "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands",
                 "worker_start_ray_commands")  # fmt: skip
        provider = {
            "type": "external",
            "module": "k8s.rehearsal.provider.NamespaceNodes",
            "machines": WORKERS,
            "head": HEAD,
            "folder": str(self.folder),
            "env": self.env,
            "head_node_id": "head",
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        }
        worker = {"CPU": 2, "GPU": self.gpus, "object_store_memory": 150_000_000}
        return {name: [] for name in lists} | {
            "cluster_name": "rehearsal", "max_workers": self.most, "provider": provider, "auth": {}, "docker": {},
            "head_node_type": "ray.head.default", "upscaling_speed": 1.0, "idle_timeout_minutes": IDLE_MINUTES,
            "file_mounts": {}, "file_mounts_sync_continuously": False,
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "gpu": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": self.most},
            },
        }  # fmt: skip

    def stop(self) -> None:
        """Everything, at once. The namespace's end would do it too."""
        self.stopped.set()
        for number in (HEAD, REDIS, *WORKERS):
            power_off(number)
