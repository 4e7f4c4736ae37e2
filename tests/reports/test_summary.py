"""What a report's summary takes from executed notebooks and from tables of recipes."""

import json
import math

import nbformat
import pandas as pd
import pytest
from ladder_row import ROW

from esparse_lab.reports.execute import NotebookRun
from esparse_lab.reports.html import NOTICED, outline
from esparse_lab.reports.rendering import anchored
from esparse_lab.reports.summary import run_summary
from esparse_lab.run_record import Run

V4 = nbformat.v4


def said(text):
    data = {"text/markdown": text, "text/plain": "not this"}
    return V4.new_code_cell("x", outputs=[V4.new_output("display_data", data)])


def test_an_outline_holds_what_the_notebook_says_of_itself(tmp_path):
    cells = [
        V4.new_markdown_cell("# Why `A`?\n\n**Question.** Is A > B?\n\n**Run time** short."),
        said("- before the conclusions"),
        V4.new_markdown_cell("## Look"),
        V4.new_markdown_cell(f"Twice:\n\n## Look\n\ntext\n\n## {NOTICED}\n\nmore"),
        said("- first"),
        said("- second"),
        V4.new_markdown_cell("## After & beyond"),
        said("- after the conclusions"),
    ]
    nbformat.write(V4.new_notebook(cells=cells), tmp_path / "00_a.ipynb")
    found = outline(tmp_path / "00_a.ipynb")
    assert (found["title"], found["question"]) == ("Why A?", "Is A > B?")
    assert found["noticed"] == "- first\n\n- second"
    assert [(s["id"], s["title"]) for s in found["sections"]] == [
        ("look", "Look"),
        ("look-1", "Look"),
        ("what-the-numbers-say", NOTICED),
        ("after-beyond", "After & beyond"),
    ]


def test_an_outline_of_a_notebook_without_words(tmp_path):
    nbformat.write(V4.new_notebook(cells=[V4.new_code_cell("1")]), tmp_path / "00_a.ipynb")
    empty = {"title": "00_a", "question": "", "noticed": "", "sections": []}
    assert outline(tmp_path / "00_a.ipynb") == empty


def test_anchors_are_never_shared():
    taken = {"a"}
    html, sections = anchored("<h2>a</h2><p>x</p><h2>→</h2><h2><code>a</code></h2>", taken)
    assert [s["id"] for s in sections] == ["a-1", "section", "a-2"]
    assert taken == {"a", "a-1", "section", "a-2"}
    assert html == (
        '<h2 id="a-1">a</h2><p>x</p><h2 id="section">→</h2><h2 id="a-2"><code>a</code></h2>'
    )


@pytest.fixture
def summarised(tmp_path):
    """The summary of one notebook that saved these tables."""

    def make(**tables):
        run = Run("00_a", tmp_path)
        for name, frame in tables.items():
            run.save_table(name, frame)
        nbformat.write(V4.new_notebook(cells=[V4.new_code_cell("1")]), tmp_path / "00_a.ipynb")
        facts = {"model": "m", "name": None, "profile": "quick", "given": {}}
        ended = {"00_a": NotebookRun(None, "", None, 1.0)}
        return run_summary(tmp_path, facts, {"00_a": {}}, ended)

    return make


def test_recipes_come_from_ladders_alone_with_their_ratio_to_dense(summarised):
    ladder = pd.DataFrame(
        [
            ROW | {"method": "dense", "pattern": "", "dense": True, "perplexity": 20.0},
            ROW,
            ROW
            | {"perplexity": math.inf, "output_error": math.nan, "reconstruct": True}
            | {"calibration": "matched", "allocation": "hessian"},
        ]
    )
    summary = summarised(ladder=ladder, partial=ladder.drop(columns="dense"), none=pd.DataFrame())
    json.dumps(summary, allow_nan=False)
    dense, plain, solved = summary["recipes"]
    assert (dense["ratio"], plain["ratio"], solved["ratio"]) == (1.0, 1.5, "inf")
    assert (plain["more"], solved["more"]) == ("", "matched, hessian, reconstruct")
    assert (plain["output_error"], solved["output_error"]) == (0.1, None)
    assert {row["notebook"] for row in summary["recipes"]} == {"00_a"}
    assert summary["tables"] == ["00_a.ladder", "00_a.none", "00_a.partial"]


def test_a_ladder_without_its_dense_model_has_no_ratio(summarised):
    (row,) = summarised(ladder=pd.DataFrame([ROW]))["recipes"]
    assert (row["perplexity"], row["ratio"]) == (30.0, None)
