"""An output tells what it was made of, and whether it still is what was made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import deltareg
from deltareg import Registry
from deltareg.digest import sha256
from deltareg.errors import (
    BadLock,
    CheckpointNotFound,
    DeltaregError,
    InvalidArgument,
    LockStale,
    OutputDiffers,
    UnsupportedFormat,
)
from deltareg.lock import LOCK_NAME, Lock, LockedBase, LockedDelta, LockedOutput, write_lock
from deltareg.manifest import Exactness
from tests.weights import Pair

NAME = "acme/search:1.0.0"


def blake(data: bytes) -> str:
    return "blake3:" + blake3(data).hexdigest()


def locked_output(out: Path) -> LockedOutput:
    """What a lock says of the files, each read as a whole; made without the product."""
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    files.pop(LOCK_NAME, None)
    rows = [[name, len(data), blake(data)] for name, data in sorted(files.items())]
    whole = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    return LockedOutput(digest=blake(whole), files={name: blake(data) for name, data in files.items()})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, minilm_bf16: Pair) -> Path:
    """MiniLM with its delta at 0.5, and the lock of that. Read only."""
    root = tmp_path_factory.mktemp("built")
    registry = Registry(root / "home")
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, NAME, licence="apache-2.0")
    deltareg.apply(minilm_bf16.base, {NAME: 0.5}, registry, root / "out")
    artifact = registry.artifact(NAME)
    lock = Lock(
        producer="deltareg tests",
        recipe=sha256(b"recipe"),
        name="acme/half",
        base=LockedBase(
            location="./minilm",
            digest=artifact.config.base.digest,
            licence="llama3.1",
            fingerprint=artifact.config.fingerprint.digest,
        ),
        method="linear",
        parameters={},
        seed=7,
        side_files="post",
        deltas=[
            LockedDelta(
                reference=NAME,
                digest=artifact.digest,
                remote="local",
                wanted="^1.0",
                weight=0.5,
                where={"attention": [0.1, 0.9]},
                licence="apache-2.0",
                exactness=Exactness(),
                size=artifact.size,
            )
        ],
        output=locked_output(root / "out"),
    )
    write_lock(lock, root / "out" / LOCK_NAME)
    return root / "out"


@pytest.fixture
def out(tmp_path: Path, built: Path) -> Path:
    """An output of one's own, to spoil."""
    return Path(shutil.copytree(built, tmp_path / "out"))


def rewrite(out: Path, **changes: Any) -> None:
    """Write the lock anew with other fields and a checksum that is right, as somebody hostile would."""
    fields = json.loads((out / LOCK_NAME).read_text())
    seal(out, fields | changes)


def seal(out: Path, fields: dict[str, Any]) -> None:
    """Write a lock of these fields."""
    fields = {name: value for name, value in fields.items() if name != "checksum"}
    checksum = sha256(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())
    (out / LOCK_NAME).write_text(json.dumps({**fields, "checksum": checksum}))


def differs(out: Path, **options: Any) -> dict[str, list[str]]:
    """The files that are named, by what is wrong with them."""
    with pytest.raises(OutputDiffers) as raised:
        deltareg.inspect(out, **options)
    files: Any = raised.value.data["files"]
    assert all(name in raised.value.message for names in files.values() for name in names)
    assert raised.value.exit_code == 5
    return files


@pytest.mark.parametrize("threads", [1, 2, None])
def test_sound_output_tells_what_it_was_made_of(built: Path, minilm_bf16: Pair, threads: int | None) -> None:
    report = deltareg.inspect(built, threads=threads)
    assert report.verified
    assert (report.name, report.method, report.seed) == ("acme/half", "linear", 7)
    (delta,) = report.deltas
    assert (delta.reference, delta.weight, delta.where) == (NAME, 0.5, {"attention": [0.1, 0.9]})
    assert report.base.location == "./minilm"
    assert report.licence == "apache-2.0 AND llama3.1"
    assert any("Built with Llama" in one for one in report.obligations)
    files = [path for path in built.rglob("*") if path.is_file() and path.name != LOCK_NAME]
    assert (report.files, report.bytes) == (len(files), sum(path.stat().st_size for path in files))


def test_one_flipped_bit_in_the_weights_is_found(out: Path) -> None:
    path = out / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert differs(out) == {"changed": ["model.safetensors"]}
    assert not deltareg.inspect(out, quick=True).verified


def test_everything_that_is_wrong_is_named_at_once(out: Path) -> None:
    (out / "model.safetensors").unlink()
    (out / "config.json").write_bytes(b"{}")
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "modeling_x.py").write_text("evil()")
    expected = {"missing": ["model.safetensors"], "not in the lock": ["deep/er/modeling_x.py"]}
    assert differs(out) == {"changed": ["config.json"], **expected}
    assert differs(out, quick=True) == expected


