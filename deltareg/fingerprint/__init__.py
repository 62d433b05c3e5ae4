"""What must agree for two checkpoints to share a parameter space."""

from __future__ import annotations

from deltareg.fingerprint.architecture import fingerprint_of, inventory_digest, tokenizer_fingerprint
from deltareg.fingerprint.modules import MODULE_CLASSES, layer_order, module_class

__all__ = [
    "MODULE_CLASSES",
    "fingerprint_of",
    "inventory_digest",
    "layer_order",
    "module_class",
    "tokenizer_fingerprint",
]
