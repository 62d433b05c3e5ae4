"""A remote on the Hugging Face Hub, by the program: its settings are those of huggingface_hub."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import DELTA
from tests.cli.program import Workplace
from tests.servers.hub_server import READER, WRITER, HubServer, serve_hub


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serve_hub() as running:
        yield running


def at_hub(workplace: Workplace, server: HubServer, token: str) -> Workplace:
    workplace.environment |= {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HOME": str(workplace.root / "hf")}
    return workplace


def test_delta_goes_to_the_hub_and_comes_back(stocked: Workplace, server: HubServer) -> None:
    user = at_hub(stocked, server, WRITER)
    added = user.execute("remote", "add", "hub", "hf://acme")
    assert added.status == 0 and "hf://acme" in added.out and added.err == ""
    pushed = user.execute("push", DELTA, "--remote", "hub", "--json")
    assert pushed.status == 0, pushed.err
    assert json.loads(pushed.out)["remote"] == "hf://acme"
    # Nothing of the library's own progress bars and warnings.
    assert pushed.err == ""
    user.environment |= {"HF_TOKEN": READER, "DELTAREG_HOME": str(user.root / "theirs")}
    pulled = user.execute("pull", "acme/search", "--remote", "hub", "--json")
    assert pulled.status == 0, pulled.err
    assert json.loads(pulled.out)["digest"] == json.loads(pushed.out)["digest"]
    assert DELTA in user.execute("list", "--remote", "hub").out


def test_refusals_say_what_to_do(stocked: Workplace, server: HubServer) -> None:
    user = at_hub(stocked, server, READER)
    user.ok("remote", "add", "here", "hf://acme", HF_HUB_OFFLINE="1")
    refused = user.execute("push", DELTA, "--remote", "here")
    assert refused.status == 4 and refused.codes == ["DR0300"]
    assert "hf auth login" in refused.err
    user.environment["HF_HUB_OFFLINE"] = "1"
    offline = user.execute("pull", DELTA, "--remote", "here")
    assert offline.status == 6 and offline.codes == ["DR0501"]
    assert "unset HF_HUB_OFFLINE" in offline.err
