"""Network file systems are told from local ones by the mount table."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from deltareg.catalog.mounts import NETWORK_TYPES, file_system_of, network_type, parse_mounts, refuse_network, type_of
from deltareg.errors import NetworkFilesystem

TABLE = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:45 / /home rw,relatime shared:20 - nfs4 server:/export/home rw,vers=4.2
41 40 8:2 / /home/ann/local rw - xfs /dev/sdb1 rw
42 22 0:46 / /mnt/two\040words rw master:1 shared:2 propagate_from:3 - cifs //server/share rw
43 22 0:47 / /data rw - xfs /dev/sdc1 rw
44 43 0:48 / /data rw - fuse.sshfs ann@server: rw
45 22 0:49 / /over rw - overlay overlay rw,lowerdir=/a:/b
broken line
46 22
"""
MOUNTS = parse_mounts(TABLE)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/deltareg/catalog.db", "ext4"),
        ("/home", "nfs4"),
        ("/home/bob/.local/share/deltareg/catalog.db", "nfs4"),
        ("/home/ann/local/deltareg/catalog.db", "xfs"),
        ("/home/ann/locality/catalog.db", "nfs4"),
        ("/homeless/catalog.db", "ext4"),
        ("/mnt/two words/catalog.db", "cifs"),
        ("/data/catalog.db", "fuse.sshfs"),
        ("/over/catalog.db", "overlay"),
    ],
)
def test_longest_and_latest_mount_counts(path: str, kind: str) -> None:
    assert file_system_of(PurePosixPath(path), MOUNTS) == kind


def test_nothing_is_known_without_mounts() -> None:
    assert file_system_of(PurePosixPath("/home"), []) is None


def test_local_file_systems_are_allowed_and_network_ones_not() -> None:
    assert {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "glusterfs", "ceph", "afs"} <= NETWORK_TYPES
    assert {f"fuse.{kind}" for kind in ("juicefs", "s3fs", "rclone", "gcsfuse", "mfs")} <= NETWORK_TYPES
    assert {"wekafs", "orangefs", "pvfs2", "ncpfs"} <= NETWORK_TYPES
    assert not NETWORK_TYPES & {"ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs", "f2fs"}


def test_home_on_a_network_file_system_is_refused(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(TABLE + f"50 22 0:50 / {tmp_path} rw - nfs4 server:/export rw\n")
    with pytest.raises(NetworkFilesystem, match=r"network file system \(nfs4\)") as caught:
        refuse_network(tmp_path / "home" / "catalog.db", mounts)
    assert "DELTAREG_HOME" in str(caught.value.hint)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NetworkFilesystem):
        refuse_network(tmp_path / "link" / "catalog.db", mounts)


def test_local_home_and_a_system_without_mount_table_are_allowed(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(TABLE)
    refuse_network(tmp_path / "catalog.db", mounts)
    refuse_network(tmp_path / "catalog.db", tmp_path / "absent")
    refuse_network(tmp_path / "catalog.db")


def test_type_of_a_network_file_system_is_told_and_that_of_a_local_one_is_not(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(TABLE)
    assert network_type(Path("/data/home"), mounts) == type_of(Path("/data/home"), mounts) == "fuse.sshfs"
    assert (network_type(Path("/over/home"), mounts), type_of(Path("/over/home"), mounts)) == (None, "overlay")
    assert (network_type(tmp_path, tmp_path / "absent"), type_of(tmp_path, tmp_path / "absent")) == (None, None)


def test_link_that_leads_to_itself_lies_where_it_lies(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(TABLE)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert type_of(tmp_path / "loop" / "catalog.db", mounts) == "ext4"
