"""Targets that differ from a delta's base: what is adapted, what is refused, and what the model card says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import deltareg
from deltareg import Registry
from deltareg.apply import ApplyReport
from deltareg.errors import NotHomologous
from tests.codec.tensors import Raw, of, read_tensors, write_checkpoint
from tests.fingerprint import tokenizers as build

EMBEDDING, HEAD, MATRIX, NORM = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
)
HIDDEN = 64
CORE = 600


def bf16(values: np.ndarray) -> np.ndarray:
    """Bits of bf16 near these values."""
    return ((values.astype(np.float32).view(np.uint32) + 0x8000) >> 16).astype(np.uint16)


@dataclass(frozen=True)
class Model:
    """A small llama of seeded weights; `step` is how far training moved them."""

    rows: int = CORE + 256
    hidden: int = HIDDEN
    step: float = 0
    seed: int = 1
    tied: bool = False
    prefix: str = ""
    order: Sequence[int] | None = None
    more: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    less: Sequence[str] = ()
    tokenizer: Mapping[str, Any] | None = None
    template: str | None = None
    generation: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {
            EMBEDDING: (self.rows, self.hidden),
            MATRIX: (self.hidden, self.hidden),
            NORM: (self.hidden,),
            HEAD: (self.rows, self.hidden),
        }
        if self.tied:
            del shapes[HEAD]
        return {name: shape for name, shape in {**shapes, **self.more}.items() if name not in self.less}

    def tensors(self) -> dict[str, Raw]:
        found: dict[str, Raw] = {}
        for name, shape in self.shapes().items():
            draw, moved = (np.random.default_rng([seed, *name.encode()]) for seed in (self.seed, 99))
            # Rows are drawn one after the other: fewer or more of them have the same beginnings.
            values = draw.normal(0, 1, shape) + self.step * moved.normal(0, 1, shape)
            if self.order is not None and shape[0] == self.rows:
                values = values[list(self.order)]
            found[self.prefix + name] = of("BF16", bf16(values), shape)
        return found

    def write(self, path: Path) -> Path:
        config = {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_attention_heads": 4,
            "num_hidden_layers": 1,
            "vocab_size": self.rows,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
            **self.config,
        }
        write_checkpoint(path, self.tensors())
        (path / "config.json").write_text(json.dumps(config))
        if self.tokenizer is not None:
            (path / "tokenizer.json").write_text(json.dumps(self.tokenizer))
        if self.generation is not None:
            (path / "generation_config.json").write_text(json.dumps(self.generation))
        if self.template is not None:
            (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": self.template}))
        return path


class Work:
    """A registry with one delta, and what becomes of targets."""

    def __init__(self, path: Path, base: Model, post: Model) -> None:
        self.path = path
        self.registry = Registry(path / "home")
        self.base, self.post = base.write(path / "base"), post.write(path / "post")
        deltareg.diff(self.base, self.post, self.registry, "acme/one:1.0.0")

    def apply(self, target: Model | Path, weight: float = 1, **options: Any) -> tuple[dict[str, Raw], ApplyReport]:
        place = target if isinstance(target, Path) else target.write(self.path / "target")
        report = deltareg.apply(place, {"acme/one:1.0.0": weight}, self.registry, self.path / "out", **options)
        return read_tensors(self.path / "out"), report

    @property
    def card(self) -> str:
        return (self.path / "out" / "README.md").read_text()

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.path / "out" / "config.json").read_text())


def values(tensor: Raw) -> np.ndarray:
    """The bits of a matrix's rows."""
    return np.frombuffer(tensor.data, np.uint16).reshape(tensor.shape)


BASE = Model()
POST = Model(step=0.05)


def check_rows(out: np.ndarray, target: np.ndarray, post: np.ndarray, homes: Sequence[int]) -> None:
    """Row r of the output is post's row homes[r], or the target's own where that is −1."""
    home = np.array(homes)
    assert np.array_equal(out, np.where(home[:, None] < 0, target, post[home]))


# --- tokens -------------------------------------------------------------------------------------------------------


