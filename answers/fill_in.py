"""The instructor's version of the teaching notebooks: answers in place of `None`.

`make answers` writes it beside this file. Tests fill in, run and check the same, so that notebooks
and answers cannot drift apart.
"""

import re
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
OPEN = re.compile(r"^(answer_\d+) = None.*$", re.MULTILINE)


def read_answers(path: Path) -> dict[str, str]:
    """Name -> code of each cell `# %% name` of an answers file."""
    _, *parts = re.split(r"^# %% (\w+)\n", path.read_text(), flags=re.MULTILINE)
    return {name: code.strip() for name, code in zip(parts[::2], parts[1::2], strict=True)}


def filled_in(notebook: Path, answers: dict[str, str]) -> nbformat.NotebookNode:
    """The notebook with every `answer_1 = None` replaced by its answer.

    Raises:
        ValueError: exercises and answers are not the same.
    """
    filled = nbformat.read(notebook, as_version=4)
    exercises = [cell for cell in filled.cells if "exercise" in cell.metadata.get("tags", [])]
    names = [OPEN.search(cell.source)[1] for cell in exercises]
    if sorted(names) != sorted(answers):
        raise ValueError(f"{notebook.name} asks for {names}, answers are there for {[*answers]}.")
    for name, cell in zip(names, exercises, strict=True):
        cell.source = OPEN.sub(lambda _, name=name: answers[name], cell.source)
    filled.cells[0].source = re.sub(r"^# (.*)", r"# \1: with answers", filled.cells[0].source)
    return filled


if __name__ == "__main__":
    for path in sorted(HERE.glob("[0-9]*.py")):
        notebook = HERE.parent / "notebooks" / f"{path.stem}.ipynb"
        nbformat.write(filled_in(notebook, read_answers(path)), HERE / notebook.name)
        print(f"answers/{notebook.name}")
