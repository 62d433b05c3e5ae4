"""What there is to tell about a delta: its config, its inventory, its manifest."""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from blake3 import blake3

import deltareg
from deltareg.artifact import pack
from deltareg.checkpoint import Checkpoint, Tensor
from deltareg.codec import FRAME_LANES, lane_of
from deltareg.digest import canonical_json
from deltareg.errors import BadCheckpoint
from deltareg.fingerprint import fingerprint_of, module_class
from deltareg.manifest import (
    CONFIG_TYPE,
    INVENTORY_TYPE,
    SIDE_FILE_TYPE,
    TITLE,
    Conflict,
    DeltaConfig,
    Descriptor,
    Exactness,
    Inventory,
    Manifest,
    Norms,
    Parent,
    Preset,
    Requirement,
    TensorEntry,
    encode,
)
from deltareg.progress import SILENT, Progress
from deltareg.sketch import SAMPLES_TYPE
from deltareg.sketch.sketches import PROJECTION_TYPE, Sketch, pack_sketches
from deltareg.store import Store
from deltareg.threads import in_order

__all__ = [
    "Taken",
    "chunk_digest",
    "digest_of",
    "joined_digest",
    "norm",
    "relative_error",
    "store_documents",
    "tensors_digest",
]


@dataclass(frozen=True)
class Taken:
    """A delta whose records are written: its parents, its tensors, the digest of each tensor of either parent.

    `samples` are those of base as their layer has them; `sketches` is empty where there are none to be stored.
    """

    base: Checkpoint
    post: Checkpoint
    entries: list[TensorEntry]
    base_digests: dict[str, bytes]
    post_digests: dict[str, bytes]
    preset: Preset
    exactness: Exactness
    samples: bytes
    sketches: Mapping[str, Sketch]


def norm(squares: list[float]) -> float:
    """The square root of a sum of squares, to six digits."""
    # Six digits: enough to judge a delta by, and the same on every machine whatever its square root rounds.
    return float(f"{math.sqrt(sum_of_squares(squares)):.6g}")


def sum_of_squares(squares: Iterable[float]) -> float:
    """The sum, the greatest float64 at most."""
    try:
        return min(math.fsum(squares), sys.float_info.max)
    except OverflowError:  # F64 beyond 10**154
        return sys.float_info.max


def relative_error(squares: Sequence[tuple[float, float]]) -> float:
    """‖Δ − Δ̂‖ / ‖Δ‖ to six digits, from the sums Σ Δ² and Σ (Δ − Δ̂)² of parts; 0 where there is no Δ."""
    try:
        whole, apart = (math.fsum(parts) for parts in zip(*squares, strict=True))
    except OverflowError:  # F64 beyond 10**154: a power of two, which changes neither the digits nor the ratio
        whole, apart = (math.fsum(part * 2.0**-64 for part in parts) for parts in zip(*squares, strict=True))
    return float(f"{math.sqrt(apart / whole):.6g}") if whole else 0.0


def store_documents(
    taken: Taken,
    packs: Sequence[Descriptor],
    store: Store,
    *,
    licence: str | None,
    description: str | None,
    requires: Sequence[Requirement] = (),
    conflicts: Sequence[Conflict] = (),
) -> tuple[bytes, int]:
    """Store the documents and side files; returns the manifest's bytes and the artifact's size in bytes."""
    told = {"requires": list(requires), "conflicts": list(conflicts)}
    config = encode(_config(taken, licence, description).model_copy(update=told))
    inventory = pack(encode(Inventory(tensors=taken.entries)))
    layers = [_titled(layer, f"pack-{number:05}.safetensors") for number, layer in enumerate(packs)]
    layers.append(_titled(_stored(store, inventory, INVENTORY_TYPE), "inventory.json.zst"))
    layers.append(_titled(_stored(store, taken.samples, SAMPLES_TYPE), "samples.bin.zst"))
    if taken.sketches:
        projections = pack_sketches(taken.sketches, taken.entries)
        layers.append(_titled(_stored(store, projections, PROJECTION_TYPE), "projections.bin.zst"))
    for relative in taken.post.side_files:
        data = pack(_side_file(taken.post, relative))
        layers.append(_titled(_stored(store, data, SIDE_FILE_TYPE), relative.as_posix()))
    manifest = Manifest(config=_stored(store, config, CONFIG_TYPE), layers=layers)
    raw = encode(manifest)
    return raw, len(raw) + sum(blob.size for blob in manifest.blobs)


