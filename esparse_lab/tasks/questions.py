"""The questions of the paper's five tasks, read from local files.

Context, choices and answer of an item are those that lm-evaluation-harness 0.4.13 makes of it in
its tasks of the same names (version 1.0 each); the tests compare them.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esparse_lab.errors import InputError, unknown


@dataclass(frozen=True)
class Question:
    """An item of a multiple-choice task.

    Attributes:
        context: what the model reads.
        choices: the answers, without the blank that joins them to the context.
        answer: index of the right choice.
    """

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self):
        texts = (self.context, *self.choices)
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError("the question or a choice is empty or no text")
        if type(self.answer) is not int or not 0 <= self.answer < len(self.choices):
            raise ValueError(f"the answer {self.answer!r} is none of {len(self.choices)} choices")

    @property
    def fingerprint(self) -> str:
        """Tells questions apart: the first 12 digits of a SHA-256."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class TaskDefinition:
    """How the lines of a task's file become questions.

    Attributes:
        fields: what every line must have.
        question: makes the question of a line.
    """

    fields: tuple[str, ...]
    question: Callable[[dict], Question]


@dataclass(frozen=True)
class TaskFile:
    """The questions of one task.

    Attributes:
        task: a name in `TASKS`.
        questions: in the file's order.
        file: its name, without the folder.
        sha256: of the whole file, also where only its first questions are taken.
    """

    task: str
    questions: tuple[Question, ...]
    file: str
    sha256: str


def _hellaswag(line: dict) -> Question:
    return Question(line["query"], tuple(line["choices"]), line["gold"])


def _piqa(line: dict) -> Question:
    context = f"Question: {line['goal']}\nAnswer:"
    return Question(context, (line["sol1"], line["sol2"]), line["label"])


def _openbookqa(line: dict) -> Question:
    labels, texts = line["choices"]["label"], line["choices"]["text"]
    return Question(line["question_stem"], tuple(texts), labels.index(line["answerKey"].lstrip()))


def _sciq(line: dict) -> Question:
    context = f"{line['support'].lstrip()}\nQuestion: {line['question']}\nAnswer:"
    wrong = (line[f"distractor{number}"] for number in (1, 2, 3))
    return Question(context, (*wrong, line["correct_answer"]), 3)


def _logiqa(line: dict) -> Question:
    options = "".join(f"{k}. {text}\n" for k, text in zip("ABCD", line["options"], strict=True))
    context = (
        f"Passage: {line['context']}\nQuestion: {line['question']}\nChoices:\n{options}Answer:"
    )
    return Question(
        context, tuple(line["options"]), ["a", "b", "c", "d"].index(line["label"].strip())
    )


TASKS: dict[str, TaskDefinition] = {
    "hellaswag": TaskDefinition(("query", "choices", "gold"), _hellaswag),
    "piqa": TaskDefinition(("goal", "sol1", "sol2", "label"), _piqa),
    "openbookqa": TaskDefinition(("question_stem", "choices", "answerKey"), _openbookqa),
    "sciq": TaskDefinition(
        ("support", "question", "distractor1", "distractor2", "distractor3", "correct_answer"),
        _sciq,
    ),
    "logiqa": TaskDefinition(("label", "context", "question", "options"), _logiqa),
}
"""The tasks of the paper's Table 2, in its order."""


def read_task(task: str, folder: str | Path, *, limit: int | None = None) -> TaskFile:
    """The questions of a task from the one file `<task>*.jsonl` of a folder.

    Args:
        task: a name in `TASKS`.
        folder: holds a UTF-8 file with one JSON object a line.
        limit: take the first questions alone; all are checked.

    Raises:
        InputError: an unknown task, no file or several, or a line that is no question; names file
            and line.
    """
    if task not in TASKS:
        raise unknown("task with local files", task, TASKS)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, or None for all questions; got {limit}.")
    folder = Path(folder).expanduser()
    paths = sorted(folder.glob(f"{task}*.jsonl"))
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise InputError(
            f"Expected one file {task}*.jsonl in {folder}, found {found}. Its lines have the "
            f"fields {', '.join(TASKS[task].fields)}."
        )
    content = paths[0].read_bytes()
    questions = [
        _question(task, line, f"{paths[0].name}, line {number}")
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    ]
    if not questions:
        raise InputError(f"{paths[0]} holds no questions.")
    return TaskFile(
        task, tuple(questions[:limit]), paths[0].name, hashlib.sha256(content).hexdigest()
    )


def _question(task: str, line: bytes, place: str) -> Question:
    definition = TASKS[task]
    try:
        read = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place}: not JSON in UTF-8: {error}.") from error
    given = list(read) if isinstance(read, dict) else []
    if missing := [field for field in definition.fields if field not in given]:
        raise InputError(
            f"{place}: {task} needs the field{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"the line has {', '.join(given) or 'no fields'}."
        )
    try:
        return definition.question(read)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{place}: no question of {task}: {error}.") from error
