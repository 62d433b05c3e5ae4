"""Taking a delta: two checkpoints become an artifact in a registry."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
from pydantic import Field

from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.codec import (
    FRAME_LANES,
    Array,
    EncodedFrame,
    Kind,
    LowRankTensor,
    Mode,
    Preset,
    RecordHead,
    decode_frame,
    encode_difference,
    encode_replaced,
    encode_unchanged,
    kernels,
    lane_of,
    replaced,
    zero_frame,
)
from deltareg.codec.lanes import view_of
from deltareg.codec.memory import empty, frame_memory, read_lanes
from deltareg.codec.tiers import Tier, parse_tier
from deltareg.describe import Taken, chunk_digest, joined_digest, norm, relative_error, store_documents
from deltareg.digest import Digest, sha256
from deltareg.errors import DeltaregError, InvalidArgument, NotHomologous
from deltareg.fingerprint import layer_order
from deltareg.homology import compare_shapes, refuse_mismatch
from deltareg.lossy import LossyTensor, lossy_tensor
from deltareg.manifest import Conflict, Document, Exactness, RecordKind, Requirement, TensorEntry
from deltareg.merge import Addend, Block, linear
from deltareg.merge.linear import overwrite
from deltareg.names import Reference, parse_licence, parse_reference
from deltareg.progress import SILENT, Progress
from deltareg.relations import On, conflicts_of, requirements_of
from deltareg.sketch import take_samples
from deltareg.sketch.projection import LEAST_LANES, Sketcher
from deltareg.store import Store
from deltareg.store.packs import PackWriter
from deltareg.threads import in_order, thread_count

__all__ = ["DiffReport", "diff"]

_PRESETS = ("fast", "small")
# Tensors that are looked at before the frames of one.
_AHEAD = 3


class DiffReport(Document):
    """What `diff` did. Sizes in bytes; `ratio` is raw size over artifact size.

    `relative_error` is ‖Δ − Δ̂‖ / ‖Δ‖ over all tensors that are added to; null where the delta is exact.
    """

    reference: str
    digest: str | None
    tensors: int
    parameters: int
    raw_size: int
    artifact_size: int
    ratio: float
    bits_per_parameter: float
    changed: int
    mended: int
    overwritten: int
    codec: str
    relative_error: float | None
    kinds: dict[str, int]
    requires: list[Requirement] = Field(default=[])
    conflicts: list[Conflict] = Field(default=[])
    seconds: float
    dry_run: bool


def diff(
    base: Checkpoint | str | os.PathLike[str],
    post: Checkpoint | str | os.PathLike[str],
    registry: Registry,
    reference: Reference | str,
    *,
    preset: Preset = "fast",
    codec: str = "exact",
    licence: str | None = None,
    description: str | None = None,
    on: On = (),
    conflicts: Sequence[str] = (),
    threads: int | None = None,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> DiffReport:
    """Store what turns `base` into `post` under `reference`, a name with a version.

    `codec` is "exact", or one of `deltareg.codec.tiers.TIERS` for a smaller delta that is not: matrices are then
    approximated, and the error of each is recorded.

    `on` are deltas in `registry` that `base` holds already, with their weights: the delta requires them, and is applied
    together with them, or where they are in the target. `conflicts` are those that it must not be applied with, each
    `namespace/name`, or `namespace/name RANGE`.

    Holds a few frames of each at a time. With `dry_run` everything is encoded and nothing is kept. Raises
    NotHomologous, naming every tensor whose shape differs; VersionExists; InvalidArgument, BadName; NotFound for what
    the registry lacks of `on`; what opening a checkpoint raises.
    """
    started = time.monotonic()
    name = reference if isinstance(reference, Reference) else parse_reference(reference, version_required=True)
    if description is not None and description.encode(errors="replace").decode() != description:
        raise InvalidArgument("the description is not valid Unicode text", hint="write it in UTF-8")
    if licence is not None:
        parse_licence(licence)
    if preset not in _PRESETS:
        raise InvalidArgument(f"unknown preset {preset!r}", hint="presets are: fast, small")
    tier = parse_tier(codec)
    required, excluded = requirements_of(on, registry, name), conflicts_of(conflicts, name)
    with ExitStack() as stack:
        before = base if isinstance(base, Checkpoint) else stack.enter_context(Checkpoint.open(base))
        after = post if isinstance(post, Checkpoint) else stack.enter_context(Checkpoint.open(post))
        pairs = _pair(before, after)
        job = _Job(before, after, pairs, preset, tier, thread_count(threads), progress)
        store = registry.store
        if dry_run:
            store = Store(Path(stack.enter_context(TemporaryDirectory(prefix="deltareg-"))) / "registry")
        stack.enter_context(store.hold())
        packs = stack.enter_context(PackWriter(store))
        job.encode(packs)
        manifest, size = store_documents(
            job.taken(),
            packs.finish(),
            store,
            licence=licence,
            description=description,
            requires=required,
            conflicts=excluded,
        )
        if dry_run:
            registry.store.check_free(name, sha256(manifest))
        digest = None if dry_run else registry.publish(name, manifest)
    report = _report(job, str(name), digest, size, time.monotonic() - started)
    return report.model_copy(update={"requires": required, "conflicts": excluded})


@dataclass(frozen=True)
class _Pair:
    """One tensor's name, and the tensor on either side."""

    name: str
    base: Tensor | None
    post: Tensor | None


