"""Pages and schemas that are made from the program: `python -m tests.docs` writes them, `--check` compares them."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from typer.main import get_command

from deltareg.analysis.compare import ComparisonReport
from deltareg.analysis.evaluating import EvaluationReport
from deltareg.analysis.side_by_side import SideBySideReport
from deltareg.analysis.sweep import SweepReport
from deltareg.analysis.transfer import TransferAnalysis
from deltareg.apply import ApplyReport
from deltareg.apply.verify import VerifyReport
from deltareg.archive import ArchiveReport
from deltareg.build import BuildReport, LockReport, OutdatedReport, TreeReport, WhyReport
from deltareg.build.inspecting import InspectReport
from deltareg.catalog import SearchReport
from deltareg.check import CheckReport, FingerprintReport
from deltareg.cli import reports
from deltareg.cli.app import EXIT_CODES, app
from deltareg.config import KEYS, VARIABLES
from deltareg.diff import DiffReport
from deltareg.errors import DeltaregError, all_errors
from deltareg.homology import FINDINGS, FindingKind
from deltareg.lock import Lock
from deltareg.lora import ExportReport, ImportReport
from deltareg.manifest import DeltaConfig, Descriptor, Index, Inventory, Manifest, ReferrerManifest
from deltareg.merge import METHODS
from deltareg.mergekit import MergekitReport
from deltareg.mirroring import MirrorReport
from deltareg.recipe import Build, Recipe, RecipeDelta
from deltareg.remote.logins import Identity, LoginReport, LogoutReport
from deltareg.signatures import SignatureReport, SignReport
from deltareg.store import FsckReport, GcReport
from deltareg.transfer import TransferReport
from deltareg_registry.api import API_ROUTERS
from deltareg_registry.api.description import describe

__all__ = ["ROOT", "SCHEMAS", "commands", "generated", "main"]

ROOT = Path(__file__).resolve().parents[1]

SCHEMAS: Mapping[str, type[BaseModel]] = {
    "manifest": Manifest,
    "config": DeltaConfig,
    "inventory": Inventory,
    "index": Index,
    "descriptor": Descriptor,
    "referrer": ReferrerManifest,
    "recipe": Recipe,
    "lock": Lock,
    "error": reports.ErrorDocument,
    "init": reports.InitReport,
    "diff": DiffReport,
    "import-lora": ImportReport,
    "import-mergekit": MergekitReport,
    "export-lora": ExportReport,
    "list": reports.DeltaList,
    "show": reports.DeltaDetails,
    "search": SearchReport,
    "transfer": TransferReport,
    "mirror": MirrorReport,
    "archive": ArchiveReport,
    "yank": reports.YankReport,
    "deprecation": reports.DeprecationReport,
    "channel": reports.ChannelChange,
    "channel-list": reports.ChannelList,
    "verify": VerifyReport,
    "signature": SignatureReport,
    "sign": SignReport,
    "key": reports.KeyReport,
    "signers": reports.SignersReport,
    "check": CheckReport,
    "compare": ComparisonReport,
    "side-by-side": SideBySideReport,
    "transfer-analysis": TransferAnalysis,
    "sweep": SweepReport,
    "eval": EvaluationReport,
    "apply": ApplyReport,
    "locking": LockReport,
    "build": BuildReport,
    "outdated": OutdatedReport,
    "why": WhyReport,
    "tree": TreeReport,
    "inspect": InspectReport,
    "methods": reports.MethodList,
    "fingerprint": FingerprintReport,
    "login": LoginReport,
    "logout": LogoutReport,
    "whoami": Identity,
    "remote-list": reports.RemoteList,
    "remote-change": reports.RemoteChange,
    "recipe-change": reports.RecipeChange,
    "gc": GcReport,
    "fsck": FsckReport,
    "reindex": reports.ReindexReport,
    "doctor": reports.DoctorReport,
}
"""The documents that leave the program: those of an artifact, recipe and lock, and those that `--json` prints.

The schema of a recipe is that of its TOML file's data, as JSON writes them.
"""

_WIDTH = 100
_CLI_HEAD = """\
# The command line

This page is made from the program by `make docs`.

Data goes to stdout; progress (on a terminal only), hints, warnings and errors go to stderr. With `--json` a command
prints one JSON document, whose schema is in `schemas/`, on stdout; a command that fails prints
`{"error": {"code": …, "message": …, "cause": …, "hint": …, "data": {…}}}` there. For people an error reads:

```text
error[DR0002]: acme/search:9.9.9 is not in …
cause: acme/search has 1.0.0
hint: deltareg list
```

