from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from deltareg.checkpoint import Checkpoint, Hub, HubName, HubSource, locate, parse_hub_name, read_header
from deltareg.errors import (
    BadCheckpoint,
    BadHeader,
    BadName,
    CheckpointNotFound,
    DeltaregError,
    HubUnavailable,
    NotAllowed,
    PickleRefused,
    UsageError,
)
from tests.checkpoint.hub_server import HubServer, serve_hub
from tests.checkpoint.samples import COMMIT, cache_model, tensors, write_sharded

NAME = "hf://acme/tiny"


def model_files(path: Path) -> dict[str, bytes]:
    """A sharded model whose second shard is large, as a hub repository has it: with pickles beside."""
    write_sharded(path)
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    files["tokenizer.json"] = b"{}" * 10_000
    files["1_Pooling/config.json"] = b"{}"
    files["README.md"] = b"---\nlicense: mit\n---\n"
    files["pytorch_model.bin"] = b"pickle" * 1000
    files["onnx/model.onnx"] = b"onnx"
    return files


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with serve_hub("acme/tiny", model_files(tmp_path / "origin")) as running:
        yield running


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.url, cache=tmp_path / "cache", token="hf_secret")


@pytest.fixture
def no_hub(tmp_path: Path) -> Hub:
    """A hub at a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return Hub(endpoint=f"http://127.0.0.1:{port}", cache=tmp_path / "cache")


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://acme/tiny", HubName("acme/tiny")),
        ("hf://acme/tiny@v1.0", HubName("acme/tiny", "v1.0")),
        ("hf://Qwen/Qwen2.5-0.5B@refs/pr/3", HubName("Qwen/Qwen2.5-0.5B", "refs/pr/3")),
        (f"hf://acme/tiny@{COMMIT}", HubName("acme/tiny", COMMIT)),
    ],
)
def test_names_of_models_are_parsed(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name
    assert name.text == text


PARTS = ["", "tiny", "a/b/c", "a/b@", "a/../b", "../b", "a/b@../../x", "a/b@/x", "a--b/c", "/b", "datasets/a/b"]


@pytest.mark.parametrize("part", [*PARTS, "a b/c", "a/b@x y", "a/b\n"])
def test_what_is_no_name_of_a_model_is_refused(part: str) -> None:
    with pytest.raises(BadName, match="not the name of a model") as raised:
        locate(f"hf://{part}", offline=True)
    assert raised.value.exit_code == 2


# --- the local cache ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@refs/pr/2", f"@{COMMIT}"])
def test_cached_model_is_opened_without_network(tmp_path: Path, no_hub: Hub, revision: str) -> None:
    for ref in ("main", "v1", "refs/pr/2"):
        cache_model(tmp_path / f"cache-{ref.replace('/', '-')}", "acme/tiny", model_files(tmp_path / "origin"), ref=ref)
    ref = revision.removeprefix("@").replace("/", "-") if revision not in ("", f"@{COMMIT}") else "main"
    cache = Hub(endpoint=no_hub.endpoint, cache=tmp_path / f"cache-{ref}")
    with Checkpoint.open(NAME + revision, hub=cache) as found:
        assert (found.id, found.revision, found.licence) == (NAME, COMMIT, "mit")
        assert found.root.name == COMMIT
        arrays = tensors()
        assert {name: tensor.read() for name, tensor in found.tensors.items()} == {
            name: array.tobytes() for name, array in arrays.items()
        }
        assert Path("1_Pooling/config.json") in found.side_files


def test_cache_of_the_environment_is_used(tmp_path: Path) -> None:
    cache_model(tmp_path / "hub", "acme/tiny", model_files(tmp_path / "origin"))
    program = f"from deltareg.checkpoint import Checkpoint; print(Checkpoint.open('{NAME}', offline=True).revision)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == COMMIT


def test_path_of_a_cached_snapshot_keeps_the_name_of_its_model(tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path, "acme/tiny", model_files(tmp_path / "origin"))
    with Checkpoint.open(snapshot) as found:
        assert (found.id, found.revision) == (NAME, COMMIT)


def test_model_that_is_not_cached_is_not_found_offline(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="is not in the local cache") as raised:
        Checkpoint.open(f"{NAME}@v9", offline=True, hub=Hub(cache=tmp_path))
    assert "hf download acme/tiny --revision v9" in (raised.value.hint or "")


def test_model_that_is_cached_in_parts_is_not_opened_offline(tmp_path: Path) -> None:
    files = model_files(tmp_path / "origin")
    del files["model-00002-of-00002.safetensors"]
    cache_model(tmp_path / "cache", "acme/tiny", files)
    with pytest.raises(CheckpointNotFound, match="cached in parts only") as raised:
        Checkpoint.open(NAME, offline=True, hub=Hub(cache=tmp_path / "cache"))
    assert "model-00002-of-00002.safetensors" in (raised.value.cause or "")


def test_pickled_model_in_the_cache_is_refused(tmp_path: Path) -> None:
    cache_model(tmp_path, "acme/tiny", {"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    with pytest.raises(PickleRefused, match="hf://acme/tiny") as raised:
        Checkpoint.open(NAME, offline=True, hub=Hub(cache=tmp_path))
    assert "hf download acme/tiny pytorch_model.bin --local-dir tiny && python -c" in (raised.value.hint or "")
    assert str(tmp_path) not in (raised.value.hint or "")


# --- downloads ----------------------------------------------------------------------------------------------------


def test_model_is_downloaded_once_and_without_its_pickles(server: HubServer, hub: Hub) -> None:
    with Checkpoint.open(NAME, hub=hub) as found:
        assert (found.id, found.revision) == (NAME, COMMIT)
        assert found.tensors["layers.0.ids"].read() == tensors()["layers.0.ids"].tobytes()
        names = {path.relative_to(found.root).as_posix() for path in found.root.rglob("*") if path.is_file()}
    assert names == server.files.keys() - {"pytorch_model.bin", "onnx/model.onnx"}
    assert not any("pytorch_model.bin" in request for request in server.requests)
    server.requests.clear()
    for name in (NAME, f"{NAME}@main", f"{NAME}@{COMMIT}"):
        Checkpoint.open(name, hub=hub).close()
    assert server.requests == []


def test_rest_of_a_model_that_is_cached_in_parts_is_downloaded(server: HubServer, hub: Hub) -> None:
    assert hub.cache is not None
    cache_model(hub.cache, "acme/tiny", {"config.json": server.files["config.json"]})
    with Checkpoint.open(NAME, hub=hub) as found:
        assert len(found.tensors) == 6


def test_tokenizer_that_was_not_cached_with_the_weights_is_downloaded(server: HubServer, hub: Hub) -> None:
    """Loading a model alone, as transformers does, leaves such a cache."""
    assert hub.cache is not None
    files = dict(server.files)
    del files["tokenizer.json"]
    cache_model(hub.cache, "acme/tiny", files)
    with Checkpoint.open(NAME, hub=hub) as found:
        assert Path("tokenizer.json") in found.side_files
    server.requests.clear()
    Checkpoint.open(NAME, hub=hub).close()
    assert server.requests == []


@pytest.mark.parametrize("offline", [False, True])
def test_model_without_tokenizer_is_opened_from_the_cache_without_network(no_hub: Hub, offline: bool) -> None:
    assert no_hub.cache is not None
    cache_model(no_hub.cache, "acme/tiny", {"model.safetensors": save(tensors())})
    with Checkpoint.open(NAME, hub=no_hub, offline=offline) as found:
        assert found.side_files == ()


def test_downloads_draw_no_bars_into_a_log(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    Checkpoint.open(NAME, hub=hub).close()
    assert capfd.readouterr() == ("", "")


def test_pickled_model_on_the_hub_is_refused_before_anything_is_downloaded(server: HubServer, hub: Hub) -> None:
    server.files = {"pytorch_model.bin": b"pickle", "config.json": b"{}"}
    with pytest.raises(PickleRefused) as raised:
        Checkpoint.open(f"{NAME}@v1", hub=hub)
    assert "hf download acme/tiny pytorch_model.bin --local-dir tiny --revision v1 && " in (raised.value.hint or "")
    assert server.sent < 1000


def test_token_goes_with_the_request(server: HubServer, hub: Hub) -> None:
    Checkpoint.open(NAME, hub=hub, headers_only=True).close()
    assert set(server.tokens) == {"Bearer hf_secret"}


# --- headers by byte ranges ---------------------------------------------------------------------------------------


def test_headers_alone_are_read_by_byte_ranges(server: HubServer, hub: Hub) -> None:
    big = {"big": np.arange(2_000_000, dtype=np.float32), **tensors(1)}
    server.files["model.safetensors"] = save(big)
    server.files = {name: data for name, data in server.files.items() if "-of-" not in name and "index" not in name}
    with Checkpoint.open(NAME, hub=hub, headers_only=True) as found:
        assert (found.id, found.revision, found.licence) == (NAME, COMMIT, "mit")
        assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
            name: array.shape for name, array in big.items()
        }
        assert found.config == {"model_type": "llama"}
        assert server.sent < 100_000
        assert found.tensors["big"].read(4_000_000, 40) == big["big"][1_000_000:1_000_010].tobytes()
        assert found.read_file("1_Pooling/config.json") == b"{}"
        with pytest.raises(UsageError, match="is not on this machine"):
            print(found.root)
        assert server.sent < 100_000
    assert hub.cache is not None
    assert not hub.cache.exists()


def test_file_that_the_hub_lacks_is_not_found(hub: Hub) -> None:
    with Checkpoint.open(NAME, hub=hub, headers_only=True) as found, pytest.raises(CheckpointNotFound):
        found.read_file("absent.json")


def test_config_that_is_too_large_is_not_fetched(server: HubServer, hub: Hub) -> None:
    server.files["config.json"] = b" " * 11_000_000
    with pytest.raises(BadCheckpoint, match="at most 10485760 are read"):
        Checkpoint.open(NAME, hub=hub, headers_only=True)
    assert server.sent < 200_000


def test_sharded_headers_are_checked_against_the_index(server: HubServer, hub: Hub) -> None:
    with Checkpoint.open(NAME, hub=hub, headers_only=True) as found:
        assert [shard.file for shard in found.shards] == sorted(name for name in server.files if "-of-" in name)
    server.files["model-00002-of-00002.safetensors"] = save({"other": np.zeros(2)})
    with pytest.raises(BadCheckpoint, match="do not agree"):
        Checkpoint.open(NAME, hub=hub, headers_only=True)


def test_cached_model_is_preferred_to_byte_ranges(server: HubServer, hub: Hub) -> None:
    Checkpoint.open(NAME, hub=hub).close()
    server.requests.clear()
    with Checkpoint.open(NAME, hub=hub, headers_only=True) as found:
        assert found.root.is_dir()
    assert server.requests == []


def source_of(server: HubServer, name: str = "data") -> HubSource:
    return HubSource(f"{server.url}/acme/tiny/resolve/main/{name}")


def test_byte_ranges_are_those_of_the_file(server: HubServer) -> None:
    content = np.random.default_rng(1).bytes(300_000)
    server.files["data"] = content
    source = source_of(server)
    assert (source.size, source.name) == (300_000, "data")
    buffer = bytearray(1000)
    for start in (0, 16_000, 16_384, 200_000, 299_000):
        source.read_into(start, buffer)
        assert buffer == content[start : start + 1000]
    for start in (5, 16_384, 200_000, 300_000):
        server.requests.clear()
        assert source.read(start, 0) == b""
        assert server.requests == [], "a byte range that is empty cannot be asked for"


@pytest.mark.parametrize("size", [0, 1, 16_383, 16_384, 16_385])
def test_files_around_the_size_of_the_first_request_are_read(server: HubServer, size: int) -> None:
    server.files["data"] = bytes(size)
    source = source_of(server)
    assert source.size == size
    assert source.read(0, size) == bytes(size)


def test_read_beyond_the_end_is_truncated(server: HubServer) -> None:
    server.files["data"] = bytes(100)
    with pytest.raises(BadHeader, match="data is truncated"):
        source_of(server).read(90, 11)


def test_file_that_changes_on_the_server_is_noticed(server: HubServer) -> None:
    server.files["data"] = bytes(100_000)
    source = source_of(server)
    server.files["data"] = bytes(90_000)
    with pytest.raises(BadHeader):
        source.read(80_000, 20_000)
    with pytest.raises(BadHeader):
        source.read(50_000, 10)


def test_redirects_to_the_store_of_files_are_followed(server: HubServer) -> None:
    server.redirect = True
    server.files["data"] = bytes(range(256)) * 1000
    assert source_of(server).read(100_000, 256) == (bytes(range(256)) * 2)[160:416]


def test_server_that_ignores_ranges_is_not_read_to_its_end(server: HubServer) -> None:
    server.ranges = False
    server.files["model.safetensors"] = content = save({"a": np.arange(8_000_000, dtype=np.float32)})
    source = source_of(server, "model.safetensors")
    assert read_header(source).tensors[0].shape == (8_000_000,)
    assert source.read(100_000, 4) == content[100_000:100_004]
    assert server.sent < 24_000_000  # of two times 32 MB: what fits into the buffers between


def test_wrong_byte_range_is_not_taken_for_the_right_one(server: HubServer) -> None:
    server.files["data"] = bytes(100_000)
    source = source_of(server)
    server.shift = 8
    with pytest.raises(HubUnavailable, match="answered with the wrong byte range"):
        source.read(50_000, 100)


def test_passing_failures_are_overcome(server: HubServer) -> None:
    server.files["data"] = bytes(100_000)
    server.failures = 2
    source = source_of(server)
    server.cuts = 2
    assert source.read(20_000, 60_000) == bytes(60_000)


# --- faults -------------------------------------------------------------------------------------------------------


def test_lasting_failure_is_told(server: HubServer) -> None:
    server.failures = 1000
    with pytest.raises(HubUnavailable, match="the hub refused data"):
        source_of(server)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "code", "error", "message", "hint"),
    [
        (404, "RepoNotFound", CheckpointNotFound, "no such model, or it is private", "hf auth login"),
        (401, "RepoNotFound", CheckpointNotFound, "no such model, or it is private", "hf auth login"),
        (404, "RevisionNotFound", CheckpointNotFound, "no such revision", "a branch, tag or commit"),
        (403, "GatedRepo", NotAllowed, "is gated", "hf auth login"),
        (401, "GatedRepo", NotAllowed, "is gated", "hf auth login"),
        (403, "", NotAllowed, "does not let you read", "check your token"),
        (500, "", HubUnavailable, "refused", "revision"),
        (429, "", HubUnavailable, "asked too often", "wait"),
    ],
)
@pytest.mark.parametrize("headers_only", [False, True])
def test_refusals_of_the_hub_are_told(
    server: HubServer,
    hub: Hub,
    status: int,
    code: str,
    error: type[DeltaregError],
    message: str,
    hint: str,
    headers_only: bool,
) -> None:
    server.status = (status, code)
    with pytest.raises(error, match=message) as raised:
        Checkpoint.open(NAME, hub=hub, headers_only=headers_only)
    assert type(raised.value) is error
    assert hint in (raised.value.hint or "")
    assert raised.value.exit_code == {CheckpointNotFound: 1, NotAllowed: 4, HubUnavailable: 6}[error]


def test_token_that_is_not_valid_is_not_allowed(server: HubServer) -> None:
    server.status = (401, "")
    with pytest.raises(NotAllowed, match="does not let you read data"):
        source_of(server)
    assert len(server.requests) == 1, "asking again would give the same answer"


@pytest.mark.parametrize("status", [(403, "GatedRepo"), (404, "RepoNotFound")])
def test_cached_weights_are_used_where_the_hub_refuses_the_tokenizer(
    server: HubServer, hub: Hub, status: tuple[int, str]
) -> None:
    assert hub.cache is not None
    cache_model(hub.cache, "acme/tiny", {"model.safetensors": save(tensors())})
    server.status = status
    with Checkpoint.open(NAME, hub=hub) as found:
        assert found.side_files == ()


def test_unknown_revision_is_told(hub: Hub) -> None:
    with pytest.raises(CheckpointNotFound, match="hf://acme/tiny@v7: there is no such revision"):
        Checkpoint.open(f"{NAME}@v7", hub=hub)


@pytest.mark.parametrize("headers_only", [False, True])
def test_hub_that_cannot_be_reached_is_told_quickly(no_hub: Hub, headers_only: bool) -> None:
    start = time.monotonic()
    with pytest.raises(HubUnavailable, match="could not be reached for hf://acme/tiny") as raised:
        Checkpoint.open(NAME, hub=no_hub, headers_only=headers_only)
    assert time.monotonic() - start < 5
    assert "refused" in (raised.value.cause or "")


def test_hub_that_vanishes_while_a_file_is_read_is_told(tmp_path: Path) -> None:
    with serve_hub("acme/tiny", {"data": bytes(100_000)}) as server:
        source = source_of(server)
    with pytest.raises(HubUnavailable, match="could not be reached for data"):
        source.read(50_000, 10)


def test_offline_mode_of_the_environment_is_obeyed(tmp_path: Path) -> None:
    program = (
        "from deltareg.checkpoint import Checkpoint, Hub\n"
        "from deltareg.errors import HubUnavailable\n"
        f"try: Checkpoint.open('{NAME}', hub=Hub(endpoint='http://127.0.0.1:9', cache=None))\n"
        "except HubUnavailable as error: print(error.message)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "HF_HUB_OFFLINE is set" in done.stdout