def _pair(base: Checkpoint, post: Checkpoint) -> list[_Pair]:
    """All tensors of both, in the order of the layers. Raises NotHomologous."""
    shared = sorted(base.tensors.keys() & post.tensors.keys(), key=layer_order)
    if not shared:
        raise NotHomologous(
            f"{base.id} and {post.id} have no tensor in common",
            hint="base and post must be the same model before and after training",
        )
    refuse_mismatch(
        compare_shapes(*({name: side.tensors[name].shape for name in shared} for side in (base, post))),
        message=f"{base.id} and {post.id} differ",
        hint="base and post must be the same model before and after training",
    )
    names = sorted(base.tensors.keys() | post.tensors.keys(), key=lambda name: (layer_order(name), name))
    return [_Pair(name, base.tensors.get(name), post.tensors.get(name)) for name in names]


@dataclass
class _Tally:
    """What is known of one tensor once its frames are done."""

    kinds: Counter[Kind] = field(default_factory=Counter[Kind])
    changed: int = 0
    mended: int = 0
    overwritten: int = 0
    base_squares: list[float] = field(default_factory=list[float])
    delta_squares: list[float] = field(default_factory=list[float])
    base_digests: list[bytes] = field(default_factory=list[bytes])
    post_digests: list[bytes] = field(default_factory=list[bytes])
    approximated: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def add(self, frame: EncodedFrame) -> None:
        self.kinds[frame.kind] += len(frame.data)
        self.changed += frame.changed
        self.mended += frame.mended
        self.overwritten += frame.overwritten
        self.base_squares.append(frame.base_squares)
        self.delta_squares.append(frame.delta_squares)

    @property
    def error(self) -> float | None:
        """‖Δ − Δ̂‖ / ‖Δ‖, to six digits; None where all is exact."""
        return relative_error(self.approximated) if self.approximated else None


@dataclass(frozen=True)
class _Step:
    """The work on up to one frame of a tensor: which pair, and which frame; `last` closes the tensor.

    `head` is that of an exact record; `lossy` is given where the tensor may be approximated.
    """

    pair: _Pair
    head: RecordHead | None
    number: int
    last: bool
    lossy: LossyTensor | None


@dataclass(frozen=True)
class _Done:
    """What a step found: the frame, and the digests of the chunks of base and post that it read.

    `head` is that of the tensor's record; `squares` are Σ Δ² and Σ (Δ − Δ̂)² of a frame that is approximated.
    """

    step: _Step
    head: RecordHead | None
    frame: EncodedFrame | None
    base: bytes
    post: bytes
    squares: tuple[float, float] | None


