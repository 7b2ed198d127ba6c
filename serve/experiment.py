"""The settings of the experiment that is served, from a folder or an object store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from perpcs.config import ExperimentConfig, load_config
from storage.files import is_remote, local, read_bytes


def read_experiment(uri: str) -> ExperimentConfig:
    """Raises ConfigError for a file that cannot be read, StoreError when the store does not answer."""
    if not is_remote(uri):
        return load_config(local(uri))
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "config.yaml"
        copied.write_bytes(read_bytes(uri))
        return load_config(copied)
