"""Building what a recipe says: from versions that were found to fit to a checkpoint that can be built again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.lazy import lazily

if TYPE_CHECKING:
    from deltareg.build.building import BuildReport, build, rebuild
    from deltareg.build.locking import LockReport, lock
    from deltareg.build.project import Project
    from deltareg.build.telling import OutdatedReport, TreeReport, WhyReport, outdated, tree, why

__all__ = [
    "BuildReport",
    "LockReport",
    "OutdatedReport",
    "Project",
    "TreeReport",
    "WhyReport",
    "build",
    "lock",
    "outdated",
    "rebuild",
    "tree",
    "why",
]

_HOMES = {
    "BuildReport": "deltareg.build.building",
    "LockReport": "deltareg.build.locking",
    "OutdatedReport": "deltareg.build.telling",
    "Project": "deltareg.build.project",
    "TreeReport": "deltareg.build.telling",
    "WhyReport": "deltareg.build.telling",
    "build": "deltareg.build.building",
    "lock": "deltareg.build.locking",
    "outdated": "deltareg.build.telling",
    "rebuild": "deltareg.build.building",
    "tree": "deltareg.build.telling",
    "why": "deltareg.build.telling",
}

__getattr__ = lazily(__name__, _HOMES)
