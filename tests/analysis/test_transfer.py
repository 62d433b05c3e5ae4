"""How much of an effect arrives: what is read, what is regressed on what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from deltareg.analysis import TransferAnalysis, TransferRow, transfer
from deltareg.analysis.evaluations import ROLES, gather, gather_all, read_evaluation, read_table
from deltareg.analysis.transfer_plot import plot_transfer
from deltareg.errors import BadEvaluation, InvalidArgument, NotFound
from deltareg.manifest import encode, parse

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "paramdelta" / "published"


def row(task: str, base: float, post: float, new_base: float, real: float, **more: Any) -> TransferRow:
    return TransferRow(task=task, base=base, post=post, new_base=new_base, real=real, **more)


ROWS = [
    row("a", 0.2, 0.5, 0.3, 0.57),
    row("b", 0.4, 0.6, 0.5, 0.65),
    row("c", 0.1, 0.8, 0.1, 0.75),
    row("d", 0.7, 0.7, 0.8, 0.79),
]


# --- the analysis -------------------------------------------------------------------------------------------------


def test_an_effect_that_arrives_whole_has_gamma_one() -> None:
    rows = [one.model_copy(update={"real": one.new_base + one.post - one.base}) for one in ROWS]
    found = transfer(rows)
    assert found.gamma == pytest.approx(1)
    assert found.r_squared == pytest.approx(1)
    assert found.gains is not None and found.gains.gamma == pytest.approx(1)
    assert max(abs(point.residual) for point in found.points) < 1e-12


def test_gains_do_not_count_what_the_new_base_does_by_itself() -> None:
    """Half of each gain arrives: the line of the gains says so, the other one hardly."""
    rows = [one.model_copy(update={"real": one.new_base + 0.5 * (one.post - one.base)}) for one in ROWS]
    found = transfer(rows)
    assert found.gains is not None and found.gains.gamma == pytest.approx(0.5)
    assert found.gamma > 0.7


def test_points_tell_what_was_predicted() -> None:
    errors = {"base_error": 0.01, "post_error": 0.02, "new_base_error": 0.02, "real_error": 0.03}
    found = transfer([row("e", 0.2, 0.5, 0.3, 0.57, **errors), *ROWS[1:]])
    point = found.points[0]
    assert point.hypothetical == pytest.approx(0.6)
    assert point.difference == pytest.approx(-0.03)
    assert point.residual == pytest.approx(0.57 - found.gamma * 0.6)
    assert point.hypothetical_error == pytest.approx(0.03)
    assert found.points[1].hypothetical_error is None


def test_the_seed_is_all_the_chance_there_is() -> None:
    assert transfer(ROWS, seed=3) == transfer(ROWS, seed=3)
    first, second = (transfer(ROWS, seed=seed, resamples=9).through_origin for seed in (3, 4))
    assert first.gamma_bootstrap != second.gamma_bootstrap
    assert first.gamma_interval == second.gamma_interval


def test_analysis_survives_its_json() -> None:
    found = transfer(ROWS)
    text = encode(found)
    assert b'"throughOrigin"' in text and b'"gammaBootstrap"' in text
    assert parse(TransferAnalysis, text, what="test") == found


def test_rows_that_determine_no_line_are_refused() -> None:
    for rows in ([], ROWS[:2]):
        with pytest.raises(InvalidArgument, match="needs 3 at least"):
            transfer(rows)
    with pytest.raises(InvalidArgument, match="a is given twice"):
        transfer([*ROWS, ROWS[0]])
    assert len(transfer([*ROWS, ROWS[0].model_copy(update={"group": "other"})]).points) == 5
    with pytest.raises(InvalidArgument, match="is 0 for every task"):
        transfer([row(task, 0.5, 0.25, 0.25, 0.1) for task in "abc"])
    same = transfer([row("a", 0, 0.5, 0, 0.4), row("b", 0, 0.5, 0, 0.5), row("c", 0, 0.5, 0, 0.6)])
    assert same.with_intercept is None
    assert same.gamma == pytest.approx(1)
    with pytest.raises(InvalidArgument, match="no finite number"):
        transfer([*ROWS, row("e", 0.5, float("nan"), 0.25, 0.1)])
    for confidence in (95, 0, float("nan")):
        with pytest.raises(InvalidArgument, match="between 0 and 1"):
            transfer(ROWS, confidence=confidence)
    for seed, resamples in ((-1, 10), (0, -1)):
        with pytest.raises(InvalidArgument, match="not negative"):
            transfer(ROWS, seed=seed, resamples=resamples)


def test_mixed_units_are_told() -> None:
    assert transfer(ROWS).warnings == []
    (warning,) = transfer([*ROWS, row("e", 20, 50, 30, 57)]).warnings
    assert "4 of 5 tasks" in warning


# --- tables -------------------------------------------------------------------------------------------------------


def test_a_table_is_read_whatever_its_order(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(
        b"\xef\xbb\xbfReal,New Base,POST,base,task,group,note,real_stderr\r\n"
        b'0.57,0.3,0.5,0.2,"a, b",llama,x,0.01\r\n\r\n0.6,,0.5,0.2,c,,,\r\n'
    )
    found = read_table(path)
    assert found.rows == [row("a, b", 0.2, 0.5, 0.3, 0.57, group="llama", real_error=0.01)]
    assert [(one.task, one.reason) for one in found.left_out] == [("c", "no value of new_base")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column task, base, post, new_base, real"),
        ("task,base,post,real\n", "no column new_base"),
        ("task,base,post,new_base,real\na,1,2,3,4%\n", r"table.csv:2, real: '4%' is no number"),
        ("task,base,post,new_base,real\na,1,2,3,nan\n", "is no number"),
        ("task,base,post,new_base,real,base_stderr\na,1,2,3,4,-1\n", "base_stderr: '-1' is no number"),
        ("task,base,post,new_base,real\n,1,2,3,4\n", "table.csv:2 names no task"),
        ("task,base,post,new_base,real\na,1,2,3," + "4" * 200_000, "is no CSV"),
    ],
)
def test_bad_tables_are_told_with_their_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(BadEvaluation, match=told):
        read_table(path)


def test_files_that_are_no_text_or_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadEvaluation, match="no UTF-8"):
        read_table(tmp_path / "binary.csv")
    for read in (read_table, read_evaluation):
        with pytest.raises(NotFound):
            read(tmp_path / "nothing")


# --- results of lm-evaluation-harness -----------------------------------------------------------------------------


def results(**tasks: dict[str, Any]) -> dict[str, Any]:
    """A results file as lm-evaluation-harness 0.4 writes it, shortened."""
    return {
        "results": {task: {"alias": task, "sample_len": 100, **metrics} for task, metrics in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 5),
        "higher_is_better": {},
        "date": 1.0,
        "model_name": "acme/model",
    }


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def four(tmp_path: Path, *, value: float = 0.5, **changes: dict[str, Any]) -> dict[str, Any]:
    """Four evaluations of the same results; `changes` are other results by role."""
    same = results(gsm8k={"exact_match,strict-match": value, "exact_match_stderr,strict-match": 0.01})
    return {role: read_evaluation(write(tmp_path / f"{role}.json", changes.get(role, same))) for role in ROLES}


def test_results_are_read_as_they_are(tmp_path: Path) -> None:
    path = write(
        tmp_path / "results_2026-01-01T00-00-00.000000.json",
        results(
            gsm8k={"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": "N/A"},
            arc={"acc,none": 0.5, "acc_stderr,none": 0.02, "acc_norm,none": 0.75},
        ),
    )
    found = read_evaluation(path)
    assert found.name == "acme/model"
    assert list(found.scores["arc"]) == ["acc,none", "acc_norm,none"]
    assert (found.scores["arc"]["acc,none"].value, found.scores["arc"]["acc,none"].error) == (0.5, 0.02)
    assert found.scores["gsm8k"]["exact_match,strict-match"].error is None
    assert found.versions["arc"] == "1.0" and found.shots["arc"] == "5"


def test_old_results_and_plain_numbers_are_read(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", {"results": {"arc": {"acc": 0.5, "acc_stderr": 0.02, "word_perplexity": 9}}})
    scores = read_evaluation(old).scores["arc"]
    assert scores["acc"].error == 0.02 and not scores["acc"].falls
    assert scores["word_perplexity"].falls
    for value in ({"arc": 0.5, "note": "x"}, {"metrics": {"arc": 0.5}, "seconds": 3}):
        found = read_evaluation(write(tmp_path / "plain.json", value))
        assert {task: one[""].value for task, one in found.scores.items()} == {"arc": 0.5}


def test_a_directory_holds_the_latest_of_each_task(tmp_path: Path) -> None:
    first = results(arc={"acc,none": 0.1}, gsm8k={"exact_match,none": 0.3})
    second = {**results(arc={"acc,none": 0.2}), "date": 2.0}
    write(tmp_path / "evals" / "model" / "results_b.json", first)
    write(tmp_path / "evals" / "model" / "results_a.json", second)
    write(tmp_path / "evals" / "model" / "config.json", {"hidden_size": 4})
    (tmp_path / "evals" / "model" / "samples_arc.jsonl").write_text("{}\n")
    found = read_evaluation(tmp_path / "evals")
    assert found.scores["arc"]["acc,none"].value == 0.2
    assert found.scores["gsm8k"]["exact_match,none"].value == 0.3
    write(tmp_path / "evals" / "other" / "results_c.json", {**first, "model_name": "acme/other"})
    with pytest.raises(BadEvaluation, match="several models: acme/model, acme/other"):
        read_evaluation(tmp_path / "evals")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[" * 200_000, "is no JSON"),
        ("[]", "has no results"),
        ('{"results": {"a": 3}}', "has no results"),
        ('{"a": "b"}', "has no results"),
        ('{"results": {"a": {"acc,none": NaN}}}', "acc,none of a is nan"),
    ],
)
def test_bad_results_are_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(BadEvaluation, match=told):
        read_evaluation(tmp_path / "results.json")


def test_a_directory_without_results_is_told(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"hidden_size": 4})
    with pytest.raises(BadEvaluation, match="there are no results in"):
        read_evaluation(tmp_path)


def test_the_metric_is_one_that_all_have_and_of_which_more_is_better(tmp_path: Path) -> None:
    wiki = {"word_perplexity,none": 9.0, "acc,none": 0.5, "acc_norm,none": 0.6}
    told = {**results(wiki=wiki), "higher_is_better": {"wiki": {"acc": True, "word_perplexity": False}}}
    lacking = results(wiki={"word_perplexity,none": 9.0, "acc_norm,none": 0.6})
    (one,) = gather("", four(tmp_path, base=told, post=told, new_base=told, real=told)).rows
    assert (one.metric, one.base) == ("acc,none", 0.5)
    (one,) = gather("", four(tmp_path, base=told, post=told, new_base=told, real=lacking)).rows
    assert one.metric == "acc_norm,none"
    everywhere = four(tmp_path, base=told, post=told, new_base=told, real=told)
    for wanted, metric in (
        (["nothing", "acc_norm"], "acc_norm,none"),
        (["word_perplexity,none"], "word_perplexity,none"),
    ):
        (one,) = gather("", everywhere, metrics=wanted).rows
        assert one.metric == metric
    only = results(wiki={"word_perplexity,none": 9.0})
    (left,) = gather("g", four(tmp_path, base=only, post=only, new_base=only, real=only)).left_out
    assert (left.task, left.group) == ("wiki", "g") and "more is better" in left.reason
    (left,) = gather("", everywhere, metrics=["f1"]).left_out
    assert "none of f1" in left.reason


def test_a_group_stands_for_its_parts_or_they_for_it(tmp_path: Path) -> None:
    score = {"acc,none": 0.5}
    value = results(mmlu=score, mmlu_stem=score, mmlu_algebra=score, mmlu_law=score, arc=score)
    value["group_subtasks"] = {"mmlu": ["mmlu_stem", "mmlu_law"], "mmlu_stem": ["mmlu_algebra"], "arc": []}
    sides = four(tmp_path, **dict.fromkeys(ROLES, value))
    assert [one.task for one in gather("", sides).rows] == ["mmlu", "arc"]
    assert [one.task for one in gather("", sides, subtasks=True).rows] == ["mmlu_algebra", "mmlu_law", "arc"]


def test_tasks_that_one_lacks_are_left_out_and_other_versions_told(tmp_path: Path) -> None:
    more = results(gsm8k={"exact_match,strict-match": 0.5}, arc={"acc,none": 0.5})
    more["versions"]["gsm8k"] = 3.0
    more["n-shot"]["gsm8k"] = 0
    found = gather("llama", four(tmp_path, base=more))
    assert [(one.task, one.reason) for one in found.left_out] == [("arc", "no value of post, new_base, real")]
    assert found.warnings == [
        "gsm8k (llama): the version differs: 3.0 for base, 1.0 for post, 1.0 for new_base, 1.0 for real",
        "gsm8k (llama): the number of shots differs: 0 for base, 5 for post, 5 for new_base, 5 for real",
    ]


def test_families_are_called_by_their_models_or_by_name(tmp_path: Path) -> None:
    tables = [tmp_path / "table.csv"]
    tables[0].write_text("task,base,post,new_base,real\na,1,2,3,4\n")
    path = write(tmp_path / "results.json", results(gsm8k={"exact_match,none": 0.5}))
    once: dict[str, list[Path]] = {role: [path] for role in ROLES}
    assert [one.group for one in gather_all([], once).rows] == [""]
    assert [one.group for one in gather_all(tables, once).rows] == ["", "acme/model"]
    assert [one.group for one in gather_all([], once, names=["llama"]).rows] == ["llama"]
    twice: dict[str, list[Path]] = {role: [path, path] for role in ROLES}
    assert [one.group for one in gather_all([], twice, names=["x", "y"]).rows] == ["x", "y"]
    with pytest.raises(InvalidArgument, match="1 of --base, 0 of --post, 0 of --new-base, 0 of --real"):
        gather_all([], {"base": [path]})
    with pytest.raises(InvalidArgument, match="1 names for 2 families"):
        gather_all([], twice, names=["x"])
    with pytest.raises(InvalidArgument, match="nothing to analyse"):
        gather_all([], {})


# --- pictures -----------------------------------------------------------------------------------------------------


def test_picture_is_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    errors = {"base_error": 0.01, "post_error": 0.02, "new_base_error": 0.02, "real_error": 0.03}
    found = transfer([*ROWS, row("<b>$&", 0.2, 0.5, 0.3, 0.57, group="$x", **errors)])
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype html>")):
        first, second = (plot_transfer(found, tmp_path / f"{n}.{kind}").read_bytes() for n in range(2))
        assert first == second
        assert first.startswith(start)
    ElementTree.fromstring((tmp_path / "0.svg").read_bytes())
    page = (tmp_path / "0.html").read_text()
    assert "<b>$" not in page
    assert "&lt;b&gt;$&amp;" in page
    assert page.count("<tr>") == 2 + 3 + len(found.points)


def test_picture_of_a_line_without_intercept_and_many_points(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = transfer([row(f"t{number}", 0, 0.5, 0, 0.4 + number / 100) for number in range(50)])
    assert found.with_intercept is None
    svg = plot_transfer(found, tmp_path / "many.svg").read_text()
    assert "t49" not in svg and "with intercept" not in svg
    with pytest.raises(InvalidArgument, match="draw"):
        plot_transfer(found, tmp_path / "a.pdf")


# --- what others published ----------------------------------------------------------------------------------------


def test_published_deltas_of_llama_arrive_nearly_whole() -> None:
    """Two transfers between Llama 3.0 and 3.1, six tasks each. What is found is what the page tells."""
    found = transfer(read_table(PUBLISHED / "finetuning-transfer-llama-8b.csv").rows)
    assert len(found.points) == 12
    assert found.gamma == pytest.approx(0.986, abs=5e-4)
    assert found.r_squared == pytest.approx(0.985, abs=5e-4)
    assert found.gains is not None and found.gains.gamma == pytest.approx(0.968, abs=5e-4)
    page = (PUBLISHED / "README.md").read_text()
    for value in (found.gamma, found.r_squared or 0, found.gains.gamma):
        assert f"{value:.3f}" in page
    interval = found.through_origin.gamma_interval
    assert f"{interval.low:.3f} to {interval.high:.3f}" in page
