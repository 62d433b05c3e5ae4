"""Locks: the same bytes for the same lock, and nothing is believed that was changed since."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltareg.errors import BadLock, DeltaregError, DiskFull, InvalidArgument, LockStale, NotAllowed, UnsupportedFormat
from deltareg.lock import Lock, LockedBase, LockedDelta, LockedOutput, lock_bytes, parse_lock, read_lock, write_lock
from deltareg.manifest import Exactness
from tests import disks

SHA = "sha256:" + "0123456789abcdef" * 4
BLAKE = "blake3:" + "fedcba9876543210" * 4


def delta(**changed: Any) -> LockedDelta:
    said: dict[str, Any] = {
        "reference": "acme/chat:1.2.3",
        "digest": SHA,
        "remote": "team",
        "wanted": "^1.2",
        "weight": 0.5,
        "exactness": Exactness(),
        "size": 1000,
    }
    return LockedDelta(**said | changed)


def example(**changed: Any) -> Lock:
    said: dict[str, Any] = {
        "producer": "deltareg 0.1.0",
        "recipe": SHA,
        "name": "acme/med-chat",
        "base": LockedBase(location="./base", id="base", digest=BLAKE, licence="apache-2.0", fingerprint=SHA),
        "method": "ties",
        "parameters": {"density": {"*": 0.5, "mlp": [0.2, 0.8]}, "normalize": True, "elect": "mass"},
        "seed": 7,
        "side_files": "post",
        "deltas": [
            delta(),
            delta(
                reference="acme/med:2.0.0-rc.1",
                weight=[0.0, 1.0],
                where={"norm": 0.0, "*.q_proj.*": [1, 2]},
                parameters={"density": {"*": 0.2, "mlp": [0.1, 0.3]}},
            ),
        ],
        "output": LockedOutput(digest=BLAKE, files={"model.safetensors": BLAKE, "größe/config.json": BLAKE}),
    }
    return Lock(**said | changed)


def checksum_of(fields: dict[str, Any]) -> str:
    """The checksum, as the schema describes it."""
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def edited(change: Callable[[dict[str, Any]], object], *, sealed: bool) -> bytes:
    """The example's file after a change; `sealed` with the checksum that goes with it."""
    fields = json.loads(lock_bytes(example()))
    checksum = fields.pop("checksum")
    change(fields)
    return json.dumps({**fields, "checksum": checksum_of(fields) if sealed else checksum}).encode()


# --- there and back -----------------------------------------------------------------------------------------------


def test_a_lock_reads_back_as_it_was_written() -> None:
    lock = example()
    assert parse_lock(lock_bytes(lock)) == lock
    assert lock_bytes(parse_lock(lock_bytes(lock))) == lock_bytes(lock)


def test_equal_locks_have_the_same_bytes() -> None:
    assert lock_bytes(example()) == lock_bytes(example())
    # However they were made: with whole numbers, or read from a file.
    whole = example(deltas=[delta(weight=1, where={"mlp": 0})])
    broken = example(deltas=[delta(weight=1.0, where={"mlp": 0.0})])
    assert lock_bytes(whole) == lock_bytes(broken)


def test_a_file_can_be_compared_line_by_line() -> None:
    lines = lock_bytes(example()).decode().splitlines()
    assert lines[:3] == ["{", '  "formatVersion": 1,', '  "producer": "deltareg 0.1.0",']
    assert lines[-2].startswith('  "checksum": "sha256:')
    assert '      "größe/config.json": "' + BLAKE + '"' in lines
    other = lock_bytes(example(seed=8)).decode().splitlines()
    assert [one for one, two in zip(lines, other, strict=True) if one != two] == ['  "seed": 7,', lines[-2]]


def test_the_checksum_is_that_of_the_other_fields() -> None:
    fields = json.loads(lock_bytes(example()))
    assert fields.pop("checksum") == checksum_of(fields)


NUMBERS = st.floats(-3.4e38, 3.4e38)
RULES = st.dictionaries(
    st.text(min_size=1, max_size=8), NUMBERS | st.lists(NUMBERS, min_size=2, max_size=3), max_size=3
)


