"""Text from elsewhere, as a model card has it."""

from __future__ import annotations

import pytest

from deltareg.markdown import plain


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("model.layers.0.q_proj.weight", "model.layers.0.q_proj.weight"),
        ("a | b", "a · b"),
        ("[x](y)", "·x·(y)"),
        ("<script>`", "·script··"),
        ("one\n\n# two\ttabs", "one # two tabs"),
        ("bell\x07 and \x9f", "bell· and ·"),
        ("Θ × é", "Θ × é"),
    ],
)
def test_text_from_elsewhere_stays_on_its_line_and_is_no_markup(text: str, due: str) -> None:
    assert plain(text) == due
