from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from deltareg.checkpoint import Checkpoint, CheckpointWriter, ShardPlan
from deltareg.checkpoint.bucket import parse_bucket_name
from deltareg.checkpoint.bucket_writer import BucketWriter, sending_bytes
from deltareg.checkpoint.output import check_output, open_writer, refuse_input
from deltareg.errors import (
    BadCheckpoint,
    BadHeader,
    BucketUnavailable,
    CheckpointNotFound,
    NotAllowed,
    OutputExists,
    UnsupportedFormat,
)
from tests.checkpoint.samples import write_model, write_sharded
from tests.checkpoint.test_writer import plans_of
from tests.deltas import noise
from tests.servers.object_store import Bucket, Proxy

PLAN = [ShardPlan("model.safetensors", (("a", "F32", (4,)), ("b", "U8", (3,))), {"format": "pt"})]
A = np.arange(4, dtype=np.float32)
B = np.array([1, 2, 3], np.uint8)

SIZE = 9 * 2**20 + 12_345
SHARDS = [
    ShardPlan(f"model-0000{number}-of-00003.safetensors", ((f"{number}.x", "U8", (SIZE,)), (f"{number}.y", "U8", (5,))))
    for number in (1, 2, 3)
]


def writer_to(url: str, plans: list[ShardPlan] = PLAN, **options: Any) -> BucketWriter:
    return BucketWriter(parse_bucket_name(url), plans, **options)


def write(url: str, first: float = 0, *, readme: bytes | None = b"# a card", **options: Any) -> None:
    """The smallest checkpoint; `first` is the first value in it."""
    with writer_to(url, **options) as writer:
        writer.write("a", 0, A + np.float32(first))
        writer.write("b", 0, B)
        writer.add_file("config.json", json.dumps({"first": first}).encode())
        if readme is not None:
            writer.add_file("README.md", readme)
        writer.commit()


def fill(writer: BucketWriter, seed: int = 0) -> None:
    """Write all of the large shards, from several threads, in pieces of a MiB, tensors mixed."""
    pieces: list[tuple[str, int, bytes]] = []
    for number in (1, 2, 3):
        data = noise(SIZE, seed + number)
        pieces += [(f"{number}.x", start, data[start : start + 2**20]) for start in range(0, SIZE, 2**20)]
        pieces.append((f"{number}.y", 0, b"after"))
    pieces.sort(key=lambda piece: piece[1] + 3 * 2**20 * int(piece[0][0]))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda piece: writer.write(*piece), pieces))
    writer.add_file("README.md", b"# a card")
    writer.add_file("1_Pooling/config.json", b"{}")
    writer.add_file("config.json", json.dumps({"seed": seed}).encode())


def fill_locally(path: Path, seed: int = 0) -> dict[str, bytes]:
    """The files that the writer of directories makes of the same."""
    with CheckpointWriter(path, SHARDS) as writer:
        fill(writer, seed)  # type: ignore[arg-type]
        writer.commit()
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def first_of(files: dict[str, bytes]) -> float:
    return float(load(files["model.safetensors"])["a"][0])


# --- what is written ----------------------------------------------------------------------------------------------


def test_written_object_is_loaded_by_safetensors(bucket: Bucket) -> None:
    write(f"{bucket.url}/out", 3)
    files = bucket.files("out")
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert first_of(files) == 3
    assert bucket.uploads() == []


@pytest.mark.parametrize("make", [write_model, write_sharded])
def test_copy_of_a_checkpoint_is_that_of_a_directory(tmp_path: Path, bucket: Bucket, make: Any) -> None:
    outs = (tmp_path / "out", f"{bucket.url}/out")
    with Checkpoint.open(bucket.upload(make(tmp_path / "base"), "base")) as base:
        for out in outs:
            with open_writer(out, plans_of(base)) as writer:
                for name, tensor in base.tensors.items():
                    writer.copy(name, tensor)
                writer.commit()
    local = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert bucket.files("out") == local


@pytest.mark.parametrize("memory", [0, 2**20, None])
def test_large_shards_from_many_threads_are_those_of_a_directory(
    tmp_path: Path, bucket: Bucket, memory: int | None
) -> None:
    with writer_to(f"{bucket.url}/out", SHARDS, memory=memory) as writer:
        fill(writer)
        assert len(bucket.uploads()) == 3, "what is larger than a part is sent while it is written"
        writer.commit()
    assert bucket.files("out") == fill_locally(tmp_path / "out")
    assert bucket.uploads() == []


