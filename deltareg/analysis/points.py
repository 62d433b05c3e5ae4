"""A recipe with other weights: built into a directory that goes away again, or put on a model in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import deltareg
from deltareg.analysis.models import directory_of, load_model, load_tokenizer, need_transformers
from deltareg.apply import Live
from deltareg.build import Project, lock, rebuild
from deltareg.build.building import Options, check_base, check_tensors, pinned, prepared, weights_and_parameters
from deltareg.build.fetch import check_locked, fetch, fetches
from deltareg.build.settings import parameter_schedules
from deltareg.checkpoint import Checkpoint
from deltareg.errors import InvalidArgument, NotHomologous, translate_os_errors
from deltareg.lock import LOCK_NAME, Lock, LockedDelta, write_lock
from deltareg.progress import SILENT, Progress
from deltareg.recipe import RECIPE_NAME, Number
from deltareg.resolve import Sources
from deltareg.resolve.resolve import location_in

__all__ = ["LivePoints", "Place", "Varied", "built", "current_lock", "vary"]

_WEIGHT_LIMIT = 3.4e38


@dataclass(frozen=True)
class Place:
    """A point: α, and β where two weights vary."""

    alpha: float
    beta: float | None = None


@dataclass(frozen=True)
class Varied:
    """A lock whose weights change: `names` are the deltas of α and β, `fused` gives them α and 1 − α."""

    lock: Lock
    names: Sequence[str]
    fused: bool = False

    def at(self, place: Place) -> Lock:
        """The lock of a point. Raises InvalidArgument where a weight becomes larger than any may be."""
        factors = (place.alpha, 1 - place.alpha) if self.fused else (place.alpha, place.beta)
        changed = dict(zip(self.names, factors, strict=False))
        deltas = [
            one if (factor := changed.get(one.name.repository)) is None else self._weighted(one, factor)
            for one in self.lock.deltas
        ]
        # What comes out is another output than the lock's.
        return self.lock.model_copy(update={"deltas": deltas, "output": None})

    def _weighted(self, delta: LockedDelta, factor: float) -> LockedDelta:
        if self.fused:
            return delta.model_copy(update={"weight": factor})
        where = {selector: _scaled(value, factor, delta) for selector, value in delta.where.items()}
        return delta.model_copy(update={"weight": _scaled(delta.weight, factor, delta), "where": where})


def current_lock(project: Project, sources: Sources, *, threads: int | None, progress: Progress = SILENT) -> Lock:
    """The recipe's lock, which is written first where it is missing or older than the recipe. Raises as `lock`."""
    found = project.lock_if_any()
    if found is None or found.recipe != project.recipe.digest:
        lock(project, sources, threads=threads, progress=progress)
        found = project.lock()
    # Points are built from another directory.
    place = location_in(found.base.location, project.directory)
    if place.startswith("sha256:") or found.base.location.startswith("sha256:"):
        raise InvalidArgument(
            f"{project.name} knows only the fingerprint of its base: enough to lock, too little to evaluate",
            hint="write base = a path or hf://org/name in it",
        )
    return found.model_copy(update={"base": found.base.model_copy(update={"location": place})})


def vary(found: Lock, project: Project, deltas: Sequence[str], *, count: int, fused: bool) -> Varied:
    """Which weights vary: those of the first `count` deltas of the recipe, after the ones that are named.

    Raises InvalidArgument for a delta that the recipe does not name, too few of them, a weight of 0 in the recipe
    (every multiple of it is 0), and weights by tensor with `fused`.
    """
    named = [one.ref for one in project.recipe.delta]
    for name in deltas:
        if name not in named:
            raise InvalidArgument(
                f"{project.name} has no delta {name}",
                cause=f"it has {', '.join(named) or 'none'}",
                hint="--delta takes namespace/name",
            )
    if len(deltas) > count or len(set(deltas)) < len(deltas):
        raise InvalidArgument(
            f"{len(deltas)} deltas are named, where {count} {'varies' if count == 1 else 'different ones vary'}",
            hint="--beta varies a second one",
        )
    names = [*deltas, *(name for name in named if name not in deltas)][:count]
    if len(names) < count:
        raise InvalidArgument(
            f"{project.name} has {len(named)} deltas, and {count} weights are to vary", hint="deltareg add adds one"
        )
    for name in names:
        delta = found.delta(name)
        assert delta is not None, "a current lock has what its recipe names"
        uniform = not delta.where and not isinstance(delta.weight, list)
        if fused and not uniform:
            raise InvalidArgument(
                f"the weight of {name} differs by tensor, and the fused line has one weight for all",
                hint="take `where` and the gradient out of the recipe",
            )
        if not fused and uniform and delta.weight == 0:
            raise InvalidArgument(
                f"the weight of {name} is 0 in {project.name}: every multiple of it is 0", hint="give it weight = 1"
            )
    return Varied(found, names, fused)