Every code is explained in [errors.md](errors.md). Commands that write take `--dry-run`. With `NO_COLOR` set there are
no colours. `deltareg --install-completion` teaches the shell to complete commands, remotes and deltas.
"""
_SETTINGS = """\
`deltareg.toml`: the nearest one in the working directory or above it, then that in the user's configuration directory.
The project's settings win over the user's, variables over both. A key that is not known is an error.
"""
_ERRORS_HEAD = """\
# Errors

This page is made from the program by `make docs`. The code of an error never changes its meaning; the exit status says
of which kind it is.
"""


_METHODS_HEAD = """\
# Merge methods

This page is made from the program by `make docs`; `deltareg methods` tells the same.

```console
$ deltareg apply target/ acme/search:1.0.0=0.6 acme/chat:2.1.0=0.4 --method ties --param density=0.5 -o merged/
```

M is what a method adds to the target: result = round(target + M). It is computed in float32 where everything has 16
bits, in float64 otherwise; products and sums are rounded one by one, the result once. It has the same bits for any
number of threads. Where papers and tools disagree, the variant is a parameter, its default is the paper's, and the
model card of the output names every parameter. Where a lane of M is zero the target keeps its bits.

**Weights** wᵢ come with the deltas (`acme/search:1.0.0=0.6`). Methods whose formula has no place for weights scale the
deltas with them before anything else.

**By tensor.** Weights and parameters can differ: `--weight 'acme/search:1.0.0[mlp]=0.8'`, `--param
'density[model.layers.1?.*]=0.9'`. A selector is a module class (`attention`, `mlp`, `embedding`, `norm`, `lm_head`,
`other`) or a pattern of tensor names; of those that match a tensor, the last one given counts. A number may change
along the layers: `density=0.2..0.8` goes linearly from the first layer to the last; `0.2..0.8..0.2` has its middle in
the middle. Tensors in front of the layers have the first value, those behind them the last.

**By delta.** What may differ by delta, a density for instance, can be given to one of them: `--param
density@acme/search:1.0.0=0.3`, or with a selector, `--param 'density@acme/search:1.0.0[mlp]=0.2'`. It counts before
what is given for all. In a recipe it is the delta's own `parameters`. With `trim=model` the largest of a delta are
those of all tensors that have the same densities.

**Random masks** come from a generator that counts: a bit of a mask depends on `--seed`, the delta's digest, the tensor
and the place in it, and on nothing else. The same command gives the same bytes on every machine.
"""

_FINDINGS_HEAD = """\
## Findings

What `deltareg check` finds. An error makes the verdict `incompatible`, a warning `adaptable`; a note only tells. Under
each code stands what a finding reads like: the delta, or its base, comes first, the target second.
"""


_KEYS_BEGIN = "<!-- The keys are made from the program by `make docs`. -->\n"
_KEYS_END = "<!-- End of the keys. -->\n"
_ROUTES_BEGIN = "<!-- The routes are made from the program by `make docs`. -->\n"
_ROUTES_END = "<!-- End of the routes. -->\n"


def generated() -> dict[Path, str]:
    """The text of every generated file, by its path in the repository."""
    found = {
        Path("docs/cli.md"): _cli_page(),
        Path("docs/errors.md"): _errors_page(),
        Path("docs/methods.md"): _methods_page(),
        Path("docs/recipes.md"): _recipes_page(),
        Path("docs/registry-api.md"): _registry_page(),
        Path("schemas/registry-openapi.json"): json.dumps(_openapi(), indent=2, ensure_ascii=False) + "\n",
    }
    for name, model in SCHEMAS.items():
        found[Path(f"schemas/{name}.schema.json")] = _schema(name, model)
    return found


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its context, the program itself first. Any: typer keeps click's classes to itself."""
    root = get_command(app)
    yield from _walk("deltareg", root, None)


def _walk(path: str, command: Any, parent: Any) -> Iterator[tuple[str, Any]]:
    name = path.rpartition(" ")[2]
    # Wide enough for every terminal that reads the page, and the same on every machine.
    context = command.make_context(name, [], parent=parent, resilient_parsing=True, terminal_width=_WIDTH)
    yield path, context
    for child, inner in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {child}", inner, context)