def test_rows_follow_their_tokens_from_llama_3_to_3_1(tmp_path: Path) -> None:
    """The published tokenizers: 3.1 puts three tokens among the reserved ones, so that most of these move."""
    core = 128_000
    ours, theirs = build.llama3(build.LLAMA3_SPECIAL), build.llama3(build.LLAMA31_SPECIAL)
    ids = [{token["content"]: token["id"] for token in document["added_tokens"]} for document in (ours, theirs)]
    homes = [*range(core), *(-1 for _ in range(256))]
    for token, row in ids[1].items():
        homes[row] = ids[0].get(token, -1)
    assert homes[ids[1]["<|eot_id|>"]] == ids[0]["<|eot_id|>"] == 128_009
    assert homes[128_004] == -1  # <|finetune_right_pad_id|>
    assert sum(home not in (-1, row) for row, home in enumerate(homes)) == 246
    base, post = Model(rows=core + 256, hidden=8), Model(rows=core + 256, hidden=8, step=0.05)
    work = Work(tmp_path, replace(base, tokenizer=ours), replace(post, tokenizer=ours, template="{{ messages }}"))
    rope = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}, "max_position_embeddings": 131072}
    # The target has the base's row wherever a token has one, so that the sum there must be post's, bit for bit.
    order = [home if home >= 0 else row for row, home in enumerate(homes)]
    target = replace(base, tokenizer=theirs, template="old", config=rope, order=order)
    place = target.write(tmp_path / "target")
    (checked,) = deltareg.check(place, ["acme/one:1.0.0"], work.registry).deltas
    assert checked.verdict == "adaptable"
    codes = {found.code: found.severity for found in checked.findings}
    assert codes == {"tokenizer-added": "warning", "behaviour-field": "note", "chat-template": "note"}
    out, report = work.apply(place)
    before, after = target.tensors(), post.tensors()
    for name in (EMBEDDING, HEAD):
        check_rows(values(out[name]), values(before[name]), values(after[name]), homes)
    assert out[MATRIX] == after[MATRIX]
    assert any("rows matched by token, 246 of them" in line for line in report.remedies)
    assert "rows matched by token" in work.card
    assert work.config["rope_scaling"] == rope["rope_scaling"]
    # The target's tokenizer names the rows; what post's adds to it is the chat template.
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == theirs
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"chat_template": "{{ messages }}"}


def test_stop_tokens_get_the_target_s_numbers(tmp_path: Path) -> None:
    """Two tokens that changed places, and one that the target lacks: its generation config then stays."""
    mine = build.llama3({0: "<stop>", 1: "<pad>", 2: "<own>"}, CORE)
    theirs = build.llama3({0: "<pad>", 1: "<stop>", 2: "<other>"}, CORE)
    ids = {token["content"]: token["id"] for token in mine["added_tokens"]}
    base = replace(BASE, tokenizer=mine)
    said = {"eos_token_id": [ids["<stop>"], 5], "pad_token_id": ids["<pad>"], "temperature": 0.5}
    work = Work(tmp_path, base, replace(POST, tokenizer=mine, generation=said))
    target = replace(BASE, tokenizer=theirs, generation={"eos_token_id": 7}).write(tmp_path / "target")
    work.apply(target)
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {"eos_token_id": [ids["<pad>"], 5], "pad_token_id": ids["<stop>"], "temperature": 0.5}
    other = Work(tmp_path / "other", base, replace(POST, tokenizer=mine, generation={"eos_token_id": ids["<own>"]}))
    other.apply(target)
    assert json.loads((other.path / "out" / "generation_config.json").read_text()) == {"eos_token_id": 7}


@pytest.mark.slow
def test_rows_of_qwen_s_padding_stay(tmp_path: Path) -> None:
    """Qwen2.5 as published: 151,665 tokens in 152,064 rows, or in 151,936 in its small sizes."""
    tokenizer = build.qwen25()
    tokens = len(tokenizer["model"]["vocab"]) + len(build.QWEN25_ADDED)
    assert tokens == 151_665
    base, post = Model(rows=152_064, hidden=8, tokenizer=tokenizer), Model(rows=152_064, hidden=8, step=0.05)
    work = Work(tmp_path, base, replace(post, tokenizer=tokenizer))
    for rows in (tokens, 151_936, 152_192):
        target = replace(base, rows=rows)
        place = target.write(tmp_path / f"{rows}")
        (checked,) = deltareg.check(place, ["acme/one:1.0.0"], work.registry).deltas
        assert checked.verdict == "adaptable"
        # Embeddings of other shapes are not sampled, and the rest of this model is small.
        expected = {"vocabulary-rows", "behaviour-field", "lineage-unknown"}
        assert {found.code for found in checked.findings} == expected
        out, report = work.apply(place, overwrite=True)
        homes = [row if row < 152_064 else -1 for row in range(rows)]
        for name in (EMBEDDING, HEAD):
            check_rows(values(out[name]), values(target.tensors()[name]), values(post.tensors()[name]), homes)
        assert out[EMBEDDING].shape == (rows, 8)
        assert work.config["vocab_size"] == rows
        assert any(EMBEDDING in line and HEAD in line for line in report.remedies)