_SENDING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from deltareg.apply.limits import peak_memory, resident_memory
from deltareg.checkpoint import ShardPlan
from deltareg.checkpoint.bucket import parse_bucket_name
from deltareg.checkpoint.bucket_writer import BucketWriter, sending_bytes
url, size, shards, memory = sys.argv[1], *map(int, sys.argv[2:])
plans = [ShardPlan(f"{shard}.safetensors", ((str(shard), "U8", (size,)),)) for shard in range(shards)]
with BucketWriter(parse_bucket_name(url), plans, memory=memory) as writer, ThreadPoolExecutor(2) as pool:
    before = resident_memory()
    # Now and then the next piece comes last of many.
    pieces = [(shard, start) for shard in range(shards) for start in range(0, size, 2**20)]
    for number in range(0, len(pieces) - 40, 40):
        pieces.insert(number + 40, pieces.pop(number))
    list(pool.map(lambda piece: writer.write(str(piece[0]), piece[1], bytes(min(2**20, size - piece[1]))), pieces))
    print(peak_memory() - before)
"""


@pytest.mark.parametrize(("size", "shards"), [(60 * 2**20, 3), (7 * 2**20, 16)], ids=["parts", "wholes"])
@pytest.mark.parametrize("waiting", [0, 48 * 2**20])
def test_no_more_is_held_than_was_told(bucket: Bucket, size: int, shards: int, waiting: int) -> None:
    command = [sys.executable, "-c", _SENDING, f"{bucket.url}/out", str(size), str(shards), str(waiting)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = sending_bytes([size] * shards) + waiting
    assert told / 4 < int(done.stdout) <= told + 24 * 2**20  # what an apply allows for besides


def test_next_to_nothing_is_held_until_the_commit(bucket: Bucket, proxy: Proxy) -> None:
    size = 27 * 2**20 + 4321
    with writer_to(f"{bucket.url}/out", [ShardPlan("model.safetensors", (("a", "U8", (size,)),))]) as writer:
        writer.write("a", 0, noise(size))
        held = size - sum(writer_parts(proxy))
        writer.commit()
    assert held < 10_000
    assert max(writer_parts(proxy)) < 16 * 2**20
    assert load(bucket.files("out")["model.safetensors"])["a"].tobytes() == noise(size)


def writer_parts(proxy: Proxy) -> list[int]:
    """The sizes of the parts that are sent, once those that were begun have come."""
    end = time.monotonic() + 10
    while time.monotonic() < end and len(proxy.bodies["partNumber"]) < 3:
        time.sleep(0.01)
    return proxy.bodies["partNumber"]


def test_empty_tensors_and_shards_are_written(bucket: Bucket) -> None:
    plans = [ShardPlan("model.safetensors", (("none", "F32", (0, 3)),))]
    with writer_to(f"{bucket.url}/out", plans) as writer:
        writer.write("none", 0, b"")
        writer.commit()
    assert load(bucket.files("out")["model.safetensors"])["none"].shape == (0, 3)


def test_memory_stays_bounded_while_much_is_written(bucket: Bucket) -> None:
    program = """if True:
        import resource, sys
        from deltareg.checkpoint import ShardPlan
        from deltareg.checkpoint.output import open_writer
        block = bytes(4 * 2**20)
        tensors = tuple((str(number), "U8", (len(block),)) for number in range(100))
        with open_writer(sys.argv[1], [ShardPlan("model.safetensors", tensors)]) as writer:
            writer.write("0", 0, block)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number in range(1, 100):
                writer.write(str(number), 0, block)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", program, f"{bucket.url}/out"], capture_output=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 200 * 2**20


def test_request_that_fails_once_is_sent_again(tmp_path: Path, bucket: Bucket, proxy: Proxy) -> None:
    failed: set[str] = set()

    def once(request: str) -> int | None:
        if "partNumber" not in request or request in failed:
            return None
        failed.add(request)
        return 503

    proxy.refuse = once
    with writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        writer.commit()
    assert len(failed) >= 3
    assert bucket.files("out") == fill_locally(tmp_path / "out")


