"""Recipes: what a build is wanted to be, as `deltareg.toml` says it.

    [build]
    base = "./llama-3.1-8b"

    [[delta]]
    ref = "acme/instruct"
    version = "^1.2"
    weight = 0.5

A recipe is read as a whole or refused as a whole, with every fault: a key that is not known is more likely a slip than
a wish.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from deltareg.digest import canonical_json, sha256
from deltareg.errors import BadRecipe, DeltaregError, translate_os_errors
from deltareg.names import Reference, is_channel, parse_licence, parse_reference
from deltareg.spelling import nearest
from deltareg.versions import ANY, VersionRange, parse_range

__all__ = [
    "RECIPE_NAME",
    "RECIPE_TABLES",
    "SETTINGS_KEYS",
    "Build",
    "Number",
    "Recipe",
    "RecipeDelta",
    "Setting",
    "parse_moment",
    "parse_recipe",
    "read_recipe",
]

RECIPE_NAME = "deltareg.toml"
"""The file of a recipe: that of the project's settings, which it shares."""

RECIPE_TABLES = ("build", "delta")
"""The tables of the file that are the recipe's."""

SETTINGS_KEYS = ("home", "threads", "bandwidth", "remote", "remotes", "policies")
"""Its other keys, which are settings: see `deltareg.config`."""

_LIMIT = 1 << 20
_WEIGHT_LIMIT = 3.4e38
_SEED_LIMIT = 2**53 - 1
_FAULTS_SHOWN = 20

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _told(error: DeltaregError) -> str:
    return error.message + (f": {error.cause}" if error.cause else "")


def _range(text: str) -> str:
    try:
        return str(parse_range(text))
    except DeltaregError as error:
        raise ValueError(f"{_told(error)}; {error.hint}") from error


def _repository(text: str) -> str:
    reference = _reference(text)
    if reference != Reference(reference.namespace, reference.name):
        raise ValueError(f"{text!r} is more than a name: write {reference.repository!r}")
    return text


def _ref(text: str) -> str:
    reference = _reference(text)
    key = "digest" if reference.digest else "version" if reference.version else "channel" if reference.tag else None
    if key is not None:
        value = reference.digest or reference.tag
        raise ValueError(f'{text!r} is more than a name: write ref = "{reference.repository}" and {key} = "{value}"')
    return text


def _reference(text: str) -> Reference:
    try:
        return parse_reference(text)
    except DeltaregError as error:
        raise ValueError(_told(error)) from error


def _channel(text: str) -> str:
    if not is_channel(text):
        raise ValueError(f"{text!r} is no channel: channels are lower-case words, such as latest or prod")
    return text


def _licence(text: str) -> str:
    try:
        return parse_licence(text)
    except DeltaregError as error:
        raise ValueError(_told(error)) from error


def parse_moment(value: Any) -> datetime:
    """A date of TOML, or a text, as a time in UTC: midnight, where none is given. Raises ValueError."""
    moment = value
    try:
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        elif isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, time())
        if isinstance(moment, datetime):
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"takes a date or a time, such as 2026-01-31 or 2026-01-31T12:00:00Z, not {_shown(value)}")


def _number(value: Any, handler: Callable[[Any], Number]) -> Number:
    # One sentence, where pydantic tells what every alternative has against the value.
    try:
        return handler(value)
    except ValidationError:
        raise ValueError(
            f"takes a number of at most {_WEIGHT_LIMIT:g}, or two and more in a list, from first layer to last, "
            f"not {_shown(value)}"
        ) from None


def _setting(value: Any, handler: Callable[[Any], Setting]) -> Setting:
    try:
        return handler(value)
    except ValidationError:
        if not isinstance(value, dict) or not value:
            raise ValueError(
                f"takes {_PLAIN_TOLD}, or a table of such values by selector, not {_shown(value)}"
            ) from None
        rules = cast("dict[str, Any]", value)
        bad = [
            f"{_key(selector)} takes {_PLAIN_TOLD}, not {_shown(rule)}"
            for selector, rule in rules.items()
            if not _is_plain(rule)
        ]
        raise ValueError("; ".join(bad) or "a selector is empty") from None