class _Job:
    """Encodes all pairs, frame by frame, and gathers what the documents need."""

    def __init__(
        self,
        base: Checkpoint,
        post: Checkpoint,
        pairs: list[_Pair],
        preset: Preset,
        tier: Tier,
        threads: int,
        progress: Progress,
    ) -> None:
        self.base = base
        self.post = post
        self.pairs = pairs
        self.preset: Preset = preset
        self.tier = tier
        self.threads = threads
        self.progress = progress
        self.entries: list[TensorEntry] = []
        self.base_digests: dict[str, bytes] = {}
        self.post_digests: dict[str, bytes] = {}
        self.kinds: Counter[str] = Counter()
        self._squares: list[tuple[float, float]] = []
        self._sketcher = _sketcher_of(pairs)

    @property
    def error(self) -> float | None:
        """‖Δ − Δ̂‖ / ‖Δ‖ of all; None where every tensor is exact."""
        return relative_error(self._squares) if any(entry.error is not None for entry in self.entries) else None

    def encode(self, packs: PackWriter) -> None:
        """Encode every tensor into `packs`."""
        total = sum(tensor.nbytes for pair in self.pairs for tensor in (pair.base, pair.post) if tensor is not None)
        total += sum(lossy.nbytes for pair in self.pairs if (lossy := self._lossy(pair)) is not None)
        tally, opened = _Tally(), False
        with self.progress.step("diff", total), closing(self._results()) as results:
            for done in results:
                if done is None:
                    continue
                pair, head = done.step.pair, done.head
                tally.base_digests.append(done.base)
                tally.post_digests.append(done.post)
                if done.frame is not None:
                    tally.add(done.frame)
                    self._squares.append(done.squares or (done.frame.delta_squares, 0.0))
                    if done.squares is not None:
                        tally.approximated.append(done.squares)
                    tells = done.frame.kind is not Kind.ZERO or done.frame.overwritten or done.frame.changed
                    if head is not None and (opened or tells):
                        opened = opened or self._open(packs, done.step, head)
                        packs.add(done.frame.data)
                if done.step.last:
                    if head is not None and head.base is None and not opened:
                        opened = self._open(packs, done.step, head)
                    homes, size = packs.end() if opened else ([], 0)
                    self.entries.append(self._entry(pair, tally, head if opened else None, homes, size))
                    tally, opened = _Tally(), False

    def taken(self) -> Taken:
        """What the documents tell of."""
        samples = take_samples(self.base, self.threads)
        sketches = {} if self._sketcher is None else self._sketcher.finish()
        error = self.error
        exactness = Exactness(kind="exact")
        if error is not None:
            exactness = Exactness(kind="lossy", relative_error=error, codec=str(self.tier))
        return Taken(
            self.base,
            self.post,
            self.entries,
            self.base_digests,
            self.post_digests,
            self.preset,
            exactness,
            samples,
            sketches,
        )

    def _open(self, packs: PackWriter, step: _Step, head: RecordHead) -> bool:
        """Begin a record at the first frame that says something; the frames before it say that nothing changes."""
        packs.begin(step.pair.name)
        packs.add(head.pack())
        if isinstance(step.pair.post, LowRankTensor):
            for frame in step.pair.post.factors.encode(self.preset):
                packs.add(frame)
        elif step.lossy is not None and head.low_rank is not None:
            for frame in step.lossy.factor_frames:
                packs.add(frame)
        if head.low_rank is None or head.low_rank.rest is not None:
            for _ in range(step.number):
                packs.add(zero_frame())
        return True

    def _results(self) -> Generator[_Done | None]:
        return in_order(self._tasks(), self.threads)

    def _tasks(self) -> Generator[Callable[[], _Done | None]]:
        waiting: deque[Generator[_Step]] = deque()
        for pair in self.pairs:
            lossy = self._lossy(pair)
            if lossy is not None:
                yield from lossy.survey()
            waiting.append(self._steps(pair, lossy))
            # Frames wait for what must be known of their tensor: meanwhile that of the next ones is found out.
            if len(waiting) > _AHEAD:
                yield from (partial(self._run, step) for step in waiting.popleft())
        for steps in waiting:
            yield from (partial(self._run, step) for step in steps)

    def _lossy(self, pair: _Pair) -> LossyTensor | None:
        if isinstance(pair.post, LowRankTensor):
            return None  # its factors are stored as they are
        return lossy_tensor(pair.base, pair.post, self.tier, self.preset, self.progress)

    def _steps(self, pair: _Pair, lossy: LossyTensor | None) -> Generator[_Step]:
        if pair.post is None:
            head = None
            count = _chunks(pair.base)
        else:
            head = _head(pair.base, pair.post)
            count = max(_chunks(pair.base), _chunks(pair.post))
        for number in range(max(count, 1)):
            yield _Step(pair, head, number, number + 1 >= count, lossy)

    def _run(self, step: _Step) -> _Done:
        """Read one chunk of base and of post, digest them, and encode the frame between them."""
        with frame_memory():
            return self._run_in_memory(step)

    def _run_in_memory(self, step: _Step) -> _Done:
        base = _read_chunk(step.pair.base, step.number)
        post = _read_chunk(step.pair.post, step.number)
        self.progress.advance(base.nbytes + post.nbytes)
        pair = step.pair
        base_digest = chunk_digest(view_of(base))
        same = pair.base is not None and pair.post is not None and pair.base.dtype == pair.post.dtype
        unchanged = same and bool(kernels.equal(base, post))
        post_digest = base_digest if unchanged else chunk_digest(view_of(post))
        head, frame, squares = step.head, None, None
        approximate = None if step.lossy is None else step.lossy.head
        if head is not None and post.size:
            delta = None
            if head.low_rank is not None:
                frame, delta = _low_rank(step, base)
            elif unchanged and (approximate is None or approximate.low_rank is None):
                frame = encode_unchanged(base, head.post)
            elif step.lossy is not None and approximate is not None:
                found = step.lossy.encode(approximate, step.number, base, post)
                frame, delta, squares = found.frame, found.delta, (found.squares, found.apart)
            else:
                frame, delta = _encode(head, base, post, self.preset, pair.name)
            if self._sketcher is not None and head.mode is Mode.ADD:
                self._sketcher.add(pair.name, head.lanes, step.number, delta)
        return _Done(step, approximate or head, frame, base_digest, post_digest, squares)

    def _entry(self, pair: _Pair, tally: _Tally, head: RecordHead | None, homes: list[int], size: int) -> TensorEntry:
        """`head` is that of the record, if one was written."""
        if pair.base is not None:
            self.base_digests[pair.name] = joined_digest(tally.base_digests)
        if pair.post is not None:
            self.post_digests[pair.name] = joined_digest(tally.post_digests)
        shown = pair.post or pair.base
        assert shown is not None
        kind = _kind(pair, tally, head)
        if size:
            self.kinds[kind] += size
        low_rank = head.low_rank if head is not None and kind == "lowrank" else None
        return TensorEntry(
            name=pair.name,
            kind=kind,
            base_dtype=None if pair.base is None else pair.base.dtype,
            post_dtype=None if pair.post is None else pair.post.dtype,
            delta_dtype=None if head is None else head.delta_dtype,
            rank=None if low_rank is None else low_rank.rank,
            shape=list(shown.shape),
            packs=homes,
            size=size,
            changed=tally.changed,
            mended=tally.mended,
            overwritten=tally.overwritten,
            base_norm=norm(tally.base_squares),
            delta_norm=norm(tally.delta_squares),
            error=tally.error,
        )


