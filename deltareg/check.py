"""Checking whether deltas fit a target, before anything is applied: from headers, configs, tokenizers and samples.

Nothing of the target's weights is read but the sampled values, so a model on the hub costs kilobytes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from pydantic import Field

from deltareg.artifact import Artifact
from deltareg.catalog import Registry
from deltareg.checkpoint import Checkpoint
from deltareg.codec import is_additive, lane_of
from deltareg.digest import Digest
from deltareg.errors import BadCheckpoint, InvalidArgument
from deltareg.fingerprint import fingerprint_of, tokenizer_fingerprint
from deltareg.fingerprint.structure import Structure, structure_digest, structure_of
from deltareg.fingerprint.tokenizer import (
    Readable,
    SideFiles,
    Tokenizer,
    TokenizerDifference,
    compare_tokenizers,
    read_tokenizer,
)
from deltareg.homology import (
    Finding,
    Severity,
    Verdict,
    compare_configurations,
    compare_fingerprints,
    compare_spaces,
    compare_tokenizer_fingerprints,
    delta_shapes,
    finding,
    has_output,
    has_token_embedding,
    verdict_of,
)
from deltareg.manifest import DeltaConfig, Document, Fingerprint, TensorEntry, TokenizerFingerprint
from deltareg.names import Reference
from deltareg.sketch import (
    SAMPLES_TYPE,
    UNRELATED_BELOW,
    Lineage,
    LineageVerdict,
    Samples,
    TensorSpec,
    compare_samples,
    judge,
    measure_lineage,
    read_samples,
)
from deltareg.threads import thread_count

__all__ = [
    "CheckReport",
    "CheckedDelta",
    "CheckedFinding",
    "CheckedLikeness",
    "CheckedLineage",
    "FingerprintReport",
    "Fit",
    "check",
    "dtype_fits",
    "fingerprint",
    "fit",
    "fit_description",
    "fitter",
]

_SAMPLES_LIMIT = 64 * 2**20
# Of a target on the hub each run of samples is a request of its own.
_MOST_REQUESTS = 64
# Runs of a target on disk: a cosine over 16 times as many values has a standard error below 0.002, and each run of a
# large model is a page of its own to a disk.
_MOST_READS = 16_384
_REQUIRED_SHOWN = 5
_VERDICTS: Sequence[Verdict] = ("identical", "homologous", "adaptable", "incompatible")


class CheckedFinding(Document):
    """One difference between a delta and the target."""

    code: str = Field(description="what it is: see `docs/errors.md`, Findings")
    severity: Severity
    subject: str = Field(description="the tensor, the field, or what else differs")
    delta: str = Field(description="what the delta, or its base, has")
    target: str = Field(description="what the target has")
    remedy: str = Field(description="what to do today")

    def __str__(self) -> str:
        return f"{self.subject}: {self.delta} against {self.target}"


class CheckedLikeness(Document):
    """How alike base and target are in one class of modules, estimated from samples; null where that cannot be said."""

    cosine: float | None
    distance: float | None = Field(description="‖target − base‖ / ‖base‖")
    distance_to_delta: float | None = Field(description="‖target − base‖ / ‖delta‖")
    values: int = Field(ge=0, description="values compared")


class CheckedLineage(Document):
    """What samples of the base's weights tell of the target's; null where too little could be compared."""

    verdict: LineageVerdict
    cosine: float | None = Field(description="of the matrices of the module class that is the least alike")
    distance: float | None = Field(description="‖target − base‖ / ‖base‖, estimated")
    distance_to_delta: float | None = Field(description="‖target − base‖ / ‖delta‖, estimated")
    values: int = Field(ge=0, description="values compared")
    classes: dict[str, CheckedLikeness] = Field(default={}, description="by module class")


class CheckedDelta(Document):
    """Whether one delta fits the target."""

    reference: str
    digest: str
    verdict: Verdict
    findings: list[CheckedFinding]
    lineage: CheckedLineage | None = Field(description="null where the delta holds no samples")


class CheckReport(Document):
    """Whether deltas fit a target, each by itself."""

    target: str
    verdict: Verdict = Field(description="the worst of the deltas'")
    deltas: list[CheckedDelta]
    bytes_read: int = Field(ge=0, description="of the target: headers, tokenizer files, samples")
    seconds: float


@dataclass(frozen=True)
class Fit:
    """How a delta lies on a target: what differs, and what `apply` needs to know to deal with it.

    `renamed` gives the target's name of a tensor by the base's, where these differ. `moved` gives the delta's row of a
    token, or −1, by the target's row, where these differ. `tokens_known`: whether the tokens of both sides are known;
    `faults` are tokenizers that could not be read.
    `at_home`: the target is the base, as far as names, shapes and sampled values tell. `own_base`: they do tell: there
    are samples, and all of them are the target's.
    """

    checked: CheckedDelta
    base: Structure
    target: Structure
    renamed: Mapping[str, str]
    moved: Mapping[int, int]
    tokens_known: bool
    at_home: bool
    own_base: bool
    faults: tuple[str, ...]


class FingerprintReport(Document):
    """The fingerprint of a checkpoint."""

    checkpoint: str
    fingerprint: Fingerprint
    tensors: int = Field(ge=0)
    parameters: int = Field(ge=0, description="elements of all tensors")


def check(
    target: Checkpoint | str | os.PathLike[str],
    references: Iterable[Reference | str],
    registry: Registry,
    *,
    threads: int | None = None,
) -> CheckReport:
    """Whether each of the deltas `references` in `registry` fits `target`, why, and what to do.

    Verdicts: "identical", the target is the delta's base as far as headers, config, tokenizer and samples tell;
    "homologous", `apply` takes it; "adaptable", `apply` takes it too and does what the findings' remedies say;
    "incompatible", `apply` refuses it. How several deltas go together is not looked at. Raises NotFound, BadName,
    InvalidArgument, DigestMismatch, BadManifest, UnsupportedFormat; BadCheckpoint, BadHeader and what else opening the
    target raises.
    """
    started = time.monotonic()
    wanted = list(references)
    if not wanted:
        raise InvalidArgument("no delta was named", hint="deltareg check namespace/name:1.2.3 --base TARGET")
    count = thread_count(threads)
    named = [(version, registry.artifact(version)) for version in map(registry.version_of, wanted)]
    with ExitStack() as stack:
        opened = (
            target
            if isinstance(target, Checkpoint)
            else stack.enter_context(Checkpoint.open(target, headers_only=True))
        )
        side = _Target(opened)
        deltas = [_fit(version, artifact, side, count).checked for version, artifact in named]
        return CheckReport(
            target=opened.id,
            verdict=_VERDICTS[max(_VERDICTS.index(delta.verdict) for delta in deltas)],
            deltas=deltas,
            bytes_read=side.bytes_read,
            seconds=time.monotonic() - started,
        )


def fit(
    target: Checkpoint,
    deltas: Iterable[tuple[Reference, Artifact]],
    *,
    threads: int | None = None,
    lenient: bool = False,
) -> list[Fit]:
    """How each of `deltas` lies on `target`, by itself. Raises what `check` raises.

    With `lenient` a tokenizer that cannot be read counts as none: `Fit.faults` says why.
    """
    side = _Target(target, lenient=lenient)
    return [_fit(reference, artifact, side, thread_count(threads)) for reference, artifact in deltas]


def fitter(
    target: Checkpoint, *, threads: int | None = None, weights: Samples | bool = True
) -> Callable[[Reference, Artifact], Fit]:
    """What judges one delta after another: of `target` nothing is read twice. Raises what `check` raises.

    `weights`: samples that somebody took of the target where its weights are elsewhere; False where nothing is known of
    them.
    """
    side = _Target(target, weights=weights)
    count = thread_count(threads)
    return lambda reference, artifact: _fit(reference, artifact, side, count)


def fingerprint(checkpoint: Checkpoint | str | os.PathLike[str]) -> FingerprintReport:
    """The fingerprint of a checkpoint, of which headers, config and tokenizer are read.

    Raises BadCheckpoint, BadHeader and what else opening it raises.
    """
    with ExitStack() as stack:
        opened = (
            checkpoint
            if isinstance(checkpoint, Checkpoint)
            else stack.enter_context(Checkpoint.open(checkpoint, headers_only=True))
        )
        return FingerprintReport(
            checkpoint=opened.id,
            fingerprint=fingerprint_of(opened),
            tensors=len(opened.tensors),
            parameters=sum(tensor.elements for tensor in opened.tensors.values()),
        )


class _Target:
    """A target, and what is read of it once for all deltas. A folder of files to `read_tokenizer`."""

    def __init__(self, checkpoint: Checkpoint, *, lenient: bool = False, weights: Samples | bool = True) -> None:
        self.checkpoint = checkpoint
        self.weights = weights
        self.faults: list[str] = []
        self._lenient = lenient
        self.shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors.values()}
        self.structure = structure_of(checkpoint.config, self.shapes)
        first = next(iter(checkpoint.tensors.values()), None)
        self.remote = first is not None and first.file_range() is None
        self.bytes_read = sum(_header_size(checkpoint, shard.tensors, shard.size) for shard in checkpoint.shards)

    @cached_property
    def digest(self) -> str:
        return structure_digest(self.structure, self.shapes)

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        return self.read_tokenizer(self)

    def read_tokenizer(self, folder: Readable) -> Tokenizer | None:
        """The tokenizer in a folder; raises BadCheckpoint, or notes the fault where that is asked for."""
        try:
            return read_tokenizer(folder)
        except BadCheckpoint as error:
            if not self._lenient:
                raise
            self.faults.append(error.message)
            return None

    def names(self) -> Sequence[str]:
        return [path.as_posix() for path in self.checkpoint.side_files]

    def read(self, name: str, limit: int) -> bytes:
        data = self.checkpoint.read_file(name)
        self.bytes_read += len(data)
        return SideFiles({name: data}, self.checkpoint.id).read(name, limit)


def _header_size(checkpoint: Checkpoint, tensors: Sequence[str], size: int) -> int:
    return min((checkpoint.tensors[name].start for name in tensors), default=size)


def _fit(reference: Reference, artifact: Artifact, target: _Target, threads: int) -> Fit:
    config, inventory = artifact.config, artifact.inventory
    base = Structure(config.fingerprint.model_type, config.fingerprint.structure, config.fingerprint.behaviour)
    shapes = delta_shapes(inventory)
    findings, renamed = compare_spaces(inventory, base, target.shapes, target.structure)
    findings += _dtypes(inventory.tensors, target.checkpoint, renamed)
    lineage = _lineage(artifact, target, renamed, threads)
    verdict = "unknown" if lineage is None else judge(lineage)
    ties = [side.structure.get("tied_embeddings") for side in (base, target.structure)]
    untied = ties[0] != ties[1] and (has_output(shapes, base) or has_output(target.shapes, target.structure))
    fields = compare_configurations(base, target.structure, untied=untied)
    findings += [_softened(found, verdict) for found in fields]
    tokens = _Tokens(artifact, target)
    findings += tokens.findings(embedding=has_token_embedding(shapes))
    findings += _lineage_findings(lineage, verdict, sampled=bool(artifact.manifest.layers_of(SAMPLES_TYPE)))
    if config.exactness.kind == "lossy":
        findings.append(finding("delta-lossy", "delta", str(config.exactness), "exact"))
    removed = {entry.name for entry in inventory.tensors if entry.kind == "removed"}
    kept = {name: shape for name, shape in shapes.items() if name not in removed or name in target.shapes}
    equal = None if lineage is None else lineage.total.equal
    # Such a target holds already what the delta was taken on top of.
    own_base = kept == target.shapes and equal == 1
    if not own_base:
        findings += _stacked(config)
    identical = (
        verdict == "same"
        and shapes == target.shapes
        and config.fingerprint.digest == target.digest
        and not fields
        and config.fingerprint.tokenizer == tokenizer_fingerprint(target.tokenizer)
    )
    checked = CheckedDelta(
        reference=str(reference),
        digest=artifact.digest,
        verdict=verdict_of(_between_base_and_target(findings), identical=identical),
        findings=_checked(findings),
        lineage=None if lineage is None else _shown(lineage, verdict),
    )
    return Fit(
        checked,
        base,
        target.structure,
        renamed,
        tokens.moved,
        tokens.known,
        kept == target.shapes and equal in (None, 1),
        own_base,
        tuple(target.faults),
    )


def fit_description(
    reference: Reference,
    digest: Digest,
    config: DeltaConfig,
    target: Structure,
    tokenizer: TokenizerFingerprint | None,
    digests: tuple[str, str] | None,
) -> CheckedDelta:
    """Whether a delta fits a target of which no tensor is known, as `compare_fingerprints` takes it.

    The verdict is "homologous" at best: nothing tells of the weights.
    """
    findings = compare_fingerprints(config.fingerprint, target, tokenizer, digests)
    findings.append(finding("lineage-unknown", "weights", "not compared", "not compared"))
    if config.exactness.kind == "lossy":
        findings.append(finding("delta-lossy", "delta", str(config.exactness), "exact"))
    findings += _stacked(config)
    verdict = verdict_of(_between_base_and_target(findings), identical=False)
    return CheckedDelta(
        reference=str(reference), digest=digest, verdict=verdict, findings=_checked(findings), lineage=None
    )


def _stacked(config: DeltaConfig) -> list[Finding]:
    if not config.requires:
        return []
    shown = ", ".join(f"{one.reference} {one.version}" for one in config.requires[:_REQUIRED_SHOWN])
    more = len(config.requires) - _REQUIRED_SHOWN
    return [finding("delta-stacked", "requires", shown + (f" and {more} more" if more > 0 else ""), "none")]


def _checked(findings: Iterable[Finding]) -> list[CheckedFinding]:
    """The findings as documents, the worst first."""
    return [
        CheckedFinding(
            code=found.code,
            severity=found.severity,
            subject=found.subject,
            delta=found.delta,
            target=found.target,
            remedy=found.remedy,
        )
        for found in sorted(findings, key=_rank)
    ]


def _rank(found: Finding) -> int:
    return ("error", "warning", "note").index(found.severity)


def _softened(found: Finding, lineage: LineageVerdict) -> Finding:
    """Another name of the architecture matters less than weights that are known to have a common ancestor."""
    if found.code != "model-type" or lineage not in ("same", "related"):
        return found
    return finding(found.code, found.subject, found.delta, found.target, severity="warning")


# --- dtypes -------------------------------------------------------------------------------------------------------


def dtype_fits(entry: TensorEntry, dtype: str) -> bool:
    """Whether the record of a tensor can be applied to a target's tensor of `dtype`. Raises UnsupportedFormat."""
    if entry.base_dtype is None or entry.post_dtype is None or entry.kind == "zero":
        return True
    if is_additive(entry):
        return lane_of(dtype).adds_to(lane_of(entry.post_dtype))
    return dtype in (entry.base_dtype, entry.post_dtype)


