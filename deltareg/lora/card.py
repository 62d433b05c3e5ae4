"""What lies beside the factors of an exported adapter: its config, and a model card that tells the error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import deltareg
from deltareg.lora.config import CONFIG_FILE
from deltareg.manifest import DeltaConfig, Document

__all__ = ["CONFIG_FILE", "AdapterShape", "ExportReport", "ExportedTensor", "LeftOut", "adapter_card", "adapter_config"]

_SHOWN = 20


class ExportedTensor(Document):
    """A tensor whose delta the adapter has: `error` is ‖Δ − B·A‖ / ‖Δ‖."""

    name: str
    rank: int
    error: float
    exact: bool


class LeftOut(Document):
    """A tensor whose delta the adapter lacks; `share` is its part of the square of the whole error."""

    name: str
    reason: str
    share: float


class ExportReport(Document):
    """What `export-lora` wrote. `error` is ‖Δ − adapter‖ / ‖Δ‖ over all tensors, those that are left out included."""

    out: str
    reference: str
    digest: str
    base: str
    rank: int
    error: float
    tensors: list[ExportedTensor]
    left_out: list[LeftOut]
    saved_modules: list[str]
    size: int
    seconds: float
    dry_run: bool


@dataclass
class AdapterShape:
    """What the config of the adapter has to say."""

    rank: int
    transposed: bool = False
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    scales: dict[str, float] = field(default_factory=dict[str, float])
    saved: list[str] = field(default_factory=list[str])
    biases: bool = False


def adapter_config(config: DeltaConfig, shape: AdapterShape) -> bytes:
    """`adapter_config.json`: what `peft` needs in order to build the modules that the factors belong to."""
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,
        "base_model_name_or_path": config.base.id.removeprefix("hf://"),
        "revision": config.base.revision,
        "r": shape.rank,
        "lora_alpha": shape.rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "bias": "lora_only" if shape.biases else "none",
        "fan_in_fan_out": shape.transposed,
        "target_modules": sorted(shape.ranks),
        "modules_to_save": sorted(shape.saved) or None,
        # As regular expressions they match the modules themselves: a point matches a point.
        "rank_pattern": {name: rank for name, rank in sorted(shape.ranks.items()) if rank != shape.rank},
        "alpha_pattern": {
            name: _alpha(scale, shape.ranks[name])
            for name, scale in sorted(shape.scales.items())
            if scale != 1 or shape.ranks[name] != shape.rank
        },
    }
    return (json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


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
        "| tensor | rank | relative error |",
        "|---|---|---|",
    ]
    worst = sorted(report.tensors, key=lambda one: (-one.error, one.name))
    lines += [f"| `{one.name}` | {one.rank} | {one.error:.4g} |" for one in worst[:_SHOWN]]
    if len(worst) > _SHOWN:
        lines += ["", f"These are the {_SHOWN} largest errors of {len(worst)} tensors."]
    if report.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- `{one.name}`: {one.reason}; {one.share:.2%} of the squared error" for one in report.left_out]
    return ("\n".join(lines) + "\n").encode()
