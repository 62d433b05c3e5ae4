from __future__ import annotations

import pytest
from safetensors import SafetensorError, deserialize

from deltareg.checkpoint import DTYPES, dtype_of
from deltareg.errors import UnsupportedFormat
from tests.checkpoint.samples import write_broken


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_the_size_that_safetensors_gives_it(tmp_path, name: str) -> None:
    nbytes = DTYPES[name].nbytes(8)
    assert nbytes is not None
    file = write_broken(
        tmp_path / "x", {"a": {"dtype": name, "shape": [8], "data_offsets": [0, nbytes]}}, bytes(range(nbytes))
    )
    ((found, tensor),) = deserialize(file.read_bytes())
    assert (found, tensor["dtype"], tensor["shape"]) == ("a", name, [8])
    assert bytes(tensor["data"]) == bytes(range(nbytes))


def test_no_dtype_of_safetensors_is_missing(tmp_path) -> None:
    file = write_broken(tmp_path / "x", {"a": {"dtype": "?", "shape": [], "data_offsets": [0, 0]}})
    with pytest.raises(SafetensorError) as raised:  # its message lists every dtype that it knows
        deserialize(file.read_bytes())
    known = str(raised.value).partition("expected one of")[2].split("`")[1::2]
    assert set(known) == set(DTYPES)


@pytest.mark.parametrize(
    ("name", "elements", "nbytes"), [("F4", 2, 1), ("F4", 3, None), ("F6_E2M3", 4, 3), ("F6_E3M2", 5, None)]
)
def test_elements_smaller_than_a_byte_must_fill_whole_bytes(name: str, elements: int, nbytes: int | None) -> None:
    assert DTYPES[name].nbytes(elements) == nbytes


def test_unknown_dtype_is_refused_with_its_tensor() -> None:
    with pytest.raises(UnsupportedFormat, match=r"tensor 'w' has the data type 'F3'"):
        dtype_of("F3", where="tensor 'w'")