# --- all or nothing -----------------------------------------------------------------------------------------------


def test_nothing_is_visible_before_the_commit(bucket: Bucket) -> None:
    with writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        assert bucket.files("out") == {}
        writer.commit()
        assert len(bucket.files("out")) == 7


def test_files_by_which_readers_find_the_weights_come_last(bucket: Bucket, proxy: Proxy) -> None:
    with writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        proxy.requests.clear()
        writer.commit()
    made = [request.split()[1].partition("?")[0].rpartition("/out/")[2] for request in writes(proxy)]
    assert made[0] == "README.md"
    assert made[-2:] == ["model.safetensors.index.json", "config.json"]
    assert set(made[2:-2]) == {plan.file for plan in SHARDS}


def writes(proxy: Proxy) -> list[str]:
    """The requests that make objects visible."""
    return [
        request
        for request in proxy.requests
        if (request.startswith("PUT") and "partNumber" not in request)
        or (request.startswith("POST") and "=" in request)
    ]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_output_disappears_after_an_exception(bucket: Bucket, error: type[BaseException]) -> None:
    with pytest.raises(error), writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        assert len(bucket.uploads()) == 3
        raise error
    assert bucket.files("out") == {}
    assert bucket.uploads() == []


def test_output_with_unwritten_tensors_is_not_committed(bucket: Bucket) -> None:
    with (
        pytest.raises(RuntimeError, match="2 tensors are not written: a, b"),
        writer_to(f"{bucket.url}/out") as writer,
    ):
        writer.write("a", 0, A[:3])
        writer.commit()
    assert bucket.files("out") == {}


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("PUT", ["partNumber=1"]),
        ("POST", ["uploads", "00003-of"]),
        ("PUT", ["1_Pooling"]),
        ("POST", ["uploadId", "00002-of"]),
        ("POST", ["uploadId", "00003-of"]),
        ("PUT", ["index.json"]),
        ("PUT", ["/out/config.json"]),
    ],
)
def test_refused_request_leaves_nothing(bucket: Bucket, proxy: Proxy, method: str, words: list[str]) -> None:
    refused: list[str] = []

    def refuse(request: str) -> int | None:
        if request.startswith(method) and all(word in request for word in words):
            refused.append(request)
            return 403
        return None

    proxy.refuse = refuse
    with pytest.raises(NotAllowed), writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        writer.commit()
    assert refused
    assert bucket.files("out") == {}
    assert bucket.uploads() == []


def test_store_that_stays_broken_is_told_and_leaves_nothing(bucket: Bucket, proxy: Proxy) -> None:
    proxy.refuse = lambda request: 500 if "partNumber" in request else None
    with pytest.raises(BucketUnavailable, match="refused model-0000"), writer_to(f"{bucket.url}/out", SHARDS) as writer:
        fill(writer)
        writer.commit()
    assert bucket.files("out") == {}
    assert bucket.uploads() == []


def test_writes_outside_of_a_tensor_are_refused(bucket: Bucket) -> None:
    with writer_to(f"{bucket.url}/out") as writer:
        for offset, size in ((0, 17), (15, 2), (-1, 1), (17, 0)):
            with pytest.raises(ValueError, match="not within 'a' of 16 bytes"):
                writer.write("a", offset, bytes(size))
        writer.write("a", 0, A)
        with pytest.raises(ValueError, match="given twice"):
            writer.write("a", 0, A)


def test_closed_writer_takes_nothing(bucket: Bucket) -> None:
    writer = writer_to(f"{bucket.url}/out")
    writer.close()
    writer.close()
    for step in (lambda: writer.write("a", 0, A), lambda: writer.add_file("x", b""), writer.commit):
        with pytest.raises(ValueError, match="the writer is closed"):
            step()


