"""Zero-shot accuracy: tasks in, a tidy table with standard errors out, every item kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from esparse_lab.errors import InputError
from esparse_lab.tasks.harness import run_harness
from esparse_lab.tasks.questions import TASKS, TaskFile, read_task
from esparse_lab.tasks.scoring import choice_loglikelihoods

MEAN = "mean"


@dataclass(frozen=True)
class TaskScores:
    """What a model scored.

    Attributes:
        table: columns task, metric, value, stderr (of the value; missing where none is known),
            items (a count). "acc" is the share of questions whose likeliest choice is right, 0 to
            1; "acc_norm" first divides a log-likelihood by the choice's characters.
        items: columns task, item, question (a fingerprint), metric, value; a row an item.
        source: what the questions come from: files with their hashes, or versions of the harness.
    """

    table: pd.DataFrame
    items: pd.DataFrame
    source: dict


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    limit: int | None = None,
    data: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Accuracy of a model on tasks that it is given no examples of, with standard errors.

    Args:
        model: a causal language model, dense or pruned.
        tokenizer: its own.
        tasks: names of tasks. Without `data` any of lm-evaluation-harness, which fetches their
            items; with it those in `TASKS`.
        limit: take the first items of each task alone.
        data: folder of local files, one `<task>*.jsonl` a task; neither network nor harness is
            needed then.
        progress: show a bar.

    Returns:
        `TaskScores.table`; last the plain mean over tasks of each metric that all of them have,
        as task "mean".

    Raises:
        InputError: a task that is not known, or a file that cannot be used.
        EsparseError: the harness is missing or cannot have the data, or the model is broken.
    """
    return task_scores(model, tokenizer, tasks, limit=limit, data=data, progress=progress).table


def task_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    limit: int | None = None,
    data: str | Path | None = None,
    progress: bool = True,
) -> TaskScores:
    """As `zero_shot`, with every item's result and where the questions come from."""
    tasks = list(dict.fromkeys(tasks))
    if not tasks:
        raise InputError(f"No tasks are given; for example {', '.join(TASKS)}.")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, or None for all items; got {limit}.")
    if data is not None:
        return file_scores(
            model,
            tokenizer,
            [read_task(task, data, limit=limit) for task in tasks],
            progress=progress,
        )
    figures, items, source = run_harness(model, tokenizer, tasks, limit=limit)
    return TaskScores(_with_means(figures), items, source)


def file_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: Sequence[TaskFile],
    *,
    progress: bool = True,
) -> TaskScores:
    """As `task_scores`, for files that were read already."""
    questions = [question for file in files for question in file.questions]
    likely = choice_loglikelihoods(model, tokenizer, questions, progress=progress)
    places = [(file.task, item) for file in files for item in range(len(file.questions))]
    rows = []
    for (task, item), question, scores in zip(places, questions, likely, strict=True):
        lengths = [len(choice) for choice in question.choices]
        chosen = {"acc": np.argmax(scores), "acc_norm": np.argmax(np.divide(scores, lengths))}
        rows += [
            (task, item, question.fingerprint, metric, float(choice == question.answer))
            for metric, choice in chosen.items()
        ]
    items = pd.DataFrame(rows, columns=["task", "item", "question", "metric", "value"])
    values = items.groupby(["task", "metric"], sort=False).value
    figures = values.agg(value="mean", stderr="sem", items="count").reset_index()
    source = {
        file.task: {"file": file.file, "sha256": file.sha256, "items": len(file.questions)}
        for file in files
    }
    return TaskScores(_with_means(figures), items, source)


def _with_means(figures: pd.DataFrame) -> pd.DataFrame:
    """The figures, and below them the means over tasks; tasks are independent of each other."""
    n_tasks = figures.task.nunique()
    rows = [
        {
            "task": MEAN,
            "metric": metric,
            "value": of_metric.value.mean(),
            "stderr": math.sqrt((of_metric.stderr**2).sum(skipna=False)) / n_tasks,
            "items": of_metric["items"].sum(),
        }
        for metric, of_metric in figures.groupby("metric", sort=False)
        if len(of_metric) == n_tasks > 1
    ]
    return pd.concat([figures, pd.DataFrame(rows)], ignore_index=True) if rows else figures
