"""Any task of EleutherAI's lm-evaluation-harness, on a model in memory."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib import import_module, metadata
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from esparse_lab.capture import TOKENS_AT_ONCE
from esparse_lab.errors import EsparseError, InputError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


def run_harness(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    manager: "TaskManager | None" = None,
) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Run tasks of the harness without examples in the prompt.

    Args:
        model: a causal language model.
        tokenizer: its own.
        tasks: names of tasks, groups or tags; the harness fetches their data.
        limit: take the first items of each task alone.
        manager: knows the tasks; by default those of the harness.

    Returns:
        The harness's figures (task, metric, value, stderr, items), its items (task, item, question,
        metric, value), and what they come from: the version of the harness and of each task.

    Raises:
        EsparseError: the harness is not installed or cannot have the data.
        InputError: a task that it does not know; names the nearest.
    """
    try:
        lm_eval = import_module("lm_eval")
        adapter = import_module("lm_eval.models.huggingface")
        managing = import_module("lm_eval.tasks")
    except ImportError as error:
        raise EsparseError(
            "Tasks are fetched and run by lm-evaluation-harness, which is not installed: pip "
            "install 'esparse_lab[zero-shot]'. Tasks from local files need none: --tasks-data DIR."
        ) from error
    manager = _own_tasks(managing) if manager is None else manager
    for task in tasks:
        if task not in manager.all_tasks:
            near = get_close_matches(task, manager.all_tasks, n=3)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise InputError(
                f"Unknown task {task!r}.{hint} `lm-eval ls tasks` lists those of the harness."
            )
    wrapped = adapter.HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        batch_size=max(1, TOKENS_AT_ONCE.get(model.device.type, 1024) // 256),
        softmax_dtype="float32",
    )
    try:
        results = lm_eval.simple_evaluate(
            wrapped, tasks=list(tasks), num_fewshot=0, limit=limit, task_manager=manager
        )
    except (OSError, ValueError) as error:
        # What the libraries below raise for a hub that is out of reach varies.
        raise EsparseError(
            f"The harness could not run {', '.join(tasks)}: {error}. Its data comes from the "
            "Hugging Face hub; tasks from local files need none: --tasks-data DIR."
        ) from error
    source = {"harness": harness_version(), "versions": dict(results["versions"])}
    figures = _figures(results)
    return figures, _items(results["samples"], figures), source


def harness_version() -> str | None:
    """The version of lm-evaluation-harness; None where it is not installed."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return None


@cache
def _own_tasks(managing: ModuleType) -> "TaskManager":
    """The harness's own tasks: reading its thousands of definitions takes seconds."""
    return managing.TaskManager()


def _figures(results: dict) -> pd.DataFrame:
    rows = []
    for task, figures in results["results"].items():
        counts = results["n-samples"].get(task, {})
        for name, value in figures.items():
            metric, _, rule = name.partition(",")
            if not rule or metric.endswith("_stderr"):
                continue
            stderr = figures.get(f"{metric}_stderr,{rule}")
            rows.append(
                {
                    "task": task,
                    "metric": _metric(metric, rule),
                    "value": value,
                    "stderr": stderr if isinstance(stderr, float) else float("nan"),
                    "items": counts.get("effective"),
                }
            )
    return pd.DataFrame(rows)


def _items(samples: dict, figures: pd.DataFrame) -> pd.DataFrame:
    """The items' own figures, of metrics that are their mean: such as accuracy, not perplexity."""
    rows = [
        {
            "task": task,
            "item": sample["doc_id"],
            "question": sample["doc_hash"][:12],
            "metric": _metric(metric, sample["filter"]),
            "value": float(sample[metric]),
        }
        for task, of_task in samples.items()
        for sample in of_task
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float)
    ]
    items = pd.DataFrame(rows, columns=["task", "item", "question", "metric", "value"])
    means = items.groupby(["task", "metric"]).value.transform("mean")
    whole = items.merge(figures, "left", ["task", "metric"], suffixes=("", "_figure"))
    return items[np.isclose(means, whole.value_figure)].reset_index(drop=True)


def _metric(metric: str, rule: str) -> str:
    return metric if rule == "none" else f"{metric} ({rule})"