def test_a_vocabulary_one_larger_keeps_its_row(
    tmp_path: Path, registry: Registry, anarcii_bf16: Mapping[str, Path]
) -> None:
    """Real weights without a tokenizer: rows go by number, and that is said."""
    target, base = read_tensors(anarcii_bf16["tcr_4_2"]), read_tensors(anarcii_bf16["antibody_4_2"])
    report = deltareg.apply(anarcii_bf16["tcr_4_2"], {"acme/shark:1.0.0": 1}, registry, tmp_path / "out")
    out = read_tensors(tmp_path / "out")
    larger = {name for name in base if base[name].shape != target[name].shape}
    assert larger == {"decoder.fc_out.bias", "decoder.fc_out.weight", "decoder.tok_embedding.weight"}
    assert {name: tensor.shape for name, tensor in out.items()} == {name: t.shape for name, t in target.items()}
    for name in larger:
        assert np.array_equal(values(out[name])[-1], values(target[name])[-1])
        assert not np.array_equal(values(out[name])[:-1], values(target[name])[:-1])
    assert any("matched by number" in line for line in report.remedies)


def test_long_embeddings_are_matched_across_frames(tmp_path: Path) -> None:
    """More than a frame of a million elements, its rows in any order; the same for every number of threads."""
    core = 20_000
    rows = core + 256
    ours = build.llama3(build.LLAMA3_SPECIAL, core)
    names = {row: f"<|moved_{row}|>" for row in range(256)}
    shuffled = np.random.default_rng(5).permutation(256).tolist()
    mine = build.llama3(names, core)
    theirs = build.llama3({row: names[home] for row, home in enumerate(shuffled)}, core)
    assert {**ours, "added_tokens": []} == {**mine, "added_tokens": []}
    order = [*range(core), *(core + home for home in shuffled)]
    work = Work(tmp_path, Model(rows=rows, tokenizer=mine), Model(rows=rows, step=0.05, tokenizer=mine))
    place = Model(rows=rows, order=order, tokenizer=theirs).write(tmp_path / "target")
    found = [work.apply(place, threads=threads, overwrite=True)[0] for threads in (1, 4)]
    post = Model(rows=rows, step=0.05, order=order).tensors()
    assert found[0] == found[1] == post


# --- tied embeddings ----------------------------------------------------------------------------------------------


def widened(tensor: Raw) -> np.ndarray:
    return (values(tensor).astype(np.uint32) << 16).view(np.float32)


def test_an_untied_delta_unties_the_target(tmp_path: Path) -> None:
    work = Work(tmp_path, BASE, POST)
    target = replace(BASE, tied=True)
    out, report = work.apply(target)
    before, base, post = target.tensors(), BASE.tensors(), POST.tensors()
    assert out[EMBEDDING] == post[EMBEDDING]
    moved = widened(out[HEAD]) - (widened(before[EMBEDDING]) + (widened(post[HEAD]) - widened(base[HEAD])))
    assert np.abs(moved).max() < 0.05
    assert not np.array_equal(values(out[HEAD]), values(before[EMBEDDING]))
    assert work.config["tie_word_embeddings"] is False
    assert report.added_tensors == 0
    assert "tie_word_embeddings is false" in work.card


def test_a_tied_delta_is_added_to_both_embeddings(tmp_path: Path) -> None:
    work = Work(tmp_path, replace(BASE, tied=True), replace(POST, tied=True))
    out, report = work.apply(BASE)
    before = BASE.tensors()
    assert out[EMBEDDING] == POST.tensors()[EMBEDDING]
    step = widened(POST.tensors()[EMBEDDING]) - widened(before[EMBEDDING])
    assert np.abs(widened(out[HEAD]) - widened(before[HEAD]) - step).max() < 0.05
    assert work.config["tie_word_embeddings"] is False
    assert any("both embeddings" in line for line in report.remedies)


def test_a_stored_copy_of_tied_embeddings_is_not_needed(tmp_path: Path) -> None:
    tied = {"tie_word_embeddings": True}
    work = Work(tmp_path, replace(BASE, config=tied), replace(POST, config=tied))
    out, _ = work.apply(replace(BASE, tied=True))
    assert HEAD not in out
    assert out[EMBEDDING] == POST.tensors()[EMBEDDING]
    assert work.config["tie_word_embeddings"] is True


# --- names, buffers, heads ----------------------------------------------------------------------------------------


def test_prefixes_of_a_wrapper_do_not_matter(tmp_path: Path) -> None:
    work = Work(tmp_path, BASE, POST)
    out, report = work.apply(replace(BASE, prefix="module."))
    assert out == replace(POST, prefix="module.").tensors()
    assert any("other names" in line for line in report.remedies)


@pytest.mark.parametrize(("base", "target"), [("", "module."), ("module.", ""), ("", "module._orig_mod.")])
def test_what_a_wrapped_target_lacks_is_named_as_the_rest_of_it(tmp_path: Path, base: str, target: str) -> None:
    """A task head and an output embedding of its own, in the target's spelling."""
    head = {"score.weight": (2, HIDDEN)}
    work = Work(tmp_path, replace(BASE, prefix=base), replace(POST, prefix=base, more=head))
    out, _ = work.apply(replace(BASE, tied=True, prefix=target), with_added=True)
    names = [EMBEDDING, MATRIX, NORM, HEAD, "score.weight"]
    assert set(out) == {f"{target}{name}" for name in names}
    assert out[f"{target}score.weight"] == replace(POST, more=head).tensors()["score.weight"]


