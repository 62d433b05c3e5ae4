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

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from deltareg.digest import canonical_json, sha256
from deltareg.errors import BadRecipe, DeltaregError, translate_os_errors
from deltareg.names import Reference, is_channel, parse_licence, parse_reference
from deltareg.spelling import did_you_mean
from deltareg.versions import ANY, VersionRange, parse_range

__all__ = [
    "RECIPE_NAME",
    "RECIPE_TABLES",
    "Build",
    "Number",
    "Recipe",
    "RecipeDelta",
    "Setting",
    "parse_recipe",
    "read_recipe",
]

RECIPE_NAME = "deltareg.toml"
"""The file of a recipe: that of the project's settings, which it shares."""

RECIPE_TABLES = ("build", "delta")
"""The tables of the file that are the recipe's."""

SETTINGS_KEYS = ("home", "threads", "remote", "remotes")
"""Its other keys, which are settings: see `deltareg.config`."""

_LIMIT = 1 << 20
_NUMBER_LIMIT = 3.4e38
_SHOWN = 60
_TAKES = {
    "string_type": "takes a text",
    "int_type": "takes a whole number",
    "bool_type": "takes true or false",
    "list_type": "takes an array",
    "dict_type": "takes a table",
    "model_type": "takes a table",
    "datetime_type": "takes a date, such as 2026-01-31",
}

Value = TypeVar("Value")


def _told(error: DeltaregError) -> str:
    return error.message + (f": {error.cause}" if error.cause else "")


def _number(value: Any) -> Any:
    """Refuse what is no number and no gradient, before each alternative of the union tells a fault of its own."""
    if isinstance(value, list):
        numbers = cast("list[Any]", value)
        if len(numbers) < 2:
            raise ValueError("a gradient has at least two numbers: write a number, or [first, …, last]")
        return [_finite(number) for number in numbers]
    return _finite(value)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"takes a number, or several as [first, …, last], not {_shown(value)}")
    if not abs(value) <= _NUMBER_LIMIT:
        raise ValueError(f"takes finite numbers of at most {_NUMBER_LIMIT}, not {_shown(value)}")
    return float(value)


def _setting(value: Any) -> Any:
    if not isinstance(value, dict):
        return _plain(value)
    found: dict[str, Any] = {}
    faults: list[str] = []
    for selector, one in cast("dict[str, Any]", value).items():
        try:
            found[selector] = _plain(one)
        except ValueError as error:
            faults.append(f"for {selector} it {error}")
    if faults:
        raise ValueError("; ".join(faults))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float, list)):
        return _number(value)
    raise ValueError(f"takes a number, a text, true, false or [first, …, last], not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as TOML has it, as far as it matters."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, (str, float)) else str(value)[:_SHOWN]
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _range(text: str) -> str:
    try:
        return str(parse_range(text))
    except DeltaregError as error:
        raise ValueError(f"{_told(error)}; {error.hint}") from error


def _repository(text: str) -> str:
    try:
        reference = parse_reference(text)
    except DeltaregError as error:
        raise ValueError(_told(error)) from error
    if reference.tag is not None or reference.digest is not None:
        raise ValueError(f"{text!r} is more than a name: write ref = {reference.repository!r} and version = …")
    return text


def _channel(text: str) -> str:
    if not is_channel(text):
        raise ValueError(f"{text!r} is no channel: channels are lower-case words, such as latest or prod")
    return text


def _licence(text: str) -> str:
    try:
        return parse_licence(text)
    except DeltaregError as error:
        raise ValueError(_told(error)) from error


