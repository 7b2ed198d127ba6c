"""An experiment on an object store is served as one in a folder is."""

import pytest

from perpcs.errors import ConfigError


@pytest.fixture
def on_s3(experiment, s3_environment, monkeypatch, tmp_path):
    """The experiment's address on the S3 server."""
    from pyarrow import fs

    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PERPCS_CACHE", str(tmp_path / "cache"))
    address = s3_environment["AWS_ENDPOINT_URL"].removeprefix("http://")
    remote = fs.S3FileSystem(
        access_key="key", secret_key="secret", endpoint_override=address, scheme="http", region="us-east-1"
    )
    fs.copy_files(
        str(experiment.folder), "pools/mini", source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=remote,
    )  # fmt: skip
    return "s3://pools/mini"


def test_it_answers_as_the_one_in_a_folder(on_s3, open_service, client, history):
    from fastapi.testclient import TestClient

    far = open_service(f"experiment={on_s3}", f"store.folder={on_s3}/served", "store.poll_s=60")
    try:
        there = TestClient(far.app, headers={"Authorization": f"Bearer {far.made['acme']}"})
        body = {"model": "user:ray", "prompt": "a ship leaves", "max_tokens": 8, "temperature": 0}
        texts, versions = [], []
        for one in (client, there):
            made = one.put("/v1/users/ray/assembly", json={"history": history(0), "rule": "gradient"})
            assert made.status_code == 200, made.text
            versions.append(made.json()["version"])
            texts.append(one.post("/v1/completions", json=body).json()["choices"][0]["text"])
        assert texts[0] == texts[1] and versions[0] == versions[1]
        assert there.get("/playground/world.json").json() == client.get("/playground/world.json").json()
        assert there.delete("/v1/users/ray/assembly").status_code == 200
        assert there.post("/v1/completions", json=body).status_code == 404
        client.delete("/v1/users/ray/assembly")
    finally:
        far.host.close()


def test_tokens_are_a_file_of_this_machine(with_settings):
    from serve.config import load
    from serve.doorman import Doorman

    with pytest.raises(ConfigError, match="tokens are read from a file of this machine"):
        Doorman(load(None, ["experiment=s3://pools/mini"]))