@pytest.mark.parametrize(
    ("plans", "error", "message"),
    [
        ([ShardPlan("m.safetensors", (("a", "F3", (1,)),))], UnsupportedFormat, "'F3'"),
        ([ShardPlan("m.safetensors", (("a/b", "F32", (1,)),))], BadHeader, "is a path"),
        ([ShardPlan("../m.safetensors", (("a", "F32", (1,)),))], BadCheckpoint, "no place"),
        ([ShardPlan("m.safetensors", ()), ShardPlan("m.safetensors", ())], BadCheckpoint, "or taken"),
        (
            [ShardPlan("m.safetensors", (("a", "U8", (1,)),)), ShardPlan("n.safetensors", (("a", "U8", (1,)),))],
            BadCheckpoint,
            "planned in two shards",
        ),
    ],
)
def test_plans_that_make_no_checkpoint_are_refused(bucket: Bucket, plans: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        writer_to(f"{bucket.url}/out", plans)
    assert bucket.files("out") == {}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "x\0", "model.safetensors"])
def test_files_stay_within_the_output(bucket: Bucket, name: str) -> None:
    with writer_to(f"{bucket.url}/out") as writer, pytest.raises(BadCheckpoint):
        writer.add_file(name, b"x")


# --- the output's place -------------------------------------------------------------------------------------------


def test_output_that_exists_is_refused(bucket: Bucket) -> None:
    write(f"{bucket.url}/out", 1)
    before = bucket.files("out")
    for url in (f"{bucket.url}/out", bucket.url, f"{bucket.url}/out/config.json"):
        with pytest.raises(OutputExists, match="exists already"):
            write(url, 2)
        with pytest.raises(OutputExists):
            check_output(url, overwrite=False)
    write(f"{bucket.url}/out-2", 2)
    check_output(f"{bucket.url}/ou", overwrite=False)
    assert bucket.files("out") == before


def test_missing_bucket_and_wrong_credentials_are_told(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointNotFound, match="there is no bucket no-such-bucket"):
        write("s3://no-such-bucket/out")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(NotAllowed):
        write(f"{bucket.url}/out")


