"""Recipes become locks, and locks become checkpoints: the same bytes wherever that is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltareg
from deltareg.build import build, lock, outdated, rebuild, tree, why
from deltareg.build.building import Options
from deltareg.build.settings import weight_schedule
from deltareg.catalog import Registry
from deltareg.check import fingerprint
from deltareg.errors import (
    BadLock,
    DigestMismatch,
    InvalidArgument,
    LockStale,
    NotFound,
    NothingFits,
    NotHomologous,
    OutputDiffers,
    OutputExists,
    RemoteUnavailable,
    UnsupportedFormat,
)
from deltareg.lock import Lock, read_lock, write_lock
from deltareg.merge import Gradient, Schedule
from deltareg.names import parse_reference
from deltareg.remote import DirectoryRemote
from deltareg.resolve import Candidate, Sources
from deltareg.store import Store
from tests import weights
from tests.build.scene import Meanwhile, Scene, files_of, perturbed
from tests.deltas import flip
from tests.disks import read_only


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, anarcii_bf16: Mapping[str, Path]) -> Path:
    """What everybody has: a base, and a remote with deltas of it."""
    place = tmp_path_factory.mktemp("team")
    scene = Scene(place)
    base = place / "base"
    shutil.copytree(anarcii_bf16["antibody_4_2"], base)
    (place / "shared").mkdir()
    scene.publish("acme/search:1.0.0", base, anarcii_bf16["shark_4_2"])
    chat = perturbed(base, place / "chat", 1)
    scene.publish("acme/chat:1.0.0", base, chat)
    scene.publish("acme/chat:1.1.0", base, perturbed(base, place / "chat-2", 2), licence="mit")
    return place


@pytest.fixture(scope="module")
def other_kind(minilm_bf16: weights.Pair, team: Path) -> str:
    """A version of acme/chat that is a delta of another kind of model."""
    Scene(team).publish("acme/foreign:2.0.0", minilm_bf16.base, minilm_bf16.post)
    return "acme/foreign"


@pytest.fixture
def scene(team: Path, tmp_path: Path) -> Scene:
    """A copy of it, to be changed at will."""
    for name in ("base", "shared"):
        shutil.copytree(team / name, tmp_path / name)
    return Scene(tmp_path)


def locked(scene: Scene, more: str = "") -> Lock:
    """The lock of the scene's recipe."""
    project = scene.project(more=more)
    lock(project, scene.sources())
    return project.lock()


# --- locking ------------------------------------------------------------------------------------------------------


def test_the_highest_versions_that_fit_are_locked(scene: Scene) -> None:
    found = locked(scene)
    assert [one.reference for one in found.deltas] == ["acme/search:1.0.0", "acme/chat:1.1.0"]
    assert [one.weight for one in found.deltas] == [0.6, 0.4]
    assert found.deltas[1].where == {"mlp": 0.5}
    assert {one.remote for one in found.deltas} == {"team"}


def test_nothing_but_documents_is_fetched_to_lock(scene: Scene) -> None:
    locked(scene)
    store = Registry(scene.place / "mine").store
    assert not store.entries()
    held = sum(path.stat().st_size for path in store.blobs_path.iterdir())
    there = sum(path.stat().st_size for path in (scene.place / "shared" / "blobs" / "sha256").iterdir())
    assert held < there / 4


def test_the_base_is_known_by_the_digest_that_deltas_record(scene: Scene) -> None:
    found = locked(scene)
    registry = Registry(scene.place / "publisher-2")
    deltareg.pull(registry, "acme/search:1.0.0", str(scene.place / "shared"))
    assert found.base.digest == registry.artifact("acme/search:1.0.0").config.base.digest


def test_two_machines_lock_the_same_bytes(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources("one"), threads=1)
    first = project.lock_path.read_bytes()
    project.lock_path.unlink()
    lock(project, scene.sources("two"), threads=2)
    assert project.lock_path.read_bytes() == first


