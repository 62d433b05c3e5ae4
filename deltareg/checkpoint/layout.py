"""Which files of a folder make the checkpoint: weights, their index, and the files that travel beside them."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from deltareg.checkpoint.quantised import refuse_gguf
from deltareg.checkpoint.source import Folder
from deltareg.digest import parse_json
from deltareg.errors import BadCheckpoint, BadManifest, CheckpointNotFound, PickleRefused
from deltareg.names import is_licence

__all__ = [
    "INDEX_FILE",
    "SINGLE_FILE",
    "ShardIndex",
    "Weights",
    "belongs",
    "convert_command",
    "find_weights",
    "index_json",
    "is_pickle",
    "is_tokenizer_file",
    "licence_of",
    "output_path",
    "refuse_pickle",
    "side_files_of",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_ADAPTER = "adapter_model"
_ADAPTER_CONFIG = "adapter_config.json"
_INDEX_SUFFIX = ".safetensors.index.json"
_INDEX_LIMIT = 256 * 2**20
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Pickles that trainers leave beside the weights.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")
# What says which token has which row.
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SIDE_FILES = (
    *_TOKENIZER_FILES,
    "chat_template.*",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",  # modules of sentence-transformers, but not a trainer's checkpoint-500
)
# Weights, and what can run code.
_NEVER_SIDE_FILES = ("*.safetensors", "*.py", "*.pyc", "*.so", *(f"*{suffix}" for suffix in _PICKLE_SUFFIXES))

_CHECKPOINT_FILES = (
    "*.safetensors",
    f"*{_INDEX_SUFFIX}",
    "config.json",
    _ADAPTER_CONFIG,
    "README.md",
    "deltareg.lock",  # what an output was built from
    "LICENSE*",
    "LICENCE*",
)

_LICENCE_KEY = "license:"
_LINE_LIMIT = 1024

_CONVERT = (
    "import sys, torch; from safetensors.torch import save_file; t = {}; "
    "[t.update(torch.load(f, map_location='cpu', weights_only=True)) for f in sys.argv[1:-1]]; "
    "t = t.get('state_dict', t); "
    "save_file({k: v.clone().contiguous() for k, v in t.items() if isinstance(v, torch.Tensor)}, "
    "sys.argv[-1], metadata={'format': 'pt'})"
)


@dataclass(frozen=True)
class ShardIndex:
    """An index file: which shard holds which tensor."""

    file: str
    weight_map: Mapping[str, str]

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards' file names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))


@dataclass(frozen=True)
class Weights:
    """The safetensors files of a checkpoint, sorted, and the index that lists them if there is one."""

    files: tuple[str, ...]
    index: ShardIndex | None = None


def find_weights(folder: Folder, *, as_adapter: bool = False) -> Weights:
    """Choose the checkpoint's weights among the files of a folder, as transformers does.

    With `as_adapter` a model's weights are passed over where an adapter's lie beside them, as peft does.
    Raises BadCheckpoint where files are missing or ambiguous, PickleRefused, QuantisedRefused and CheckpointNotFound
    where none is there.
    """
    names = [name for name in folder.names() if "/" not in name]
    own = [name for name in names if name.startswith(_ADAPTER)]
    if as_adapter and any(map(_holds_weights, own)):
        names = own
    if not as_adapter and _ADAPTER_CONFIG in names and set(filter(_holds_weights, names)) <= {*own}:
        raise CheckpointNotFound(
            f"{folder.label} holds an adapter, no model",
            hint=f"deltareg import-lora {shlex.quote(folder.label)} --base BASE --tag NAME makes a delta of it",
            path=folder.label,
        )
    weights = [name for name in names if name.endswith(".safetensors")]
    index = _find_index(folder, names)
    if index is not None and (SINGLE_FILE not in names or SINGLE_FILE in index.shards):
        _refuse_missing(folder, index.shards, names, f"{index.file} names")
        return Weights(index.shards, index)
    if SINGLE_FILE in names:
        return Weights((SINGLE_FILE,))
    if len(weights) == 1 and _NUMBERED.fullmatch(weights[0]) is None:
        return Weights((weights[0],))
    if weights:
        return Weights(_numbered_shards(folder, weights))
    pickles = [name for name in names if is_pickle(name) and not name.startswith(_NO_WEIGHTS)]
    if pickles:
        raise refuse_pickle(folder.label, pickles, convert_command(pickles, folder.label))
    codes = [name for name in names if name.lower().endswith(".gguf")]
    if codes:
        raise refuse_gguf(f"{folder.label}/{codes[0]}")
    raise CheckpointNotFound(
        f"{folder.label} holds no safetensors file",
        hint=f"give a directory with {SINGLE_FILE} or {INDEX_FILE}",
        path=folder.label,
    )


def _holds_weights(name: str) -> bool:
    kept_by_trainers = is_pickle(name) and name.startswith(_NO_WEIGHTS)
    return name.lower().endswith((".safetensors", ".gguf", *_PICKLE_SUFFIXES)) and not kept_by_trainers


def is_pickle(name: str) -> bool:
    """Whether a file's name is that of pickled weights."""
    return name.lower().endswith(_PICKLE_SUFFIXES)


