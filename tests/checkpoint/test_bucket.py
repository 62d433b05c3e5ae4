from __future__ import annotations

import socket
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore.exceptions
import pytest
from safetensors.numpy import save

from deltareg.checkpoint import Checkpoint, locate
from deltareg.checkpoint.bucket import BucketName, is_bucket, open_store, parse_bucket_name, translated
from deltareg.errors import (
    BadCheckpoint,
    BadHeader,
    BadName,
    BucketUnavailable,
    CheckpointNotFound,
    DeltaregError,
    InvalidArgument,
    NotAllowed,
    PickleRefused,
    QuantisedRefused,
    UsageError,
)
from tests.checkpoint.samples import tensors, write_model, write_sharded
from tests.servers.object_store import Bucket, Proxy

BIG = {"big": np.arange(9 * 2**20, dtype=np.uint32)}


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("s3://models/llama/base", BucketName("s3", "models", "llama/base")),
        ("s3://models/llama/base/", BucketName("s3", "models", "llama/base")),
        ("gs://models/base", BucketName("gs", "models", "base")),
        ("az://container/base", BucketName("az", "container", "base")),
        ("s3://my.bucket-1", BucketName("s3", "my.bucket-1")),
        ("s3://models/größer 2", BucketName("s3", "models", "größer 2")),
    ],
)
def test_names_are_parsed(text: str, name: BucketName) -> None:
    assert is_bucket(text)
    assert parse_bucket_name(text) == name
    assert parse_bucket_name(name.text) == name


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///x",
        "s3://a/x",
        "s3://models//x",
        "s3://models/x//",
        "s3://models/../x",
        "s3://models/./x",
        "s3://models/a\nb",
        "s3://models/a*",
        "s3://models/a?versionId=3",
        "s3://user@models/x",
        "s3://models:9000/x",
        "s3://models/" + 1025 * "x",
        "gs://models\0/x",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(BadName, match="not the name of a place"):
        locate(text)


def test_refused_name_does_not_show_what_may_be_a_password() -> None:
    for text in ("s3://key:hush-hush@models/x", "az://models/x?sv=2024&sig=hush-hush"):
        with pytest.raises(BadName) as caught:
            parse_bucket_name(text)
        assert "hush" not in str(caught.value.as_dict())


def test_name_that_became_a_path_is_refused() -> None:
    with pytest.raises(BadName, match="before it became a Path"):
        Checkpoint.open(Path("s3://models/base"))


def test_place_holds_itself_and_what_lies_below() -> None:
    place = parse_bucket_name("s3://models/a/b")
    assert place.holds(place)
    assert place.holds(parse_bucket_name("s3://models/a/b/c"))
    assert parse_bucket_name("s3://models").holds(place)
    assert not place.holds(parse_bucket_name("s3://models/a/bc"))
    assert not place.holds(parse_bucket_name("s3://models/a"))
    assert not place.holds(parse_bucket_name("gs://models/a/b"))


def test_stores_are_made_from_the_environment_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm9ib2R5")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    for text, kind in (("s3://models/x", "S3Store"), ("gs://models/x", "GCSStore"), ("az://models/x", "AzureStore")):
        assert type(open_store(parse_bucket_name(text))).__name__ == kind


def test_settings_that_do_not_do_are_told_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(NotAllowed, match="do not do for az://models/x") as caught:
        open_store(parse_bucket_name("az://models/x"))
    assert "AZURE_STORAGE_ACCOUNT_NAME" in (caught.value.hint or "")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(NotAllowed, match="do not do for gs://models/x"):
        Checkpoint.open("gs://models/x")