def _head(base: Tensor | None, post: Tensor) -> RecordHead:
    if isinstance(post, LowRankTensor):
        return RecordHead.of_product(post.dtype, post.shape, post.low_rank)
    return RecordHead.of(None if base is None else base.dtype, post.dtype, post.shape)


def _low_rank(step: _Step, base: Array) -> tuple[EncodedFrame, Array]:
    """What there is to tell of one frame of a product, which has no bytes of its own; and its D1."""
    assert step.head is not None
    symbols = cast("LowRankTensor", step.pair.post).factors.product.symbols(step.number * FRAME_LANES, base.size)
    lane = step.head.delta
    delta = symbols.view(lane.stored)
    return EncodedFrame(
        b"",
        Kind.ZERO,
        int(np.count_nonzero(symbols != lane.marker)),
        base_squares=kernels.sum_of_squares(base.view(step.head.post.stored)),
        delta_squares=kernels.sum_of_squares(delta),
    ), delta


def _chunks(tensor: Tensor | None) -> int:
    """How many chunks of 1 Mi lanes the tensor is read in."""
    if tensor is None:
        return 0
    return -(-tensor.nbytes // (FRAME_LANES * lane_of(tensor.dtype).width))


def _read_chunk(tensor: Tensor | None, number: int) -> Array:
    """The chunk's bits, of the lane's unsigned type; empty beyond the tensor's end."""
    if tensor is None:
        return np.empty(0, np.uint8)
    lane = lane_of(tensor.dtype)
    first = number * FRAME_LANES
    return read_lanes(tensor, first, max(0, min(FRAME_LANES, tensor.nbytes // lane.width - first)))


def _sketcher_of(pairs: list[_Pair]) -> Sketcher | None:
    """None for a model so small that reading its records takes little longer than reading sketches of them."""
    lanes = sum(
        head.lanes
        for pair in pairs
        if pair.base is not None and pair.post is not None and (head := _head(pair.base, pair.post)).mode is Mode.ADD
    )
    return Sketcher() if lanes >= LEAST_LANES else None


def _encode(head: RecordHead, base: Array, post: Array, preset: Preset, name: str) -> tuple[EncodedFrame, Array | None]:
    """Encode one frame, and decode it again to prove that it gives post. Also gives D1, where that is added."""
    if head.mode is Mode.REPLACE or head.base is None:
        frame = encode_replaced(base if head.sparse else None, post, head.post, preset)
    else:
        typed = base.view(head.base.stored)
        frame = encode_difference(typed, post.view(head.post.stored), head.base, head.post, preset)
    found, delta = _decode(head, base, frame, post.size)
    if not kernels.equal(found, post):
        raise DeltaregError(
            f"encoding {name!r} did not reproduce post; nothing was stored",
            hint="this is a defect of deltareg: please report it with the names of both checkpoints",
            tensor=name,
        )
    return frame, delta


def _decode(head: RecordHead, base: Array, encoded: EncodedFrame, lanes: int) -> tuple[Array, Array | None]:
    """The bits of post that a frame gives on its base, and D1 where it is added."""
    additive = head.mode is Mode.ADD
    frame = decode_frame(memoryview(encoded.data), lanes, head.mended_base, head.delta)
    if not additive or head.base is None:
        return replaced(base if head.sparse else None, frame, head.post), None
    out = empty(lanes, head.post.stored)
    addend = Addend(frame, head.base, head.post, 1.0)
    block = Block(base.view(head.base.stored), head.base, (addend,), out, head.post)
    linear(block)
    overwrite(block, addend)
    return out.view(head.post.bits), addend.delta


_KIND_NAMES: dict[Kind, RecordKind] = {
    # Where nothing but overwrites changes a tensor, its frames have no symbols: it is sparse to whoever reads of it.
    Kind.ZERO: "sparse",
    Kind.PALETTE: "palette",
    Kind.SPARSE: "sparse",
    Kind.PLANES: "planes",
    Kind.ARITHMETIC: "arithmetic",
}


def _kind(pair: _Pair, tally: _Tally, head: RecordHead | None) -> RecordKind:
    if pair.post is None:
        return "removed"
    if pair.base is None:
        return "full"
    if tally.changed == 0:
        return "zero"
    if head is not None and head.low_rank is not None and head.low_rank.rest is None:
        return "lowrank"
    if not lane_of(pair.base.dtype).adds_to(lane_of(pair.post.dtype)):
        return "full"
    return _KIND_NAMES[max(tally.kinds, key=lambda kind: (tally.kinds[kind], _KIND_NAMES[kind]))]


def _report(job: _Job, reference: str, digest: Digest | None, size: int, seconds: float) -> DiffReport:
    raw_size = sum(tensor.nbytes for tensor in job.post.tensors.values())
    parameters = sum(tensor.elements for tensor in job.post.tensors.values())
    return DiffReport(
        reference=reference,
        digest=digest,
        tensors=len(job.pairs),
        parameters=parameters,
        raw_size=raw_size,
        artifact_size=size,
        ratio=raw_size / size,
        bits_per_parameter=8 * size / max(parameters, 1),
        changed=sum(entry.changed for entry in job.entries),
        mended=sum(entry.mended for entry in job.entries),
        overwritten=sum(entry.overwritten for entry in job.entries),
        codec=str(job.tier),
        relative_error=job.error,
        kinds=dict(sorted(job.kinds.items())),
        seconds=seconds,
        dry_run=digest is None,
    )
