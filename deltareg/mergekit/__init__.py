"""Configurations of mergekit become recipes.

`document.py` reads YAML with lines, `config.py` what mergekit means by it, `methods.py` has a line for each method.
`values.py` turns settings that differ by tensor, `settings.py` tells which of them hold. `models.py` finds the models,
`planning.py` makes the plan (`plan.py`), which `new_base.py` may rewrite, `taking.py` takes the deltas, `writing.py`
writes the file. Of mergekit itself nothing is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.lazy import lazily

if TYPE_CHECKING:
    from deltareg.mergekit.importing import NAMESPACE, MergekitReport, import_mergekit

__all__ = ["NAMESPACE", "MergekitReport", "import_mergekit"]

_HOMES = {
    "NAMESPACE": "deltareg.mergekit.importing",
    "MergekitReport": "deltareg.mergekit.importing",
    "import_mergekit": "deltareg.mergekit.importing",
}

__getattr__ = lazily(__name__, _HOMES)
