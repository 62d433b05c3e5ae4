"""Importing a merge configuration: a recipe, and the deltas that it needs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from pydantic import Field

from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.errors import DeltaregError
from deltareg.manifest import Document, Preset
from deltareg.merge import subjects_of
from deltareg.mergekit.angles import THRESHOLD, furthest
from deltareg.mergekit.config import MergeConfig, Said, read_config
from deltareg.mergekit.document import refuse
from deltareg.mergekit.models import Model, find_model, repository_names
from deltareg.mergekit.plan import Choices, Plan
from deltareg.mergekit.planning import base_of, plan
from deltareg.mergekit.taking import ImportedDelta, Taker
from deltareg.mergekit.values import Places
from deltareg.mergekit.writing import RecipeFile
from deltareg.names import parse_licence, parse_reference
from deltareg.progress import SILENT, Progress
from deltareg.recipe import RECIPE_NAME
from deltareg.threads import thread_count

__all__ = ["NAMESPACE", "MergekitReport", "import_mergekit"]

NAMESPACE = "imported"
"""Where the deltas go unless a namespace is named."""


class MergekitReport(Document):
    """What `import-mergekit` did."""

    config: str = Field(description="mergekit's file")
    recipe: str = Field(description="the file of the recipe")
    text: str = Field(description="what the recipe's file holds")
    merge_method: str = Field(description="the method by mergekit's name")
    method: str = Field(description="the method by deltareg's name")
    base: str = Field(description="the base of the recipe")
    rewritten: bool = Field(description="whether a model that is added whole was made the base")
    deltas: list[ImportedDelta]
    notes: list[str] = Field(description="what changes nothing, or is done in another way")
    hints: list[str]
    dry_run: bool


def import_mergekit(
    config: Path | str,
    registry: Registry,
    recipe: Path | str = RECIPE_NAME,
    *,
    namespace: str = NAMESPACE,
    base: str | None = None,
    new_base: str | None = None,
    keep_base: bool = False,
    preset: Preset = "fast",
    licence: str | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> MergekitReport:
    """Write the recipe that merges as a configuration of mergekit says, and take the deltas that it needs.

    Each model becomes a delta from the base, `namespace`/model, unless the registry has the same delta already. `base`
    is the model that deltas are taken from where the configuration names none. `new_base` is a model that
    task_arithmetic adds whole: the recipe starts from it instead; `keep_base` forbids that where it is certain. The
    recipe is written last: should taking a delta fail, there is none.

    Raises BadMergeConfig with lines and reasons, OutputExists, NotHomologous, InvalidArgument, and what opening a
    checkpoint and `diff` raise.
    """
    parse_reference(f"{namespace}/name")
    if licence is not None:
        parse_licence(licence)
    path = Path(config)
    read = read_config(path)
    file = RecipeFile.open(Path(recipe), overwrite=overwrite)
    models = [find_model(model.name, path) for model in read.models]
    own = None if read.base is None else find_model(read.base, path)
    # What the user names counts from where the command runs.
    here = Path(os.getcwd()) / path.name
    named = [None if name is None else find_model(Said(name, 0), here) for name in (base, new_base)]
    choices = Choices(named[0], named[1], keep_base)
    with ExitStack() as stack:
        start = base_of(read, models, own, choices)
        before = stack.enter_context(Checkpoint.open(start.place, headers_only=dry_run))
        found = plan(read, models, own, choices, Places(subjects_of(before.tensors)))
        _refuse_turned(read, found, before, dry_run=dry_run)
        taker = Taker(registry, namespace, preset, licence, thread_count(threads), dry_run, progress)
        names = repository_names([wanted.model for wanted in found.deltas])
        deltas = [_taken(taker, before, wanted.model, name) for wanted, name in zip(found.deltas, names, strict=True)]
    text = file.text(read, found, deltas)
    if not dry_run:
        file.write(text)
    return MergekitReport(
        config=str(path),
        recipe=str(recipe),
        text=text,
        merge_method=read.method.text,
        method=found.method,
        base=found.base.said.text,
        rewritten=found.rewritten,
        deltas=deltas,
        notes=found.notes,
        hints=found.hints,
        dry_run=dry_run,
    )


def _taken(taker: Taker, before: Checkpoint, model: Model, name: str) -> ImportedDelta:
    try:
        return taker.delta(before, model, name)
    except DeltaregError as error:
        # Which of the models it was is not in every message.
        error.data.setdefault("line", model.said.line)
        error.data.setdefault("model", model.said.text)
        raise


def _refuse_turned(config: MergeConfig, found: Plan, before: Checkpoint, *, dry_run: bool) -> None:
    """Raise BadMergeConfig where mergekit's slerp would turn a tensor, which no sum of base and delta does."""
    other = found.nearly_parallel
    if other is None:
        return
    with Checkpoint.open(other.place, headers_only=dry_run) as after:
        if not (before.is_local and after.is_local):
            found.notes.append("whether all tensors point nearly the same way is found out when the delta is taken")
            return
        furthest_apart = furthest(before, after)
    if furthest_apart is not None and furthest_apart[1] <= THRESHOLD:
        name, cosine = furthest_apart
        raise refuse(
            config.path,
            config.method.line,
            f"slerp turns {name} about the origin (|cosine| {cosine:.4f}, not above {THRESHOLD}), and deltas do not "
            "tell of it",
            "merge_method: linear is near to it; or name the model that both were trained from, --base MODEL, to turn "
            "their deltas instead",
        )