def _dtypes(entries: Iterable[TensorEntry], target: Checkpoint, renamed: dict[str, str]) -> list[Finding]:
    found: list[Finding] = []
    for entry in entries:
        tensor = target.tensors.get(renamed.get(entry.name, entry.name))
        if tensor is not None and entry.post_dtype is not None and not dtype_fits(entry, tensor.dtype):
            shown = f"{entry.base_dtype} → {entry.post_dtype}"
            found.append(finding("tensor-dtype", tensor.name, shown, tensor.dtype))
    return found


# --- tokenizer ----------------------------------------------------------------------------------------------------


class _Tokens:
    """The tokens of one delta and of the target."""

    def __init__(self, artifact: Artifact, target: _Target) -> None:
        self._base = artifact.config.fingerprint.tokenizer
        self._theirs = target.tokenizer
        self._other = tokenizer_fingerprint(self._theirs)
        base, other = self._base, self._other
        self._differ = base is not None and other is not None and (base.core, base.added) != (other.core, other.added)
        self._ours: Tokenizer | None = None
        if self._differ:
            files = SideFiles(artifact.side_files(), f"the side files of {artifact.digest}")
            self._ours = target.read_tokenizer(files)

    @property
    def known(self) -> bool:
        """Whether it is known which row of the delta is which token of the target."""
        return self._base is not None and self._other is not None and (not self._differ or self._ours is not None)

    @property
    def moved(self) -> dict[int, int]:
        """The delta's row, or −1, by the target's row, of tokens that have another row, or that one side lacks.

        The delta's tokens are those of post: what a row was taught, it was taught under post's token.
        """
        if self._ours is None or self._theirs is None:
            return {}
        ours, theirs = self._ours.tokens, self._theirs.tokens
        moved = {number: ours.get(token, -1) for token, number in theirs.items()}
        gone = dict.fromkeys(ours.values(), -1)
        return {row: home for row, home in {**gone, **moved}.items() if row != home}

    def findings(self, *, embedding: bool) -> list[Finding]:
        """How the target's tokenizer differs from that of the delta's base."""
        difference: TokenizerDifference | None = None
        base, ours, theirs = self._base, self._ours, self._theirs
        known = base is not None and ours is not None and (ours.core, ours.added_digest) == (base.core, base.added)
        # An artifact has post's tokenizer: where training changed it, it tells nothing of the base's.
        if known and ours is not None and theirs is not None:
            difference = compare_tokenizers(ours, theirs)
        return compare_tokenizer_fingerprints(base, self._other, embedding=embedding, difference=difference)