def test_overwriting_replaces_a_checkpoint_and_removes_what_remains(bucket: Bucket) -> None:
    for name in (
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        bucket.put(f"out/{name}", b"old")
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        bucket.put(f"out/{name}", b"old")
    bucket.put("out-beside/config.json", b"another's")
    check_output(f"{bucket.url}/out", overwrite=True)
    write(f"{bucket.url}/out", 5, overwrite=True)
    files = bucket.files("out")
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    assert first_of(files) == 5
    assert bucket.files("out-beside") == {"config.json": b"another's"}


def test_overwriting_shards_of_the_same_names_gives_the_new_ones(tmp_path: Path, bucket: Bucket) -> None:
    for seed in (0, 10):
        with writer_to(f"{bucket.url}/out", SHARDS, overwrite=seed > 0) as writer:
            fill(writer, seed)
            writer.commit()
    assert bucket.files("out") == fill_locally(tmp_path / "out", 10)
    assert bucket.uploads() == []


def test_mixture_of_old_and_new_shards_is_never_taken_for_a_checkpoint(bucket: Bucket, proxy: Proxy) -> None:
    url = f"{bucket.url}/out"
    with writer_to(url, SHARDS) as writer:
        fill(writer)
        writer.commit()
    seen: list[object] = []

    def look(request: str) -> None:
        """What a reader finds before each request that makes something visible."""
        if "uploadId" in request and request.startswith("POST"):
            found = bucket.files("out")
            if len({found.get(plan.file, b"")[-2000:-1000] for plan in SHARDS} & old) not in (0, 3):
                seen.append(complete(found))

    old = {bucket.files("out")[plan.file][-2000:-1000] for plan in SHARDS}
    proxy.refuse = look  # type: ignore[assignment]
    with writer_to(url, SHARDS, overwrite=True) as writer:
        fill(writer, 10)
        writer.commit()
    assert seen
    assert not any(seen)


def complete(files: dict[str, bytes]) -> bool:
    """Whether an index, or the numbers of the shards, say that nothing is missing."""
    return "model.safetensors.index.json" in files or all(plan.file in files for plan in SHARDS)


def test_failure_while_overwriting_one_file_keeps_the_old_weights(bucket: Bucket, proxy: Proxy) -> None:
    write(f"{bucket.url}/out", 1)
    proxy.refuse = lambda request: 403 if request.startswith("PUT") and "model.safetensors" in request else None
    with pytest.raises(NotAllowed) as caught:
        write(f"{bucket.url}/out", 2, readme=b"# new", overwrite=True)
    assert "neither the old checkpoint nor the new one" in str(caught.value.hint)
    assert first_of(bucket.files("out")) == 1
    proxy.refuse = lambda request: None
    write(f"{bucket.url}/out", 3, overwrite=True)
    assert first_of(bucket.files("out")) == 3


@pytest.mark.parametrize("stranger", ["notes.txt", "onnx/model.onnx", "model.safetensors/x", "deep/er/config.json"])
def test_strangers_are_never_overwritten(bucket: Bucket, stranger: str) -> None:
    bucket.put("out/model-1.safetensors", b"old")
    bucket.put(f"out/{stranger}", b"mine")
    before = bucket.files("out")
    with pytest.raises(OutputExists) as caught:
        write(f"{bucket.url}/out", overwrite=True)
    assert stranger in str(caught.value.cause)
    assert bucket.files("out") == before


def test_place_without_weights_is_not_overwritten(bucket: Bucket) -> None:
    bucket.put("out/config.json", b"{}")
    with pytest.raises(OutputExists, match="exists already"):
        write(f"{bucket.url}/out", overwrite=True)


def test_slower_of_two_writers_is_refused(bucket: Bucket) -> None:
    with writer_to(f"{bucket.url}/out") as slow:
        slow.write("a", 0, A)
        slow.write("b", 0, B)
        write(f"{bucket.url}/out", 7)
        with pytest.raises(OutputExists):
            slow.commit()
    assert first_of(bucket.files("out")) == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_two_writers_that_commit_at_once_one_is_refused(bucket: Bucket, proxy: Proxy, overwrite: bool) -> None:
    if overwrite:
        write(f"{bucket.url}/out", 1)
    rivals = [writer_to(f"{bucket.url}/out", overwrite=overwrite) for _ in range(2)]
    for number, writer in enumerate(rivals):
        writer.write("a", 0, A + np.float32(10 + number))
        writer.write("b", 0, B)
        writer.add_file("README.md", b"card %d" % number)
        writer.add_file("config.json", b"{}")
    both = threading.Barrier(2, timeout=20)

    def meet(request: str) -> None:
        if request.startswith("PUT") and "README.md" in request:
            both.wait()

    proxy.refuse = meet  # type: ignore[assignment]

    def commit(writer: BucketWriter) -> str:
        with writer:
            try:
                writer.commit()
            except OutputExists as error:
                return str(error.cause)
        return "done"

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(commit, rivals))
    assert sorted(ends) == ["another process wrote it meanwhile", "done"]
    files = bucket.files("out")
    winner = ends.index("done")
    assert files["README.md"] == b"card %d" % winner
    assert first_of(files) == 10 + winner


def test_store_without_conditions_is_written_all_the_same(bucket: Bucket, proxy: Proxy) -> None:
    refused: list[str] = []

    def refuse(request: str) -> int | None:
        if request.startswith("PUT") and request not in refused and "model.safetensors" not in request:
            refused.append(request)
            return 501
        return None

    proxy.refuse = refuse
    write(f"{bucket.url}/out", 4)
    assert len(refused) == 2
    assert first_of(bucket.files("out")) == 4


def test_target_is_not_its_own_output(tmp_path: Path, bucket: Bucket) -> None:
    url = bucket.upload(write_model(tmp_path / "base"), "models/base")
    with Checkpoint.open(url) as target:
        for out in (url, f"{url}/", f"{bucket.url}/models", bucket.url):
            with pytest.raises(OutputExists, match="is the target itself"):
                refuse_input(target, out)
        for out in (f"{bucket.url}/models/base-2", f"{url}/out", tmp_path / "base"):
            refuse_input(target, out)
    with Checkpoint.open(tmp_path / "base") as target:
        refuse_input(target, url)


def test_output_is_read_back(bucket: Bucket) -> None:
    bucket.put("in/model.safetensors", save({"w": np.ones(3, np.float32)}))
    with Checkpoint.open(f"{bucket.url}/in") as found, writer_to(f"{bucket.url}/out", plans_of(found)) as writer:
        writer.copy("w", found.tensors["w"])
        writer.commit()
    with Checkpoint.open(f"{bucket.url}/out") as out:
        assert out.tensors["w"].read() == np.ones(3, np.float32).tobytes()
