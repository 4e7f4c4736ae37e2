"""Small notebooks for the report tests, and a browser to look at pages with."""

import shutil
from pathlib import Path

import nbformat
import pytest

PARAMETERS = 'model: str = "default"\nout_dir: str = "unused"\nseed: int = 0  # a = b\n'


def write_notebook(path: Path, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook of code cells; a cell that starts with '# ' or '## ' is text."""
    v4 = nbformat.v4
    made = [
        v4.new_markdown_cell(c) if c.startswith(("# ", "## ")) else v4.new_code_cell(c)
        for c in cells
    ]
    if parameters is not None:
        tagged = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        made.insert(1 if cells and cells[0].startswith("# ") else 0, tagged)
    notebook = v4.new_notebook(cells=made)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture(scope="session")
def notebook_writer():
    """`write_notebook`, for fixtures and tests that choose their folder."""
    return write_notebook


@pytest.fixture
def notebooks(tmp_path):
    """A folder for notebooks, as a function that writes one into it."""

    def write(name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
        return write_notebook(tmp_path / "notebooks" / name, *cells, parameters=parameters)

    return write


# Not for the session: Playwright keeps an event loop open, which other tests would meet.
@pytest.fixture(scope="module")
def chromium():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a file in the browser; `page.seen` is all it asks for, says and complains about."""
    pages = []

    def open_file(path: Path, **settings):
        page = chromium.new_page(**settings)
        pages.append(page)
        page.seen = []
        page.on("request", lambda request: page.seen.append(request.url))
        page.on("console", lambda message: page.seen.append(message.text))
        page.on("pageerror", lambda error: page.seen.append(str(error)))
        page.on("dialog", lambda dialog: (page.seen.append(dialog.message), dialog.dismiss()))
        page.goto(path.resolve().as_uri())
        return page

    yield open_file
    for page in pages:
        page.close()
