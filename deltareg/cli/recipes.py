"""`deltareg new`, `add` and `remove`: writing a recipe, and changing its deltas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar

import typer

from deltareg.cli.builds import project_of
from deltareg.cli.options import DryRun, Json, RecipeOption, check_text, complete_delta, complete_remote

if TYPE_CHECKING:
    from deltareg.names import Reference
    from deltareg.recipe import RecipeDelta, Setting
    from deltareg.recipe_file import RecipeFile

__all__ = ["add", "new", "remove"]

Answer = TypeVar("Answer")

_EXAMPLE = "example-of-a-template"
_NUMBER_HINT = "write a number, or several along the layers: 0.2..0.8"


def new(
    scenario: Annotated[
        int | None,
        typer.Option("--scenario", metavar="1-4", min=1, max=4, help="Which template; 4 with several deltas, else 1."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="The checkpoint to start from.", callback=check_text),
    ] = None,
    deltas: Annotated[
        list[str] | None,
        typer.Option(
            "--delta",
            metavar="REF[=WEIGHT]",
            help="A delta, the most important first. Can be given again.",
            autocompletion=complete_delta,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="METHOD", help="How deltas are merged: see deltareg methods.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="namespace/name of what is built.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="By default deltareg.toml here.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Write a recipe.

    Four templates explain themselves: (1) a general-purpose delta on a newly released base; (2) a task delta on one;
    (3) a general-purpose delta on a base that was pre-trained further; (4) several deltas, weighted. On a terminal,
    without --scenario, --base and --delta, the program asks. A recipe is never overwritten; a file that holds settings
    alone keeps them.

    \b
      deltareg new --base ./llama --delta acme/instruct=0.6 --delta acme/medical=0.4
    """
    from deltareg.cli.session import working_directory
    from deltareg.config import CONFIG_NAME
    from deltareg.recipe_file import RecipeFile, template

    path = output or working_directory() / CONFIG_NAME
    given = [_delta(text) for text in deltas or []]
    if method is not None:
        _method(method)
    RecipeFile.new(path, template(1))  # Refused before anything is asked.
    if scenario is None and base is None and not given:
        try:
            scenario, base, given = _ask()
            method = method or _ask_method()
        except typer.Abort:
            typer.echo(err=True)  # The error begins a line of its own.
            raise
    file = RecipeFile.new(path, template(scenario or (4 if len(given) > 1 else 1)))
    values = {"base": base, "method": method, "name": name}
    chosen = {key: value for key, value in values.items() if value is not None}
    if chosen:
        file.set_build(**chosen)
    if given:
        _fill(file, given)
    if not dry_run:
        file.write()
    _print_change("wrote", path, file.recipe.delta, dry_run=dry_run, json=json)


def add(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REF",
            help="The delta: acme/search, acme/search@^1.2, acme/search:1.2.3, :channel or @sha256:….",
            autocompletion=complete_delta,
        ),
    ],
    version: Annotated[
        str | None, typer.Option("--version", metavar="RANGE", help="Range of versions: ^1.2, ~1.2.3, '>=2, <3'.")
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="CHANNEL", help="The version that a channel points to.")
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="DIGEST", help="The version with this digest: sha256:….")
    ] = None,
    weight: Annotated[
        str | None, typer.Option("--weight", metavar="W", help="Weight, or a gradient along the layers: 0.2..0.8.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="SELECTOR=W",
            help="Another weight for a module class, or a pattern of tensor names. Can be given again.",
        ),
    ] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="NAME[SELECTOR]=VALUE",
            help="A parameter of the method for this delta alone: density=0.3. Can be given again.",
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(
            "--from",
            "--remote",
            metavar="REMOTE",
            help="Name of the remote that the delta comes from; local is this machine's registry.",
            autocompletion=complete_remote,
        ),
    ] = None,
    recipe: RecipeOption = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Look the name up where it is bound.")] = True,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Add a delta to the recipe, or change it there.

    Without a range the highest version is looked up, and ^X.Y is written: whatever does not break it. Comments stay.

    \b
      deltareg add acme/search --weight 0.5
    """
    from deltareg.apply.plan import Merge
    from deltareg.build.settings import parameter_settings
    from deltareg.cli.output import hint
    from deltareg.cli.schedules import parse_parameters
    from deltareg.names import parse_reference
    from deltareg.recipe_file import RecipeFile

    path = project_of(recipe).recipe_path
    file = RecipeFile.read(path)
    wanted = _wanted(reference, version, channel, digest)
    before = file.delta(wanted["ref"])
    values: dict[str, Any] = {} if before is None else before.model_dump(by_alias=True, exclude_none=True)
    if wanted.keys() & {"version", "channel", "digest"}:
        values = {key: value for key, value in values.items() if key not in ("version", "channel", "digest")}
    values |= wanted
    if weight is not None:
        values["weight"] = _weight(weight)
    if where:
        values["where"] = {**values.get("where", {}), **dict(_selected(text) for text in where)}
    if parameters:
        merge, name = Merge.of(file.recipe.build.method, None, 0), parse_reference(wanted["ref"])
        schedules = parse_parameters(merge.method.name, parameters)
        merge.check_own(name, schedules)
        own, known = parameter_settings(schedules), values.get("parameters", {})
        values["parameters"] = known | {key: _with_rules(known.get(key), value) for key, value in own.items()}
    if remote is not None:
        values["remote"] = remote
    if check and (before is None or before != _checked(path, values)):
        found = _highest(_checked(path, values))
        if before is None and not values.keys() & {"version", "channel", "digest"}:
            values["version"] = found
    elif not check and before is None and not values.keys() & {"version", "channel", "digest"}:
        hint(f"any version of {values['ref']} fits: bound it with --version")
    delta = _checked(path, values)
    file.add(delta)
    if not dry_run:
        file.write()
    done = "added" if before is None else "kept" if before == delta else "changed"
    _print_change(done, path, [delta], dry_run=dry_run, json=json)


def remove(
    reference: Annotated[str, typer.Argument(metavar="REF", help="The delta: namespace/name.")],
    recipe: RecipeOption = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Take a delta out of the recipe.

    Comments stay, but for those directly above it.

    \b
      deltareg remove acme/search
    """
    from deltareg.recipe_file import RecipeFile

    path = project_of(recipe).recipe_path
    file = RecipeFile.read(path)
    delta = file.remove(reference)
    if not dry_run:
        file.write()
    _print_change("removed", path, [delta], dry_run=dry_run, json=json)