def test_file_that_grew_or_shrank_is_found(out: Path) -> None:
    with (out / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    (out / "config.json").write_bytes((out / "config.json").read_bytes()[:-1])
    assert differs(out) == {"changed": ["config.json", "model.safetensors"]}


def test_very_many_strange_files_are_counted_and_not_all_told(out: Path) -> None:
    for number in range(1500):
        (out / f"x{number:04}").touch()
    with pytest.raises(OutputDiffers) as raised:
        deltareg.inspect(out)
    assert len(raised.value.message) < 2000
    assert raised.value.data["counts"] == {"not in the lock": 1500}


def test_names_that_are_no_text_are_told(out: Path) -> None:
    with open(os.fsencode(out) + b"/caf\xe9\n.py", "wb"):
        pass
    with pytest.raises(OutputDiffers):
        deltareg.inspect(out)
    command = [sys.executable, "-m", "deltareg", "inspect", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 5
    assert json.loads(done.stdout)["error"]["code"] == "DR0408"
    assert done.stderr.startswith("error[DR0408]") and "\\n.py" in done.stderr


@pytest.mark.parametrize("target", ["/etc/passwd", "../elsewhere", "config.json", "nowhere"])
def test_links_are_no_files_of_an_output(out: Path, target: str) -> None:
    (out.parent / "elsewhere").write_bytes((out / "model.safetensors").read_bytes())
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").symlink_to(target)
    assert differs(out) == {"no regular file": ["model.safetensors"]}


def test_directory_that_is_a_link_is_not_entered(out: Path) -> None:
    (out / "1_Pooling").rename(out.parent / "elsewhere")
    (out / "1_Pooling").symlink_to("../elsewhere")
    assert differs(out) == {"missing": ["1_Pooling/config.json"], "not in the lock": ["1_Pooling"]}


def test_pipes_are_neither_read_nor_waited_for(out: Path) -> None:
    (out / "config.json").unlink()
    os.mkfifo(out / "config.json")
    os.mkfifo(out / "pipe")
    assert differs(out) == {"no regular file": ["config.json"], "not in the lock": ["pipe"]}
    (out / LOCK_NAME).unlink()
    os.mkfifo(out / LOCK_NAME)
    with pytest.raises(BadLock, match="no regular file"):
        deltareg.inspect(out)


def test_what_git_and_the_hub_lay_beside_is_passed_over(out: Path) -> None:
    (out / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("ref")
    (out / ".cache" / "huggingface").mkdir(parents=True)
    (out / ".cache" / "huggingface" / "CACHEDIR.TAG").write_text("x")
    assert deltareg.inspect(out).verified
    (out / ".cache" / "other").write_text("x")
    assert differs(out) == {"not in the lock": [".cache/other"]}


# --- locks --------------------------------------------------------------------------------------------------------


def test_lock_that_was_edited_by_hand_is_refused(out: Path) -> None:
    text = (out / LOCK_NAME).read_text()
    (out / LOCK_NAME).write_text(text.replace('"weight": 0.5', '"weight": 0.6'))
    with pytest.raises(BadLock, match="checksum"):
        deltareg.inspect(out)
    (out / LOCK_NAME).write_text(text[: len(text) // 2])
    with pytest.raises(BadLock):
        deltareg.inspect(out)


def test_lock_of_a_newer_format_asks_for_a_newer_deltareg(out: Path) -> None:
    rewrite(out, formatVersion=2)
    with pytest.raises(UnsupportedFormat, match="version 2") as raised:
        deltareg.inspect(out)
    assert "newer" in (raised.value.hint or "")


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "a//b", "./a", "a/", "..", "a\0b", LOCK_NAME]
)
@pytest.mark.parametrize("quick", [False, True])
def test_lock_that_names_what_is_outside_is_refused(out: Path, name: str, quick: bool) -> None:
    (out.parent / "outside").write_bytes(b"secret")
    output = json.loads((out / LOCK_NAME).read_text())["output"]
    output["files"][name] = blake(b"secret")
    rewrite(out, output=output)
    with pytest.raises(BadLock, match="no file of an output"):
        deltareg.inspect(out, quick=quick)


def test_lock_whose_digest_is_not_that_of_its_files_is_refused(out: Path) -> None:
    output = json.loads((out / LOCK_NAME).read_text())["output"]
    rewrite(out, output={**output, "digest": "blake3:" + "0" * 64})
    with pytest.raises(BadLock, match="digest of the output"):
        deltareg.inspect(out)


def test_lock_with_a_huge_list_is_told_in_few_words(out: Path) -> None:
    output = json.loads((out / LOCK_NAME).read_text())["output"]
    output["files"] |= {f"shard-{number}": "blake3:" + "0" * 64 for number in range(100_000)}
    rewrite(out, output=output)
    with pytest.raises(OutputDiffers) as raised:
        deltareg.inspect(out)
    assert len(raised.value.message) < 2000
    assert raised.value.data["counts"] == {"missing": 100_000}


def test_lock_from_before_a_build_says_nothing_of_files(out: Path) -> None:
    fields = json.loads((out / LOCK_NAME).read_text())
    del fields["output"]
    seal(out, fields)
    with pytest.raises(LockStale, match="before anything was built"):
        deltareg.inspect(out)


def test_output_of_a_plain_apply_carries_no_lock(out: Path) -> None:
    (out / LOCK_NAME).unlink()
    with pytest.raises(LockStale, match=r"carries no deltareg\.lock") as raised:
        deltareg.inspect(out)
    assert "deltareg build" in (raised.value.hint or "")


def test_what_is_no_output_is_told_to_be_none(tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LockStale):
        deltareg.inspect(tmp_path / "empty")
    for name in (out / "model.safetensors", tmp_path / "nowhere", ""):
        with pytest.raises(CheckpointNotFound):
            deltareg.inspect(name)
    for name in ("s3://bucket/out", "hf://acme/half", "https://example.com/out"):
        with pytest.raises(InvalidArgument, match="no directory"):
            deltareg.inspect(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_told(out: Path) -> None:
    (out / "config.json").chmod(0)
    with pytest.raises(DeltaregError, match=r"config\.json"):
        deltareg.inspect(out)


def test_licences_that_do_not_go_together_are_told_of_what_was_built_all_the_same(out: Path) -> None:
    base = json.loads((out / LOCK_NAME).read_text())["base"]
    rewrite(out, base={**base, "licence": "gpl-2.0"}, acceptLicence=True)
    (warning,) = deltareg.inspect(out).licence_warnings
    assert "do not go together" in warning