@contextmanager
def built(found: Lock, sources: Sources, options: Options) -> Generator[Path]:
    """What a lock says, built into a directory that is removed afterwards. Raises what `rebuild` raises."""
    with translate_os_errors("make a directory", tempfile.gettempdir()):
        scratch = tempfile.TemporaryDirectory(prefix="deltareg-")
    with scratch as directory:
        root = Path(directory)
        write_lock(found, root / LOCK_NAME)
        # Licences decide what may be passed on; this is deleted.
        rebuild(Project(root / RECIPE_NAME), sources, root / "model", options=replace(options, accept_licence=True))
        yield root / "model"


@dataclass
class LivePoints:
    """A base in memory, and the deltas of a lock on it; `found` gives them their first weights."""

    found: Lock
    sources: Sources
    options: Options
    model: Any = None
    tokenizer: Any = None
    warnings: list[str] = field(default_factory=list[str])

    def __enter__(self) -> Self:
        """Check everything as a build does, fetch the deltas, load the base with the tokenizer that a build has.

        Raises what `build` raises; InvalidArgument and UnsupportedFormat for what cannot be loaded or varied in memory.
        """
        need_transformers()
        found, how = self.found, self.options
        root = directory_of(pinned(found.base.location, found, None))
        with ExitStack() as stack:
            checkpoint = stack.enter_context(Checkpoint.open(root))
            check_base(found, checkpoint)
            for one in found.deltas:
                check_locked(one, self.sources)
            wanted = fetches(found, self.sources)
            self.warnings = [warning for one in wanted for warning in one.warnings]
            job = prepared(found, checkpoint, wanted, how)
            check_tensors(found, checkpoint, how)
            _refuse_dtype(found, {tensor.dtype for tensor in checkpoint.tensors.values()})
            fetch(wanted, self.sources, how.threads, how.progress)
        self.model = load_model(root, how.device)
        self.tokenizer = _tokenizer(job.files)
        self._live: Live = deltareg.live(self.model, self.sources.registry, tokenizer=root, threads=how.threads)
        self._live.merge(found.method, parameter_schedules(found.method, found.parameters), seed=found.seed)
        return self

    def put(self, found: Lock) -> None:
        """Give the deltas the weights of another point. Raises NotHomologous for what cannot be done in place."""
        try:
            report = self._live.replace(
                [(one.name, *weights_and_parameters(found, one)) for one in found.deltas],
                force=self.options.force,
                progress=self.options.progress,
            )
        except NotHomologous as error:
            # `live` does not know that there is another way.
            raise NotHomologous(
                error.message,
                cause=error.cause,
                hint="--eval builds a checkpoint for each point, which has room for what is added",
            ) from error
        self.warnings = list(dict.fromkeys([*self.warnings, *report.remedies, *report.warnings]))

    def __exit__(self, *_: object) -> None:
        self.model = self.tokenizer = None
        del self._live


def _refuse_dtype(found: Lock, dtypes: set[str]) -> None:
    names = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
    if found.dtype is not None and dtypes - {names[found.dtype]}:
        raise InvalidArgument(
            f"the recipe asks for {found.dtype}, and the base has {', '.join(sorted(dtypes))}",
            cause="a model in memory keeps the dtypes of its base",
            hint="--eval builds each point as the recipe says; or take dtype out of the recipe",
        )


def _tokenizer(files: Mapping[str, bytes]) -> Any:
    """The tokenizer that the output of a build would carry."""
    with (
        translate_os_errors("write the tokenizer", tempfile.gettempdir()),
        tempfile.TemporaryDirectory(prefix="deltareg-") as directory,
    ):
        for name, data in files.items():
            path = Path(directory) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return load_tokenizer(Path(directory))


def _scaled(weight: Number, factor: float, delta: LockedDelta) -> Number:
    values = [one * factor for one in weight] if isinstance(weight, list) else [weight * factor]
    if not all(abs(value) <= _WEIGHT_LIMIT for value in values):
        raise InvalidArgument(
            f"the weight of {delta.reference} would be {max(values, key=abs):g}",
            hint=f"a weight is at most {_WEIGHT_LIMIT:g}",
        )
    return values if isinstance(weight, list) else values[0]
