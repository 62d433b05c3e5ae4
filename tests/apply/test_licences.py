"""The licence of an output: what the model card and the report say of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

import deltareg
from deltareg import Registry
from deltareg.apply import ApplyReport
from deltareg.errors import LicenceRefused
from tests.codec.tensors import of, write_checkpoint
from tests.weights import Pair

NAME = "acme/search:1.0.0"


class Made:
    """A tiny base under one licence, and deltas of it under others: `acme/d0:1.0.0`, `acme/d1:1.0.0` …"""

    def __init__(self, root: Path, of_base: str | None, *of_deltas: str | None) -> None:
        self.root = root
        self.base = write_checkpoint(root / "base", {"w": of("BF16", np.array([0x3F80], np.uint16))})
        post = write_checkpoint(root / "post", {"w": of("BF16", np.array([0x3F90], np.uint16))})
        if of_base is not None:
            (self.base / "README.md").write_text(f"---\nlicense: {of_base}\n---\n")
        self.registry = Registry(root / "home")
        self.names = [f"acme/d{number}:1.0.0" for number in range(len(of_deltas))]
        for name, licence in zip(self.names, of_deltas, strict=True):
            deltareg.diff(self.base, post, self.registry, name, licence=licence)

    def apply(self, *, weight: float = 0.5, **options: Any) -> ApplyReport:
        """Apply all deltas as `out`."""
        return deltareg.apply(self.base, dict.fromkeys(self.names, weight), self.registry, self.root / "out", **options)

    @property
    def card(self) -> ModelCard:
        """The model card of the output, as the Hub's own library reads it."""
        return ModelCard.load(self.root / "out" / "README.md")


def test_card_of_real_weights_is_one_that_the_hub_reads(tmp_path: Path, minilm_bf16: Pair) -> None:
    registry = Registry(tmp_path / "home")
    deltareg.diff(minilm_bf16.base, minilm_bf16.post, registry, NAME, licence="apache-2.0")
    report = deltareg.apply(minilm_bf16.base, {NAME: 1}, registry, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    told = card.data.to_dict()
    assert told["base_model"] == [minilm_bf16.base.name]
    assert told["base_model_relation"] == "merge"
    assert told["tags"] == ["deltareg", "merge"]
    assert told.get("license") == report.licence
    assert NAME in card.text


@pytest.mark.parametrize(
    ("of_base", "of_delta", "licence", "name"),
    [
        ("mit", "mit", "mit", None),
        ("llama3.1", "llama3.1", "llama3.1", None),
        ("apache-2.0", "Apache-2.0", "apache-2.0", None),
        ("mit", "apache-2.0", "other", "apache-2.0-and-mit"),
        ("llama3.1", "MIT OR ISC", "other", "mit-or-isc-and-llama3.1"),
        (None, "mit", None, None),
    ],
)
def test_front_matter_names_the_licence_as_the_hub_does(
    tmp_path: Path, of_base: str | None, of_delta: str, licence: str | None, name: str | None
) -> None:
    made = Made(tmp_path, of_base, of_delta)
    made.apply()
    told = made.card.data.to_dict()
    assert (told.get("license"), told.get("license_name")) == (licence, name)


def test_card_and_report_tell_what_the_licences_oblige_to(tmp_path: Path) -> None:
    made = Made(tmp_path, "llama3.1", "cc-by-nc-4.0")
    report = made.apply()
    section = made.card.text.split("## Licences")[1]
    assert "Built with Llama" in section and "no commercial use" in section
    assert report.licence == "cc-by-nc-4.0 AND llama3.1"
    assert any("Built with Llama" in one for one in report.obligations)
    assert report.licence_warnings == []


def test_whose_licence_is_unknown_is_told_in_card_and_report(tmp_path: Path) -> None:
    made = Made(tmp_path, None, "mit", None)
    report = made.apply()
    (warning,) = report.licence_warnings
    assert "base and acme/d1:1.0.0 is unknown" in warning
    assert warning in made.card.text
    assert report.licence is None


@pytest.mark.parametrize(
    ("of_base", "of_delta"), [("gpl-3.0", "llama3.1"), ("mit", "cc-by-nd-4.0"), ("cc-by-nd-4.0", "cc-by-nd-4.0")]
)
def test_licences_that_do_not_go_together_are_refused(tmp_path: Path, of_base: str, of_delta: str) -> None:
    made = Made(tmp_path, of_base, of_delta)
    for dry_run in (True, False):
        with pytest.raises(LicenceRefused, match=r"acme/d0:1\.0\.0"):
            made.apply(dry_run=dry_run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "home", "post"]


def test_accepted_conflict_is_told_in_card_and_report(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpl-3.0", "llama3.1")
    report = made.apply(accept_licence=True)
    assert any("do not go together" in one for one in report.licence_warnings)
    assert "do not go together" in made.card.text


def test_delta_of_weight_zero_has_no_say(tmp_path: Path) -> None:
    made = Made(tmp_path, "gpl-3.0", "llama3.1")
    report = made.apply(weight=0)
    assert (report.licence, report.licence_warnings) == ("gpl-3.0", [])


def test_card_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Made(tmp_path / name, "gemma", "mit", "llama3.1").apply()
    one, two = ((tmp_path / name / "out" / "README.md").read_bytes() for name in ("one", "two"))
    assert one == two