def _cli_page() -> str:
    parts = [_CLI_HEAD, "## Exit status\n", _table(["status", "meaning"], EXIT_CODES)]
    parts += [
        "## Settings\n",
        _SETTINGS,
        _table(["key", "meaning"], {f"`{key}`": text for key, text in KEYS.items()}),
        _table(["variable", "meaning"], {f"`{name}`": text for name, text in VARIABLES.items()}),
    ]
    for path, context in commands():
        parts.append(f"## `{path}`\n\n```text\n{context.get_help().rstrip()}\n```\n")
    return "\n".join(parts)


def _errors_page() -> str:
    parts = [_ERRORS_HEAD]
    for status, meaning in EXIT_CODES.items():
        group = [error for error in all_errors() if error.exit_code == status]
        if group:
            parts.append(f"## Exit status {status}: {meaning}\n")
            parts += [_error(error) for error in group]
    parts.append(_FINDINGS_HEAD)
    parts += [_finding(code, kind) for code, kind in FINDINGS.items()]
    return "\n".join(parts)


def _methods_page() -> str:
    parts = [_METHODS_HEAD]
    for method in METHODS.values():
        rows = {
            f"`{one.name}`": " | ".join(
                [one.told_default, one.range.replace("|", "/"), "yes" if one.by_delta else "", one.meaning]
            )
            for one in method.parameters.values()
        }
        table = _table(["parameter", "default", "values", "by delta", "meaning"], rows)
        most = "" if method.most == method.least else " or more"
        takes = f"Takes {method.least} delta{'s' if method.least > 1 else ''}{most}."
        parts.append(f"## {method.name}\n\n{method.description}\n\n{takes}\n\n{table}")
    return "\n".join(parts)


def _recipes_page() -> str:
    """The page as people wrote it, its tables of keys made anew."""
    tables = [f"### {title}\n\n{_keys(model)}" for title, model in (("`[build]`", Build), ("`[[delta]]`", RecipeDelta))]
    return _filled("recipes.md", _KEYS_BEGIN, _KEYS_END, "\n".join(tables))


def _registry_page() -> str:
    """The page as people wrote it, its table of routes made anew."""
    rows = {
        f"`{method.upper()} {path}`": f"{operation['x-need']} | {operation['description'].splitlines()[0]}"
        for path, operations in _openapi()["paths"].items()
        for method, operation in operations.items()
    }
    return _filled("registry-api.md", _ROUTES_BEGIN, _ROUTES_END, _table(["route", "needs", "what it does"], rows))


def _openapi() -> dict[str, Any]:
    return describe([route for router in API_ROUTERS for route in router.routes])


def _filled(page: str, begin: str, end: str, made: str) -> str:
    before, opened, rest = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    assert opened and closed, f"docs/{page} has lost the marks of its tables"
    return "".join([before, opened, "\n", made, "\n", closed, after])


def _keys(model: type[BaseModel]) -> str:
    rows = {f"`{field.alias}`": f"{_default(field)} | {field.description}" for field in model.model_fields.values()}
    return _table(["key", "default", "meaning"], rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "has to be given"
    return "none" if field.default is None or field.default == {} else f"`{json.dumps(field.default)}`"


def _error(error: type[DeltaregError]) -> str:
    happened, todo = inspect.cleandoc(error.__doc__ or "").split("\n\n")
    return f"### {error.code} {error.__name__}\n\n{happened}\n\n*What to do:* {todo}\n"


def _finding(code: str, kind: FindingKind) -> str:
    example = f"```text\n{kind.example}\n```"
    return f"### {code} ({kind.severity})\n\n{kind.meaning}\n\n{example}\n\n*What to do:* {kind.remedy}\n"


def _table(head: list[str], rows: Mapping[Any, str]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join(lines + [f"| {key} | {text} |" for key, text in rows.items()]) + "\n"


def _schema(name: str, model: type[BaseModel]) -> str:
    _, schema = models_json_schema([(model, "validation")], by_alias=True)
    definitions: dict[str, Any] = schema["$defs"]
    # The document itself at the top, what it refers to below.
    own = definitions.pop(model.__name__)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"urn:deltareg:schema:{name}"}
    whole = {**head, **own, **({"$defs": definitions} if definitions else {})}
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the files below `root`, or with `--check` name those that differ; return the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m tests.docs [--check]", file=sys.stderr)
        return 2
    files = generated()
    strangers = {path.relative_to(root) for path in (root / "schemas").glob("*.schema.json")} - files.keys()
    stale = [path for path, text in files.items() if not _is_current(root / path, text)]
    for path in sorted([*stale, *strangers]):
        print(path)
    if arguments:
        return 1 if stale or strangers else 0
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(files[path], encoding="utf-8")
    for path in strangers:
        (root / path).unlink()
    return 0


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
