"""What the commands do: the way of a delta, one step after the other, as a user types it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import raw
from tests.cli.program import Pair, Workplace

DELTA = "acme/search:1.0.0"


def tensors(path: Path) -> dict[str, bytes]:
    return {name: tensor.data.tobytes() for name, tensor in raw.read(path).items()}


def files(directory: Path) -> dict[str, bytes]:
    """What a command may have changed; locks and temporary names aside."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith("catalog.db") and path.name != "lock"
    }


def test_the_way_of_a_delta(workplace: Workplace, pair: Pair) -> None:
    (workplace.root / "share").mkdir()
    taken = workplace.ok("diff", pair.base, pair.post, "--tag", DELTA, "--json").document("diff")
    assert taken["reference"] == DELTA
    assert taken["dryRun"] is False
    workplace.ok("remote", "add", "team", workplace.root / "share")
    sent = workplace.ok("push", DELTA, "--json").document("transfer")
    assert (sent["moved"], sent["skippedBytes"]) == (sent["blobs"], 0)

    shutil.rmtree(workplace.home)
    fetched = workplace.ok("pull", "acme/search", "--json").document("transfer")
    assert (fetched["reference"], fetched["digest"]) == (DELTA, taken["digest"])
    sound = workplace.ok("verify", DELTA, "--base", pair.base, "--post", pair.post, "--json").document("verify")
    assert sound["reproduced"] is True
    workplace.ok("apply", pair.base, DELTA, "-o", "same")
    assert tensors(workplace.directory / "same") == tensors(pair.post)
    workplace.ok("apply", pair.base, f"{DELTA}=0", "-o", "base")
    assert tensors(workplace.directory / "base") == tensors(pair.base)
    done = workplace.ok("apply", pair.base, f"{DELTA}=0.5", "-o", "half", "--json").document("apply")
    assert [(delta["reference"], delta["weight"]) for delta in done["deltas"]] == [(DELTA, 0.5)]
    assert tensors(workplace.directory / "half") not in (tensors(pair.post), tensors(pair.base))


# --- diff ---


def test_lossy_delta_is_told_as_such_everywhere(workplace: Workplace, anarcii_bf16: Mapping[str, Path]) -> None:
    base, post = anarcii_bf16["antibody_4_2"], anarcii_bf16["shark_4_2"]
    taken = workplace.ok("diff", base, post, "--tag", DELTA, "--codec", "int4", "--json").document("diff")
    assert taken["codec"] == "int4"
    assert 0 < taken["relativeError"] < 1
    told = f"lossy, int4, relative error {taken['relativeError']:.4g}"
    assert told in workplace.ok("show", DELTA).out
    shown = workplace.ok("show", DELTA, "--tensors", "--json").document("show")
    errors = [entry["error"] for entry in shown["tensors"] if entry.get("error") is not None]
    assert errors and all(f"{error:.4g}" in workplace.ok("show", DELTA, "--tensors").out for error in errors[:2])
    assert "lossy" in workplace.ok("list").out
    checked = workplace.ok("check", DELTA, "--base", base)
    assert "delta-lossy" in checked.out and told in checked.out
    applied = workplace.ok("apply", base, DELTA, "-o", "out")
    assert f"{DELTA} is an approximation: {told}" in " ".join(applied.err.split())
    sound = workplace.ok("verify", DELTA, "--base", base, "--post", post, "--json").document("verify")
    assert sound["relativeError"] == pytest.approx(taken["relativeError"], rel=1e-4)


def test_unknown_codec_is_refused_before_anything_is_read(workplace: Workplace) -> None:
    failed = workplace.run("diff", "nowhere", "elsewhere", "--tag", DELTA, "--codec", "int5")
    assert failed.status == 2
    assert "codecs are: exact, bf16" in " ".join(failed.err.split())


def test_diff_dry_run_tells_the_size_and_stores_nothing(workplace: Workplace, pair: Pair) -> None:
    would = workplace.ok("diff", pair.base, pair.post, "--tag", DELTA, "--dry-run", "--json").document("diff")
    assert would["digest"] is None
    assert not workplace.home.exists()
    did = workplace.ok("diff", pair.base, pair.post, "--tag", DELTA, "--json").document("diff")
    assert would["artifactSize"] == did["artifactSize"]