# --- lineage ------------------------------------------------------------------------------------------------------


def _lineage(artifact: Artifact, target: _Target, renamed: dict[str, str], threads: int) -> Lineage | None:
    data = artifact.layer(SAMPLES_TYPE, limit=_SAMPLES_LIMIT) if target.weights is not False else None
    if data is None:
        return None
    entries = [entry for entry in artifact.inventory.tensors if entry.base_dtype is not None]
    specs = [TensorSpec(entry.name, entry.base_dtype or "", tuple(entry.shape)) for entry in entries]
    samples = read_samples(data, specs)
    norms = {entry.name: entry.delta_norm for entry in entries}, {entry.name: entry.base_norm for entry in entries}
    if isinstance(target.weights, Samples):
        return compare_samples(samples, target.weights, renamed=renamed, delta_norms=norms[0], base_norms=norms[1])
    most = _MOST_REQUESTS if target.remote else _MOST_READS
    lineage = measure_lineage(
        samples,
        target.checkpoint,
        renamed=renamed,
        delta_norms=norms[0],
        base_norms=norms[1],
        threads=threads,
        # Where all can be read, what is no matrix is compared too.
        most_reads=most if samples.plan.owners.size > most else None,
    )
    target.bytes_read += lineage.bytes_read
    return lineage