@given(weight=NUMBERS, where=RULES, seed=st.integers(0, 2**53 - 1), location=st.text(max_size=9))
def test_whatever_a_lock_holds_comes_back(weight: float, where: dict[str, Any], seed: int, location: str) -> None:
    lock = example(
        base=LockedBase(location=location, fingerprint=SHA),
        deltas=[delta(weight=weight, where=where)],
        seed=seed,
        output=None,
    )
    again = parse_lock(lock_bytes(lock))
    assert again == lock
    assert lock_bytes(again) == lock_bytes(lock)
    assert list(again.deltas[0].where) == list(where)
    assert str(again.deltas[0].weight) == str(weight)  # −0.0 too


def test_unknown_fields_are_kept() -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["signedBy"] = {"b": 1, "a": [2]}
        fields["deltas"][0]["mirror"] = "https://example.org"

    lock = parse_lock(edited(change, sealed=True))
    written = json.loads(lock_bytes(lock))
    assert list(written["signedBy"].items()) == [("b", 1), ("a", [2])]
    assert written["deltas"][0]["mirror"] == "https://example.org"
    assert parse_lock(lock_bytes(lock)) == lock


def test_spaces_and_line_ends_do_not_matter() -> None:
    data = lock_bytes(example())
    assert parse_lock(json.dumps(json.loads(data)).encode()) == example()
    # As version control may write it on some systems.
    assert parse_lock(data.replace(b"\n", b"\r\n")) == example()


# --- what it means ------------------------------------------------------------------------------------------------


def test_who_wrote_a_lock_and_what_came_out_is_no_part_of_its_meaning() -> None:
    assert example().meaning == example(producer="deltareg 9.9.9", output=None).meaning


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 8},
        {"method": "linear"},
        {"dtype": "float32"},
        {"side_files": "target"},
        {"with_added": True},
        {"accept_licence": True},
        {"base": LockedBase(location="./base", fingerprint=SHA)},
        {"deltas": [delta()]},
        {"deltas": [delta(parameters={"density": 0.3}), *example().deltas[1:]]},
        {"parameters": {"density": {"*": 0.5, "mlp": [0.8, 0.2]}, "normalize": True, "elect": "mass"}},
        # Of the selectors that match a tensor the last counts: another order is another build.
        {"parameters": {"density": {"mlp": [0.2, 0.8], "*": 0.5}, "normalize": True, "elect": "mass"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_whatever_decides_the_output_is_part_of_its_meaning(changed: dict[str, Any]) -> None:
    assert example(**changed).meaning != example().meaning


def test_a_delta_is_found_by_its_name() -> None:
    found = example().delta("acme/med")
    assert found is not None and found.name.version == "2.0.0-rc.1"
    assert example().delta("acme/search") is None


# --- what is not believed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(seed=8),
        lambda fields: fields["deltas"][0].update(weight=0.6),
        lambda fields: fields["deltas"][0].update(digest="sha256:" + "0" * 64),
        lambda fields: fields["deltas"].reverse(),
        lambda fields: fields.update(parameters=dict(reversed(fields["parameters"].items()))),
        lambda fields: fields["deltas"][1].update(where=dict(reversed(fields["deltas"][1]["where"].items()))),
        lambda fields: fields.pop("name"),
        lambda fields: fields.update(extra=1),
        lambda fields: fields["output"]["files"].pop("model.safetensors"),
    ],
)
def test_what_was_changed_by_hand_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(BadLock, match="it is not what its checksum says") as caught:
        parse_lock(edited(change, sealed=False), "there/deltareg.lock")
    assert caught.value.message.startswith("there/deltareg.lock is not what deltareg wrote")
    assert "deltareg lock" in str(caught.value.hint)
    # And it is the checksum that told: with its own each is a sound lock.
    parse_lock(edited(change, sealed=True))


