"""The registry and package manager for post-training weight deltas.

import deltareg

registry = deltareg.Registry()
deltareg.diff("base/", "post/", registry, "acme/search:1.0.0")
deltareg.apply("target/", {"acme/search:1.0.0": 0.5}, registry, "out/")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from deltareg.lazy import lazily

if TYPE_CHECKING:
    from deltareg.apply import apply as apply
    from deltareg.apply import live as live
    from deltareg.apply import verify as verify
    from deltareg.archive import export_archive as export_archive
    from deltareg.archive import import_archive as import_archive
    from deltareg.build import build as build
    from deltareg.build.inspecting import inspect as inspect
    from deltareg.catalog import Registry as Registry
    from deltareg.check import check as check
    from deltareg.checkpoint import Checkpoint as Checkpoint
    from deltareg.diff import diff as diff
    from deltareg.errors import DeltaregError as DeltaregError
    from deltareg.lock import Lock as Lock
    from deltareg.lora import export_lora as export_lora
    from deltareg.lora import import_lora as import_lora
    from deltareg.mergekit import import_mergekit as import_mergekit
    from deltareg.mirroring import mirror as mirror
    from deltareg.recipe import Recipe as Recipe
    from deltareg.resolve import resolve as resolve
    from deltareg.transfer import pull as pull
    from deltareg.transfer import push as push

__all__ = [
    "Checkpoint",
    "DeltaregError",
    "Lock",
    "Recipe",
    "Registry",
    "__version__",
    "apply",
    "build",
    "check",
    "diff",
    "export_archive",
    "export_lora",
    "import_archive",
    "import_lora",
    "import_mergekit",
    "inspect",
    "live",
    "mirror",
    "pull",
    "push",
    "resolve",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "Lock": "deltareg.lock",
    "Recipe": "deltareg.recipe",
    "build": "deltareg.build",
    "resolve": "deltareg.resolve",
    "Checkpoint": "deltareg.checkpoint",
    "DeltaregError": "deltareg.errors",
    "Registry": "deltareg.catalog",
    "apply": "deltareg.apply",
    "check": "deltareg.check",
    "diff": "deltareg.diff",
    "export_archive": "deltareg.archive",
    "export_lora": "deltareg.lora",
    "import_archive": "deltareg.archive",
    "import_lora": "deltareg.lora",
    "inspect": "deltareg.build.inspecting",
    "import_mergekit": "deltareg.mergekit",
    "live": "deltareg.apply",
    "mirror": "deltareg.mirroring",
    "pull": "deltareg.transfer",
    "push": "deltareg.transfer",
    "verify": "deltareg.apply",
}


# Loaded on first use: `deltareg --help` must not wait for what it does not need.
__getattr__ = lazily(__name__, _HOMES)


class _Package(ModuleType):
    """Keeps `deltareg.diff` and `deltareg.apply` the functions: importing a submodule would bind its name over them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
