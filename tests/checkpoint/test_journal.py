from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltareg.checkpoint.journal import Journal, block_digest, finished_tensors, journals_in

A, B = b"first", b"second"


def write(directory: Path, job: str = "job") -> Path:
    """A journal of one tensor of two blocks."""
    journal = Journal(directory, job)
    journal.note("a", len(A), memoryview(B))
    journal.note("a", 0, memoryview(A))
    journal.finish("a")
    journal.close()
    (path,) = journals_in(directory)
    return path


def test_finished_tensor_is_told_with_its_blocks_in_order(tmp_path: Path) -> None:
    expected = [(0, len(A), block_digest(memoryview(A))), (len(A), len(B), block_digest(memoryview(B)))]
    assert finished_tensors(write(tmp_path), "job") == {"a": expected}


def test_journal_of_another_job_tells_nothing(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert finished_tensors(path, "another") == {}
    write(tmp_path, "another")  # gone on with by another one
    assert finished_tensors(path, "job").keys() == {"a"}


def test_journal_of_a_newer_format_tells_nothing(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 2'))
    assert finished_tensors(path, "job") == {}


def test_tensor_that_is_not_finished_is_not_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "job")
    journal.note("a", 0, memoryview(A))
    journal.close()
    assert finished_tensors(journals_in(tmp_path)[0], "job") == {}


def test_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    assert finished_tensors(path, "job") == {}
    write(tmp_path)
    assert finished_tensors(path, "job").keys() == {"a"}


@pytest.mark.parametrize("blocks", [None, 3, {}, [3], [[0, 1]], [["0", 1, "d"]], [[0, 1, 2]], [[0, 1, "d", 4]]])
def test_blocks_of_another_form_are_passed_over(tmp_path: Path, blocks: object) -> None:
    path = write(tmp_path)
    with path.open("ab") as file:
        file.write(json.dumps({"tensor": "a", "blocks": blocks}).encode())
    assert finished_tensors(path, "job") == {"a": []}


def test_each_process_has_a_journal_of_its_own(tmp_path: Path) -> None:
    for member in range(3):
        Journal(tmp_path, "job", member).close()
    assert len(journals_in(tmp_path)) == 3
