"""A `config.json` in one spelling, divided into what shapes a model and what it does beside."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard, cast

from deltareg.digest import canonical_json, sha256
from deltareg.fingerprint.structure_spellings import (
    ACTIVATIONS,
    ASSUMED_ACTIVATION,
    DEFAULTS,
    NO_PARTS,
    NOISE,
    OF_TEXT,
    PART_NAMES,
    SENSES,
    SPELLINGS,
)

__all__ = ["Fields", "Value", "read_config"]

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
"""What JSON can say; numbers are those that canonical JSON can write."""

_TIED = "tie_word_embeddings"
_STRUCTURAL = frozenset(spelling for spellings in SPELLINGS.values() for spelling in spellings)
_STAGES = ("decoder", "encoder")

_LARGEST = 2**53 - 1  # of canonical JSON's integers
_DEPTH = 64  # as deep as `parse_json` reads
_BYTES = 1024  # of one value
_PARTS = 16
_PART_DEPTH = 3
_FIELDS = 512
_NAME = 128
_OTHERS = "(others)"


@dataclass
class Fields:
    """A config in one spelling, its keys dotted where configs were nested; `tied` is None where it does not say."""

    model_type: str | None
    structure: dict[str, Value]
    behaviour: dict[str, Value]
    tied: bool | None


def read_config(config: Mapping[str, Any]) -> Fields:
    """Read a `config.json`. Nothing in it is an error, and the order of its keys does not count.

    null means absent, as in transformers. A structural value of a wrong type stays what it is, and nothing is derived
    from it; a `model_type` that is no text is dropped. Where two spellings of one key disagree, the second stays under
    its own name. Numbers that canonical JSON cannot write become texts; texts, lists and objects of more than 1024
    bytes become their digest; what is nested deeper than 64 becomes a mark. Of nested configs the first 16 by name
    are read, three deep, others are values. Of behaviour 512 fields are kept, and the digest of the rest.
    """
    fields = _read(config, _PART_DEPTH)
    _join_text(fields)
    return Fields(fields.model_type, fields.structure, _bounded(fields.behaviour), fields.tied)


def _read(config: Mapping[str, Any], depth: int) -> Fields:
    fields = {key: config[key] for key in sorted(_texts(config)) if config[key] is not None and key not in NOISE}
    model_type = _text_of(fields.pop("model_type", None))
    tied = fields.pop(_TIED, None)
    parts = _take_parts(fields) if depth else {}
    structure = _structural(fields, model_type)
    found = Fields(model_type, structure, _behavioural(fields), tied if isinstance(tied, bool) else None)
    for name, part in parts.items():
        _add_part(found, name, _read(part, depth - 1))
    return found


def _texts(config: Mapping[Any, Any]) -> Iterable[str]:
    return (key for key in config if isinstance(key, str))


def _text_of(value: object) -> str | None:
    found = _plain(value)
    return found if isinstance(found, str) and found else None


# --- nested configs -----------------------------------------------------------------------------------------------


def _take_parts(fields: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Take out the nested configs, by their canonical names: objects that have a model type or a structural key."""
    parts: dict[str, Mapping[str, Any]] = {}
    for key in list(fields):
        name = key.removesuffix("_config")
        name = PART_NAMES.get(name, name)
        if _is_part(key, fields[key]) and name not in parts and len(key) <= _NAME:
            parts[_safe(name)] = fields.pop(key)
            if len(parts) == _PARTS:
                break
    return parts


def _is_part(key: str, value: object) -> bool:
    if not isinstance(value, Mapping) or key in NO_PARTS:
        return False
    return "model_type" in value or not _STRUCTURAL.isdisjoint(cast("Mapping[str, Any]", value))


