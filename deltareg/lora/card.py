"""What lies beside the factors of an exported adapter: its config, and a model card that tells the error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import deltareg
from deltareg.lora.patterns import patterns_of
from deltareg.manifest import DeltaConfig, Document
from deltareg.markdown import plain

__all__ = ["AdapterShape", "ExportReport", "ExportedTensor", "LeftOut", "adapter_card", "adapter_config"]

_SHOWN = 20
_NO_SUM = "of the delta's post are no sum with base's, such as NaN or −0.0: no adapter has these"


class ExportedTensor(Document):
    """A tensor whose delta the adapter has: `error` is ‖Δ − B·A‖ / ‖Δ‖.

    `overwritten` counts its numbers that no sum gives, such as NaN or −0.0: these the adapter lacks, and the error is
    that of the others.
    """

    name: str
    rank: int
    error: float
    exact: bool
    overwritten: int


class LeftOut(Document):
    """A tensor whose delta the adapter lacks; `share` is its part of the square of the whole error."""

    name: str
    reason: str
    share: float


class ExportReport(Document):
    """What `export-lora` wrote. `error` is ‖Δ − adapter‖ / ‖Δ‖ over all tensors, those that are left out included.

    It is measured against the delta: `delta_error` is that of the delta itself, null where this is exact. It does not
    count numbers that no sum gives; the adapter lacks `overwritten` of these.
    """

    out: str
    reference: str
    digest: str
    base: str
    rank: int
    error: float
    delta_error: float | None
    overwritten: int
    tensors: list[ExportedTensor]
    left_out: list[LeftOut]
    saved_modules: list[str]
    notes: list[str]
    size: int
    seconds: float
    dry_run: bool


@dataclass
class AdapterShape:
    """What the config of the adapter has to say."""

    leading: str | None = None
    """The module whose rank and alpha are the config's own; where None, these are the most frequent ones."""
    transposed: bool = False
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    scales: dict[str, float] = field(default_factory=dict[str, float])
    saved: list[str] = field(default_factory=list[str])
    biases: bool = False


def adapter_config(config: DeltaConfig, shape: AdapterShape) -> bytes:
    """`adapter_config.json`: what `peft` needs in order to build the modules that the factors belong to."""
    alphas = {name: _alpha(shape.scales[name], rank) for name, rank in shape.ranks.items()}
    leading = [*shape.ranks] if shape.leading is None else [shape.leading]
    rank, alpha = (_most(numbers[name] for name in leading) for numbers in (shape.ranks, alphas))
    patterns = patterns_of(shape.ranks)
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": config.base.id.removeprefix("hf://"),
        "revision": config.base.revision,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "bias": "lora_only" if shape.biases else "none",
        "fan_in_fan_out": shape.transposed,
        "target_modules": sorted(shape.ranks),
        "modules_to_save": sorted(shape.saved) or None,
        "rank_pattern": {patterns[name]: one for name, one in shape.ranks.items() if one != rank},
        "alpha_pattern": {patterns[name]: one for name, one in alphas.items() if one != alpha},
    }
    return (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def _most(numbers: Iterable[float]) -> float:
    """The most frequent, and of these the greatest."""
    counts = Counter(numbers)
    return max(counts, key=lambda number: (counts[number], number))


def _alpha(scale: float, rank: int) -> float | int:
    """The alpha that gives this scale at this rank."""
    alpha = scale * rank
    return int(alpha) if alpha.is_integer() else alpha


def adapter_card(config: DeltaConfig, report: ExportReport) -> bytes:
    """The model card. The same export gives the same bytes: no date, no machine."""
    base = config.base.id.removeprefix("hf://")
    lines = [
        "---",
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        "library_name: peft",
        *([f"license: {json.dumps(config.licence, ensure_ascii=False)}"] if config.licence else []),
        "tags:",
        '- "lora"',
        '- "deltareg"',
        "---",
        "",
        "# A delta as an adapter",
        "",
        f"Made by deltareg {deltareg.__version__} from `{report.reference}` (`{report.digest}`), rank {report.rank}.",
        "",
        f"Relative error ‖Δ − adapter‖ / ‖Δ‖ over all tensors: {report.error:.4g}.",
        "",
        *([f"The delta is itself an approximation: {config.exactness}.", ""] if report.delta_error is not None else []),
        *(
            [f"{report.overwritten} numbers {_NO_SUM}; the error does not count them.", ""]
            if report.overwritten
            else []
        ),
        "| tensor | rank | relative error |",
        "|---|---|---|",
    ]
    worst = sorted(report.tensors, key=lambda one: (-one.error, one.name))
    lines += [f"| `{plain(one.name)}` | {one.rank} | {one.error:.4g} |" for one in worst[:_SHOWN]]
    if len(worst) > _SHOWN:
        lines += ["", f"These are the {_SHOWN} largest errors of {len(worst)} tensors."]
    if report.left_out:
        lines += ["", "## Left out", ""]
        lines += [
            f"- `{plain(one.name)}`: {plain(one.reason)}; {one.share:.2%} of the squared error"
            for one in report.left_out
        ]
    if report.notes:
        lines += ["", "## The base", "", *(f"- {plain(note)}" for note in report.notes)]
    return ("\n".join(lines) + "\n").encode()
