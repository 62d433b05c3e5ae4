"""The devices that tests run on: the device's way on the processor, and every GPU where there are any."""

from __future__ import annotations

from typing import Any

import pytest
import torch

__all__ = ["DEVICES", "no_gpu"]

no_gpu = "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device here"
"""Why tests of a GPU are left out; empty where there is one."""

_GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(no_gpu), reason=no_gpu or "there is one")]

DEVICES: list[Any] = [
    "torch:cpu",
    pytest.param("cuda", marks=_GPU),
    pytest.param("cuda:all", marks=_GPU),
]
"""Names of devices, as `--device` takes them."""
