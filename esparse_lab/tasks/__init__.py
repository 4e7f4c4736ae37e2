"""Zero-shot tasks: questions from files or the harness, their scores, paired comparisons."""

from esparse_lab.tasks.evaluation import MEAN, TaskScores, file_scores, task_scores, zero_shot
from esparse_lab.tasks.ladder import (
    DENSE,
    accuracy_layout,
    kept_scores,
    published_table2,
    task_ladder,
)
from esparse_lab.tasks.paired import paired_difference
from esparse_lab.tasks.questions import TASKS, Question, TaskFile, read_task

__all__ = [
    "DENSE",
    "MEAN",
    "TASKS",
    "Question",
    "TaskFile",
    "TaskScores",
    "accuracy_layout",
    "file_scores",
    "kept_scores",
    "paired_difference",
    "published_table2",
    "read_task",
    "task_ladder",
    "task_scores",
    "zero_shot",
]
