"""The files beside the weights: `config.json`, side files, and a model card in the Hub's format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import deltareg
from deltareg.apply.placement import WeightedDelta
from deltareg.apply.plan import Merge, Plan
from deltareg.checkpoint import Checkpoint
from deltareg.licences import DerivedLicence
from deltareg.markdown import front_matter, plain
from deltareg.merge import Schedule

__all__ = ["Labels", "card", "config_json"]

_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_DTYPE_KEYS = ("dtype", "torch_dtype")
_TIED = "tie_word_embeddings"


@dataclass(frozen=True)
class Labels:
    """What a model card calls things: the output, the base, who made it. By default as they call themselves.

    A `base` that is given has the `revision` that is given with it.
    """

    title: str | None = None
    base: str | None = None
    revision: str | None = None
    maker: str | None = None


def config_json(target: Checkpoint, plan: Plan, *, separate: bool = False) -> bytes | None:
    """The target's `config.json`; None if there is none.

    What it says of quantised weights goes where these are read as bfloat16. Its dtype is corrected where the output has
    another one, and its embeddings are no longer tied where the output has them `separate`.
    """
    if target.config is None:
        return None
    dtypes = {tensor.dtype for tensor in plan.tensors.values()} & _DTYPE_NAMES.keys()
    before = {tensor.dtype for tensor in target.tensors.values()} & _DTYPE_NAMES.keys()
    changed = len(dtypes) == 1 and dtypes != before
    if not changed and not separate and not target.dequantised:
        return target.read_file("config.json")
    config = dict(target.config)
    if changed:
        name = _DTYPE_NAMES[dtypes.pop()]
        config |= {key: name for key in _DTYPE_KEYS if key in config}
    if separate:
        # transformers asks the outermost config first, and some versions the language model's own.
        config = {key: _separate(value) for key, value in config.items()} | {_TIED: False}
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _separate(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    part = cast("dict[str, Any]", value)
    return part | {_TIED: False} if _TIED in part else part


def card(
    target: Checkpoint,
    deltas: Sequence[WeightedDelta],
    merge: Merge,
    told: Mapping[str, Sequence[str]],
    licence: DerivedLicence,
    labels: Labels | None = None,
) -> bytes:
    """The model card of an output under `licence`; `told` are its last sections, lists by their titles.

    It names every parameter of the method, also those that nobody gave: tools disagree about defaults. The same build
    gives the same bytes: no date, no machine.
    """
    named = labels or Labels()
    base = (named.base or target.id).removeprefix("hf://")
    front: dict[str, Any] = {
        "base_model": [base],
        "base_model_relation": "merge",
        "tags": ["deltareg", "merge"],
    }
    hub = {"license": licence.hub, "license_name": licence.hub_name}
    front |= {key: value for key, value in hub.items() if value is not None}
    lines = ["---", *(front_matter(front)), "---", "", f"# {plain(named.title or f'{base} with deltas')}", ""]
    lines += [
        f"Made by {named.maker or f'deltareg {deltareg.__version__}'}: {_sum_of(merge)}.",
        "",
        *_table_of(deltas),
    ]
    known = target.revision if named.base is None else named.revision
    revision = f" at `{plain(known)}`" if known else ""
    lines += [
        "",
        f"Target: `{plain(named.base or target.id)}`{revision}, licence {plain(target.licence or 'unknown')}.",
        "",
    ]
    for title, notes in told.items():
        if notes:
            lines += [f"## {title}", "", *(f"- {plain(note)}" for note in notes), ""]
    return "\n".join(lines).encode()


def _table_of(deltas: Sequence[WeightedDelta]) -> list[str]:
    differing = any(delta.parameters for delta in deltas)
    columns = ["delta", "weight", *(["parameters"] if differing else []), "digest", "licence"]
    rows = [columns]
    for delta in deltas:
        own = [plain(_settings(delta.parameters))] if differing else []
        licence = plain(delta.artifact.config.licence or "unknown")
        rows.append([f"`{delta.reference}`", plain(str(delta.weights)), *own, f"`{delta.artifact.digest}`", licence])
    head, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(columns) + "|", *lines]


def _settings(parameters: Mapping[str, Schedule | str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in parameters.items())


def _sum_of(merge: Merge) -> str:
    name = merge.method.name
    settings: dict[str, Schedule | str] = dict(merge.told())
    if merge.method.random:
        settings["seed"] = str(merge.seed)
    told = plain(_settings(settings))
    start = "target + Σ weight · delta" if name == "linear" else "target + what the deltas are merged to"
    return f"{start}, method `{name}`" + (f" ({told})" if told else "")