def test_diff_of_other_bytes_under_the_same_version_is_not_allowed(stocked: Workplace, pair: Pair) -> None:
    done = stocked.run("diff", pair.post, pair.base, "--tag", DELTA)
    assert (done.status, done.codes) == (4, ["DR0301"])
    # The same again is no error.
    arguments = ["--licence", "apache-2.0", "--description", "finds things"]
    stocked.ok("diff", pair.base, pair.post, "--tag", DELTA, *arguments)


def test_diff_passes_its_options_on(workplace: Workplace, pair: Pair) -> None:
    arguments = ["--preset", "small", "--licence", "mit", "--description", "[bold]x", "--threads", "1"]
    workplace.ok("diff", pair.base, pair.post, "--tag", DELTA, *arguments)
    config = workplace.ok("show", DELTA, "--json").document("show")["config"]
    assert (config["preset"], config["licence"], config["description"]) == ("small", "mit", "[bold]x")
    assert "[bold]x" in workplace.ok("show", DELTA).out


def test_diff_of_what_is_not_there(workplace: Workplace, pair: Pair) -> None:
    done = workplace.run("diff", pair.base, "nowhere", "--tag", DELTA, "--json")
    assert (done.status, done.codes) == (1, ["DR0003"])
    assert done.document("error")["error"]["code"] == "DR0003"


# --- list and show ---


def test_list_of_nothing_says_what_to_do(workplace: Workplace) -> None:
    done = workplace.ok("list")
    assert done.out == ""
    assert "deltareg diff" in done.err
    assert workplace.ok("list", "--json").document("list")["deltas"] == []
    assert not workplace.home.exists()