def _side_file(post: Checkpoint, relative: Path) -> bytes:
    """A file that travels with the delta. Raises BadCheckpoint for a link that leads out of the checkpoint."""
    if not post.is_local:  # there are no links
        return post.read_file(relative)
    place = (post.root / relative).resolve()
    root = post.root.resolve()
    # The cache of the hub keeps the files of snapshots/REVISION in blobs/.
    homes = (root, root.parent.parent / "blobs") if root.parent.name == "snapshots" else (root,)
    if not any(place.is_relative_to(home) for home in homes):
        raise BadCheckpoint(
            f"{relative} of {post.id} is a link to {place}, outside of the checkpoint: it would be published",
            hint=f"copy the file into {post.root} if it belongs to the model",
            path=place,
        )
    return post.read_file(relative)


def _stored(store: Store, data: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=store.put(data), size=len(data))


def _titled(descriptor: Descriptor, title: str) -> Descriptor:
    return descriptor.model_copy(update={"annotations": {**(descriptor.annotations or {}), TITLE: title}})


def _config(taken: Taken, licence: str | None, description: str | None) -> DeltaConfig:
    return DeltaConfig(
        # The delta is as good without: what cannot be read of a tokenizer must not keep anybody from taking it.
        fingerprint=fingerprint_of(taken.base, lenient=True),
        base=_parent(taken.base, taken.base_digests),
        post=_parent(taken.post, taken.post_digests),
        exactness=taken.exactness,
        licence=licence or taken.post.licence,
        preset=taken.preset,
        norms=_norms(taken.entries),
        producer=f"deltareg {deltareg.__version__}",
        description=description,
    )


def _parent(checkpoint: Checkpoint, digests: dict[str, bytes]) -> Parent:
    tensors = checkpoint.tensors.values()
    dtypes: Counter[str] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.elements
    return Parent(
        # A directory may have a name that is no UTF-8; a JSON document may not.
        id=checkpoint.id.encode(errors="backslashreplace").decode(),
        revision=checkpoint.revision,
        digest=tensors_digest(checkpoint, digests),
        dtypes=dict(dtypes),
        parameters=sum(dtypes.values()),
        size=sum(tensor.nbytes for tensor in tensors),
        licence=checkpoint.licence,
    )


def chunk_digest(data: bytes | memoryview) -> bytes:
    """The BLAKE3 of a chunk of a tensor; nothing for one of no bytes."""
    return blake3(data).digest() if len(data) else b""


def joined_digest(chunks: list[bytes]) -> bytes:
    """The digest of a tensor, from those of its chunks."""
    return blake3(b"".join(chunks)).digest()


def tensors_digest(checkpoint: Checkpoint, digests: dict[str, bytes]) -> str:
    """The digest of a checkpoint's tensors, whatever files they lie in, from the digest of each tensor.

    A tensor's digest is the BLAKE3 of the BLAKE3 digests of its chunks of 1 Mi lanes: chunks can be digested in
    parallel. BLAKE3, because SHA-256 of both checkpoints would take a quarter of the time of a diff.
    """
    rows = [
        [tensor.name, tensor.dtype, list(tensor.shape), digests[tensor.name].hex()]
        for tensor in sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
    ]
    return "blake3:" + blake3(canonical_json(rows)).hexdigest()


def _norms(entries: list[TensorEntry]) -> dict[str, Norms]:
    base: dict[str, list[float]] = {}
    delta: dict[str, list[float]] = {}
    parameters: Counter[str] = Counter()
    for entry in entries:
        if entry.base_dtype is None or entry.post_dtype is None:
            continue
        found = module_class(entry.name)
        base.setdefault(found, []).append(entry.base_norm**2)
        delta.setdefault(found, []).append(entry.delta_norm**2)
        parameters[found] += math.prod(entry.shape)
    return {
        found: Norms(base=norm(base[found]), delta=norm(delta[found]), parameters=parameters[found])
        for found in sorted(parameters)
    }


def digest_of(checkpoint: Checkpoint, threads: int, progress: Progress = SILENT) -> str:
    """The digest of a checkpoint's tensors, as the description of a delta has it: all of it is read."""

    def steps() -> Generator[Callable[[], tuple[str, bytes]]]:
        for tensor in checkpoint.tensors.values():
            step = FRAME_LANES * lane_of(tensor.dtype).width
            for start in range(0, max(tensor.nbytes, 1), step):
                yield partial(_read_chunk_digest, tensor, start, min(step, tensor.nbytes - start), progress)

    chunks: dict[str, list[bytes]] = defaultdict(list)
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    with progress.step("base", total), closing(in_order(steps(), threads)) as results:
        for name, digest in results:
            chunks[name].append(digest)
    return tensors_digest(checkpoint, {name: joined_digest(parts) for name, parts in chunks.items()})


def _read_chunk_digest(tensor: Tensor, start: int, length: int, progress: Progress) -> tuple[str, bytes]:
    digest = chunk_digest(tensor.read(start, length))
    progress.advance(length)
    return tensor.name, digest