def test_buffers_stay_as_the_target_has_them(tmp_path: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    work = Work(tmp_path, replace(BASE, more={buffer: (8,)}), replace(POST, more={buffer: (8,)}))
    out, _ = work.apply(BASE)
    assert out == POST.tensors()
    longer = replace(BASE, more={buffer: (16,)}, tokenizer=None)
    out, _ = work.apply(longer.write(tmp_path / "longer"), overwrite=True)
    assert out == POST.tensors() | {buffer: longer.tensors()[buffer]}


def test_heads_of_one_side_stay_there(tmp_path: Path) -> None:
    head = {"score.weight": (2, HIDDEN)}
    work = Work(tmp_path, BASE, POST)
    target = replace(BASE, more=head)
    out, report = work.apply(target)
    assert out == POST.tensors() | {"score.weight": target.tensors()["score.weight"]}
    assert any("score.weight" in line for line in report.remedies)
    other = Work(tmp_path / "other", replace(BASE, more=head), replace(POST, more=head))
    out, report = other.apply(BASE)
    assert out == POST.tensors()
    assert any("score.weight" in line for line in report.remedies)


def test_what_only_post_has_is_taken_where_asked(tmp_path: Path) -> None:
    head = {"score.weight": (2, HIDDEN)}
    work = Work(tmp_path, BASE, replace(POST, more=head))
    # On the base itself the result is post, which has it.
    assert work.apply(work.base)[0] == replace(POST, more=head).tensors()
    assert work.apply(work.base, with_added=False, overwrite=True)[0] == POST.tensors()
    relative = replace(BASE, step=0.001).write(tmp_path / "relative")
    out, report = work.apply(relative, overwrite=True)
    assert "score.weight" not in out
    assert any("--with-added" in line for line in report.remedies)
    out, _ = work.apply(relative, with_added=True, overwrite=True)
    assert out["score.weight"] == replace(POST, more=head).tensors()["score.weight"]


# --- what is refused ----------------------------------------------------------------------------------------------


def test_unrelated_weights_are_refused_and_forced_by_name(tmp_path: Path) -> None:
    work = Work(tmp_path, BASE, POST)
    target = replace(BASE, seed=2).write(tmp_path / "target")
    with pytest.raises(NotHomologous, match="cosine") as caught:
        work.apply(target)
    assert "--force" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()
    _, report = work.apply(target, force=True)
    assert [line.split(": ")[1] for line in report.overridden] == ["lineage-unrelated"]
    assert "## Overridden findings" in work.card
    assert "lineage-unrelated" in work.card


def test_forced_tensors_that_fit_nowhere_stay_as_they_are(tmp_path: Path) -> None:
    work = Work(tmp_path, BASE, POST)
    target = replace(BASE, less=(MATRIX,), more={NORM: (HIDDEN - 1,), "model.layers.0.extra.weight": (3,)})
    place = target.write(tmp_path / "target")
    with pytest.raises(NotHomologous) as caught:
        work.apply(place)
    assert {one["code"] for one in caught.value.data["findings"]} == {  # type: ignore[union-attr]
        "tensor-missing",
        "tensor-shape",
        "tensor-unexpected",
    }
    out, report = work.apply(place, force=True)
    before, post = target.tensors(), POST.tensors()
    assert out == before | {name: post[name] for name in (EMBEDDING, HEAD)}
    assert len(report.overridden) == 3
    assert any("another shape" in line for line in report.remedies)


def test_a_dry_run_tells_the_remedies_and_writes_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path, BASE, POST)
    place = replace(BASE, prefix="module.").write(tmp_path / "target")
    report = deltareg.apply(place, {"acme/one:1.0.0": 1}, work.registry, tmp_path / "out", dry_run=True)
    assert report.remedies
    assert not (tmp_path / "out").exists()


def test_a_broken_tokenizer_of_the_target_is_named(tmp_path: Path) -> None:
    """Whatever program wrote it: the weights are no worse for it, but tokens cannot be compared."""
    tokenizer = build.llama3(build.LLAMA3_SPECIAL, CORE)
    work = Work(tmp_path, replace(BASE, tokenizer=tokenizer), replace(POST, tokenizer=tokenizer))
    place = BASE.write(tmp_path / "target")
    (place / "tokenizer.json").write_text('{"model": ')
    out, report = work.apply(place)
    assert out == POST.tensors()
    assert any("tokenizer.json" in line for line in report.warnings)
    assert "tokens were not compared" in work.card