def test_local_checkpoints_are_opened_without_obstore(tmp_path: Path) -> None:
    write_model(tmp_path / "base")
    program = (
        "import sys, deltareg; deltareg.Checkpoint.open(sys.argv[1]).close(); "
        "raise SystemExit('obstore' in sys.modules or 'numpy' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "base"], check=True)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [write_model, write_sharded])
def test_checkpoint_in_a_bucket_has_the_tensors_of_its_files(tmp_path: Path, bucket: Bucket, make: object) -> None:
    directory = make(tmp_path / "base")  # type: ignore[operator]
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text("{}")
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model.onnx").write_bytes(b"onnx")
    (directory / "tokenizer.json").write_bytes(b"{}" * 20_000)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    with Checkpoint.open(bucket.upload(directory, "models/base")) as found, Checkpoint.open(directory) as local:
        assert {name: tensor.read() for name, tensor in found.tensors.items()} == {
            name: array.tobytes() for name, array in tensors().items()
        }
        assert list(found.tensors) == list(local.tensors)
        assert (found.id, found.licence, found.config) == (local.id, local.licence, local.config)
        assert found.shards == local.shards
        assert found.side_files == local.side_files == (Path("1_Pooling/config.json"), Path("tokenizer.json"))
        assert found.read_file("tokenizer.json") == b"{}" * 20_000
        assert not found.is_local
        with pytest.raises(UsageError, match=f"{bucket.url}/models/base"):
            _ = found.path


def test_one_file_in_a_bucket_is_opened(tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(write_sharded(tmp_path / "base"), "base")
    with Checkpoint.open(f"{url}/model-00002-of-00002.safetensors", headers_only=True) as found:
        assert set(found.tensors) == {"layers.0.weight", "layers.0.ids", "mask"}
        assert found.tensors["mask"].read() == b"\1\0\1"
        assert found.id == "model-00002-of-00002.safetensors"


def test_checkpoint_at_the_top_of_a_bucket_is_opened(bucket: Bucket) -> None:
    bucket.put("model.safetensors", save({"a": np.ones(2, np.float32)}))
    with Checkpoint.open(bucket.url) as found:
        assert found.id == bucket.name
        assert found.tensors["a"].nbytes == 8


def test_headers_cost_a_few_requests(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    url = bucket.upload(write_sharded(tmp_path / "base"), "base")
    proxy.requests.clear()
    with Checkpoint.open(url) as found:
        assert len(found.tensors) == 6
        # The list, index, config, and one for each shard.
        assert len(proxy.requests) == 5, proxy.requests


def test_large_tensor_is_read_at_any_offset_from_many_threads(bucket: Bucket) -> None:
    bucket.put("big/model.safetensors", save(BIG))
    raw = BIG["big"].tobytes()
    random = np.random.default_rng(0)
    ranges = [(int(offset), int(random.integers(1, 3 * 2**20))) for offset in random.integers(0, 33 * 2**20, 40)]
    with Checkpoint.open(f"{bucket.url}/big") as found, ThreadPoolExecutor(8) as pool:
        tensor = found.tensors["big"]
        for (offset, length), data in zip(ranges, pool.map(lambda one: tensor.read(*one), ranges), strict=True):
            assert data == raw[offset : offset + length]
        assert tensor.read() == raw
        whole = np.empty_like(BIG["big"])
        tensor.read_into(0, whole)
        assert np.array_equal(whole, BIG["big"])


def test_request_that_fails_once_is_sent_again(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    url = bucket.upload(write_model(tmp_path / "base"), "base")
    failed: set[str] = set()

    def once(request: str) -> int | None:
        return None if request in failed else failed.add(request) or 503

    proxy.refuse = once
    with Checkpoint.open(url) as found:
        assert found.tensors["mask"].read() == b"\1\0\1"
    assert len(failed) >= 3


# --- refusals -----------------------------------------------------------------------------------------------------


def test_missing_bucket_and_prefix_are_told_apart(bucket: Bucket) -> None:
    bucket.put("bases/model.safetensors", b"")
    with pytest.raises(CheckpointNotFound, match="there is no bucket no-such-bucket"):
        Checkpoint.open("s3://no-such-bucket/base")
    with pytest.raises(CheckpointNotFound, match=f"there is nothing at {bucket.url}/base"):
        Checkpoint.open(f"{bucket.url}/base")
    with pytest.raises(CheckpointNotFound, match=r"there is no x\.safetensors of"):
        Checkpoint.open(f"{bucket.url}/bases/x.safetensors")


def test_wrong_credentials_are_refused_and_not_shown(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.upload(write_model(tmp_path / "base"), "base")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    for name in (url, f"{url}/model.safetensors"):
        with pytest.raises(NotAllowed) as caught:
            Checkpoint.open(name)
        assert "SignatureDoesNotMatch" in str(caught.value.cause) or "403" in str(caught.value.cause)
        assert "AWS_ACCESS_KEY_ID" in (caught.value.hint or "")
        shown = f"{caught.value.as_dict()} {''.join(traceback.format_exception(caught.value))}"
        assert "hush-hush" not in shown
        assert "AKIATESTS" not in shown


def test_store_that_does_not_answer_is_unavailable(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(BucketUnavailable, match="could not be reached"):
            Checkpoint.open(f"{bucket.url}/base")


def test_endpoint_without_tls_elsewhere_has_to_be_allowed(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://objects.invalid")
    with pytest.raises(InvalidArgument, match="no https") as caught:
        Checkpoint.open(f"{bucket.url}/base")
    assert "AWS_ALLOW_HTTP" in (caught.value.hint or "")


def test_truncated_object_is_a_bad_header(bucket: Bucket) -> None:
    whole = save(BIG)
    for number, size in enumerate((0, 7, 40, len(whole) - 1)):
        bucket.put(f"cut-{number}/model.safetensors", whole[:size])
        with pytest.raises(BadHeader, match="safetensors"):
            Checkpoint.open(f"{bucket.url}/cut-{number}")


def test_object_that_is_replaced_while_it_is_read_is_an_error(bucket: Bucket) -> None:
    bucket.put("base/model.safetensors", save(BIG))
    with Checkpoint.open(f"{bucket.url}/base") as found:
        assert found.tensors["big"].read(20 * 2**20, 4) == BIG["big"].tobytes()[20 * 2**20 :][:4]
        # The same size, and other numbers.
        bucket.put("base/model.safetensors", save({"big": BIG["big"] + 1}))
        with pytest.raises(BadCheckpoint, match="was replaced while it was read"):
            found.tensors["big"].read(20 * 2**20, 4)


def test_object_that_is_removed_while_it_is_read_is_an_error(bucket: Bucket) -> None:
    bucket.put("base/model.safetensors", save(BIG))
    with Checkpoint.open(f"{bucket.url}/base") as found:
        obstore.delete(bucket.store, "base/model.safetensors")
        with pytest.raises(CheckpointNotFound, match="there is no model"):
            found.tensors["big"].read()


def test_pickle_and_other_formats_are_refused(bucket: Bucket) -> None:
    bucket.put("pickle/pytorch_model.bin", b"x")
    bucket.put("gguf/model.gguf", b"x")
    bucket.put("none/config.json", b"{}")
    for name in ("pickle", "pickle/pytorch_model.bin"):
        with pytest.raises(PickleRefused, match="as pickle only"):
            Checkpoint.open(f"{bucket.url}/{name}")
    for name in ("gguf", "gguf/model.gguf"):
        with pytest.raises(QuantisedRefused):
            Checkpoint.open(f"{bucket.url}/{name}")
    for name in ("none", "none/config.json"):
        with pytest.raises(CheckpointNotFound, match="holds no"):
            Checkpoint.open(f"{bucket.url}/{name}")


def test_network_is_not_asked_offline(bucket: Bucket, proxy: Proxy) -> None:
    with pytest.raises(CheckpointNotFound, match="not to be asked"):
        locate(f"{bucket.url}/base", offline=True)
    assert proxy.requests == []


@pytest.mark.parametrize("name", [name for name in dir(obstore.exceptions) if name.endswith("Error")])
def test_every_error_of_obstore_is_translated(name: str) -> None:
    kind = getattr(obstore.exceptions, name)
    secret = "Generic error: GET https://x.invalid/a?X-Amz-Signature=hush\n\nDebug source:\nhush"
    with pytest.raises(DeltaregError) as caught, translated(BucketName("s3", "models", "base"), "a"):
        raise kind(secret)
    assert type(caught.value) is not DeltaregError
    assert "hush" not in f"{caught.value.as_dict()} {''.join(traceback.format_exception(caught.value))}"