def _moment(value: Any) -> Any:
    """A date of TOML, or a text, as a time in UTC: midnight, where none is given."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"takes a date, such as 2026-01-31 or 2026-01-31T12:00:00Z, not {_shown(value)}") from error
    return value


Number = Annotated[float | Annotated[list[float], Field(min_length=2)], BeforeValidator(_number)]
"""A number, or a gradient: several, from the first layer to the last."""

Plain = bool | float | str | Annotated[list[float], Field(min_length=2)]

Setting = Annotated[Plain | dict[str, Plain], BeforeValidator(_setting)]
"""A parameter of a method: one value, a gradient, or a table of them by selector; the last that matches counts."""

Dtype = Literal["bfloat16", "float16", "float32", "float64"]


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

    ref: Annotated[str, AfterValidator(_repository)] = Field(description="namespace/name of the delta")
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
    where: dict[str, Number] = Field(
        default={},
        description="other weights by selector (a module class, or a pattern of tensor names); the last that matches "
        "counts",
    )

    @model_validator(mode="after")
    def _wants_one_thing(self) -> Self:
        given = [name for name in ("version", "channel", "digest") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"it has {' and '.join(given)}: give one of them")
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
    parameters: dict[str, Setting] = Field(default={}, description="parameters of the method")
    dtype: Dtype | None = Field(default=None, description="dtype of the output; by default that of the base")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(default=0, description="where random masks start")
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
    exclude_newer: Annotated[datetime, BeforeValidator(_moment)] | None = Field(
        default=None, description="take no version that was published after this time"
    )


class Recipe(_Table):
    """What is to be built, of which deltas."""

    build: Build
    delta: list[RecipeDelta] = Field(default=[], description="the deltas, the most important first")

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        fault = _named_twice([one.ref for one in self.delta])
        if fault:
            raise ValueError(fault)
        return self

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """The recipe in a file: see `read_recipe`."""
        return cast(Self, read_recipe(Path(path)))

    @property
    def digest(self) -> str:
        """Digest of what the recipe says, however it is written."""
        return sha256(canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True)))


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
    if not tables.keys() & set(RECIPE_TABLES):
        raise BadRecipe(f"{path} holds no recipe", hint="deltareg new adds one to it", path=path)
    try:
        return Recipe.model_validate(tables, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [_fault(tables, dict(fault)) for fault in error.errors()]
        # Compared by pydantic only once everything else is in order.
        twice = _named_twice(_refs(tables.get("delta")))
        faults += [twice] if twice and twice not in faults else []
        raise BadRecipe(
            f"{path}: " + "; ".join(faults), hint="docs/recipes.md lists every key", path=path, faults=faults
        ) from error


def _fault(tables: Mapping[str, Any], fault: Mapping[str, Any]) -> str:
    """One fault, with its place as people write it."""
    place = cast("tuple[str | int, ...]", fault["loc"])
    if fault["type"] == "extra_forbidden":
        *above, key = place
        known, prefix = _known(above), _place(tables, above)
        return f"unknown key {prefix}{key}" + did_you_mean(str(key), known, prefix)
    shown = _place(tables, list(place)).removesuffix(".")
    message = _message(fault)
    return f"{shown}: {message}" if shown else message


def _refs(deltas: Any) -> list[str]:
    tables = cast("list[Any]", deltas) if isinstance(deltas, list) else []
    found = [cast("dict[str, Any]", table).get("ref") for table in tables if isinstance(table, dict)]
    return [ref for ref in found if isinstance(ref, str)]


def _named_twice(refs: Sequence[str]) -> str | None:
    twice = sorted(ref for ref, times in Counter(refs).items() if times > 1)
    return f"{', '.join(twice)} is named more than once: give it one weight" if twice else None


def _message(fault: Mapping[str, Any]) -> str:
    if fault["type"] == "missing":
        return "it is missing"
    if fault["type"] in _TAKES:
        return f"{_TAKES[fault['type']]}, not {_shown(fault['input'])}"
    return str(fault["msg"]).removeprefix("Value error, ").replace("Input should be", "takes")


def _known(above: Sequence[str | int]) -> list[str]:
    if not above:
        return [*RECIPE_TABLES, *SETTINGS_KEYS]
    fields = Build.model_fields if above[0] == "build" else RecipeDelta.model_fields
    return [name.replace("_", "-") for name in fields]


def _place(tables: Mapping[str, Any], place: Sequence[str | int]) -> str:
    """`build.`, or `delta 2 (acme/med).`: where in the file a key stands."""
    if not place:
        return ""
    first, *rest = place
    shown = str(first)
    if first == "delta" and rest and isinstance(rest[0], int):
        number = rest.pop(0)
        table = tables["delta"][number]
        ref = cast("dict[str, Any]", table).get("ref") if isinstance(table, dict) else None
        shown += f" {int(number) + 1}" + (f" ({ref:.80})" if isinstance(ref, str) else "")
    return ".".join([shown, *map(str, rest)]) + "."
