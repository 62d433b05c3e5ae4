"""Archives: what goes into the file comes out of it, and a hostile or damaged one changes nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deltareg.archive import export_archive, import_archive, importing
from deltareg.catalog import Registry
from deltareg.digest import Digest, sha256
from deltareg.errors import (
    BadArchive,
    DeltaregError,
    DigestMismatch,
    DiskFull,
    InvalidArgument,
    NotAllowed,
    NotFound,
    OutputExists,
    VersionExists,
)
from deltareg.manifest import Requirement
from deltareg.names import parse_reference
from deltareg.store import Store
from tests.contracts.remote_contract import Counted
from tests.deltas import add_delta, add_referrer, flip, noise, publish
from tests.disks import read_only, small_disk

ROOT = Path(__file__).resolve().parents[2]
SKOPEO = shutil.which("skopeo")
NAME, ABOVE = "acme/search:1.0.0", "acme/above:1.0.0"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """acme/search:1.0.0, deprecated, with a referrer and a channel; acme/above:1.0.0 requires it and is yanked."""
    registry = Registry(tmp_path / "home")
    store = registry.store
    digest = publish(store, NAME, [noise(200_000), b"small", b""])
    store.deprecate(parse_reference(NAME), "use acme/find")
    store.set_channel("acme/search", "prod", digest, None)
    store.put_referrer("acme/search", add_referrer(store, digest))
    above = add_delta(store, [b"above"], requires=[Requirement(reference="acme/search", version=">=1", weight=1.0)])
    store.publish(parse_reference(ABOVE), above, yanked="wrong")
    return registry


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "other")


@pytest.fixture
def archive(registry: Registry, tmp_path: Path) -> Path:
    """A sound one, of acme/search:1.0.0 with its channel."""
    export_archive(registry, [NAME], tmp_path / "a.tar", with_channels=True)
    return tmp_path / "a.tar"


def names(registry: Registry) -> dict[str, str]:
    return {str(entry.reference): entry.digest for entry in registry.store.entries()}


def test_what_was_exported_is_imported_whole(registry: Registry, other: Registry, tmp_path: Path) -> None:
    counted = Counted()
    report = export_archive(
        registry, [ABOVE], tmp_path / "a.tar", with_required=True, with_channels=True, progress=counted
    )
    assert [one.reference for one in report.names] == [ABOVE, NAME, "acme/search:prod"]
    assert report.warnings == []
    assert (tmp_path / "a.tar").stat().st_size == report.bytes
    assert counted.total > 200_000
    done = import_archive(other, tmp_path / "a.tar")
    assert {one.change for one in done.names} == {"imported"}
    assert (done.blobs, done.bytes) == (report.blobs, report.bytes)
    assert names(other) == names(registry)
    assert (other.yanked(ABOVE), other.deprecated(NAME)) == ("wrong", "use acme/find")
    digest = other.resolve(NAME)
    assert other.store.referrers("acme/search", digest) == registry.store.referrers("acme/search", digest) != []
    assert other.fsck().ok
    again = import_archive(other, tmp_path / "a.tar")
    assert {one.change for one in again.names} == {"present"}


def test_the_same_content_is_the_same_file_whatever_registry_it_comes_from(
    registry: Registry, other: Registry, archive: Path, tmp_path: Path
) -> None:
    import_archive(other, archive)
    other.publish("acme/noise:1.0.0", add_delta(other.store, [b"noise"]))
    export_archive(other, ["acme/search:prod", NAME], tmp_path / "b.tar", with_channels=True)
    assert (tmp_path / "b.tar").read_bytes() == archive.read_bytes()


def test_what_is_required_is_told_or_brought(registry: Registry, tmp_path: Path) -> None:
    report = export_archive(registry, [ABOVE], tmp_path / "a.tar")
    assert "--with-required" in report.warnings[0]
    assert export_archive(registry, [ABOVE, NAME], tmp_path / "b.tar").warnings == []
    registry.store.remove_channel("acme/search", "prod")
    registry.store.remove(parse_reference(NAME))
    with pytest.raises(NotFound, match="which is not here"):
        export_archive(registry, [ABOVE], tmp_path / "c.tar", with_required=True)
    assert not (tmp_path / "c.tar").exists()


def test_an_archive_goes_through_a_pipe(registry: Registry, other: Registry) -> None:
    stream = io.BytesIO()
    report = export_archive(registry, [NAME], stream)
    assert len(stream.getvalue()) == report.bytes
    assert import_archive(other, io.BytesIO(stream.getvalue())).file == "-"
    assert list(names(other)) == [NAME]


def test_other_programs_read_it(archive: Path, registry: Registry, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        assert tar.getnames()[:2] == ["oci-layout", "index.json"]
    if SKOPEO is None:
        pytest.skip("skopeo is not installed (Debian: apt-get install skopeo)")
    command = [SKOPEO, "copy", f"oci-archive:{archive}:{NAME}", f"oci:{tmp_path / 'copy'}:search"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    assert index["manifests"][0]["digest"] == registry.resolve(NAME)


def test_files_are_not_replaced_unasked_and_appear_whole(registry: Registry, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(OutputExists):
        export_archive(registry, [ABOVE], archive)
    export_archive(registry, [ABOVE], archive, overwrite=True)
    assert archive.read_bytes() != before
    with pytest.raises(OutputExists):
        export_archive(registry, [NAME], tmp_path, overwrite=True)
    manifest = registry.store.manifest(registry.resolve(NAME))
    flip(registry.store.path(Digest(manifest.layers[1].digest)))
    with pytest.raises(DigestMismatch):
        export_archive(registry, [NAME], tmp_path / "damaged.tar")
    with pytest.raises(NotFound):
        export_archive(registry, ["acme/none"], tmp_path / "none.tar")
    with pytest.raises(InvalidArgument):
        export_archive(registry, [], tmp_path / "none.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "home"]


def test_dry_runs_write_nothing(registry: Registry, other: Registry, archive: Path, tmp_path: Path) -> None:
    told = export_archive(registry, [NAME], tmp_path / "dry.tar", with_channels=True, dry_run=True)
    assert told.bytes == archive.stat().st_size
    assert not (tmp_path / "dry.tar").exists()
    report = import_archive(other, archive, dry_run=True)
    assert [one.change for one in report.names] == ["imported", "imported"]
    assert names(other) == {}
    assert not other.store.blobs_path.exists() or list(other.store.blobs_path.iterdir()) == []


def test_a_version_with_other_bytes_refuses_the_whole_file(registry: Registry, other: Registry, tmp_path: Path) -> None:
    export_archive(registry, [NAME, ABOVE], tmp_path / "a.tar")
    mine = publish(other.store, NAME, [b"mine"])
    for dry_run in (True, False):
        with pytest.raises(VersionExists):
            import_archive(other, tmp_path / "a.tar", dry_run=dry_run)
    assert names(other) == {NAME: mine}


def test_a_damaged_local_blob_is_mended(registry: Registry, archive: Path) -> None:
    manifest = registry.store.manifest(registry.resolve(NAME))
    flip(registry.store.path(Digest(manifest.layers[1].digest)))
    assert not registry.fsck().ok
    import_archive(registry, archive)
    assert registry.fsck().ok


@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.5, 0.95, 0.999])
def test_a_file_that_was_cut_short_imports_nothing(other: Registry, archive: Path, part: float) -> None:
    data = archive.read_bytes()
    # Of the zeros at the end one block has to be left.
    whole = len(data.rstrip(b"\0")) + 512
    archive.write_bytes(data[: int(part * whole)])
    with pytest.raises(BadArchive, match="cut short") as caught:
        import_archive(other, archive)
    assert "deltareg export" in str(caught.value.hint)
    assert names(other) == {}
    archive.write_bytes(data)
    import_archive(other, archive)
    assert other.fsck().ok


@pytest.mark.parametrize("place", [0.3, 0.6])
def test_a_flipped_bit_imports_nothing(other: Registry, archive: Path, place: float) -> None:
    flip(archive, int(8 * place * archive.stat().st_size))
    with pytest.raises(DigestMismatch):
        import_archive(other, archive)
    assert names(other) == {}


Change = Callable[[tarfile.TarFile], None]


def _file(name: str, data: bytes = b"x", **fields: object) -> Change:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for key, value in fields.items():
            setattr(info, key, value)
        tar.addfile(info, io.BytesIO(data))

    return add


def _kind(kind: bytes, name: str = f"blobs/sha256/{'0' * 64}") -> Change:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)

    return add


HOSTILE = {
    "absolute": _file("/etc/cron.d/x"),
    "upwards": _file("blobs/sha256/../../../x"),
    "backwards": _file("..\\x"),
    "stranger": _file("manifest.json"),
    "no digest": _file(f"blobs/sha256/{'F' * 64}"),
    "other algorithm": _file(f"blobs/sha512/{'0' * 128}"),
    "symlink": _kind(tarfile.SYMTYPE),
    "hard link": _kind(tarfile.LNKTYPE),
    "device": _kind(tarfile.CHRTYPE),
    "pipe": _kind(tarfile.FIFOTYPE),
    "gnu sparse": _kind(tarfile.GNUTYPE_SPARSE),
    "long name": _file("x" * 300),
    "twice": _file("index.json", b"{}"),
    "pax path": _file("é" * 120),
    "pax size": _file("x", pax_headers={"size": "1"}),
    "pax sparse": _file("x", pax_headers={"GNU.sparse.major": "1"}),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_what_no_archive_holds_is_refused(
    other: Registry, archive: Path, tmp_path: Path, hostile: Change, form: int
) -> None:
    with tarfile.open(archive, "a", format=form) as tar:
        hostile(tar)
    before = sorted(path.name for path in tmp_path.iterdir())
    if hostile is HOSTILE["pax size"] and form == tarfile.GNU_FORMAT:
        pytest.skip("GNU tars have no such headers")
    with pytest.raises(BadArchive):
        import_archive(other, archive)
    assert names(other) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def _rewritten(archive: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with tarfile.open(archive) as tar:
        files = {info.name: tar.extractfile(info).read() for info in tar.getmembers()}  # type: ignore[union-attr]
    change(files)
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            _file(name, data)(tar)


def _index(files: dict[str, bytes], change: Callable[[dict[str, object]], object]) -> None:
    index = json.loads(files["index.json"])
    change(index)
    files["index.json"] = json.dumps(index).encode()


REWRITTEN: dict[str, Callable[[dict[str, bytes]], object]] = {
    "no layout": lambda files: files.pop("oci-layout"),
    "no index": lambda files: files.pop("index.json"),
    "other layout": lambda files: files.update({"oci-layout": b'{"imageLayoutVersion":"2.0.0"}'}),
    "nothing named": lambda files: _index(files, lambda index: index.update(manifests=[])),
    "a pack is missing": lambda files: files.pop(f"blobs/sha256/{sha256(b'small')[7:]}"),
    "bad name": lambda files: _index(files, lambda index: _rename(index, "../../x:1.0.0")),
    "latest": lambda files: _index(files, lambda index: _rename(index, "acme/search:latest")),
    "channel alone": lambda files: _index(files, lambda index: index.update(manifests=index["manifests"][1:2])),  # type: ignore[index]
    "an absent referrer": lambda files: _index(files, lambda index: _append(index, "e" * 64)),
}


def _rename(index: dict[str, object], name: str) -> None:
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = name  # type: ignore[index]


def _append(index: dict[str, object], digest: str) -> None:
    kind = "application/vnd.oci.image.manifest.v1+json"
    index["manifests"].append({"mediaType": kind, "digest": f"sha256:{digest}", "size": 2})  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_an_archive_that_contradicts_itself_is_refused(
    other: Registry, archive: Path, change: Callable[[dict[str, bytes]], object]
) -> None:
    _rewritten(archive, lambda files: None)
    import_archive(Registry(other.home.with_name("sound")), archive)
    _rewritten(archive, lambda files: (change(files), None)[1])
    with pytest.raises(BadArchive):
        import_archive(other, archive)
    assert names(other) == {}


@pytest.mark.parametrize("config", [b'{"garbage": 1}', b"[" * 1000], ids=["another document", "no JSON"])
def test_archive_of_which_one_config_cannot_be_read_names_nothing(
    registry: Registry, other: Registry, tmp_path: Path, config: bytes
) -> None:
    digest = publish(registry.store, "acme/zzz:1.0.0", [b"last"])
    export_archive(registry, [NAME, "acme/zzz:1.0.0"], tmp_path / "b.tar")

    def change(files: dict[str, bytes]) -> None:
        manifest = json.loads(files.pop(f"blobs/sha256/{digest[7:]}"))
        manifest["config"].update(digest=sha256(config), size=len(config))
        raw = json.dumps(manifest).encode()
        files |= {f"blobs/sha256/{sha256(data)[7:]}": data for data in (raw, config)}
        files["index.json"] = files["index.json"].replace(digest.encode(), sha256(raw).encode())

    _rewritten(tmp_path / "b.tar", change)
    for dry_run in (True, False):
        with pytest.raises(DeltaregError, match="config of acme/zzz"):
            import_archive(other, tmp_path / "b.tar", dry_run=dry_run)
    assert names(other) == {}


def test_dry_run_says_which_config_it_could_not_look_at(registry: Registry, other: Registry, archive: Path) -> None:
    before = import_archive(other, archive, dry_run=True).warnings
    assert not any("config" in warning for warning in before)
    config = registry.artifact(NAME).manifest.config.digest
    place = f"blobs/sha256/{config[7:]}"
    # The config first among the blobs.
    _rewritten(archive, lambda files: files.update(_first(files, "oci-layout", "index.json", place)))
    told = import_archive(other, archive, dry_run=True).warnings
    assert any(f"the config of {NAME} was not looked at" in warning for warning in told)
    assert import_archive(other, archive).warnings == before


def _first(files: dict[str, bytes], *wanted: str) -> dict[str, bytes]:
    """All files, some of them before the others."""
    order = {name: files[name] for name in (*wanted, *files)}
    files.clear()
    return order


def test_archive_with_more_referrers_than_a_registry_takes_names_nothing(
    registry: Registry, other: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.store.resolve(parse_reference(NAME))
    for number in range(4):
        registry.store.put_referrer("acme/search", add_referrer(registry.store, digest, b"%d" % number))
    export_archive(registry, [NAME], tmp_path / "b.tar")
    # A thousand real ones take a minute to make.
    monkeypatch.setattr(importing, "REFERRERS_LIMIT", 4)
    with pytest.raises(BadArchive, match="would have 5 referrers"):
        import_archive(other, tmp_path / "b.tar")
    assert names(other) == {}
    monkeypatch.setattr(importing, "REFERRERS_LIMIT", 5)
    import_archive(other, tmp_path / "b.tar")
    import_archive(other, tmp_path / "b.tar")


def test_other_layouts_of_the_tar_do(other: Registry, archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "layout")
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tmp_path / "layout" / "blobs", "./blobs")
        for name in ("index.json", "oci-layout"):
            info = tar.gettarinfo(tmp_path / "layout" / name, f"./{name}")
            info.pax_headers = {"mtime": "1234567890.5"}
            with (tmp_path / "layout" / name).open("rb") as file:
                tar.addfile(info, file)
    assert import_archive(other, archive).names[0].reference == NAME
    assert other.fsck().ok


def test_two_archives_in_one_file_and_compressed_ones_are_refused(other: Registry, archive: Path) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data + data)
    with pytest.raises(BadArchive, match="goes on after its end"):
        import_archive(other, archive)
    archive.write_bytes(gzip.compress(data))
    with pytest.raises(BadArchive, match="is no tar") as caught:
        import_archive(other, archive)
    assert "compressed" in str(caught.value.hint)
    archive.write_bytes(data + bytes(17 << 20))
    with pytest.raises(BadArchive):
        import_archive(other, archive)
    assert names(other) == {}


def test_absurd_sizes_are_refused_before_anything_is_read(other: Registry, tmp_path: Path) -> None:
    info = tarfile.TarInfo(f"blobs/sha256/{'0' * 64}")
    for size, error in ((1 << 50, DiskFull), (1 << 60, BadArchive), (-5, BadArchive)):
        info.size = size
        with pytest.raises(error):
            import_archive(other, io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)))
    for name in ("oci-layout", "index.json"):
        info = tarfile.TarInfo(name)
        info.size = 1 << 40
        with pytest.raises(BadArchive, match="at most"):
            import_archive(other, io.BytesIO(info.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(NotFound):
        import_archive(other, tmp_path / "absent.tar")
    with pytest.raises(DeltaregError):
        import_archive(other, tmp_path)


KILLED = """
import sys
from pathlib import Path
from deltareg.archive import import_archive
from deltareg.catalog import Registry

class Slow:
    def __init__(self, file): self.file = file
    def read(self, count):
        print(count, flush=True)
        return self.file.read(min(count, 4096))

import_archive(Registry(sys.argv[1]), Slow(sys.stdin.buffer))
"""


def test_an_import_that_was_killed_names_nothing_and_can_be_run_again(other: Registry, archive: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(other.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(archive.read_bytes()[:60_000])
        process.stdin.flush()
        for _ in range(8):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(other) == {}
    import_archive(other, archive)
    assert other.fsck().ok
    assert NAME in names(other)


def test_full_and_read_only_disks_are_told(registry: Registry, archive: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 150) as small:
        with pytest.raises(DiskFull):
            export_archive(registry, [NAME], small / "a.tar")
        assert list(small.iterdir()) == []
        with pytest.raises(DiskFull):
            import_archive(Registry(small / "home"), archive)
        assert Store(small / "home" / "registry").entries() == []
    (tmp_path / "locked").mkdir()
    with read_only(tmp_path / "locked") as place, pytest.raises(NotAllowed):
        export_archive(registry, [NAME], place / "a.tar")