def _add_part(whole: Fields, name: str, part: Fields) -> None:
    for key, value in part.structure.items():
        whole.structure[f"{name}.{key}"] = value
    # Versions differ in whether the text part of qwen2_vl is called qwen2_vl or qwen2_vl_text.
    if part.model_type and not (whole.model_type and part.model_type.startswith(whole.model_type)):
        whole.structure[f"{name}.model_type"] = part.model_type
    for key, value in part.behaviour.items():
        if key != "dtype" or value != whole.behaviour.get("dtype"):
            whole.behaviour[f"{name}.{key}"] = value
    # One head in all: transformers asks the outermost config first.
    if whole.tied is None and name == "text":
        whole.tied = part.tied


def _join_text(fields: Fields) -> None:
    """Give the language model's fields their place under `text`, where other versions wrote them beside it."""
    parts = {key.partition(".")[0] for key in fields.structure if "." in key}
    if not parts & (SENSES | {"text"}):
        return
    for mapping in (fields.structure, fields.behaviour):
        for key in list(mapping):
            moves = key in SPELLINGS if mapping is fields.structure else key in OF_TEXT
            if moves and _same(mapping.setdefault(f"text.{key}", mapping[key]), mapping[key]):
                del mapping[key]


# --- structure ----------------------------------------------------------------------------------------------------


def _structural(fields: dict[str, Any], model_type: str | None) -> dict[str, Value]:
    """Take the structural keys out of `fields`, in one spelling, with what follows from them."""
    found: dict[str, Value] = {}
    for key, spellings in SPELLINGS.items():
        _take(fields, found, key, spellings, model_type)
        for stage in _STAGES:
            staged = [f"{stage}_{spelling}" for spelling in spellings]
            extra = [f"num_{stage}_layers"] if key == "layers" else []
            _take(fields, found, f"{stage}.{key}", [*extra, *staged], model_type)
    _complete_attention(found, fields)
    _complete_sizes(found, fields)
    if model_type is not None and model_type in ASSUMED_ACTIVATION:
        found.setdefault("activation", ASSUMED_ACTIVATION[model_type])
    return found


def _take(
    fields: dict[str, Any], found: dict[str, Value], key: str, spellings: Iterable[str], model_type: str | None
) -> None:
    for spelling in spellings:
        if spelling not in fields:
            continue
        value = _plain(fields.pop(spelling))
        if key.rpartition(".")[2] == "activation":
            value = _activation(value, model_type)
            found.setdefault(key, value)  # a second one is a relic
        elif not _same(found.setdefault(key, value), value):
            found[spelling] = value


def _activation(value: Value, model_type: str | None) -> Value:
    if isinstance(value, dict):
        value = value.get("name", value)  # DBRX
    if not isinstance(value, str):
        return value
    gated = value.startswith("gated-")
    name = value.removeprefix("gated-")
    # T5's gated GELU is the approximate one, and so is Gemma's, whatever its config says.
    if name == "gelu" and (gated or model_type == "gemma"):
        return "gelu_tanh"
    return ACTIVATIONS.get(name, name)


def _complete_attention(found: dict[str, Value], fields: dict[str, Any]) -> None:
    # ChatGLM reads the number of groups only if it has groups; Falcon's new architecture groups, its first one shares.
    if fields.pop("multi_query_attention", True) is False:
        found.pop("kv_heads", None)
    if fields.pop("multi_query", False) is True and fields.get("new_decoder_architecture") is not True:
        found["kv_heads"] = 1
    if _is_count(found.get("heads")):
        found.setdefault("kv_heads", found["heads"])
    if "kv_lora_rank" in found:
        found.pop("head_size", None)  # its heads have three sizes, and versions disagree which one is meant
    elif "head_size" not in found:
        # Qwen2-VL's hidden_size is that of the language model beside it, embed_dim its own.
        hidden, heads = found.get("embed_dim", found.get("hidden_size")), found.get("heads")
        if _is_count(hidden) and _is_count(heads) and hidden % heads == 0:
            found["head_size"] = hidden // heads


