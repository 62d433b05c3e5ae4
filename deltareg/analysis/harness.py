"""EleutherAI's lm-evaluation-harness on a model in memory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from deltareg.analysis.scoring import Evaluation, Metrics, checked_metrics
from deltareg.errors import DeltaregError, EvaluationFailed, InvalidArgument

__all__ = ["Harness", "need_harness"]


@dataclass(frozen=True)
class Harness:
    """Tasks of lm-evaluation-harness; `limit` examples of each, all where it is None; `include` holds more tasks."""

    tasks: Sequence[str]
    limit: int | None = None
    batch_size: int = 1
    include: Path | None = None
    metrics: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise InvalidArgument("no task was named, or one without a name", hint="--tasks arc_easy,hellaswag")
        if self.include is not None and not self.include.is_dir():
            raise InvalidArgument(f"there is no directory {self.include}", hint="--include-path holds *.yaml of tasks")
        need_harness()

    @property
    def evaluation(self) -> Evaluation:
        """What it is called in reports."""
        limit = "" if self.limit is None else f", {self.limit} examples of each"
        return Evaluation(kind="tasks", what=",".join(self.tasks) + limit)

    def run(self, model: Any, tokenizer: Any) -> tuple[Metrics, dict[str, Any]]:
        """The metrics by task and name, and the harness's own results, as JSON holds them.

        A task's data set is downloaded by the harness, where it is not in the cache. Raises EvaluationFailed,
        InvalidArgument for an unknown task.
        """
        with contextlib.redirect_stdout(sys.stderr):  # it prints; stdout is for what --json prints
            found = self._evaluate(model, tokenizer)
        results = json.loads(json.dumps(found, default=str))
        return checked_metrics(flat(results.get("results", {})), self.metrics, "lm-evaluation-harness"), results

    def _evaluate(self, model: Any, tokenizer: Any) -> Mapping[str, Any]:
        # It reads the variable when it is imported, and many threads of a tokenizer warn after a fork.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            # By name: it ships no types.
            parts = ("", ".models.huggingface", ".tasks")
            lm_eval, models, managing = (import_module(f"lm_eval{part}") for part in parts)
            tasks, unknown = self._known(managing.TaskManager)
            if unknown:
                raise InvalidArgument(
                    f"lm-evaluation-harness has no task {unknown[0]!r}",
                    hint="lm-eval ls tasks lists them; --include-path DIR adds yours",
                )
            loaded = models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch_size, device="cpu")
            found = lm_eval.simple_evaluate(
                model=loaded,
                tasks=list(self.tasks),
                task_manager=tasks,
                limit=self.limit,
                batch_size=self.batch_size,
                log_samples=False,
            )
        except DeltaregError:
            raise
        except (Exception, SystemExit) as error:  # of whatever class: tasks are programs, and data sets lie in the net
            first = str(error).strip().partition("\n")[0]
            raise EvaluationFailed(
                f"lm-evaluation-harness failed on {', '.join(self.tasks)}",
                cause=f"{type(error).__name__}: {first}",
                hint="run lm-eval by hand on a checkpoint of deltareg build; data sets need a network or the cache",
            ) from error
        return cast("Mapping[str, Any]", found)

    def _known(self, manager: Any) -> tuple[Any, list[str]]:
        """What knows the tasks, and those that it does not know."""
        # To read the harness's own thousands of tasks takes seconds: not done for whom theirs are enough.
        places: list[dict[str, Any]] = (
            [] if self.include is None else [{"include_path": str(self.include), "include_defaults": False}]
        )
        places.append({"include_path": None if self.include is None else str(self.include)})
        tasks, unknown = None, list(self.tasks)
        for place in places:
            tasks = manager(**place)
            unknown = [name for name in self.tasks if not tasks.match_tasks([name])]
            if not unknown:
                break
        return tasks, unknown


def need_harness() -> None:
    """Raise InvalidArgument where lm-evaluation-harness is not installed."""
    if find_spec("lm_eval") is None:
        raise InvalidArgument(
            "tasks need lm-evaluation-harness, which is not installed", hint="pip install 'deltareg[eval]'"
        )


def flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """`{task: {"acc,none": x}}` as `{"task/acc": x}`; a filter other than none stays: `task/exact_match,strict`.

    Standard errors and what is no number are left out.
    """
    found: dict[str, float] = {}
    for task, values in results.items():
        for key, value in values.items():
            name, _, kind = key.partition(",")
            counts = kind and not name.endswith("_stderr") and isinstance(value, (int, float))
            if counts and not isinstance(value, bool):
                found[f"{task}/{name}" + ("" if kind == "none" else f",{kind}")] = float(value)
    return found