def _ask() -> tuple[int, str, list[RecipeDelta]]:
    """What a person at the terminal wants. Raises UsageError where nobody is there."""
    from deltareg.errors import UsageError
    from deltareg.recipe_file import SCENARIOS

    # None: stdin was closed.
    stdin: TextIO | None = sys.stdin
    if stdin is None or not stdin.isatty():
        raise UsageError(
            "it is not said which recipe to write",
            hint="give --scenario 1 (to 4), --base BASE or --delta REF=WEIGHT; at a terminal deltareg new asks",
        )
    for number, told in SCENARIOS.items():
        typer.echo(f"  {number}  {told}", err=True)
    scenario = typer.prompt("scenario", default="1", value_proc=_answered(_scenario), err=True)
    base = typer.prompt(
        "base (a path, hf://org/name@revision, s3://bucket/prefix)", value_proc=_answered(check_text), err=True
    )
    return scenario, base, _ask_deltas(2 if scenario == 4 else 1)


def _ask_deltas(least: int) -> list[RecipeDelta]:
    deltas: list[RecipeDelta] = []

    def another(text: str) -> RecipeDelta | None:
        if not text:
            return None
        delta = _delta(text)
        if any(one.ref == delta.ref for one in deltas):
            raise typer.BadParameter(f"{delta.ref} is there already")
        return delta

    while True:
        needed = len(deltas) < least
        delta = typer.prompt(
            f"delta {len(deltas) + 1} (namespace/name=weight{'' if needed else ', or nothing'})",
            default=None if needed else "",
            show_default=False,
            value_proc=_answered(another),
            err=True,
        )
        if delta is None:
            return deltas
        deltas.append(delta)


def _ask_method() -> str:
    return typer.prompt("method (see deltareg methods)", default="linear", value_proc=_answered(_method), err=True)


def _method(name: str) -> str:
    # Here: methods load numpy, and most recipes name none.
    from deltareg.merge import method_of

    return method_of(name).name


def _answered(read: Callable[[str], Answer]) -> Callable[[str], Answer]:
    """Have an answer that is not allowed asked for again."""
    from deltareg.errors import DeltaregError

    def value(text: str) -> Answer:
        try:
            return read(text)
        except DeltaregError as error:
            raise typer.BadParameter(error.message + (f": {error.hint}" if error.hint else "")) from error

    return value


def _scenario(text: str) -> int:
    from deltareg.recipe_file import SCENARIOS

    found = {str(number): number for number in SCENARIOS}
    if text not in found:
        raise typer.BadParameter(f"scenarios are {', '.join(found)}")
    return found[text]


def _delta(text: str) -> RecipeDelta:
    """A delta as `new` takes it: `reference[=weight]`."""
    reference, equals, weight = text.rpartition("=")
    if not equals or ("@" in text and not _is_number(weight)):
        reference, weight = text, "1"
    return _checked(Path("--delta"), {**_wanted(reference), "weight": _weight(weight)})


def _wanted(
    text: str, version: str | None = None, channel: str | None = None, digest: str | None = None
) -> dict[str, Any]:
    """What a reference, and options beside it, ask for: ref, and one of version, channel and digest."""
    from deltareg.errors import InvalidArgument
    from deltareg.names import parse_reference

    name, at, behind = text.partition("@")
    is_range = bool(at) and not behind.startswith("sha256:")
    reference: Reference = parse_reference(name if is_range else text)
    found: dict[str, Any] = {"ref": reference.repository}
    told = {
        "version": reference.version,
        "channel": None if reference.version else reference.tag,
        "digest": reference.digest,
    }
    found |= {key: str(value) for key, value in told.items() if value is not None}
    more = [("version", behind if is_range else None), ("version", version), ("channel", channel), ("digest", digest)]
    for key, one in more:
        if one is not None:
            if len(found) > 1:
                raise InvalidArgument(
                    f"which version of {reference.repository} is wanted is said twice",
                    hint="give one of a version behind its name, --version, --channel and --digest",
                )
            found[key] = one
    return found