@pytest.mark.parametrize(
    "checksum", [b"", b'"checksum": null', b'"checksum": 1', b'"checksum": "' + SHA.encode() + b'"']
)
def test_a_checksum_that_is_missing_or_another_one_is_refused(checksum: bytes) -> None:
    lines = lock_bytes(example()).splitlines()
    lines[-2:-1] = [checksum] if checksum else []
    if not checksum:
        lines[-2] = lines[-2].rstrip(b",")
    with pytest.raises(BadLock, match=r"its checksum is missing|it is not what its checksum says"):
        parse_lock(b"\n".join(lines))


def test_a_file_cut_short_anywhere_is_refused() -> None:
    data = lock_bytes(example()).rstrip()
    for length in range(0, len(data), 7):
        with pytest.raises(BadLock, match="it is not valid JSON"):
            parse_lock(data[:length])


def test_no_byte_can_be_flipped_unseen() -> None:
    data = lock_bytes(example())
    for place in range(0, len(data), 11):
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            found = parse_lock(flipped)
        except (BadLock, UnsupportedFormat):
            continue
        # A space between fields may have become another one.
        assert found == example(), place


def test_a_merge_that_is_not_finished_is_told_as_such(tmp_path: Path) -> None:
    def git(*arguments: str) -> int:
        mine = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        named = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *named, *arguments], cwd=tmp_path, env=mine, capture_output=True).returncode

    path = tmp_path / "deltareg.lock"
    assert git("init", "--initial-branch=main") == 0
    write_lock(example(seed=0), path)
    assert git("add", ".") == git("commit", "--message=start") == git("branch", "other") == 0
    for branch, seed in (("main", 1), ("other", 2)):
        assert git("checkout", branch) == 0
        write_lock(example(seed=seed), path)
        assert git("commit", "--all", "--message=change") == 0
    assert git("merge", "main") == 1
    with pytest.raises(BadLock, match="it holds two versions that are to be merged") as caught:
        read_lock(path)
    assert "deltareg lock" in str(caught.value.hint)


@pytest.mark.parametrize("version", [2, 0, "1", [1], 1.0, True])
def test_another_format_is_told_before_anything_else(version: Any) -> None:
    data = json.dumps({"formatVersion": version, "somethingNew": True}).encode()
    with pytest.raises(UnsupportedFormat, match="this deltareg reads version 1"):
        parse_lock(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b"\xff\xfe",
        b"{" * 100_000,
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b"[build]\nbase = 'x'",
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_lock_is_refused(data: bytes) -> None:
    with pytest.raises(BadLock, match="is not what deltareg wrote"):
        parse_lock(data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda fields: fields.pop("base"), "base: Field required"),
        (lambda fields: fields.update(seed=-1), "seed: "),
        (lambda fields: fields.update(seed="7"), "seed: "),
        (lambda fields: fields["deltas"][0].update(weight=True), "deltas.0.weight: "),
        (lambda fields: fields["deltas"][0].update(reference="acme/chat"), "deltas.0.reference: "),
        (lambda fields: fields["deltas"][0].update(reference="acme/chat:prod"), "does not name a version"),
        (lambda fields: fields["deltas"][0].update(reference="chat:1.0.0"), "deltas.0.reference: "),
        (lambda fields: fields["deltas"][0].update(digest="sha256:12"), "deltas.0.digest: "),
        (lambda fields: fields["deltas"].append(fields["deltas"][0]), "deltas: acme/chat is named more than once"),
        (lambda fields: fields["deltas"][0].update(requiredBy=["acme/x"]), "deltas: 'acme/x' requires one of them"),
        (lambda fields: fields["output"]["files"].update({"a": SHA}), "output.files.a: "),
    ],
)
def test_a_checksum_does_not_make_nonsense_a_lock(change: Callable[[dict[str, Any]], object], told: str) -> None:
    with pytest.raises(BadLock) as caught:
        parse_lock(edited(change, sealed=True))
    assert told in caught.value.message


def test_of_very_many_faults_the_first_are_told() -> None:
    def change(fields: dict[str, Any]) -> None:
        fields["deltas"] = [{}] * 1000

    with pytest.raises(BadLock) as caught:
        parse_lock(edited(change, sealed=True))
    assert caught.value.message.endswith("more")
    assert len(caught.value.message) < 2000


