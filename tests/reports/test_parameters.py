import pytest

from esparse_lab.errors import EsparseError, InputError
from esparse_lab.reports.parameters import (
    NotebookParameter,
    assign,
    notebook_parameters,
    parse_assignments,
)

FIXED = {"model": "m", "out_dir": "o"}
LINES = '''"""Text is allowed."""
model: str = "a=b"  # which = model
out_dir: str = "x"
n: int = 8
alpha: float = 1
live: bool = False
layers: list[str] = ["q", "k"]
sizes: tuple[int, ...] = (1, 2)
limit: int | None = None
'''


def test_declared_parameters_are_read_with_their_types(notebooks):
    found = notebook_parameters(notebooks("00_a.ipynb", parameters=LINES))
    assert list(found) == ["model", "out_dir", "n", "alpha", "live", "layers", "sizes", "limit"]
    assert found["model"] == NotebookParameter("model", "str", False, False, "a=b")
    assert found["sizes"] == NotebookParameter("sizes", "int", True, False, (1, 2))
    assert found["limit"] == NotebookParameter("limit", "int", False, True, None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("n = 8", r"has the line 'n = 8', expected `name: type = value`"),
        ("n: int", "expected `name: type = value`"),
        ("n: dict = {}", "has the type 'dict', expected one of int, float, bool, str"),
        ("n: int = 2 + len('a')", "expected a literal"),
        ("import os", "expected `name: type = value`"),
        ("n: int = = 2", "is not Python"),
    ],
)
def test_a_cell_that_cannot_be_checked_is_refused(notebooks, line, says):
    with pytest.raises(EsparseError, match=says) as error:
        notebook_parameters(notebooks("00_a.ipynb", parameters=line))
    assert error.value.exit_code == 1


def test_a_notebook_without_the_tag_is_refused(notebooks):
    with pytest.raises(EsparseError, match=r"00_a.ipynb has 0 cells tagged 'parameters'"):
        notebook_parameters(notebooks("00_a.ipynb", "x = 1", parameters=None))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": [1]}'])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "00_a.ipynb").write_text(content)
    with pytest.raises(EsparseError, match="not a readable notebook"):
        notebook_parameters(tmp_path / "00_a.ipynb")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n", "16", 16),
        ("n", "-1", -1),
        ("alpha", "1e-3", 0.001),
        ("alpha", "2", 2.0),
        ("live", "true", True),
        ("live", "True", True),
        ("live", "0", False),
        ("layers", "q, v", ["q", "v"]),
        ("layers", "q", ["q"]),
        ("sizes", "3,4", [3, 4]),
        ("limit", "none", None),
        ("limit", "5", 5),
    ],
)
def test_text_becomes_a_value_of_the_declared_type(notebooks, name, text, value):
    declared = {"00_a": notebook_parameters(notebooks("00_a.ipynb", parameters=LINES))}
    found = assign(declared, {name: text}, {}, FIXED)["00_a"][name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("n", "1.5", "a value of type int"),
        ("n", "1e3", "a value of type int"),
        ("n", "", "a value of type int"),
        ("n", "none", "a value of type int"),
        ("alpha", "nan", "a value of type float"),
        ("alpha", "x", "a value of type float"),
        ("live", "maybe", "a value of type bool"),
        ("layers", "q,,k", "values of type str, comma-separated"),
        ("sizes", "1,b", "values of type int, comma-separated"),
    ],
)
def test_ill_typed_text_is_refused_with_an_example(notebooks, name, text, expected):
    declared = {"00_a": notebook_parameters(notebooks("00_a.ipynb", parameters=LINES))}
    with pytest.raises(InputError) as error:
        assign(declared, {name: text}, {}, FIXED)
    message = str(error.value)
    assert message.startswith(f"Parameter {name!r} got {text!r}, expected {expected}")
    # The example that the message gives is itself accepted.
    example = dict([message.rpartition("-p ")[2].split("=", 1)])
    assign(declared, example, {}, FIXED)


def test_values_go_to_the_notebooks_that_declare_them(notebooks):
    base = 'model: str = ""\nout_dir: str = ""\n'
    declared = {
        "00_a": notebook_parameters(notebooks("00_a.ipynb", parameters=base + "n: int = 1")),
        "01_b": notebook_parameters(notebooks("01_b.ipynb", parameters=base + "n: float = 2.0")),
        "02_c": notebook_parameters(notebooks("02_c.ipynb", parameters=base + "k: int = 3")),
    }
    values = assign(declared, {"n": "7"}, {"n": 5, "k": 6, "elsewhere": 1}, FIXED)
    assert values == {
        "00_a": {**FIXED, "n": 7},
        "01_b": {**FIXED, "n": 7.0},
        "02_c": {**FIXED, "k": 6},
    }


def test_unknown_and_reserved_names_are_refused(notebooks):
    declared = {"00_a": notebook_parameters(notebooks("00_a.ipynb", parameters=LINES))}
    with pytest.raises(InputError, match=r"Unknown parameter 'alpa'. Did you mean 'alpha'"):
        assign(declared, {"alpa": "1"}, {}, FIXED)
    with pytest.raises(InputError, match="-p model is set by the command"):
        assign(declared, {"model": "x"}, {}, FIXED)


def test_a_notebook_that_would_ignore_the_model_is_refused(notebooks):
    declared = {
        "00_a": notebook_parameters(notebooks("00_a.ipynb", parameters='out_dir: str = ""'))
    }
    with pytest.raises(EsparseError, match="declares no parameter 'model'"):
        assign(declared, {}, {}, FIXED)


def test_assignments_are_split_at_the_first_equals_sign():
    assert parse_assignments(["a=b=c", " n =1", "e="]) == {"a": "b=c", "n": "1", "e": ""}


@pytest.mark.parametrize(
    ("items", "says"), [(["a"], "name=value"), (["=1"], "name=value"), (["a=1", "a=1"], "twice")]
)
def test_what_is_no_assignment_is_refused(items, says):
    with pytest.raises(InputError, match=says):
        parse_assignments(items)
