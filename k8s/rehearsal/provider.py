"""Ray's autoscaler gets its machines here: a raylet in a network namespace of its own for every node it asks for."""

from __future__ import annotations

import json
import os
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

from k8s.rehearsal.network import RAY, Machine, address


class NamespaceNodes(FakeMultiNodeProvider):
    """As Ray's fake provider, but every node has an address, a /tmp/ray and a /dev/shm of its own."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """provider_config: `machines`, numbers of namespaces that may be used; `head`, the GCS's; `folder`, `env`."""
        # Wanted by the provider below. Set for the head's own `ray start` it would give every head the same node id,
        # and the checks of the dead one would end the new one.
        os.environ["RAY_FAKE_CLUSTER"] = "1"
        super().__init__(provider_config, cluster_name)
        self._free = list(provider_config["machines"])
        self._head = int(provider_config["head"])
        self._folder = Path(provider_config["folder"])
        self._env: dict[str, str] = provider_config["env"]

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: dict[str, float], labels: Any
    ) -> None:
        with self.lock:
            if not self._free:
                raise RuntimeError("no machine is left")
            number, kind = self._free.pop(0), tags[TAG_RAY_USER_NODE_TYPE]
            name = f"machine-{number}"
            # Not the monitor's own environment: that has the address of Redis, which only the head may know.
            env = {**self._env, "RAY_CLOUD_INSTANCE_ID": name, "RAY_NODE_TYPE_NAME": kind}
            machine = Machine.start(number, self._command(number, resources), env, folder=self._folder)
            self._nodes[name] = {
                "machine": machine,
                "tags": {
                    TAG_RAY_NODE_KIND: NODE_KIND_WORKER,
                    TAG_RAY_USER_NODE_TYPE: kind,
                    TAG_RAY_NODE_NAME: name,
                    TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
                    **tags,
                },
            }

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
        machine: Machine = node["machine"]
        machine.kill()
        self._free.append(machine.number)
