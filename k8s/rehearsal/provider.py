"""Ray's autoscaler gets its machines here: a raylet in a network namespace of its own for every node it asks for."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from k8s.rehearsal.network import RAY, Machine, address, power_off, running

STARTS_S = 10.0
"""After which a machine that was started has processes, or has ended."""


class NamespaceNodes(FakeMultiNodeProvider):
    """As Ray's fake provider, but every node has an address, a /tmp/ray and a /dev/shm of its own.

    What there is, the machines say: a new head's autoscaler finds those that the last one started, as it finds pods.
    """

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """provider_config: `machines`, numbers of namespaces that may be used; `head`, the GCS's; `folder`, `env`."""
        # Wanted by the provider below. Set for the head's own `ray start` it would give every head the same node id,
        # and the checks of the dead one would end the new one.
        os.environ["RAY_FAKE_CLUSTER"] = "1"
        super().__init__(provider_config, cluster_name)
        self._machines: list[int] = list(provider_config["machines"])
        self._head = int(provider_config["head"])
        self._folder = Path(provider_config["folder"])
        self._env: dict[str, str] = provider_config["env"]

    def _note(self, number: int) -> Path:
        """Where the tags of the node on a machine are kept."""
        return self._folder / f"node-{number}.json"

    def _used(self, number: int) -> int:
        return len(list(self._folder.glob(f"disk-{number}-*")))

    def _look(self) -> None:
        """Take in what runs, and forget what has ended."""
        for number in self._machines:
            name, note = f"machine-{number}", self._note(number)
            young = note.exists() and time.time() - note.stat().st_mtime < STARTS_S
            if note.exists() and (young or running(number)):
                self._nodes[name] = {"number": number, "tags": json.loads(note.read_text())}
            else:
                self._nodes.pop(name, None)

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        """See Ray's NodeProvider."""
        with self.lock:
            self._look()
            found: list[str] = super().non_terminated_nodes(tag_filters)
            return found

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: Any
    ) -> None:
        with self.lock:
            self._look()
            free = [number for number in self._machines if f"machine-{number}" not in self._nodes]
            if not free:
                raise RuntimeError("no machine is left")
            # One that was used, and has its cable out perhaps, comes last: a new pod has a new network.
            number, kind = min(free, key=self._used), tags[TAG_RAY_USER_NODE_TYPE]
            all_tags = {
                TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                TAG_RAY_USER_NODE_TYPE: kind,
                TAG_RAY_NODE_NAME: f"machine-{number}",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                **tags,
            }
            # Not the monitor's own environment: that has the address of Redis, which only the head may know.
            env = {**self._env, "RAY_CLOUD_INSTANCE_ID": f"machine-{number}", "RAY_NODE_TYPE_NAME": kind}
            self._note(number).write_text(json.dumps(all_tags))
            Machine.start(number, self._command(number, resources), env, folder=self._folder)
            self._look()

    def _command(self, number: int, resources: dict[str, float]) -> list[str]:
        rest = {
            k: v for k, v in resources.items() if k not in {"CPU", "GPU", "object_store_memory", "memory"}
        }
        return [
            *RAY, "start", "--block", "--disable-usage-stats",
            "--address", f"{address(self._head)}:6379", "--node-ip-address", address(number),
            "--num-cpus", f"{resources.get('CPU', 0):g}", "--num-gpus", f"{resources.get('GPU', 0):g}",
            "--object-store-memory", "150000000", "--resources", json.dumps(rest),
        ]  # fmt: skip

    def _terminate_node(self, node: dict[str, Any]) -> None:
        self._note(node["number"]).unlink(missing_ok=True)
        power_off(node["number"])