def test_a_lock_stays_until_it_is_updated(scene: Scene, team: Path) -> None:
    project = scene.project()
    lock(project, scene.sources())
    perturbed(scene.place / "base", scene.place / "newer", 3)
    scene.publish("acme/chat:1.2.0", scene.place / "base", scene.place / "newer")
    assert not lock(project, scene.sources()).changed
    assert [row.fitting for row in outdated(project, scene.sources()).rows] == ["1.0.0", "1.2.0"]
    told = why(project, scene.sources(), "acme/chat").versions
    assert told[:2] == ["1.2.0: fits; the lock keeps 1.1.0 until deltareg update", "1.1.0: chosen"]
    report = lock(project, scene.sources(), update=["acme/chat"])
    assert [(one.before, one.after, one.change) for one in report.deltas][1] == ("1.1.0", "1.2.0", "updated")
    assert str(project.lock().deltas[1].reference) == "acme/chat:1.2.0"


def test_a_name_that_is_not_locked_cannot_be_updated(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    with pytest.raises(InvalidArgument, match="acme/nothing is not in the lock"):
        lock(project, scene.sources(), update=["acme/nothing"])


def test_a_lock_for_another_recipe_is_told_in_ci(scene: Scene) -> None:
    project = scene.project()
    with pytest.raises(LockStale, match="there is no lock"):
        lock(project, scene.sources(), check=True)
    lock(project, scene.sources())
    lock(project, scene.sources(), check=True)
    changed = scene.project(more="channel = 'prod'\n")
    with pytest.raises(LockStale, match="another state of"):
        lock(changed, scene.sources(), check=True)


def test_a_dry_run_writes_no_lock(scene: Scene) -> None:
    project = scene.project()
    assert lock(project, scene.sources(), dry_run=True).changed
    assert not project.lock_path.exists()


# --- what is refused, and how it is explained ---------------------------------------------------------------------


def test_what_does_not_fit_the_base_is_explained_by_its_findings(scene: Scene, team: Path, other_kind: str) -> None:
    shutil.rmtree(scene.place / "shared")
    shutil.copytree(team / "shared", scene.place / "shared")
    project = scene.project(f'[build]\nbase = "base"\n[[delta]]\nref = "{other_kind}"\n')
    with pytest.raises(NothingFits) as caught:
        lock(project, scene.sources())
    told = "\n".join(caught.value.data["explanation"])  # type: ignore[arg-type]
    assert f"{other_kind}: * is asked for by deltareg.toml" in told
    assert "2.0.0: it does not fit the base" in told
    assert "model-type" in told


def test_a_range_that_nothing_satisfies_names_what_would(scene: Scene) -> None:
    project = scene.project(more='version = "^7"\n')
    with pytest.raises(NothingFits) as caught:
        lock(project, scene.sources())
    assert "acme/chat 1.1.0 would fit" in str(caught.value.hint)
    assert caught.value.exit_code == 3


def test_a_licence_that_is_not_allowed_is_passed_over(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources(), allow_licence=["apache-2.0"])
    assert project.lock().deltas[1].reference == "acme/chat:1.0.0"


def test_what_was_published_too_late_is_passed_over(scene: Scene) -> None:
    with pytest.raises(NothingFits, match="acme/search") as caught:
        lock(scene.project(), scene.sources(), exclude_newer=datetime(2020, 1, 1, tzinfo=UTC))
    assert "without exclude-newer it fits" in str(caught.value.hint)


def test_an_empty_registry_is_told_as_one(scene: Scene) -> None:
    shutil.rmtree(scene.place / "shared")
    (scene.place / "shared").mkdir()
    with pytest.raises(NothingFits) as caught:
        lock(scene.project(), scene.sources())
    assert "  the remote team has no acme/search" in caught.value.data["explanation"]  # type: ignore[operator]


def test_a_remote_that_is_gone_is_no_reason_to_look_elsewhere(scene: Scene) -> None:
    for name in ("acme/search:1.0.0", "acme/chat:1.1.0"):
        deltareg.pull(Registry(scene.place / "mine"), name, str(scene.place / "shared"))
    shutil.rmtree(scene.place / "shared")
    with pytest.raises(RemoteUnavailable):
        lock(scene.project(), scene.sources())


def test_a_yanked_version_is_passed_over_but_stays_in_a_lock(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    remote = DirectoryRemote(scene.place / "shared")
    remote.yank(parse_reference("acme/chat:1.1.0"), "trained on the test set")
    report = lock(project, scene.sources())
    assert not report.changed
    assert any("trained on the test set" in warning for warning in report.warnings)
    built = build(project, scene.sources(), scene.place / "out")
    assert any("acme/chat:1.1.0 was yanked: trained on the test set" in warning for warning in built.warnings)
    lock(project, scene.sources(), update=None)
    assert project.lock().deltas[1].reference == "acme/chat:1.0.0"


# --- building -----------------------------------------------------------------------------------------------------


def test_a_build_is_the_apply_that_the_recipe_describes(scene: Scene) -> None:
    build(scene.project(), scene.sources(), scene.place / "out")
    deltareg.apply(
        scene.place / "base",
        {"acme/search:1.0.0": 0.6, "acme/chat:1.1.0": weight_schedule(0.4, {"mlp": 0.5})},
        Registry(scene.place / "mine"),
        scene.place / "by-hand",
    )
    ours, theirs = (files_of(scene.place / name) for name in ("out", "by-hand"))
    assert ours["model.safetensors"] == theirs["model.safetensors"]
    assert ours.keys() - theirs.keys() == {"deltareg.lock"}


OWN = """\
[build]
base = "./base"
method = "ties"
parameters = { density = 0.5 }

[[delta]]
ref = "acme/search"
parameters = { density = { "*" = 0.2, mlp = [0.3, 0.6] } }

[[delta]]
ref = "acme/chat"
weight = 0.4
"""


def test_a_delta_has_parameters_of_its_own(scene: Scene, tmp_path: Path) -> None:
    project = scene.project(OWN)
    report = build(project, scene.sources(), tmp_path / "out")
    assert [one.settings for one in report.deltas] == [{"density": "0.2, mlp: 0.3..0.6"}, {}]
    locked = project.lock()
    assert [one.parameters for one in locked.deltas] == [{"density": {"*": 0.2, "mlp": [0.3, 0.6]}}, {}]
    rules = Schedule(((None, 0.2), ("mlp", Gradient((0.3, 0.6)))))
    deltas = [("acme/search:1.0.0", 1.0, {"density": rules}), ("acme/chat:1.1.0", 0.4)]
    registry = scene.sources().registry
    for name, given in {"same": deltas, "other": [one[:2] for one in deltas]}.items():
        deltareg.apply(
            scene.place / "base", given, registry, tmp_path / name, method="ties", parameters={"density": 0.5}
        )
    found = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "same", "other")}
    assert found["out"] == found["same"] != found["other"]
    assert "| density = 0.2, mlp: 0.3..0.6 |" in (tmp_path / "out" / "README.md").read_text()
    assert deltareg.inspect(tmp_path / "out").deltas[0].parameters == locked.deltas[0].parameters
    rebuild(project, scene.sources(offline=True), tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("density = 0.5", "density = { '*' = 0.5, 'layers.*' = 0.3 }"),
        ("weight = 0.4", "where = { 'layers.*' = 0.4 }"),
        ("mlp = [0.3, 0.6]", "'layers.*' = 0.3"),
    ],
)
def test_a_selector_for_no_tensor_is_refused_before_anything_is_locked(scene: Scene, before: str, after: str) -> None:
    project = scene.project(OWN.replace(before, after))
    with pytest.raises(InvalidArgument, match=r"no tensor of the target matches 'layers\.\*'"):
        lock(project, scene.sources())
    assert not project.lock_path.exists()