def _checked(path: Path, values: dict[str, Any]) -> RecipeDelta:
    from pydantic import ValidationError

    from deltareg.errors import InvalidArgument
    from deltareg.recipe import RecipeDelta

    try:
        return RecipeDelta.model_validate(values, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [str(fault["msg"]).removeprefix("Value error, ") for fault in error.errors()]
        raise InvalidArgument(f"{values['ref']}: " + "; ".join(faults), path=path) from error


def _with_rules(before: Setting | None, added: Setting) -> Setting:
    """A parameter as it was, with what is added: anew, where that is for all tensors."""
    if before is None or not isinstance(added, dict) or "*" in added:
        return added
    return {**(before if isinstance(before, dict) else {"*": before}), **added}


def _weight(text: str) -> float | list[float]:
    from deltareg.errors import InvalidArgument

    parts = text.split("..") if ".." in text else [text]
    if not all(map(_is_number, parts)):
        raise InvalidArgument(f"{text!r} is no weight", hint=_NUMBER_HINT)
    numbers = [float(part) for part in parts]
    return numbers if len(numbers) > 1 else numbers[0]


def _is_number(text: str) -> bool:
    try:
        return text.isascii() and "_" not in text and abs(float(text)) < float("inf")
    except ValueError:
        return False


def _selected(text: str) -> tuple[str, float | list[float]]:
    from deltareg.errors import InvalidArgument

    selector, equals, weight = text.rpartition("=")
    if not equals or not selector:
        raise InvalidArgument(f"--where {text!r} has no weight", hint="write --where mlp=0.5")
    return selector, _weight(weight)


def _highest(delta: RecipeDelta) -> str:
    """The range from the highest version on that fits, where its name is bound. Raises NotFound."""
    from deltareg.cli.session import current_settings, sources, writable_registry
    from deltareg.errors import NotFound
    from deltareg.names import latest_of, version_key

    settings = current_settings()
    with writable_registry(settings, dry_run=True) as registry:
        where = sources(settings, registry)
        name = where.remote_of(delta.ref, delta.remote)
        every = [one for one in where.named(name).candidates(delta.ref) if one.yanked is None]
    found = [one for one in every if _fits(delta, one)]
    if not found:
        versions = sorted({one.version for one in every}, key=version_key)
        raise NotFound(
            f"{name} has no {delta.ref} {'' if delta.wanted == '*' else delta.wanted}".rstrip(),
            cause=f"it has {', '.join(versions)}" if versions else f"it has no version of {delta.ref}",
            hint="add it all the same: --version RANGE --no-check; from elsewhere: --from NAME, or bind its namespace",
        )
    highest = version_key(str(latest_of([one.version for one in found])))
    if highest.prerelease is not None:
        return f"={highest}"
    return f"^{highest.major}.{highest.minor}" if highest.major or highest.minor else f"^{highest}"


def _fits(delta: RecipeDelta, candidate: Any) -> bool:
    if delta.digest is not None:
        return candidate.digest == delta.digest
    if delta.channel is not None:
        return delta.channel == "latest" or delta.channel in candidate.channels
    return delta.version is None or delta.range.has(candidate.version)


def _fill(file: RecipeFile, given: list[RecipeDelta]) -> None:
    """Put deltas in the places of a template's examples, whose comments explain them."""
    # By way of names that nobody gave: those of the examples may be among the given ones, in another order.
    places = [
        delta.model_copy(update={"ref": f"{_EXAMPLE}/{number}"}) for number, delta in enumerate(file.recipe.delta)
    ]
    for example, place in zip([*file.recipe.delta], places, strict=True):
        file.replace(example.ref, place)
    for number, delta in enumerate(given):
        if number < len(places):
            file.replace(places[number].ref, delta)
        else:
            file.add(delta)
    for place in places[len(given) :]:
        file.remove(place.ref)


def _print_change(
    done: Literal["wrote", "added", "changed", "kept", "removed"],
    path: Path,
    deltas: list[RecipeDelta],
    *,
    dry_run: bool,
    json: bool,
) -> None:
    from deltareg.cli.output import print_json, print_line
    from deltareg.cli.reports import RecipeChange, RecipeRow

    rows = [
        RecipeRow(
            ref=one.ref,
            wanted=one.wanted,
            weight=one.weight,
            where=one.where,
            parameters=one.parameters,
            remote=one.remote,
        )
        for one in deltas
    ]
    if json:
        print_json(RecipeChange(file=str(path), done=done, deltas=rows, dry_run=dry_run))
        return
    told = ", ".join(f"{row.ref} {row.wanted} (weight {row.told_weight})" for row in rows)
    would = f"would have {'written' if done == 'wrote' else done}"
    print_line(f"{would if dry_run else done} {told}: {path}")
