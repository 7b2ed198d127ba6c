"""The examples of the HTTP page, as they stand there but for the address and the token."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "http-api.md").read_text()


@pytest.fixture(scope="module")
def here(service, serve_http):
    """here(text): an example for this service."""
    address = serve_http(service.app).removeprefix("http://")
    return lambda text: text.replace("localhost:8000", address).replace("ppcs_…", service.made["acme"])


def examples(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)
    assert found
    return found


def test_the_walk_with_curl(here):
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    (walk,) = (text for text in examples("") if "curl" in text)
    walk = here(walk).replace("curl ", "curl --fail-with-body ")
    done = subprocess.run(["bash", "-e", "-c", walk], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"object":"assembly"' in done.stdout and '"answer":' in done.stdout
    assert "data: [DONE]" in done.stdout and done.stdout.endswith('"user.forgotten","user":"alice"}')


def test_the_official_client(here, client, history):
    assert client.put("/v1/users/alice/assembly", json={"history": history(0)}).status_code == 200
    for example in examples("python"):
        # At OpenAI's temperature of 1 an answer may be empty.
        asked = here(example).replace("stream=True,", "stream=True, temperature=0,")
        done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    client.delete("/v1/users/alice/assembly")