def convert_command(pickles: Sequence[str], directory: str) -> str:
    """The shell command that writes the tensors of pickled weights as one safetensors file beside them."""
    paths = [*sorted(pickles), SINGLE_FILE if len(pickles) > 1 else _beside(pickles[0])]
    quoted = " ".join(shlex.quote(f"{directory}/{path}" if directory else path) for path in paths)
    return f'python -c "{_CONVERT}" {quoted}'


def refuse_pickle(where: str, pickles: Sequence[str], command: str) -> PickleRefused:
    """The error for weights that exist as pickle only."""
    return PickleRefused(
        f"{where} holds its weights as pickle only, which can run code when it is read",
        hint=f"on a machine where you trust it, convert it: {command}",
        path=where,
        pickles=list(pickles),
        command=command,
    )


def side_files_of(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a folder's files that travel with a model beside its weights, sorted."""
    return tuple(
        sorted(
            name
            for name in names
            if any(_matches(name, pattern) for pattern in _SIDE_FILES)
            and not any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _NEVER_SIDE_FILES)
        )
    )


def is_tokenizer_file(name: str) -> bool:
    """Whether a side file tells which tokens there are, and which row of the embeddings each has."""
    return any(_matches(name, pattern) for pattern in _TOKENIZER_FILES)


def belongs(name: str) -> bool:
    """Whether a file, by its POSIX path in a directory, is one of those that a checkpoint has."""
    if side_files_of([name]):
        return True
    return any(_matches(name, pattern) for pattern in _CHECKPOINT_FILES)


def index_json(weight_map: Mapping[str, str], sizes: Mapping[str, int]) -> bytes:
    """The index of a checkpoint in several shards, from the shard and the bytes of each tensor."""
    document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def output_path(relative: str, taken: Collection[str]) -> str:
    """The path of a file in an output. Raises BadCheckpoint for one that leads out of it, or is `taken`."""
    path = PurePosixPath(relative)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in relative or str(path) in taken:
        raise BadCheckpoint(f"{relative!r} is no place for a file of the output, or taken", file=relative)
    return str(path)


def licence_of(readme: str) -> str | None:
    """The licence that a model card's front matter names, as it is written there; None if there is none.

    A card comes from anywhere: what is not written as a licence is none.
    """
    front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    lines = front[1].split("\n") if front is not None else []
    line = next((line for line in lines if line.startswith(_LICENCE_KEY)), "")
    if len(line) > _LINE_LIMIT:
        return None
    value = line.removeprefix(_LICENCE_KEY).partition(" #")[0].strip()
    if value[:1] in ("'", '"') and value[-1:] == value[:1]:
        value = value[1:-1]
    return value if is_licence(value) and value.lower() != "unknown" else None


def _beside(pickle: str) -> str:
    return SINGLE_FILE if pickle.startswith("pytorch_model") else f"{PurePosixPath(pickle).stem}.safetensors"


def _matches(name: str, pattern: str) -> bool:
    # A star must not cross a slash.
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _find_index(folder: Folder, names: Collection[str]) -> ShardIndex | None:
    found = [name for name in names if name.endswith(_INDEX_SUFFIX)]
    if INDEX_FILE in found:
        found = [INDEX_FILE]
    if not found or (len(found) > 1 and SINGLE_FILE in names):
        return None
    if len(found) > 1:
        raise BadCheckpoint(
            f"{folder.label} holds several indexes: {', '.join(found)}",
            hint="give one of the safetensors files, or a directory with one model",
        )
    return _parse_index(folder.read(found[0], _INDEX_LIMIT), found[0])


def _parse_index(data: bytes, file: str) -> ShardIndex:
    try:
        document = parse_json(data, what=file)
    except BadManifest as error:
        raise BadCheckpoint(error.message, cause=error.cause, file=file) from error
    found = cast("dict[str, Any]", document).get("weight_map") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{file} has no weight_map", file=file)
    weight_map = cast("dict[str, Any]", found)
    # Each name once: 100,000 tensors lie in a few hundred shards.
    texts = {shard for shard in weight_map.values() if type(shard) is str}
    wrong = {repr(shard) for shard in weight_map.values() if type(shard) is not str}
    wrong |= {repr(shard) for shard in texts if not _is_shard_name(shard)}
    if wrong:
        raise BadCheckpoint(
            f"{file} names what is no safetensors file beside it: {_some(sorted(wrong))}",
            file=file,
            shards=sorted(wrong),
        )
    return ShardIndex(file, weight_map)


def _is_shard_name(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and len(name) <= 255
        and re.search("[/\\\\\x00-\x1f\x7f\ud800-\udfff]", name) is None
    )


def _numbered_shards(folder: Folder, weights: Sequence[str]) -> tuple[str, ...]:
    """Shards without an index: taken if their numbers tell that the set is complete."""
    matches = [_NUMBERED.fullmatch(name) for name in weights]
    sets = {(match[1], int(match[3])) for match in matches if match is not None}
    if None in matches or len(sets) != 1:
        raise BadCheckpoint(
            f"{folder.label} holds several safetensors files and no index: {_some(weights)}",
            hint="give one of the files",
        )
    ((stem, count),) = sets
    expected = tuple(f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1))
    _refuse_missing(folder, expected, weights, "there must be")
    return expected


def _refuse_missing(folder: Folder, expected: Sequence[str], names: Collection[str], verb: str) -> None:
    missing = sorted(set(expected) - set(names))
    if missing:
        raise BadCheckpoint(
            f"{folder.label} lacks {len(missing)} of its shards: {verb} {_some(missing)}", missing=missing
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
