"""Every error has a code of its own, and those of the operating system become one of ours."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
from pathlib import Path

import pytest

from deltareg import errors
from deltareg.cli.app import EXIT_CODES
from deltareg.errors import DeltaregError, DiskFull, NotAllowed, UsageError, all_errors, translate_os_errors

HUNDREDS = {1: "00", 2: "01", 3: "02", 4: "03", 5: "04", 6: "05"}


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in all_errors()]
    assert len(set(codes)) == len(codes)
    assert codes == sorted(codes)


def test_every_error_of_the_module_is_known_and_public() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DeltaregError)}
    assert classes == set(all_errors())
    assert {error.__name__ for error in classes} <= set(errors.__all__)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.__name__)
def test_code_tells_the_exit_status_and_the_docstring_what_to_do(error: type[DeltaregError]) -> None:
    assert re.fullmatch(rf"DR{HUNDREDS[error.exit_code]}\d\d", error.code)
    assert error.exit_code in EXIT_CODES
    assert len(inspect.cleandoc(error.__doc__ or "").split("\n\n")) == 2


def test_error_tells_its_data_as_json_can_have_it() -> None:
    error = UsageError("wrong", cause="because", hint="do", path=Path("x"), count=3, names=["a"], nothing=None)
    told = json.loads(json.dumps(error.as_dict()))
    assert told == {
        "code": "DR0100",
        "message": "wrong",
        "cause": "because",
        "hint": "do",
        "data": {"path": "x", "count": 3, "names": ["a"], "nothing": None},
    }
    assert str(error) == "wrong"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EDQUOT, DiskFull),
        (errno.EFBIG, DiskFull),
        (errno.EACCES, NotAllowed),
        (errno.EPERM, NotAllowed),
        (errno.EROFS, NotAllowed),
        (errno.EIO, DeltaregError),
        (errno.ENOENT, DeltaregError),
        (errno.EMFILE, DeltaregError),
        (errno.ESTALE, DeltaregError),
    ],
)
def test_errors_of_the_system_become_one_of_ours(number: int, kind: type[DeltaregError]) -> None:
    with pytest.raises(DeltaregError) as raised, translate_os_errors("write the pack", "given"):
        raise OSError(number, os.strerror(number), "actual")
    error = raised.value
    assert type(error) is kind
    assert error.message == f"could not write the pack: actual: {os.strerror(number)}"
    assert (error.cause, error.data["path"]) == (os.strerror(number), "actual")
    assert isinstance(error.__cause__, OSError)


def test_path_that_was_given_is_told_where_the_system_names_none() -> None:
    with (
        pytest.raises(DeltaregError, match="could not read it: given: ") as raised,
        translate_os_errors("read it", Path("given")),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert raised.value.data["path"] == "given"


def test_error_without_a_number_is_told_by_its_text() -> None:
    with (
        pytest.raises(DeltaregError, match="could not read it: given: odd") as raised,
        translate_os_errors("read it", "given"),
    ):
        raise OSError("odd")
    assert type(raised.value) is DeltaregError


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), UsageError("x")])
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, translate_os_errors("do it", "x"):
        raise error
    assert raised.value is error
