"""Whether a delta belongs on a target: findings, and the verdict that follows from them.

Everything here compares what is known already, and reads nothing: names and shapes of the tensors, the architecture's
configuration, the tokenizer's fingerprint. `deltareg.check` reads both sides, and adds dtypes and the lineage of the
weights.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from deltareg.errors import NotHomologous
from deltareg.fingerprint.structure import Structure, Value, canonical_names, compare_structures
from deltareg.fingerprint.structure_names import is_buffer, is_head, is_output, is_token_embedding
from deltareg.fingerprint.tokenizer import TokenizerDifference
from deltareg.manifest import Fingerprint, Inventory, TokenizerFingerprint

__all__ = [
    "FINDINGS",
    "Finding",
    "FindingKind",
    "Severity",
    "Space",
    "Verdict",
    "compare_configurations",
    "compare_fingerprints",
    "compare_shapes",
    "compare_spaces",
    "compare_tokenizer_fingerprints",
    "delta_shapes",
    "finding",
    "first_of",
    "has_output",
    "has_token_embedding",
    "refuse_mismatch",
    "verdict_of",
]

Severity = Literal["error", "warning", "note"]
Verdict = Literal["identical", "homologous", "adaptable", "incompatible"]
Shapes = Mapping[str, tuple[int, ...]]

_SHOWN = 12
_VALUE_SHOWN = 120
_VOCABULARIES = ("vocabulary_size", "output_vocabulary_size")
_TIED = "tied_embeddings"


@dataclass(frozen=True)
class FindingKind:
    """What a code stands for: how bad it is as a rule, what it means, what to do today, and how one reads."""

    severity: Severity
    meaning: str
    remedy: str
    example: str


_ANOTHER_TARGET = "Choose a target of the base's family and size, or train anew on this one."
_ONLY_TELLS = "Nothing needs to be done."
_ADDED = (
    "`apply` takes it from the delta, whatever the weight, where the target is the delta's own base, or with "
    "`--with-added`; otherwise it is left out."
)

FINDINGS: Mapping[str, FindingKind] = MappingProxyType(
    {
        "tensor-missing": FindingKind(
            "error",
            "The delta changes a tensor that the target lacks.",
            _ANOTHER_TARGET,
            "model.layers.31.mlp.up_proj.weight: shape [14336, 4096] against absent",
        ),
        "tensor-shape": FindingKind(
            "error",
            "A tensor has another shape in the target.",
            _ANOTHER_TARGET,
            "model.norm.weight: shape [4096] against shape [5120]",
        ),
        "tensor-unexpected": FindingKind(
            "error",
            "The target has a tensor that the delta's base lacks.",
            _ANOTHER_TARGET,
            "model.layers.32.mlp.up_proj.weight: absent against shape [14336, 4096]",
        ),
        "tensor-dtype": FindingKind(
            "error",
            "The delta cannot be added to the target's dtype, as that of integers, or of scaled 8-bit floats.",
            "Convert the target to the dtype of the delta's base, then apply.",
            "model.norm.weight: BF16 → BF16 against I8",
        ),
        "tensor-removed": FindingKind(
            "note",
            "The delta removes a tensor that the target lacks already.",
            _ONLY_TELLS,
            "pooler.dense.weight: removed against absent",
        ),
        "tensor-only-in-post": FindingKind(
            "note",
            "Training added a tensor.",
            _ADDED,
            "adapter.weight: only after training, shape [64, 64] against absent",
        ),
        "vocabulary-rows": FindingKind(
            "warning",
            "An embedding or output embedding has another number of rows, one for each token.",
            "Nothing, if the tokens of both are known: `apply` keeps the target's number of rows and changes those "
            "whose token both have. Where a side has no tokenizer it goes by row number: make sure that row r is the "
            "same token in both.",
            "model.embed_tokens.weight: shape [32000, 4096] against shape [32064, 4096]",
        ),
        "tied-head": FindingKind(
            "warning",
            "Input and output embedding are one tensor on one side, and two on the other.",
            "Nothing: `apply` adds a tied delta to both embeddings of the target. Where the target's are tied and the "
            "delta's are not, the output gets an output embedding of its own and `tie_word_embeddings` false.",
            "lm_head.weight: shape [32000, 4096] against absent",
        ),
        "tied-unknown": FindingKind(
            "note",
            "Nothing that is known of the target tells whether its input and output embedding are one tensor.",
            "Write `tie_word_embeddings` into `config.json`, or let `deltareg check` look at the tensors. `apply` does "
            "right by both.",
            "tied_embeddings: false against not told",
        ),
        "prefix": FindingKind(
            "warning",
            "Names differ by the prefix of a wrapping module only.",
            "Nothing: `apply` takes the names without it; the output has the target's.",
            "290 tensors: as in 'model.norm.weight' against as in 'module.model.norm.weight'",
        ),
        "buffer-missing": FindingKind(
            "note",
            "The target lacks a buffer, computed from the configuration, that the delta removes anyway.",
            _ONLY_TELLS,
            "embeddings.position_ids: removed against absent",
        ),
        "buffer-differs": FindingKind(
            "warning",
            "A buffer, computed from the configuration, is stored on one side only, or with another shape.",
            "Nothing: `apply` leaves buffers as the target has them. They hold no weights.",
            "embeddings.position_ids: absent against shape [1, 512]",
        ),
        "head-only-in-post": FindingKind(
            "note",
            "Training added a task head.",
            _ADDED,
            "score.weight: only after training, shape [2, 4096] against absent",
        ),
        "head-only-in-target": FindingKind(
            "warning",
            "The target has a pooler or a task head that the delta's base lacks.",
            "Nothing: `apply` keeps the target's head as it is. It was trained on other weights: try it out.",
            "classifier.weight: absent against shape [2, 768]",
        ),
        "head-missing": FindingKind(
            "warning",
            "The delta changes a pooler or a task head that the target lacks.",
            "Nothing: `apply` leaves the head's change out.",
            "pooler.dense.weight: shape [768, 768] against absent",
        ),
        "delta-lossy": FindingKind(
            "note",
            "The delta is an approximation: at weight 1 on its own base it gives nearly post, and not post.",
            "Nothing, if the error is small enough for you; an exact delta is taken without `--codec`.",
            "delta: lossy, int4, relative error 0.1023 against exact",
        ),
        "delta-stacked": FindingKind(
            "warning",
            "The delta was taken on top of other deltas, and the target is not the base that it was taken from.",
            "Apply what it was taken on top of too, in one command: `deltareg apply TARGET OTHER DELTA -o OUT`. "
            "`deltareg show` tells which that is, and its weight. If the target holds it already, give `--force`.",
            "requires: acme/instruct 1.0.0 against none",
        ),
        "model-type": FindingKind(
            "error",
            "`model_type` of config.json differs. It is a warning where the lineage shows a common ancestor.",
            _ANOTHER_TARGET,
            "model_type: llama against mistral",
        ),
        "structure-field": FindingKind(
            "error",
            "A field of config.json that must agree differs: heads, activation, experts and the like.",
            _ANOTHER_TARGET,
            "activation: silu against gelu",
        ),
        "behaviour-field": FindingKind(
            "note",
            "A field of config.json differs that changes outputs, and not what the weights are: `rope_scaling`, "
            "context length, dtype. The result keeps the target's.",
            "Nothing needs to be done; read it if the result behaves unlike post.",
            "max_position_embeddings: 8192 against 131072",
        ),
        "tokenizer-core": FindingKind(
            "error",
            "The tokenizers give text other tokens: vocabulary, merges or rules differ. It is a note where the base "
            "has no token embedding.",
            "Choose a target with the tokenizer of the delta's base.",
            "tokenizer: bpe sha256:1f0c… against bpe sha256:77ab…",
        ),
        "tokenizer-added": FindingKind(
            "warning",
            "The added tokens differ: the same row of the embedding may stand for another token.",
            "Nothing, if both tokenizers are at hand: `apply` matches the rows by token, and the output keeps the "
            "target's tokenizer. A row whose token only one side has stays as it is in the target.",
            "added tokens: sha256:1f0c… against sha256:77ab…",
        ),
        "tokenizer-missing": FindingKind(
            "note",
            "One side has no tokenizer files: whether tokens agree is not known.",
            "Put the tokenizer beside the target's weights to have it compared.",
            "tokenizer: bpe against absent",
        ),
        "chat-template": FindingKind(
            "note",
            "The chat templates differ. The result has post's, or with `--side-files target` the target's.",
            "Choose with `deltareg apply --side-files`.",
            "chat template: sha256:1f0c… against absent",
        ),
        "lineage-unrelated": FindingKind(
            "error",
            "The target's weights have nothing in common with the base's: only the shapes are the same.",
            "Choose a target that was trained from the base, or that shares an ancestor with it.",
            "weights of attention: cosine of at least 0.3 against cosine 0.01",
        ),
        "lineage-unknown": FindingKind(
            "note",
            "Whether target and base share an ancestor is not known: the delta holds no samples, or too few of them "
            "could be compared.",
            "Make sure of it yourself, or take the delta again with this version.",
            "weights: no samples against not compared",
        ),
    }
)
"""Every code that a finding may have. A code never changes its meaning."""


@dataclass(frozen=True)
class Finding:
    """One difference: a stable code, how bad it is, and what was seen on either side, the delta's (or base's) first."""

    code: str
    severity: Severity
    subject: str
    delta: str
    target: str

    @property
    def remedy(self) -> str:
        """What to do about it today; "" for a code that is not in FINDINGS."""
        return FINDINGS[self.code].remedy if self.code in FINDINGS else ""

    def __str__(self) -> str:
        return f"{self.subject}: {self.delta} against {self.target}"


def finding(code: str, subject: str, delta: str, target: str, *, severity: Severity | None = None) -> Finding:
    """A finding of a known code, with the severity that FINDINGS gives unless another is said."""
    return Finding(code, severity or FINDINGS[code].severity, subject, delta, target)


def delta_shapes(inventory: Inventory) -> dict[str, tuple[int, ...]]:
    """The tensors that the delta's base has, by name."""
    return {entry.name: tuple(entry.shape) for entry in inventory.tensors if entry.base_dtype is not None}