def _lineage_findings(lineage: Lineage | None, verdict: LineageVerdict, *, sampled: bool) -> list[Finding]:
    if lineage is None:
        return [finding("lineage-unknown", "weights", "samples" if sampled else "no samples", "not compared")]
    lowest = lineage.lowest
    if lowest is None:
        values = lineage.total.matrix_values
        return [finding("lineage-unknown", "weights", "samples", f"{values} values of matrices compared")]
    if verdict != "unrelated":
        return []
    subject = "weights of all matrices" if lowest[0] == "total" else f"weights of {lowest[0]}"
    return [finding("lineage-unrelated", subject, f"cosine of at least {UNRELATED_BELOW}", f"cosine {lowest[1]:.2f}")]


def _shown(lineage: Lineage, verdict: LineageVerdict) -> CheckedLineage:
    return CheckedLineage(
        verdict=verdict,
        cosine=None if lineage.lowest is None else _finite(lineage.lowest[1]),
        distance=_finite(lineage.total.distance),
        distance_to_delta=_finite(lineage.total.distance_to_delta),
        values=lineage.total.values,
        classes={
            name: CheckedLikeness(
                cosine=_finite(found.cosine),
                distance=_finite(found.distance),
                distance_to_delta=_finite(found.distance_to_delta),
                values=found.values,
            )
            for name, found in lineage.classes.items()
        },
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _between_base_and_target(findings: Iterable[Finding]) -> list[Finding]:
    """What training added, and how exact the delta is, is told, and is no difference between base and target."""
    told = ("delta-lossy", "head-only-in-post", "tensor-only-in-post")
    return [found for found in findings if found.code not in told]
