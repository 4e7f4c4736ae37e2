import re

import nbformat

from esparse_lab.reports.html import notebook_page


def test_code_is_folded_but_where_a_cell_asks_to_be_shown_or_failed(tmp_path):
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell("folded = 1", execution_count=1),
        v4.new_code_cell("shown = 2", execution_count=2, metadata={"tags": ["show-code"]}),
        v4.new_code_cell("failing = 3", execution_count=3),
    ]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "ran.ipynb")
    around = {"name": "ran", "title": "t", "model": "m", "nav": [], "facts": [], "parameters": []}
    around |= {"error": "e", "details": ""}
    page = notebook_page(tmp_path / "ran.ipynb", {**around, "error_cell": 2})
    folds = re.findall(
        r'<details class="code"( open)?>.*?>(folded|shown|failing)<', page, re.DOTALL
    )
    assert folds == [("", "folded"), (" open", "shown"), (" open", "failing")]