def compare_shapes(delta: Shapes, target: Shapes, *, optional: Iterable[str] = ()) -> list[Finding]:
    """The tensors whose name or shape differs. Those that are `optional` may be missing from the target."""
    may_lack = set(optional)
    findings: list[Finding] = []
    for name, shape in delta.items():
        if name not in target:
            if name not in may_lack:
                findings.append(finding("tensor-missing", name, _shown_shape(shape), "absent"))
        elif target[name] != shape:
            findings.append(finding("tensor-shape", name, _shown_shape(shape), _shown_shape(target[name])))
    findings.extend(
        finding("tensor-unexpected", name, "absent", _shown_shape(shape))
        for name, shape in target.items()
        if name not in delta
    )
    return findings


# --- the space ----------------------------------------------------------------------------------------------------


class Space:
    """The tensors of one side, and what each of them is. Canonical names are made when they are first asked for."""

    def __init__(self, shapes: Shapes, structure: Structure) -> None:
        self.shapes = shapes
        self.structure = structure

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The canonical name of each tensor."""
        return canonical_names(self.shapes)

    @cached_property
    def rows(self) -> Set[int]:
        """The sizes of the vocabularies."""
        stated = [value for key, value in self.structure.structure.items() if _last(key) in _VOCABULARIES]
        known = {value for value in stated if isinstance(value, int) and not isinstance(value, bool)}
        return known | {shape[0] for name, shape in self.shapes.items() if is_token_embedding(name, shape)}

    @property
    def tied(self) -> bool:
        """Whether input and output embedding are one tensor."""
        return self.structure.structure.get(_TIED) is True

    def is_buffer(self, name: str) -> bool:
        """Whether the tensor is computed from the configuration."""
        return is_buffer(self.names[name], self.shapes[name])

    def is_output(self, name: str) -> bool:
        """Whether it is an output embedding, or its bias."""
        return is_output(self.names[name], self.shapes[name], self.rows)

    def has_vocabulary_rows(self, name: str) -> bool:
        """Whether it has a row for each token."""
        return is_token_embedding(self.names[name], self.shapes[name]) or self.is_output(name)

    def is_head(self, name: str) -> bool:
        """Whether it belongs to a pooler or a task head."""
        return is_head(self.names[name])

    def input_of(self, output: tuple[int, ...]) -> str | None:
        """The token embedding that an output embedding of this shape, but for its rows, is tied to."""
        return next(
            (
                name
                for name, shape in self.shapes.items()
                if is_token_embedding(self.names[name], shape) and shape[1:] == output[1:] and len(output) == 2
            ),
            None,
        )


def compare_spaces(
    inventory: Inventory, base: Structure, target: Shapes, structure: Structure
) -> tuple[list[Finding], dict[str, str]]:
    """What differs between the tensors of a delta and those of a target, and which of the base's are called otherwise.

    `base` and `structure` are what the configurations of base and target say. Tensors that no name matches are matched
    without the prefixes of wrapping modules: the second result gives the target's name of each of these by the base's.
    What `apply` refuses is an error or a warning here.
    """
    ours, theirs = Space(delta_shapes(inventory), base), Space(target, structure)
    removed = {entry.name for entry in inventory.tensors if entry.kind == "removed"}
    renamed = _renamed(ours, theirs)
    findings = _prefixes(renamed)
    for name, shape in ours.shapes.items():
        other = renamed.get(name, name)
        if other not in target:
            findings.append(_missing(ours, theirs, name, removed=name in removed))
        elif target[other] != shape:
            findings.append(_reshaped(ours, name, target[other]))
    added = {entry.name: tuple(entry.shape) for entry in inventory.tensors if entry.base_dtype is None}
    matched = {renamed.get(name, name) for name in ours.shapes}
    findings.extend(_unexpected(ours, theirs, name, added) for name in target if name not in matched)
    findings.extend(_added({name: shape for name, shape in added.items() if name not in target}, inventory))
    return findings, renamed


def _renamed(ours: Space, theirs: Space) -> dict[str, str]:
    left = [name for name in ours.shapes if name not in theirs.shapes]
    right = [name for name in theirs.shapes if name not in ours.shapes]
    if not left or not right:
        return {}
    homes = {theirs.names[name]: name for name in right}
    return {name: homes[ours.names[name]] for name in left if ours.names[name] in homes}


def _prefixes(renamed: Mapping[str, str]) -> list[Finding]:
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, other in renamed.items():
        groups[_distinct(name, other)].append(name)
    return [
        finding(
            "prefix",
            f"{len(names)} tensor{'s' if len(names) > 1 else ''}",
            f"as in {names[0]!r}",
            f"as in {renamed[names[0]]!r}",
        )
        for names in groups.values()
    ]


def _distinct(name: str, other: str) -> tuple[str, str]:
    """What two names have before the components that both end in."""
    left, right = name.split("."), other.split(".")
    while left and right and left[-1] == right[-1]:
        left.pop()
        right.pop()
    return ".".join(left), ".".join(right)


def _missing(ours: Space, theirs: Space, name: str, *, removed: bool) -> Finding:
    if removed:
        return finding("buffer-missing" if ours.is_buffer(name) else "tensor-removed", name, "removed", "absent")
    if ours.is_buffer(name):
        code = "buffer-differs"
    elif ours.is_output(name) and theirs.tied:
        code = "tied-head"
    else:
        code = "head-missing" if ours.is_head(name) and not ours.is_output(name) else "tensor-missing"
    return finding(code, name, _shown_shape(ours.shapes[name]), "absent")


def _reshaped(ours: Space, name: str, other: tuple[int, ...]) -> Finding:
    shape = ours.shapes[name]
    if ours.is_buffer(name):
        code = "buffer-differs"
    else:
        rows_only = len(shape) == len(other) and shape[1:] == other[1:] and ours.has_vocabulary_rows(name)
        code = "vocabulary-rows" if rows_only else "tensor-shape"
    return finding(code, name, _shown_shape(shape), _shown_shape(other))


def _unexpected(ours: Space, theirs: Space, name: str, added: Shapes) -> Finding:
    shown = _shown_shape(theirs.shapes[name])
    if name in added:
        return finding("tensor-unexpected", name, "only after training", shown)
    if theirs.is_buffer(name):
        code = "buffer-differs"
    elif theirs.is_output(name) and ours.tied:
        code = "tied-head"
    else:
        code = "head-only-in-target" if theirs.is_head(name) and not theirs.is_output(name) else "tensor-unexpected"
    return finding(code, name, "absent", shown)


def _added(added: Shapes, inventory: Inventory) -> Iterable[Finding]:
    names = canonical_names(entry.name for entry in inventory.tensors) if added else {}
    for name, shape in added.items():
        code = "head-only-in-post" if is_head(names[name]) else "tensor-only-in-post"
        yield finding(code, name, f"only after training, {_shown_shape(shape)}", "absent")


def has_token_embedding(shapes: Shapes) -> bool:
    """Whether any of the tensors has a row for each token that the model reads."""
    return any(is_token_embedding(name, shape) for name, shape in shapes.items())


def has_output(shapes: Shapes, structure: Structure) -> bool:
    """Whether an output embedding is stored among the tensors."""
    side = Space(shapes, structure)
    return any(side.is_output(name) for name in shapes)


# --- configuration and tokenizer ----------------------------------------------------------------------------------


def compare_configurations(base: Structure, target: Structure, *, untied: bool) -> list[Finding]:
    """The fields of two configurations that differ. What one side does not say is not known, and no difference.

    `untied`: whether an output embedding is stored on either side. Without any, it matters to neither whether it is
    tied. The numbers of rows that the tensors have are compared by `compare_spaces`; those in config.json are told.
    """
    findings: list[Finding] = []
    for difference in compare_structures(base, target):
        code = "behaviour-field"
        if difference.structural:
            if difference.delta is None or difference.target is None:
                continue
            if difference.key == "model_type":
                code = "model-type"
            elif _last(difference.key) == _TIED:
                code = "tied-head" if untied else "behaviour-field"
            elif _last(difference.key) not in _VOCABULARIES:
                code = "structure-field"
        findings.append(finding(code, difference.key, _shown_value(difference.delta), _shown_value(difference.target)))
    return findings


def compare_tokenizer_fingerprints(
    base: TokenizerFingerprint | None,
    target: TokenizerFingerprint | None,
    *,
    embedding: bool,
    difference: TokenizerDifference | None = None,
) -> list[Finding]:
    """How the tokenizer of the delta's base differs from the target's.

    `embedding`: whether the base has a token embedding, so that tokens matter to the weights. `difference`, where the
    tokens of both sides are at hand, tells what the digests cannot: that only what counts as an added token differs.
    """
    if base is None or target is None:
        if base is target:
            return []
        return [
            finding("tokenizer-missing", "tokenizer", *(side.kind if side else "absent" for side in (base, target)))
        ]
    findings: list[Finding] = []
    if base.core != target.core and not (difference is not None and difference.core_equal):
        severity: Severity = "error" if embedding else "note"
        shown = [f"{side.kind} {_short(side.core)}" for side in (base, target)]
        findings.append(finding("tokenizer-core", "tokenizer", shown[0], shown[1], severity=severity))
    elif (base.core, base.added) != (target.core, target.added):
        findings.append(finding("tokenizer-added", "added tokens", *_added_tokens(base, target, difference)))
    if base.chat_template != target.chat_template:
        shown = [_short(side.chat_template) for side in (base, target)]
        findings.append(finding("chat-template", "chat template", shown[0], shown[1]))
    return findings


def _added_tokens(
    base: TokenizerFingerprint, target: TokenizerFingerprint, difference: TokenizerDifference | None
) -> tuple[str, str]:
    if difference is not None and difference.renamed:
        number, ours, theirs = difference.renamed[0]
        return f"token {number} is {ours!r}", f"token {number} is {theirs!r}"
    if base.rows != target.rows:
        return f"{base.rows} tokens", f"{target.rows} tokens"
    return _short(base.added), _short(target.added)


def compare_fingerprints(
    base: Fingerprint, target: Structure, tokenizer: TokenizerFingerprint | None, digests: tuple[str, str] | None
) -> list[Finding]:
    """What differs as far as descriptions tell: whether tensors do, and not which.

    `digests` are the target's, of its fingerprint and of its space; None where its tensors are not known at all.
    """
    ours = Structure(base.model_type, base.structure, base.behaviour)
    findings = compare_configurations(ours, target, untied=True)
    findings += compare_tokenizer_fingerprints(base.tokenizer, tokenizer, embedding=True)
    severities = {found.severity for found in findings}
    tied = ours.structure.get(_TIED)
    if digests is None and tied is not None and _TIED not in target.structure:
        findings.append(finding("tied-unknown", _TIED, _shown_value(tied), "not told"))
    if digests is None or digests[0] == base.digest:
        return findings
    if digests[1] != base.space:
        if "error" not in severities:
            findings.append(finding("tensor-shape", "parameter space", _short(base.space), _short(digests[1])))
    elif not severities & {"error", "warning"}:
        subject = "vocabulary, heads or tied embeddings"
        findings.append(finding("vocabulary-rows", subject, _short(base.digest), _short(digests[0])))
    return findings


# --- verdicts -----------------------------------------------------------------------------------------------------


def verdict_of(findings: Iterable[Finding], *, identical: bool = True) -> Verdict:
    """The verdict that the findings amount to: "identical" only where there are none, and `identical` holds too."""
    severities = {found.severity for found in findings}
    if "error" in severities:
        return "incompatible"
    if "warning" in severities:
        return "adaptable"
    return "homologous" if severities or not identical else "identical"


def refuse_mismatch(findings: Iterable[Finding], *, message: str, hint: str) -> None:
    """Raise NotHomologous if there is an error among the findings: all are in its data, the first in its message."""
    errors = [found for found in findings if found.severity == "error"]
    if not errors:
        return
    raise NotHomologous(
        f"{message}: {first_of(errors)}",
        cause=f"{len(errors)} tensor{'s' if len(errors) > 1 else ''} of the two parameter spaces differ",
        hint=hint,
        findings=[
            {"code": found.code, "subject": found.subject, "delta": found.delta, "target": found.target}
            for found in errors
        ],
    )


def first_of(findings: Sequence[object]) -> str:
    """The first of many findings, as a message has them."""
    more = f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else ""
    return "; ".join(map(str, findings[:_SHOWN])) + more


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _short(digest: str | None) -> str:
    return "absent" if digest is None else f"{digest[:19]}…"


def _shown_shape(shape: tuple[int, ...]) -> str:
    return f"shape {list(shape)}"


def _shown_value(value: Value) -> str:
    if value is None:
        return "absent"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_SHOWN else f"{text[: _VALUE_SHOWN - 1]}…"