def test_a_selector_for_what_a_delta_adds_is_locked(scene: Scene) -> None:
    post = scene.place / "post"
    shutil.copytree(scene.place / "base", post)
    tensors = load_file(post / "model.safetensors") | {"score.weight": torch.ones(2, 8)}
    save_file(tensors, post / "model.safetensors", metadata={"format": "pt"})
    scene.publish("acme/scored:1.0.0", scene.place / "base", post)
    project = scene.project("[build]\nbase = './base'\n[[delta]]\nref = 'acme/scored'\nwhere = { 'score.*' = 0.5 }\n")
    lock(project, scene.sources())
    build(project, scene.sources(), scene.place / "out")
    assert "score.weight" in load_file(scene.place / "out" / "model.safetensors")


def test_a_delta_cannot_be_locked_without_what_the_method_needs(scene: Scene) -> None:
    own = OWN.replace('"ties"', '"dare_ties"').replace("parameters = { density = 0.5 }\n", "")
    with pytest.raises(InvalidArgument, match=r"^acme/chat:1\.1\.0: dare_ties needs density$") as caught:
        lock(scene.project(own), scene.sources())
    assert "in a recipe parameters = { density = VALUE }" in str(caught.value.hint)
    lock(scene.project(own.replace("weight = 0.4", "parameters = { density = 0.5 }")), scene.sources())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("trim = 'model'", "acme/search:1.0.0: ties has one trim for all deltas"),
        ("density = 2.0", "acme/search:1.0.0: density is 2.0"),
        ("densty = 0.5", "acme/search:1.0.0: ties has no parameter 'densty'"),
    ],
)
def test_a_delta_cannot_be_locked_with_what_the_method_does_not_take(scene: Scene, setting: str, told: str) -> None:
    project = scene.project(OWN.replace('density = { "*" = 0.2, mlp = [0.3, 0.6] }', setting))
    with pytest.raises(InvalidArgument) as caught:
        lock(project, scene.sources())
    assert told in caught.value.message
    assert caught.value.hint
    assert not project.lock_path.exists()