def _is_plain(value: Any) -> bool:
    try:
        _PLAIN.validate_python(value)
    except ValidationError:
        return False
    return True


def _shown(value: Any) -> str:
    """A value of TOML, for people."""
    text = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


Weight = Annotated[float, Field(ge=-_WEIGHT_LIMIT, le=_WEIGHT_LIMIT, allow_inf_nan=False)]

Number = Annotated[Weight | Annotated[list[Weight], Field(min_length=2)], WrapValidator(_number)]
"""A number, or a gradient: several, from the first layer to the last."""

Finite = Annotated[float, Field(allow_inf_nan=False)]
Plain = bool | Finite | str | Annotated[list[Finite], Field(min_length=2)]

_PLAIN: TypeAdapter[Plain] = TypeAdapter(Plain, config=ConfigDict(strict=True))
_PLAIN_TOLD = "a number, true or false, a text, or a list of two numbers and more"

Selector = Annotated[str, Field(min_length=1)]

Setting = Annotated[Plain | Annotated[dict[Selector, Plain], Field(min_length=1)], WrapValidator(_setting)]
"""A parameter of a method: one value, a gradient, or a table of them by selector; the last that matches counts."""

Dtype = Literal["bfloat16", "float16", "float32", "float64"]

Moment = Annotated[
    datetime,
    BeforeValidator(parse_moment),
    WithJsonSchema({"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}),
]


class _Table(BaseModel):
    """A table of the file. Keys are written with hyphens."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )


class RecipeDelta(_Table):
    """One delta that is wanted. Of version, channel and digest at most one is given; without any, any version fits."""

    ref: Annotated[str, AfterValidator(_ref)] = Field(description="namespace/name of the delta")
    version: Annotated[str, AfterValidator(_range)] | None = Field(
        default=None, description="range of versions: ^1.2, ~1.2.3, 1.2.3, 1.*, or >=2, <3"
    )
    channel: Annotated[str, AfterValidator(_channel)] | None = Field(
        default=None, description="channel whose version is taken, such as prod"
    )
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = Field(
        default=None, description="digest of the manifest: these bytes and no others"
    )
    remote: str | None = Field(
        default=None,
        min_length=1,
        description="name of the remote that the delta comes from; local is this machine's registry",
    )
    weight: Number = Field(default=1.0, description="weight, or a gradient of weights along the layers")
    where: dict[Selector, Number] = Field(
        default={},
        description="other weights by selector (a module class, or a pattern of tensor names); the last that matches "
        "counts",
    )
    parameters: dict[str, Setting] = Field(
        default={}, description="parameters of the method for this delta alone, such as its density"
    )

    @model_validator(mode="after")
    def _wants_one_thing(self) -> Self:
        fault = _several_wishes({name: getattr(self, name) for name in _WISHES})
        if fault is not None:
            raise ValueError(fault)
        return self

    @property
    def reference(self) -> Reference:
        """Its name, without a version."""
        return parse_reference(self.ref)

    @property
    def range(self) -> VersionRange:
        """The versions that are wanted."""
        return ANY if self.version is None else parse_range(self.version)

    @property
    def wanted(self) -> str:
        """What is wanted of it, as text: a range, a channel or a digest."""
        return self.digest or (f"channel {self.channel}" if self.channel else self.version or "*")


class Build(_Table):
    """What is built of the deltas."""

    name: Annotated[str, AfterValidator(_repository)] | None = Field(
        default=None, description="namespace/name of what is built, for its model card"
    )
    base: str = Field(
        min_length=1,
        description="the checkpoint to start from: a path (counted from the recipe's directory), "
        "hf://org/name@revision, s3://bucket/prefix, or only its fingerprint, sha256:…",
    )
    method: str = Field(default="linear", description="how deltas are merged: see deltareg methods")
    parameters: dict[str, Setting] = Field(
        default={},
        description="parameters of the method: numbers, gradients, true or false, words, or tables by selector",
    )
    dtype: Dtype | None = Field(default=None, description="dtype of the output; by default that of the base")
    seed: Annotated[int, Field(ge=0, le=_SEED_LIMIT)] = Field(default=0, description="where random masks start")
    side_files: Literal["post", "target"] = Field(
        default="post", description="whose tokenizer, chat template and generation config the output gets"
    )
    with_added: bool | None = Field(
        default=None,
        description="take tensors that only post has, or leave them out; by default on the delta's own base",
    )
    exact: bool = Field(default=False, description="take no delta that is an approximation")
    allow_licence: list[Annotated[str, AfterValidator(_licence)]] | None = Field(
        default=None, description="licences that a delta may have; by default any"
    )
    accept_licence: bool = Field(default=False, description="build although the parents' licences do not go together")
    exclude_newer: Moment | None = Field(
        default=None,
        description="take no version that was published after this date or time (UTC, where no zone is given)",
    )


class Recipe(_Table):
    """What is to be built, of which deltas."""

    build: Build
    delta: list[RecipeDelta] = Field(default=[], description="the deltas, the most important first")

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        faults = _repeated(one.ref for one in self.delta)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The recipe in a file: see `read_recipe`."""
        return cast(Self, read_recipe(Path(path)))

    @property
    def digest(self) -> str:
        """Digest of what the recipe says, however it is written."""
        said = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        # Of the selectors that match a tensor the last counts: their order is a part of what is said.
        for delta in said["delta"]:
            delta["where"] = _pairs(delta["where"])
        for table in (said["build"], *said["delta"]):
            table["parameters"] = {
                name: _pairs(cast("dict[str, Any]", setting)) if isinstance(setting, dict) else setting
                for name, setting in table["parameters"].items()
            }
        return sha256(canonical_json(said))


def read_recipe(path: Path) -> Recipe:
    """Read the recipe in a `deltareg.toml`. Raises BadRecipe, which names every fault in it, NotAllowed."""
    with translate_os_errors("read the recipe", path):
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadRecipe(f"there is no recipe {path}", hint="deltareg new writes one", path=path) from error
    return parse_recipe(data, path)


def parse_recipe(data: bytes, path: Path | str = RECIPE_NAME) -> Recipe:
    """The recipe in the text of the file at `path`. Raises BadRecipe, which names every fault."""
    if len(data) > _LIMIT:
        raise BadRecipe(f"{path} is larger than {_LIMIT} bytes", path=path)
    try:
        values = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadRecipe(f"{path} is not valid TOML: {error}", cause=str(error), path=path) from error
    tables = {key: value for key, value in values.items() if key not in SETTINGS_KEYS}
    if not tables:
        raise BadRecipe(f"{path} holds no recipe", hint="deltareg new adds one to it", path=path)
    try:
        return Recipe.model_validate(tables, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [_fault(tables, dict(fault)) for fault in error.errors(include_url=False)]
        faults += [fault for fault in _crossed_faults(tables) if fault not in faults]
        shown = "; ".join(faults[:_FAULTS_SHOWN])
        more = f"; and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise BadRecipe(
            f"{path}: {shown}{more}", hint="docs/recipes.md lists every key", path=path, faults=faults
        ) from error


_WISHES = ("version", "channel", "digest")


def _several_wishes(delta: Mapping[str, Any]) -> str | None:
    given = [name for name in _WISHES if delta.get(name) is not None]
    return f"it has {' and '.join(given)}: give one of them" if len(given) > 1 else None


def _repeated(refs: Iterable[str]) -> list[str]:
    counts = Counter(refs)
    return [f"{ref} is named more than once: give it one weight" for ref in counts if counts[ref] > 1]


def _crossed_faults(tables: Mapping[str, Any]) -> list[str]:
    """The faults between keys, which pydantic looks for only where each key is sound."""
    found = tables.get("delta")
    deltas = cast("list[Any]", found) if isinstance(found, list) else []
    faults: list[str] = []
    for number, delta in enumerate(deltas):
        fault = _several_wishes(cast("dict[str, Any]", delta)) if isinstance(delta, dict) else None
        if fault is not None:
            faults.append(f"{_place(tables, ['delta', number])}: {fault}")
    refs = [_ref_of(delta) for delta in deltas]
    return faults + _repeated(ref for ref in refs if ref is not None)


def _ref_of(delta: Any) -> str | None:
    ref = cast("dict[str, Any]", delta).get("ref") if isinstance(delta, dict) else None
    return ref if isinstance(ref, str) else None


def _pairs(rules: Mapping[str, Any]) -> list[list[Any]]:
    return [[selector, value] for selector, value in rules.items()]


def _fault(tables: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    """One fault, with its place as people write it."""
    place = list(cast("tuple[str | int, ...]", fault["loc"]))
    if fault["type"] == "extra_forbidden":
        *above, key = place
        near = nearest(str(key), _known(above))
        meant = "" if near is None else f" (did you mean {_place(tables, [*above, near])}?)"
        return f"unknown key {_place(tables, place)}{meant}"
    shown = _place(tables, place)
    if fault["type"] == "missing":
        return f"{shown} is missing"
    told = _message(fault, place)
    return f"{shown}: {told}" if shown else told


def _message(fault: Mapping[str, Any], place: list[str | int]) -> str:
    """What is wrong, in the words of the file."""
    kind, given = str(fault["type"]), _shown(fault["input"])
    if place == ["delta"]:
        return f"takes tables, each under [[delta]] in double brackets, not {given}"
    if kind == "literal_error":
        return f"takes {fault['ctx']['expected']}, not {given}"
    if kind == "string_too_short":
        return "is empty"
    if kind in _TAKES:
        return f"takes {_TAKES[kind]}, not {given}"
    return str(fault["msg"]).removeprefix("Value error, ")


_TAKES: Mapping[str, str] = MappingProxyType(
    {
        "bool_type": "true or false",
        "dict_type": "a table",
        "greater_than_equal": f"a whole number from 0 to {_SEED_LIMIT}",
        "int_type": f"a whole number from 0 to {_SEED_LIMIT}",
        "less_than_equal": f"a whole number from 0 to {_SEED_LIMIT}",
        "list_type": "a list",
        "model_type": "a table",
        "string_pattern_mismatch": "sha256: and 64 lower-case hexadecimal digits",
        "string_type": "a text",
    }
)
"""What a key takes, by pydantic's name for the fault: the one whole number is the seed, the one pattern a digest's."""


def _known(above: list[str | int]) -> list[str]:
    if not above:
        return [*RECIPE_TABLES, *SETTINGS_KEYS]
    fields = Build.model_fields if above[0] == "build" else RecipeDelta.model_fields
    return [name.replace("_", "-") for name in fields]


def _place(tables: Mapping[str, Any], place: list[str | int]) -> str:
    """`build.seed`, or `delta 2 (acme/med).version`: where in the file a key stands."""
    shown = ""
    for depth, part in enumerate(place):
        if part == "[key]":  # pydantic's mark for a fault of the key itself
            continue
        if isinstance(part, int):
            shown += f" {part + 1}"
            ref = _ref_of(tables["delta"][part]) if depth == 1 and place[0] == "delta" else None
            shown += f" ({ref})" if ref is not None else ""
        else:
            shown += ("." if shown else "") + _key(part)
    return shown


def _key(text: str) -> str:
    """A key as TOML writes it."""
    return text if _BARE_KEY.fullmatch(text) else json.dumps(text, ensure_ascii=False)