def test_what_json_cannot_say_is_not_written(tmp_path: Path) -> None:
    lock = example(base=LockedBase(location="\udcff", fingerprint=SHA))
    with pytest.raises(InvalidArgument, match="cannot be written into a lock"):
        write_lock(lock, tmp_path / "deltareg.lock")
    endless = example(deltas=[delta(exactness=Exactness(kind="lossy", relative_error=float("inf")))])
    with pytest.raises(InvalidArgument, match="cannot be written into a lock"):
        write_lock(endless, tmp_path / "deltareg.lock")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValidationError):
        delta(weight=float("nan"))


# --- files --------------------------------------------------------------------------------------------------------


def test_a_lock_is_written_and_read(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.lock"
    write_lock(example(), path)
    assert path.read_bytes() == lock_bytes(example())
    assert read_lock(path) == Lock.read(str(path)) == example()
    write_lock(example(seed=8), path)
    assert read_lock(path).seed == 8
    assert [found.name for found in tmp_path.iterdir()] == ["deltareg.lock"]


def test_without_a_file_the_recipe_is_to_be_locked(tmp_path: Path) -> None:
    with pytest.raises(LockStale, match="there is no lock") as caught:
        read_lock(tmp_path / "deltareg.lock")
    assert "deltareg lock" in str(caught.value.hint)


def test_a_directory_in_its_place_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.lock"
    path.mkdir()
    with pytest.raises(DeltaregError, match="could not read the lock"):
        read_lock(path)
    with pytest.raises(DeltaregError, match="could not write"):
        write_lock(example(), path)
    assert [found.name for found in tmp_path.iterdir()] == ["deltareg.lock"]


def test_an_enormous_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.lock"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(BadLock, match="larger than"):
        read_lock(path)


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    place = tmp_path / "locks" / "mine.lock"
    place.parent.mkdir()
    place.touch(mode=0o640)
    place.chmod(0o640)
    path = tmp_path / "deltareg.lock"
    path.symlink_to(place)
    write_lock(example(), path)
    assert path.is_symlink()
    assert read_lock(place) == example()
    assert stat.S_IMODE(place.stat().st_mode) == 0o640


def test_a_new_file_has_the_permissions_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_lock(example(), tmp_path / "deltareg.lock")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "deltareg.lock").stat().st_mode) == 0o640


def test_on_a_full_disk_the_old_lock_stays(tmp_path: Path) -> None:
    with disks.small_disk(tmp_path / "disk", 256) as disk:
        path = disk / "deltareg.lock"
        write_lock(example(), path)
        disks.fill(disk)
        large = example(output=LockedOutput(digest=BLAKE, files={f"file-{number}": BLAKE for number in range(5000)}))
        with pytest.raises(DiskFull, match="could not write"):
            write_lock(large, path)
        assert read_lock(path) == example()
        assert sorted(found.name for found in disk.iterdir()) == ["ballast", "deltareg.lock"]


def test_where_nobody_may_write_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "deltareg.lock"
    write_lock(example(), path)
    with disks.read_only(tmp_path), pytest.raises(NotAllowed, match="could not write"):
        write_lock(example(seed=8), path)
    assert read_lock(path) == example()


_KILLED = """
import resource, signal, sys
from pathlib import Path
from deltareg.lock import read_lock, write_lock

path = Path(sys.argv[1])
lock = read_lock(path)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_lock(lock.model_copy(update={"seed": 8}), path)
"""


def test_a_kill_half_way_leaves_the_old_lock(tmp_path: Path) -> None:
    """The kernel kills the writer when its file has a thousand bytes."""
    path = tmp_path / "deltareg.lock"
    write_lock(example(), path)
    assert path.stat().st_size > 1000
    done = subprocess.run([sys.executable, "-c", _KILLED, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert read_lock(path) == example()
    # What it leaves is in nobody's way.
    write_lock(example(seed=9), path)
    assert read_lock(path).seed == 9