def _complete_sizes(found: dict[str, Value], fields: dict[str, Any]) -> None:
    hidden = found.get("hidden_size")
    if found.get("time_step_rank") == "auto" and _is_count(hidden):
        found["time_step_rank"] = math.ceil(hidden / 16)
    if "embedding_size" in found and found["embedding_size"] == hidden:
        del found["embedding_size"]
    if _same(found.get("experts"), 0):
        del found["experts"]
    if "encoder.layers" in found:
        if _same(found.get("layers"), found["encoder.layers"]):
            del found["layers"]
    elif fields.get("is_encoder_decoder") is True and "layers" in found:
        found.setdefault("decoder.layers", found["layers"])


def _is_count(value: Value) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _same(left: Value, right: Value) -> bool:
    # In Python true equals 1.
    return left == right and canonical_json(left) == canonical_json(right)


# --- behaviour ----------------------------------------------------------------------------------------------------


def _behavioural(fields: dict[str, Any]) -> dict[str, Value]:
    found = {
        _safe(key): value
        for key, given in fields.items()
        if (value := _plain(given)) not in ({}, []) and not (key in DEFAULTS and _same(value, _plain(DEFAULTS[key])))
    }
    _rename(found, "max_position_embeddings", ("n_positions", "max_sequence_length", "max_seq_len", "seq_length"))
    _rename(found, "dtype", ("torch_dtype",))
    if isinstance(dtype := found.get("dtype"), str):
        found["dtype"] = dtype.removeprefix("torch.")
    _spell_rope(found)
    return found


def _rename(found: dict[str, Value], key: str, spellings: Iterable[str]) -> None:
    for spelling in spellings:
        if spelling in found and _same(found.setdefault(key, found[spelling]), found[spelling]):
            del found[spelling]


def _spell_rope(found: dict[str, Value]) -> None:
    """`rope_parameters` of transformers 5 as the `rope_theta` and `rope_scaling` that others write."""
    parameters = found.get("rope_parameters")
    if isinstance(parameters, dict) and "rope_scaling" not in found:
        rest = dict(parameters)
        for key in ("partial_rotary_factor", "rope_theta"):
            if key in rest and _same(found.setdefault(key, rest[key]), rest[key]):
                del rest[key]
        del found["rope_parameters"]
        found["rope_scaling"] = rest
    scaling = found.get("rope_scaling")
    if isinstance(scaling, dict):
        scaling = dict(scaling)
        _rename(scaling, "rope_type", ("type",))
        found["rope_scaling"] = scaling
        if scaling in ({}, {"rope_type": "default"}):
            del found["rope_scaling"]


def _bounded(behaviour: dict[str, Value]) -> dict[str, Value]:
    kept = [key for key in sorted(behaviour) if len(key) <= _NAME][:_FIELDS]
    found = {key: behaviour[key] for key in kept}
    if len(found) < len(behaviour):
        found[_OTHERS] = sha256(_written({key: behaviour[key] for key in behaviour.keys() - found.keys()}))
    return found


# --- values -------------------------------------------------------------------------------------------------------


def _plain(value: object) -> Value:
    """`value` as canonical JSON can write it, in 1024 bytes at most."""
    found = _writable(value, _DEPTH)
    if isinstance(found, list | dict) or (isinstance(found, str) and len(found) * 4 > _BYTES):
        written = found.encode() if isinstance(found, str) else _written(found)
        if len(written) > _BYTES:
            return sha256(written)
    return found


def _written(value: Value) -> bytes:
    # Like canonical JSON, but for how floats are spelled, and ten times as fast: a config may have a million values.
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def _writable(value: object, depth: int) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # Hexadecimal: Python refuses to write long decimals.
        return value if abs(value) <= _LARGEST else hex(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return int(value) if value.is_integer() and abs(value) <= _LARGEST else value
    if isinstance(value, str):
        return _safe(value)
    if depth == 0:
        return "(nested too deeply)"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {_safe(key): _writable(given, depth - 1) for key, given in pairs if isinstance(key, str)}
    if isinstance(value, list | tuple):
        return [_writable(given, depth - 1) for given in cast("list[object]", value)]
    return f"({type(value).__name__})"


def _safe(text: str) -> str:
    # Half of a surrogate pair cannot be written.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
