"""The typed parameters of a notebook, and values for them from the command line.

papermill injects what it is given: a misspelt name or the string "true" for a bool runs the
notebook on its defaults without an error. So names and types are checked here first. The cell is
read with `ast`, because papermill's own reader silently skips lines such as
`seed: int | None = 0` or a comment with a second `=`.
"""

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esparse_lab.errors import EsparseError, InputError, unknown

EXAMPLES = {"int": "8", "float": "0.1", "bool": "true", "str": "2:4"}
BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class NotebookParameter:
    """One line of a parameters cell: `alpha: float = 0.1`.

    Attributes:
        name: the variable.
        kind: "int", "float", "bool" or "str": the type of the value or of a list's elements.
        many: a list or tuple of `kind`.
        optional: None is allowed too.
        default: the value in the notebook.
    """

    name: str
    kind: str
    many: bool
    optional: bool
    default: object

    def parse(self, text: str) -> object:
        """The value that the text stands for.

        Raises:
            InputError: the text is not of this parameter's type.
        """
        if self.optional and text.strip().lower() == "none":
            return None
        try:
            if not self.many:
                return self._one(text)
            parts = [part.strip() for part in text.split(",")]
            if not all(parts):
                raise ValueError
            return [self._one(part) for part in parts]
        except (ValueError, KeyError):
            raise self._ill_typed(text) from None

    def _one(self, text: str) -> object:
        if self.kind == "int":
            return int(text)
        if self.kind == "float":
            value = float(text)
            if not math.isfinite(value):
                raise ValueError
            return value
        if self.kind == "bool":
            return BOOLS[text.strip().lower()]
        return text

    def _ill_typed(self, text: str) -> InputError:
        expected = f"a value of type {self.kind}"
        expected = f"values of type {self.kind}, comma-separated" if self.many else expected
        example = self.default or EXAMPLES[self.kind]
        example = ",".join(map(str, example)) if isinstance(example, list | tuple) else example
        return InputError(
            f"Parameter {self.name!r} got {text!r}, expected {expected}, "
            f"for example -p {self.name}={example}"
        )


def notebook_parameters(path: Path) -> dict[str, NotebookParameter]:
    """The parameters that a notebook declares in its cell tagged `parameters`.

    Raises:
        EsparseError: the notebook is unreadable, has no such cell, or the cell holds something
            other than `name: type = literal`.
    """
    try:
        cells = json.loads(path.read_text())["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        sources = ["".join(cell["source"]) for cell in tagged]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EsparseError(f"{path} is not a readable notebook: {error!r}.") from error
    if len(sources) != 1:
        raise EsparseError(
            f"{path.name} has {len(sources)} cells tagged 'parameters', expected one: values given "
            "to the report would not reach it. Tag its parameters cell in JupyterLab's property "
            "inspector."
        )
    try:
        lines = ast.parse(sources[0]).body
    except SyntaxError as error:
        raise EsparseError(f"The parameters cell of {path.name} is not Python: {error}.") from error
    declared = [_declared(line, path) for line in lines if not _is_docstring(line)]
    return {parameter.name: parameter for parameter in declared}


def parse_assignments(items: list[str], option: str = "-p") -> dict[str, str]:
    """`["alpha=0.1"]` as `{"alpha": "0.1"}`; `option` took them.

    Raises:
        InputError: an item has no `=`, an empty name, or a name comes twice.
    """
    given: dict[str, str] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise InputError(
                f"{option} got {item!r}, expected name=value, for example {option} seed=0"
            )
        if name.strip() in given:
            raise InputError(f"{option} {name.strip()} is given twice; give each name once.")
        given[name.strip()] = text
    return given


def assign(
    declared: Mapping[str, Mapping[str, NotebookParameter]],
    given: Mapping[str, str],
    profile: Mapping[str, object],
    fixed: Mapping[str, object],
) -> dict[str, dict[str, object]]:
    """Every notebook's full parameters: its defaults, then the profile, then what was given.

    Args:
        declared: notebook -> its parameters.
        given: name -> text from the command line; each must be declared by some notebook.
        profile: name -> value, for the notebooks that declare the name.
        fixed: name -> value that the report itself decides; each notebook must declare them all.

    Returns:
        Notebook -> parameter -> value.

    Raises:
        InputError: an unknown or reserved name, or an ill-typed value.
        EsparseError: a notebook lacks a fixed parameter.
    """
    for name in given:
        if name in fixed:
            raise InputError(f"-p {name} is set by the command itself; see esparse report --help.")
    known = {name for parameters in declared.values() for name in parameters} - set(fixed)
    for name in given:
        if name not in known:
            raise unknown("parameter", name, known)
    values: dict[str, dict[str, object]] = {}
    for notebook, parameters in declared.items():
        for name in fixed:
            if name not in parameters:
                raise EsparseError(
                    f"{notebook}.ipynb declares no parameter {name!r}, so it would not follow the "
                    f"report. Add `{name}: str = ...` to its parameters cell."
                )
        values[notebook] = {name: each.default for name, each in parameters.items()}
        chosen = {**profile, **fixed}
        values[notebook] |= {name: chosen[name] for name in chosen if name in parameters}
        values[notebook] |= {
            name: parameters[name].parse(text) for name, text in given.items() if name in parameters
        }
    return values


def _declared(line: ast.stmt, path: Path) -> NotebookParameter:
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value):
        raise EsparseError(
            f"The parameters cell of {path.name} has the line {ast.unparse(line)!r}, expected "
            "`name: type = value` alone, so that values from the command line can be checked."
        )
    annotation = ast.unparse(line.annotation)
    optional = annotation.endswith(" | None")
    inner = annotation.removesuffix(" | None")
    many = inner.startswith(("list[", "tuple["))
    kind = inner.partition("[")[2].rstrip("]").removesuffix(", ...") if many else inner
    if kind not in EXAMPLES:
        raise EsparseError(
            f"Parameter {line.target.id!r} of {path.name} has the type {annotation!r}, expected "
            f"one of {', '.join(EXAMPLES)}, a list[...] or tuple[..., ...] of them, or | None."
        )
    try:
        default = ast.literal_eval(line.value)
    except ValueError:
        raise EsparseError(
            f"Parameter {line.target.id!r} of {path.name} is {ast.unparse(line.value)!r}, "
            "expected a literal value."
        ) from None
    return NotebookParameter(line.target.id, kind, many, optional, default)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
