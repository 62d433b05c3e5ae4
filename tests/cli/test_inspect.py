"""`deltareg inspect`, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltareg.build.digests import file_digests, output_digest
from deltareg.lock import LOCK_NAME, Lock, LockedBase, LockedDelta, LockedOutput, write_lock
from deltareg.manifest import Exactness
from tests.cli.conftest import DELTA
from tests.cli.program import Pair, Workplace


@pytest.fixture
def out(stocked: Workplace, pair: Pair) -> Path:
    """An output with its lock."""
    stocked.ok("apply", pair.base, f"{DELTA}=0.5", "-o", "out")
    out = stocked.directory / "out"
    shown = stocked.ok("show", DELTA, "--json").document("show")
    names = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
    files = file_digests(out, names, 1)
    lock = Lock(
        producer="deltareg tests",
        recipe="sha256:" + "0" * 64,
        base=LockedBase(location="./base", fingerprint=shown["config"]["fingerprint"]["digest"]),
        method="ties",
        parameters={"density": {"*": 0.5, "mlp": [0.2, 0.8]}, "elect": "weighted", "normalize": True},
        seed=0,
        side_files="post",
        deltas=[
            LockedDelta(
                reference=DELTA,
                digest=shown["digest"],
                remote="team",
                required_by=["acme/medical"],
                weight=[0.2, 0.8],
                where={"mlp": 1},
                licence="apache-2.0",
                exactness=Exactness(),
                size=shown["size"],
            ),
            LockedDelta(
                reference="acme/medical:1.0.0",
                digest="sha256:" + "1" * 64,
                remote="team",
                wanted="^1",
                weight=1,
                licence="apache-2.0",
                exactness=Exactness(),
                size=1000,
            ),
        ],
        output=LockedOutput(
            digest=output_digest({name: ((out / name).stat().st_size, digest) for name, digest in files.items()}),
            files=files,
        ),
    )
    write_lock(lock, out / LOCK_NAME)
    return out


def test_inspect_tells_what_an_output_was_made_of(stocked: Workplace, out: Path) -> None:
    done = stocked.ok("inspect", "out")
    assert "as the lock says" in done.out
    assert "0.2..0.8, mlp: 1" in done.out and "*: 0.5, mlp: 0.2..0.8" in done.out
    for word in (DELTA, "team", "acme/medical", "apache-2.0", "./base", "weighted"):
        assert word in done.out
    assert done.err.startswith("warning: the licence of ./base is unknown")


def test_inspect_gives_a_document(stocked: Workplace, out: Path) -> None:
    told = stocked.ok("inspect", out, "--json", "--threads", "2").document("inspect")
    assert (told["verified"], told["method"], told["licence"]) == (True, "ties", None)
    assert told["deltas"][0]["reference"] == DELTA


def test_inspect_ends_with_status_5_where_a_file_was_changed(stocked: Workplace, out: Path) -> None:
    (out / "config.json").write_text("{}")
    (out / "extra.py").touch()
    done = stocked.run("inspect", "out", "--json")
    assert (done.status, done.codes) == (5, ["DR0408"])
    error = done.document("error")["error"]
    assert error["data"]["files"] == {"changed": ["config.json"], "not in the lock": ["extra.py"]}
    assert "config.json" in done.err and "extra.py" in done.err
    (out / "extra.py").unlink()
    done = stocked.ok("inspect", "out", "--quick")
    assert "not read" in done.out and "without --quick" in done.err


def test_inspect_of_what_apply_made_says_where_locks_come_from(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("apply", pair.base, DELTA, "-o", "plain")
    done = stocked.run("inspect", "plain")
    assert (done.status, done.codes) == (1, ["DR0010"])
    assert "deltareg build" in done.err
    assert stocked.run("inspect", "s3://bucket/out").codes == ["DR0101"]
    assert stocked.run("inspect", "nowhere").codes == ["DR0003"]
