"""Every record kind keeps the contract."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from numpy.typing import NDArray

from deltareg.codec import Kind
from tests.codec.samples import SAMPLES
from tests.codec.tensors import reproduce
from tests.contracts.codec_contract import CodecContract

Array = NDArray[Any]


class _Sampled(CodecContract):
    """Takes its sample by name."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        sample = SAMPLES[cls.name]
        cls.kind, cls.base_dtype, cls.dtype = sample.kind, sample.base_dtype, sample.dtype
        cls.size = sample.size

    def sample(self, size: int) -> tuple[Array | None, Array]:
        return SAMPLES[self.name].make(size)


class TestZero(_Sampled):
    name = "zero"


class TestPaletteOfBytes(_Sampled):
    name = "palette of bytes"


class TestPaletteOfNibbles(_Sampled):
    name = "palette of nibbles"


class TestSparse(_Sampled):
    name = "sparse"


class TestArithmetic(_Sampled):
    name = "arithmetic"


class TestArithmeticOfF16(_Sampled):
    name = "arithmetic F16"


class TestPlanesOf16Bits(_Sampled):
    name = "planes of F16"


class TestPlanesOf32Bits(_Sampled):
    name = "planes of F32"


class TestSparsePlanesOf32Bits(_Sampled):
    name = "sparse F32"


class TestPlanesOf64Bits(_Sampled):
    name = "planes of F64"


class TestMended(_Sampled):
    name = "mended"


class TestOverwritten(_Sampled):
    name = "overwritten"


class TestWidened(_Sampled):
    name = "BF16 to F32"


class TestNarrowed(_Sampled):
    name = "F32 to BF16"


class TestReplaced(_Sampled):
    name = "replaced I64"


class TestReplacedBytes(_Sampled):
    name = "replaced F8"


class TestFull(_Sampled):
    name = "added F32"


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_what_its_name_says(name: str) -> None:
    sample = SAMPLES[name]
    base, post = sample.make(sample.size)
    assert post.size == sample.size
    assert (base is None) == (sample.base_dtype is None)
    encoded, _ = reproduce(sample.base_dtype, sample.dtype, base, post)
    assert encoded.kind is sample.kind
    assert encoded.mended > 0 or name != "mended"
    assert encoded.overwritten > 0 or name != "overwritten"


def test_every_kind_has_a_sample() -> None:
    assert {sample.kind for sample in SAMPLES.values()} == set(Kind)
