"""PEFT's adapters: one becomes a delta, and a delta becomes one.

`config.py`, `patterns.py` and `adapter.py` read an adapter, `places.py` finds its modules in the base, `merged.py` is
base and adapter as one checkpoint, with tensors of `sources.py`; `importing.py` takes the delta of that.

`exporting.py` writes factors that the codec finds in the numbers of `frames.py`, once `base.py` has looked at the base;
`card.py` writes what lies beside them, `stored.py` the adapter that a delta is, where it is one. `modules.py`,
`experts.py` and `renamed.py` tell what PEFT makes of a name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltareg.lazy import lazily

if TYPE_CHECKING:
    from deltareg.lora.exporting import ExportReport, export_lora
    from deltareg.lora.importing import ImportReport, import_lora
    from deltareg.lora.stored import stored_adapter

__all__ = ["ExportReport", "ImportReport", "export_lora", "import_lora", "stored_adapter"]

_HOMES = {
    "ExportReport": "deltareg.lora.exporting",
    "ImportReport": "deltareg.lora.importing",
    "export_lora": "deltareg.lora.exporting",
    "import_lora": "deltareg.lora.importing",
    "stored_adapter": "deltareg.lora.stored",
}

__getattr__ = lazily(__name__, _HOMES)