def test_list_tells_every_version(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("diff", pair.base, pair.post, "--tag", "acme/search:1.10.0")
    stocked.ok("diff", pair.base, pair.post, "--tag", "acme/search:1.9.0")
    stocked.ok("diff", pair.base, pair.post, "--tag", "acme/other:1.0.0")
    lines = stocked.ok("list").out.splitlines()
    assert lines[0].split()[:2] == ["reference", "size"]
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["acme/other:1.0.0", "acme/search:1.0.0", "acme/search:1.9.0", "acme/search:1.10.0"]
    document = stocked.ok("list", "acme/search", "--json").document("list")
    assert [row["reference"] for row in document["deltas"]] == names[1:]


def test_list_of_an_unknown_repository_fails(stocked: Workplace) -> None:
    done = stocked.run("list", "acme/none", "--json")
    assert (done.status, done.document("error")["error"]["code"]) == (1, "DR0002")


def test_list_of_a_remote(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    assert stocked.ok("list", "--remote", share, "--json").document("list")["deltas"] == []
    stocked.ok("push", DELTA, "--remote", share)
    document = stocked.ok("list", "--remote", share, "--json").document("list")
    assert [row["reference"] for row in document["deltas"]] == [DELTA]
    assert stocked.run("list", "acme/none", "--remote", share).status == 1


def test_list_shows_a_damaged_delta_as_such(stocked: Workplace) -> None:
    details = stocked.ok("show", DELTA, "--json").document("show")
    blob(stocked, details["manifest"]["config"]["digest"]).write_bytes(b"{}")
    stocked.ok("cache", "reindex")
    done = stocked.ok("list")
    assert done.out.splitlines()[1].startswith(DELTA)
    assert done.err.startswith(f"warning: {DELTA}: ")


def test_show_tells_the_tensors(stocked: Workplace) -> None:
    text = stocked.ok("show", DELTA).out
    assert "finds things" in text
    assert "model.norm.weight" not in text
    text = stocked.ok("show", DELTA, "--tensors").out
    assert "model.norm.weight" in text
    document = stocked.ok("show", "acme/search", "--tensors", "--json").document("show")
    assert document["reference"] == DELTA
    assert {tensor["name"]: tensor["kind"] for tensor in document["tensors"]}["model.norm.weight"] == "zero"


def test_show_of_what_is_not_there(stocked: Workplace, workplace: Workplace) -> None:
    done = stocked.run("show", "acme/search:9.9.9")
    assert (done.status, done.codes) == (1, ["DR0002"])
    assert "1.0.0" in done.err
    shutil.rmtree(workplace.home)
    done = workplace.run("show", DELTA)
    assert (done.status, done.codes) == (1, ["DR0002"])
    assert "deltareg pull" in done.err
    assert not workplace.home.exists()


# --- push, pull, verify ---


def test_dry_transfers_move_nothing(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    report = stocked.ok("push", DELTA, "--remote", share, "--dry-run", "--json").document("transfer")
    assert (report["dryRun"], report["moved"]) == (True, report["blobs"])
    assert list(share.iterdir()) == []
    stocked.ok("push", DELTA, "--remote", share)
    shutil.rmtree(stocked.home)
    report = stocked.ok("pull", DELTA, "--remote", share, "--dry-run", "--json").document("transfer")
    assert (report["dryRun"], report["moved"]) == (True, report["blobs"])
    assert not stocked.home.exists()


def test_an_absent_remote_is_a_network_error(stocked: Workplace) -> None:
    for command in ("push", "pull"):
        done = stocked.run(command, DELTA, "--remote", "./nowhere", "--json")
        assert (done.status, done.document("error")["error"]["code"]) == (6, "DR0500")


def test_a_flipped_bit_is_an_integrity_error(stocked: Workplace, pair: Pair) -> None:
    details = stocked.ok("show", DELTA, "--json").document("show")
    pack = next(layer for layer in details["manifest"]["layers"] if "pack" in layer["mediaType"])
    path = blob(stocked, pack["digest"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert stocked.run("verify", DELTA).status == 5
    assert stocked.run("apply", pair.base, DELTA, "-o", "out").status == 5
    assert list(stocked.directory.iterdir()) == []
    done = stocked.run("cache", "fsck", "--json")
    assert done.status == 5
    assert [fault["kind"] for fault in done.document("fsck")["faults"]] == ["corrupt"]
    done = stocked.run("cache", "fsck")
    assert done.status == 5
    assert "corrupt" in done.out
    assert "warning: 1 fault" in done.err


def test_verify_against_another_post_says_what_differs(stocked: Workplace, pair: Pair) -> None:
    done = stocked.run("verify", DELTA, "--base", pair.base, "--post", pair.base)
    assert (done.status, done.codes) == (5, ["DR0405"])
    assert "up_proj" in done.err


# --- apply ---


def test_apply_refuses_a_target_that_does_not_fit(stocked: Workplace, tmp_path: Path) -> None:
    spec = raw.TensorSpec("other", "BF16", (2,))
    (tmp_path / "strange").mkdir()
    raw.write(tmp_path / "strange" / "model.safetensors", [raw.RawTensor(spec, raw.np.zeros(4, raw.np.uint8))])
    done = stocked.run("apply", tmp_path / "strange", DELTA, "-o", "out", "--json")
    assert (done.status, done.document("error")["error"]["code"]) == (3, "DR0200")


def test_apply_overwrites_only_when_told(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("apply", pair.base, DELTA, "-o", "out")
    done = stocked.run("apply", pair.base, f"{DELTA}=0", "-o", "out")
    assert (done.status, done.codes) == (2, ["DR0104"])
    assert tensors(stocked.directory / "out") == tensors(pair.post)
    stocked.ok("apply", pair.base, f"{DELTA}=0", "-o", "out", "--overwrite")
    assert tensors(stocked.directory / "out") == tensors(pair.base)


def test_apply_dry_run_writes_nothing(stocked: Workplace, pair: Pair) -> None:
    report = stocked.ok("apply", pair.base, DELTA, "-o", "out", "--dry-run", "--json").document("apply")
    assert report["dryRun"] is True
    assert list(stocked.directory.iterdir()) == []


@pytest.mark.parametrize(
    "out", ["http://host/out", "https://host/out", "ftp://host/out", "hf://acme/out", "S3://bucket/out", "file:///out"]
)
@pytest.mark.parametrize("dry_run", [True, False])
def test_apply_takes_no_url_that_it_cannot_write_to_for_a_directory(
    stocked: Workplace, pair: Pair, out: str, dry_run: bool
) -> None:
    done = stocked.run("apply", pair.base, DELTA, "-o", out, *(["--dry-run"] if dry_run else []))
    assert (done.status, done.out, done.codes) == (2, "", ["DR0101"])
    assert f"{out} is no place that can be written to" in done.err
    assert "hint: name a directory, or s3://bucket/prefix" in done.err
    assert list(stocked.directory.iterdir()) == []


def test_apply_takes_side_files_from_where_it_is_told(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("apply", pair.base, DELTA, "-o", "ours")
    stocked.ok("apply", pair.base, DELTA, "-o", "theirs", "--side-files", "target")
    assert (stocked.directory / "ours" / "chat_template.jinja").exists()
    assert not (stocked.directory / "theirs" / "chat_template.jinja").exists()


# --- cache ---


def test_gc_keeps_what_is_young_and_what_is_named(stocked: Workplace) -> None:
    path = blob(stocked, "sha256:" + "0" * 64)
    path.write_bytes(b"nobody wants this")
    assert stocked.ok("cache", "gc", "--json").document("gc")["blobs"] == 0
    assert stocked.ok("cache", "gc", "--grace", "0", "--dry-run", "--json").document("gc")["blobs"] == 1
    assert path.exists()
    assert stocked.ok("cache", "gc", "--grace", "0", "--json").document("gc")["blobs"] == 1
    assert not path.exists()
    stocked.ok("verify", DELTA)


def test_fsck_drops_damaged_blobs_only_when_told(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    stocked.ok("push", DELTA, "--remote", share)
    digest = stocked.ok("show", DELTA, "--json").document("show")["manifest"]["layers"][0]["digest"]
    path = blob(stocked, digest)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert stocked.run("cache", "fsck", "--drop-damaged", "--dry-run").status == 5
    assert path.exists()
    assert stocked.run("cache", "fsck", "--drop-damaged").status == 5
    assert not path.exists()
    stocked.ok("pull", DELTA, "--remote", share)
    stocked.ok("cache", "fsck")


def test_reindex_counts_the_names(stocked: Workplace) -> None:
    for arguments in (["--dry-run"], []):
        report = stocked.ok("cache", "reindex", *arguments, "--json").document("reindex")
        assert (report["names"], report["dryRun"]) == (1, bool(arguments))


@pytest.mark.parametrize("command", ["gc", "fsck", "reindex"])
def test_upkeep_of_nothing_says_so(workplace: Workplace, command: str) -> None:
    done = workplace.run("cache", command)
    assert (done.status, done.codes) == (1, ["DR0002"])
    assert not workplace.home.exists()


def blob(workplace: Workplace, digest: str) -> Path:
    return workplace.home / "registry" / "blobs" / "sha256" / digest.removeprefix("sha256:")


# --- init and remote ---


def test_init_writes_settings_that_commands_find(stocked: Workplace) -> None:
    share = stocked.root / "share"
    share.mkdir()
    report = stocked.ok("init", "--remote", share, "--json").document("init")
    assert report["file"] == str(stocked.directory / "deltareg.toml")
    listed = stocked.ok("remote", "list", "--json").document("remote-list")
    assert listed["default"] == "origin"
    assert [(row["name"], row["url"], row["default"]) for row in listed["remotes"]] == [("origin", str(share), True)]
    stocked.ok("push", DELTA)


def test_init_never_overwrites(workplace: Workplace) -> None:
    workplace.ok("init", "--dry-run")
    assert list(workplace.directory.iterdir()) == []
    workplace.ok("init")
    before = files(workplace.directory)
    done = workplace.run("init", "--remote", "/srv/other")
    assert (done.status, done.codes) == (2, ["DR0104"])
    assert files(workplace.directory) == before


def test_remote_add_writes_the_project_file_if_there_is_one(workplace: Workplace) -> None:
    added = workplace.ok("remote", "add", "mine", "share", "--json").document("remote-change")
    assert added["file"] == str(workplace.user_file)
    assert added["url"] == str(workplace.directory / "share")
    workplace.ok("init")
    workplace.ok("remote", "add", "team", "/srv/deltas", "--default")
    listed = workplace.ok("remote", "list", "--json").document("remote-list")
    assert {row["name"]: row["file"] for row in listed["remotes"]} == {
        "mine": str(workplace.user_file),
        "team": str(workplace.directory / "deltareg.toml"),
    }
    assert listed["default"] == "team"


def test_remote_add_tells_that_nothing_answers_there(workplace: Workplace) -> None:
    done = workplace.ok("remote", "add", "team", "/nowhere/at/all")
    assert done.err.startswith("warning: team cannot be reached now")


def test_remote_add_never_moves_a_remote(workplace: Workplace) -> None:
    workplace.ok("remote", "add", "team", "/srv/deltas")
    workplace.ok("remote", "add", "team", "/srv/deltas")
    done = workplace.run("remote", "add", "team", "/srv/others")
    assert (done.status, done.codes) == (2, ["DR0101"])
    assert workplace.ok("remote", "list", "--json").document("remote-list")["remotes"][0]["url"] == "/srv/deltas"


def test_remote_remove_forgets_the_default_too(workplace: Workplace) -> None:
    workplace.ok("remote", "add", "team", "/srv/deltas", "--default")
    workplace.ok("remote", "add", "other", "/srv/others")
    assert workplace.ok("remote", "remove", "team", "--dry-run", "--json").document("remote-change")["default"] is True
    workplace.ok("remote", "remove", "team")
    listed = workplace.ok("remote", "list", "--json").document("remote-list")
    assert [row["name"] for row in listed["remotes"]] == ["other"]
    assert listed["default"] == "other"
    done = workplace.run("remote", "remove", "othr")
    assert "did you mean other?" in done.err


def test_remote_list_of_nothing_says_what_to_do(workplace: Workplace) -> None:
    done = workplace.ok("remote", "list")
    assert (done.out, "deltareg remote add" in done.err) == ("", True)


def test_bad_settings_stop_every_command_that_reads_them(workplace: Workplace) -> None:
    (workplace.directory / "deltareg.toml").write_text("thread = 4\n")
    done = workplace.run("list", "--json")
    error = done.document("error")["error"]
    assert (done.status, error["code"]) == (2, "DR0103")
    assert "did you mean threads?" in error["message"]


def test_settings_say_where_the_registry_is(workplace: Workplace, pair: Pair) -> None:
    del workplace.environment["DELTAREG_HOME"]
    (workplace.directory / "deltareg.toml").write_text('home = "deltas"\nthreads = 1\n')
    workplace.ok("diff", pair.base, pair.post, "--tag", DELTA)
    assert (workplace.directory / "deltas" / "registry" / "index.json").exists()
    assert workplace.ok("list", "--json").document("list")["registry"] == str(workplace.directory / "deltas")
    elsewhere = workplace.root / "elsewhere"
    listed = workplace.ok("list", "--json", DELTAREG_HOME=str(elsewhere)).document("list")
    assert (listed["registry"], listed["deltas"]) == (str(elsewhere), [])


def test_push_into_an_empty_directory_says_that_it_makes_a_registry(stocked: Workplace) -> None:
    (stocked.root / "share").mkdir()
    done = stocked.ok("push", DELTA, "--remote", stocked.root / "share")
    assert "warning: made a new registry at file://" in done.err
    assert "warnings" not in done.out
    assert stocked.ok("push", DELTA, "--remote", stocked.root / "share").err == ""


def test_apply_refuses_licences_that_do_not_go_together_unless_told_otherwise(stocked: Workplace, pair: Pair) -> None:
    stocked.ok("diff", pair.base, pair.post, "--tag", "acme/free:1.0.0", "--licence", "gpl-2.0")
    arguments = ("apply", pair.base, DELTA, "acme/free:1.0.0", "-o", "out")
    done = stocked.run(*arguments)
    assert (done.status, done.codes) == (4, ["DR0302"])
    assert "acme/free:1.0.0" in done.err and "--accept-licence" in done.err
    done = stocked.ok(*arguments, "--accept-licence")
    assert "warning: licences that do not go together" in done.err
    assert "is unknown" in done.err  # the base has no model card
    assert "obligation 1" in done.out