def test_two_machines_build_the_same_lock_to_the_same_bytes(scene: Scene) -> None:
    project = scene.project()
    first = build(project, scene.sources("one"), scene.place / "first", options=Options(threads=1))
    again = rebuild(project, scene.sources("two"), scene.place / "again", options=Options(threads=2))
    assert first.output == again.output
    assert (first.reproduced, again.reproduced) == (None, True)
    assert files_of(scene.place / "first") == files_of(scene.place / "again")


def test_the_base_may_lie_elsewhere(scene: Scene) -> None:
    project = scene.project()
    build(project, scene.sources(), scene.place / "first")
    (scene.place / "base").rename(scene.place / "moved-and-renamed")
    again = rebuild(project, scene.sources(), scene.place / "again", base=str(scene.place / "moved-and-renamed"))
    assert again.reproduced
    assert files_of(scene.place / "first") == files_of(scene.place / "again")


def test_a_lock_that_is_changed_during_a_build_stays(scene: Scene) -> None:
    scene.project()

    def change() -> None:
        lock(scene.project('[build]\nbase = "base"\n[[delta]]\nref = "acme/search"\n'), scene.sources())

    watched = Options(progress=Meanwhile("hash", change))
    report = build(scene.project(), scene.sources(), scene.place / "out", options=watched)
    assert any("deltareg.lock was changed during the build" in warning for warning in report.warnings)
    now = scene.project('[build]\nbase = "base"\n[[delta]]\nref = "acme/search"\n').current_lock()
    assert now.output is None
    carried = read_lock(scene.place / "out" / "deltareg.lock")
    assert [one.reference for one in carried.deltas] == ["acme/search:1.0.0", "acme/chat:1.1.0"]


