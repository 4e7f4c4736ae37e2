"""The dense model and every recipe on the same questions, and the paper's Table 2 beside them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from esparse_lab.corpora import tokens_sha256
from esparse_lab.experiments import weights_fingerprint, weights_restored
from esparse_lab.models import LoadedModel
from esparse_lab.pruning import Recipe, prune_model
from esparse_lab.recipes import recipe_label
from esparse_lab.result_cache import cached
from esparse_lab.tables import REFERENCE, paper_table
from esparse_lab.tasks.evaluation import MEAN, TaskScores, file_scores, task_scores
from esparse_lab.tasks.harness import harness_version
from esparse_lab.tasks.questions import TASKS, read_task

DENSE = "dense"
KEPT = "zero_shot"


def task_ladder(
    loaded: LoadedModel,
    calibration: Tensor,
    recipes: Iterable[Recipe],
    tasks: Sequence[str] = tuple(TASKS),
    *,
    limit: int | None = None,
    data: str | Path | None = None,
    progress: bool = True,
) -> Iterator[tuple[str, TaskScores]]:
    """What the dense model and the model after each recipe score, each as soon as it is measured.

    Each is kept on disk under the model's revision, the questions and the recipe, so that a run
    that is stopped goes on where it was. The model is left as it was.

    Args:
        loaded: the dense model.
        calibration: int64 [sequence, position].
        recipes: what to try.
        tasks: as in `zero_shot`.
        limit: as in `zero_shot`.
        data: as in `zero_shot`.
        progress: show bars.

    Yields:
        "dense" or the recipe's label, and the scores.
    """
    files = None if data is None else [read_task(task, data, limit=limit) for task in tasks]

    def scores(recipe: Recipe | None) -> dict:
        model, tokenizer = loaded.model, loaded.tokenizer
        with weights_restored(model):
            if recipe is not None:
                prune_model(model, calibration, recipe, progress=progress)
            if files is None:
                found = task_scores(model, tokenizer, tasks, limit=limit)
            else:
                found = file_scores(model, tokenizer, files, progress=progress)
        return {
            "table": found.table.to_dict("list"),
            "items": found.items.to_dict("list"),
            "source": found.source,
        }

    key = {
        "table": "tasks",
        "model": loaded.revision,
        "weights": weights_fingerprint(loaded.model),
        "name": loaded.name,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "tasks": [harness_version(), list(tasks), limit]
        if files is None
        else [(file.task, file.sha256, len(file.questions)) for file in files],
    }
    for recipe in (None, *recipes):
        cell = key | {
            "recipe": repr(recipe),
            "calibration": tokens_sha256(calibration) if recipe and recipe.reads_tokens else None,
        }
        kept = cached(cell, lambda r=recipe: scores(r))
        yield (
            DENSE if recipe is None else recipe_label(recipe),
            TaskScores(pd.DataFrame(kept["table"]), pd.DataFrame(kept["items"]), kept["source"]),
        )


def accuracy_layout(table: pd.DataFrame, metric: str = "acc") -> pd.DataFrame:
    """Rows as in the paper's Table 2: a model a line, its tasks and their mean, in percent.

    Args:
        table: columns model, task, metric, value (0 to 1) and stderr.
        metric: "acc" or "acc_norm".

    Returns:
        Index model; columns the tasks in the paper's order, others after them, then the mean:
        texts such as "42.1 ± 0.5".
    """
    shown = table[table.metric == metric]
    text = [
        f"{100 * v:.1f} ± {100 * e:.1f}" for v, e in zip(shown.value, shown.stderr, strict=True)
    ]
    wide = shown.assign(text=text).pivot(index="model", columns="task", values="text")
    names = list(dict.fromkeys(shown.task))
    order = [t for t in TASKS if t in names] + [t for t in names if t not in (*TASKS, MEAN)]
    order += [MEAN] if MEAN in names else []
    return wide.loc[list(dict.fromkeys(shown.model)), order]


def published_table2() -> pd.DataFrame:
    """The paper's Table 2 in percent, its averages computed beside those it prints.

    Columns: model, method, the five tasks, mean (computed from them here), printed mean.
    """
    cells = paper_table(2).astype({"value": float})
    wide = cells.pivot_table(index=["model", "method"], columns="task", values="value", sort=False)
    wide = wide.rename(columns={MEAN: "printed mean"})
    wide.insert(len(TASKS), MEAN, wide[list(TASKS)].mean(axis=1))
    return wide[[*TASKS, MEAN, "printed mean"]].rename_axis(columns=None).reset_index()


def kept_scores() -> tuple[pd.DataFrame, pd.DataFrame, dict] | None:
    """What `benchmarks/zero_shot.py` measured on a GPU; None where nothing is kept.

    Returns:
        Accuracies (model and the columns of `TaskScores.table`), paired differences to the dense
        model (model and the columns of `paired_difference`), and the run record.
    """
    record = REFERENCE / "records" / f"{KEPT}.json"
    if not record.is_file():
        return None
    tables = (REFERENCE / "tables" / f"{KEPT}.{name}.csv" for name in ("accuracy", "paired"))
    accuracy, paired = map(pd.read_csv, tables)
    return accuracy, paired, json.loads(record.read_text())