def test_a_project_where_nobody_may_write_is_built_all_the_same(scene: Scene) -> None:
    (scene.place / "project").mkdir()
    project = scene.project(
        name="project/deltareg.toml", text='[build]\nbase = "../base"\n[[delta]]\nref = "acme/chat"\n'
    )
    lock(project, scene.sources())
    with read_only(scene.place / "project"):
        report = build(project, scene.sources(), scene.place / "out")
    assert any("deltareg.lock is not told what came out" in warning for warning in report.warnings)
    carried = read_lock(scene.place / "out" / "deltareg.lock").output
    assert carried is not None and carried.digest == report.output
    assert project.lock().output is None


def test_a_base_of_the_hub_is_called_so_wherever_it_lies(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    found = project.lock()
    base = found.base.model_copy(update={"id": "hf://org/name", "revision": "0123abc"})
    write_lock(found.model_copy(update={"base": base}), project.lock_path)
    rebuild(project, scene.sources(), scene.place / "out", base=str(scene.place / "base"))
    assert "Target: `hf://org/name` at `0123abc`" in (scene.place / "out" / "README.md").read_text()


def test_an_output_carries_the_lock_that_it_was_built_from(scene: Scene) -> None:
    project = scene.project()
    report = build(project, scene.sources(), scene.place / "out")
    carried = read_lock(scene.place / "out" / "deltareg.lock")
    assert carried == project.lock()
    assert carried.output is not None
    assert carried.output.digest == report.output
    assert carried.output.files.keys() == files_of(scene.place / "out").keys() - {"deltareg.lock"}


def test_another_base_of_the_same_shape_gives_an_error_and_no_output(scene: Scene) -> None:
    project = scene.project()
    build(project, scene.sources(), scene.place / "out")
    file = scene.place / "base" / "model.safetensors"
    flip(file, file.stat().st_size * 8 - 1000)
    with pytest.raises(OutputDiffers, match=r"model\.safetensors differs") as caught:
        rebuild(project, scene.sources(), scene.place / "again")
    assert caught.value.exit_code == 5
    assert not (scene.place / "again").exists()
    assert not list(scene.place.glob(".again*"))


@pytest.mark.parametrize("through", ["build", "rebuild"])
def test_another_base_of_the_same_shape_is_refused_before_the_first_build(scene: Scene, through: str) -> None:
    project = scene.project()
    lock(project, scene.sources())
    before = project.lock_path.read_bytes()
    file = scene.place / "base" / "model.safetensors"
    flip(file, file.stat().st_size * 8 - 1000)
    with pytest.raises(DigestMismatch, match="base is not the base of the lock: its tensors have the digest"):
        (build if through == "build" else rebuild)(project, scene.sources(), scene.place / "out")
    assert not (scene.place / "out").exists()
    assert project.lock_path.read_bytes() == before


def test_another_kind_of_base_is_refused_before_anything_is_computed(scene: Scene, minilm_bf16: weights.Pair) -> None:
    project = scene.project()
    lock(project, scene.sources())
    with pytest.raises(NotHomologous, match="is not the base of the lock"):
        rebuild(project, scene.sources(), scene.place / "out", base=str(minilm_bf16.base))


def test_offline_a_build_takes_what_is_here_and_nothing_else(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    with pytest.raises(NotFound, match=r"acme/search:1\.0\.0 is not on this machine"):
        rebuild(project, scene.sources(offline=True), scene.place / "out")
    build(project, scene.sources(), scene.place / "out")
    shutil.rmtree(scene.place / "shared")
    assert rebuild(project, scene.sources(offline=True), scene.place / "again").reproduced


def test_a_remote_that_vanishes_after_the_lock_is_told(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    shutil.rmtree(scene.place / "shared")
    with pytest.raises(RemoteUnavailable):
        build(project, scene.sources(), scene.place / "out")
    assert not (scene.place / "out").exists()


def test_other_bytes_behind_a_locked_name_are_refused(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    shutil.rmtree(scene.place / "shared")
    (scene.place / "shared").mkdir()
    other = Scene(scene.place / "other")
    base = scene.place / "base"
    post = perturbed(base, scene.place / "forged", 9)
    registry = Registry(other.place)
    for name in ("acme/search:1.0.0", "acme/chat:1.1.0"):
        deltareg.diff(base, post, registry, name, licence="apache-2.0")
        deltareg.push(registry, name, str(scene.place / "shared"))
    with pytest.raises(DigestMismatch, match=r"acme/search:1\.0\.0 at team is not what was locked") as caught:
        build(project, scene.sources(), scene.place / "out")
    assert caught.value.exit_code == 5


def test_other_bytes_that_come_once_all_was_looked_at_are_refused(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    base, shared = scene.place / "base", scene.place / "shared"
    registry = Registry(scene.place / "forger")
    forged = scene.place / "forged-remote"
    forged.mkdir()
    post = perturbed(base, scene.place / "forged", 9)
    for name in ("acme/search:1.0.0", "acme/chat:1.1.0"):
        deltareg.diff(base, post, registry, name, licence="apache-2.0")
        deltareg.push(registry, name, str(forged))

    def forge() -> None:
        shutil.rmtree(shared)
        forged.rename(shared)

    sources = scene.sources()
    with pytest.raises(DigestMismatch, match="is not what is expected"):
        build(project, sources, scene.place / "out", options=Options(progress=Meanwhile("base", forge)))
    assert not (scene.place / "out").exists()
    assert sources.registry.store.entries() == []


def test_a_remote_that_is_known_by_its_path_alone_is_to_be_named(scene: Scene) -> None:
    project = scene.project()
    shared = str(scene.place / "shared")
    lock(project, Sources(Registry(scene.place / "mine"), {shared: shared}, {}, shared))
    with pytest.raises(InvalidArgument, match="no remote is called") as caught:
        build(project, scene.sources("theirs"), scene.place / "out")
    assert caught.value.hint == "give the remote a name (deltareg remote add NAME URL --default), then deltareg lock"


def test_a_removed_version_is_told_by_its_name(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    Store(scene.place / "shared", create=False).remove(parse_reference("acme/chat:1.1.0"))
    with pytest.raises(NotFound, match=r"team does not have acme/chat:1\.1\.0 any more"):
        build(project, scene.sources(), scene.place / "out")


def test_a_dry_run_fetches_and_writes_nothing(scene: Scene) -> None:
    project = scene.project()
    report = build(project, scene.sources(), scene.place / "out", options=Options(dry_run=True))
    assert report.fetch_bytes > 0
    assert report.write_bytes == report.read_bytes - sum(
        pack.size
        for name in ("acme/search:1.0.0", "acme/chat:1.1.0")
        for pack in scene.sources().named("team").artifact(_candidate(scene, name)).packs
    )
    assert report.output is None
    assert not project.lock_path.exists()
    assert not (scene.place / "out").exists()
    assert not Registry(scene.place / "mine").store.entries()


def _candidate(scene: Scene, name: str) -> Candidate:
    reference = parse_reference(name)
    source = scene.sources().named("team")
    return next(one for one in source.candidates(reference.repository) if one.reference == reference)


def test_what_is_in_the_way_is_told_before_anything_is_fetched(scene: Scene) -> None:
    (scene.place / "out").mkdir()
    (scene.place / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists):
        build(scene.project(), scene.sources(), scene.place / "out")
    assert not Registry(scene.place / "mine").store.entries()


def test_a_build_is_overwritten_by_the_next(scene: Scene) -> None:
    project = scene.project()
    build(project, scene.sources(), scene.place / "out")
    build(project, scene.sources(), scene.place / "out", options=Options(overwrite=True))
    assert "deltareg.lock" in files_of(scene.place / "out")


def test_a_recipe_with_a_fingerprint_alone_is_locked_but_not_built(scene: Scene) -> None:
    digest = fingerprint(scene.place / "base").fingerprint.digest
    project = scene.project(f'[build]\nbase = "{digest}"\n[[delta]]\nref = "acme/search"\n')
    lock(project, scene.sources())
    assert project.lock().base.fingerprint == digest
    with pytest.raises(InvalidArgument, match="knows only the fingerprint"):
        build(project, scene.sources(), scene.place / "out")
    report = rebuild(project, scene.sources(), scene.place / "out", base=str(scene.place / "base"))
    assert report.output is not None
    wrong = scene.project(f'[build]\nbase = "sha256:{"0" * 64}"\n[[delta]]\nref = "acme/search"\n')
    with pytest.raises(NothingFits):
        lock(wrong, scene.sources(), update=None)


def test_a_lock_that_was_edited_is_refused_and_can_be_written_anew(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    text = project.lock_path.read_text()
    project.lock_path.write_text(text.replace('"weight": 0.6', '"weight": 0.7'))
    with pytest.raises(BadLock, match="not what its checksum says"):
        rebuild(project, scene.sources(), scene.place / "out")
    report = lock(project, scene.sources())
    assert "it is written anew" in report.warnings[0]
    assert project.lock_path.read_text() == text


def test_a_lock_of_a_newer_format_is_refused(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    fields = json.loads(project.lock_path.read_text())
    project.lock_path.write_text(json.dumps({**fields, "formatVersion": 2}))
    with pytest.raises(UnsupportedFormat, match="format version 2"):
        rebuild(project, scene.sources(), scene.place / "out")


def test_the_dtype_of_a_recipe_is_that_of_the_output(scene: Scene) -> None:
    text = '[build]\nbase = "base"\ndtype = "float32"\n[[delta]]\nref = "acme/search"\nweight = 0.5\n'
    build(scene.project(text), scene.sources(), scene.place / "out")
    with deltareg.Checkpoint.open(scene.place / "out") as out:
        assert {tensor.dtype for tensor in out.tensors.values()} == {"F32"}


def test_a_tree_draws_what_hangs_on_what(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    report = tree(project)
    assert [(row.reference, row.depth, row.wanted) for row in report.rows] == [
        ("acme/search:1.0.0", 0, "^1"),
        ("acme/chat:1.1.0", 0, "*"),
    ]


def test_a_tree_of_any_depth_is_drawn(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    found = project.lock()
    chain = [
        found.deltas[0].model_copy(
            update={
                "reference": f"acme/link-{number}:1.0.0",
                "wanted": None if number else "*",
                "required_by": [f"acme/link-{number - 1}"] if number else [],
            }
        )
        for number in range(2000)
    ]
    write_lock(found.model_copy(update={"deltas": chain}), project.lock_path)
    assert [row.depth for row in tree(project).rows] == list(range(2000))


def test_what_was_yanked_and_not_replaced_is_told_as_such(scene: Scene) -> None:
    project = scene.project()
    lock(project, scene.sources())
    DirectoryRemote(scene.place / "shared").yank(parse_reference("acme/search:1.0.0"), "trained on the test set")
    rows = {row.reference: row for row in outdated(project, scene.sources()).rows}
    assert rows["acme/search"].note == "yanked: trained on the test set"
    assert (rows["acme/search"].fitting, rows["acme/chat"].latest) == ("1.0.0", "1.1.0")


def test_a_deprecated_version_is_chosen_locked_and_built_with_a_warning(scene: Scene) -> None:
    project = scene.project()
    DirectoryRemote(scene.place / "shared").deprecate(parse_reference("acme/chat:1.1.0"), "take acme/talk")
    report = lock(project, scene.sources())
    assert "acme/chat 1.1.0 is deprecated: take acme/talk" in report.warnings
    assert project.lock().deltas[1].reference == "acme/chat:1.1.0"
    told = "acme/chat:1.1.0 is deprecated: take acme/talk"
    assert told in build(project, scene.sources(), scene.place / "out").warnings
    # Here by now, and marked here.
    assert told in build(project, scene.sources(), scene.place / "again").warnings
    rows = {row.reference: row for row in outdated(project, scene.sources()).rows}
    assert rows["acme/chat"].note == "deprecated: take acme/talk"


# --- deltas on top of others --------------------------------------------------------------------------------------


def test_a_stacked_delta_brings_its_parent_at_the_right_weight(scene: Scene) -> None:
    base = scene.place / "base"
    registry = Registry(scene.place / "publisher")
    middle = perturbed(base, scene.place / "middle", 5)
    top = perturbed(middle, scene.place / "top", 6)
    scene.publish("acme/instruct:1.0.0", base, middle)
    deltareg.diff(middle, top, registry, "acme/tone:1.0.0", licence="mit", on={"acme/instruct:1.0.0": 1.0})
    deltareg.push(registry, "acme/tone:1.0.0", str(scene.place / "shared"))
    project = scene.project('[build]\nbase = "base"\n[[delta]]\nref = "acme/tone"\nweight = 0.5\n')
    report = build(project, scene.sources(), scene.place / "out")
    assert [(one.reference, one.weight, one.required_by) for one in report.deltas] == [
        ("acme/instruct:1.0.0", 1.0, ["acme/tone"]),
        ("acme/tone:1.0.0", 0.5, []),
    ]
    assert [(row.reference, row.depth) for row in tree(project).rows] == [
        ("acme/tone:1.0.0", 0),
        ("acme/instruct:1.0.0", 1),
    ]
    assert why(project, scene.sources(), "acme/instruct").requirements[0].endswith("is required by acme/tone 1.0.0")


def test_what_a_base_holds_already_is_not_applied_to_it_again(scene: Scene) -> None:
    registry = Registry(scene.place / "publisher")
    deltareg.pull(registry, "acme/search:1.0.0", str(scene.place / "shared"))
    half = scene.place / "half"
    deltareg.apply(scene.place / "base", {"acme/search:1.0.0": 0.5}, registry, half)
    tuned = perturbed(half, scene.place / "tuned", 7)
    scene.publish("acme/tuned:1.0.0", half, tuned, on={"acme/search:1.0.0": 0.5})
    recipe = '[build]\nbase = "{}"\n[[delta]]\nref = "acme/tuned"\n'
    at_home = scene.project(recipe.format("half"))
    build(at_home, scene.sources(), scene.place / "out")
    assert [one.reference for one in at_home.lock().deltas] == ["acme/tuned:1.0.0"]
    made, wanted = (load_file(place / "model.safetensors") for place in (scene.place / "out", tuned))
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    assert [row.reference for row in tree(at_home).rows] == ["acme/tuned:1.0.0"]
    with pytest.raises(NotFound, match="does not lead to acme/search"):
        why(at_home, scene.sources(), "acme/search")
    lock(elsewhere := scene.project(recipe.format("base")), scene.sources())
    assert [one.reference for one in elsewhere.lock().deltas] == ["acme/search:1.0.0", "acme/tuned:1.0.0"]


def test_asking_for_the_same_in_other_words_keeps_what_was_built(scene: Scene) -> None:
    project = scene.project()
    built = build(project, scene.sources(), scene.place / "out")
    reworded = scene.project(more='version = ">=1, <3"\n')
    lock(reworded, scene.sources())
    kept = reworded.lock().output
    assert kept is not None
    assert kept.digest == built.output
    heavier = scene.project('[build]\nbase = "base"\n[[delta]]\nref = "acme/search"\nweight = 2\n')
    lock(heavier, scene.sources())
    assert heavier.lock().output is None
