"""Whole reports of small notebooks: what is written, what a failure or a kill leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

from esparse_lab.errors import EsparseError, InputError
from esparse_lab.reports import render_report, report_slug
from esparse_lab.reports.index import write_index

EVIL = "<img src=x onerror=alert(1)>"
FIGURE = """import plotly.graph_objects as go
figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))
figure.update_layout(title='</script><img src=x onerror=alert(2)><!--', width=900, height=321)
figure"""
RECORD = """import pandas as pd
from esparse_lab.run_record import Run
run = Run('00_good', out_dir)
run.save_table('channels', pd.DataFrame({'layer': [model], 'norm': [1.5]}))
run.finish(seed=seed, headline={'dense perplexity': 22.0625, model: model})"""
TEXT = (
    "# What is *here*?\n\n**Question.** Is <b>1</b> < 2?\n\n"
    "See [the paper](https://arxiv.org/abs/2310.15929)."
)
NOTICED = "## What the numbers say"
SENTENCES = "from IPython.display import Markdown\nMarkdown(f'- {1 + 2} things about {model}')"
NOISE = (
    "import sys\nprint(f'\\r{3 + 4}/9\\r{4 + 5}/9', file=sys.stderr)\nprint(out_dir, '<b>bold</b>')"
)


class Page(HTMLParser):
    """Collects what a browser would load by itself, what it would run, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.handlers, self.text = [], [], [], []
        self.scripts, self.styles, self.links, self.places = [], [], [], []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag if tag in ("script", "style") else self._inside
        for name, value in attributes:
            if name == "href" and tag == "a":
                self.links.append(value)
            elif name == "id":
                self.places.append(value)
            elif name in ("src", "href", "srcset", "data", "action", "poster", "background"):
                self.loads.append(value)
            elif name.startswith("on"):
                self.handlers.append(value)

    def handle_endtag(self, tag):
        self._inside = None if tag == self._inside else self._inside

    def handle_data(self, data):
        kept = {"script": self.scripts, "style": self.styles}.get(self._inside, self.text)
        kept.append(data)


def links_lead_somewhere(page, folder):
    assert page.links
    for link in page.links:
        path, _, place = unquote(link).partition("#")
        path = path or "index.html"  # the page itself
        assert (folder / path).exists(), link
        assert not place or place in Page((folder / path).read_text()).places, link


@pytest.fixture(scope="module")
def report(tmp_path_factory, notebook_writer):
    """One good, one failing and one empty notebook, on a model whose name is an attack."""
    folder = tmp_path_factory.mktemp("report")
    notebooks = folder / "notebooks"
    write_notebook = notebook_writer
    write_notebook(notebooks / "00_good.ipynb", TEXT, NOISE, FIGURE, NOTICED, SENTENCES, RECORD)
    write_notebook(
        notebooks / "01_fails.ipynb", "# Fails\n", "print('before')", "1 / 0", "print('never')"
    )
    write_notebook(notebooks / "02_exits.ipynb", "import sys; sys.exit()", "print('never')")
    write_notebook(notebooks / "notes.ipynb", "raise ValueError('not a report notebook')")
    return render_report(
        EVIL, parameters={"seed": "5"}, out=folder / "reports", notebooks_dir=notebooks
    )


def test_what_a_report_holds(report):
    assert report.failed == ["01_fails", "02_exits"]
    names = {p.relative_to(report.folder).as_posix() for p in report.folder.rglob("*")}
    stems = ("00_good", "01_fails", "02_exits")
    pages = {f"{stem}.{kind}" for stem in stems for kind in ("html", "ipynb")}
    tables = {f"tables/00_good.channels.{kind}" for kind in ("csv", "parquet")}
    folders = {"tables", "records"}
    rest = {"records/00_good.json", "run.json", "index.html"}
    assert names == pages | tables | folders | rest
    assert pd.read_csv(report.folder / "tables/00_good.channels.csv")["layer"][0] == EVIL
    assert {p.name for p in report.folder.parent.iterdir()} == {report.folder.name, "index.html"}


def test_run_json_says_what_ran(report):
    run = json.loads((report.folder / "run.json").read_text())
    assert (run["model"], run["profile"], run["seed"]) == (EVIL, "quick", 5)
    assert run["status"] == "failed"
    assert run["headline"] == {"dense perplexity": 22.0625, EVIL: EVIL}
    assert run["tables"] == ["00_good.channels"]
    assert run["versions"]["papermill"]
    assert run["peak_memory_mib"]["process"] > 20
    states = {n["name"]: (n["status"], n["error"], n["title"]) for n in run["notebooks"]}
    assert states["00_good"] == ("done", None, "What is here?")
    assert states["01_fails"] == ("failed", "ZeroDivisionError: division by zero", "Fails")
    assert states["02_exits"][0] == "failed"
    assert "called exit" in states["02_exits"][1]
    shown = f"reports/{report.folder.name}"
    assert run["notebooks"][0]["parameters"] == {"model": EVIL, "out_dir": shown, "seed": 5}


def test_no_page_names_the_hidden_folder_or_this_machine(report):
    for path in [*report.folder.glob("*.html"), *report.folder.glob("*.ipynb")]:
        text = path.read_text()
        assert ".building-" not in text, path.name
        assert str(report.folder.parent) not in text, path.name
    executed = nbformat.read(report.folder / "00_good.ipynb", as_version=4)
    assert "widgets" not in executed.metadata


@pytest.mark.parametrize(
    "name", ["00_good.html", "01_fails.html", "02_exits.html", "index.html", "../index.html"]
)
def test_a_page_loads_nothing_and_a_hostile_name_stays_text(report, name):
    html = (report.folder / name).read_text()
    page = Page(html)
    assert page.loads == []
    assert page.handlers == []
    assert "img" not in page.tags
    assert EVIL in "".join(page.text)
    for style in page.styles:
        assert not re.search(r"@import|url\(", style)
    for script in page.scripts:
        assert not re.search(r"^\s*import\s", script)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in policy[1]


def test_figures_are_data_and_plotly_comes_once(report):
    text = (report.folder / "00_good.html").read_text()
    page = Page(text)
    assert text.count("plotly.js v") == 1
    (figure,) = re.findall(r'<script type="application/json" id="figure-0">(.*?)</script>', text)
    layout = json.loads(figure)["layout"]
    assert layout["title"]["text"].startswith("</script><img src=x")
    assert "width" not in layout
    assert (layout["height"], layout["autosize"]) == (321, True)
    assert "https://arxiv.org/abs/2310.15929" in page.links
    assert "plotly.js v" not in (report.folder / "01_fails.html").read_text()


def test_output_text_is_escaped_and_progress_settled(report):
    text = "".join(Page((report.folder / "00_good.html").read_text()).text)
    assert f"reports/{report.folder.name} <b>bold</b>" in text
    assert "9/9" in text
    assert "7/9" not in text


def test_a_failed_page_shows_the_traceback_and_the_index_a_mark(report):
    text = "".join(Page((report.folder / "01_fails.html").read_text()).text)
    assert "This notebook failed." in text
    assert "Traceback (most recent call last)" in text
    assert "before" in text
    index = (report.folder / "../index.html").read_text()
    assert 'class="failed"' in index
    assert "✕ 2 failed" in index
    assert "ZeroDivisionError: division by zero" in index


def test_the_index_lists_what_it_can_read(report):
    out = report.folder.parent
    damaged = {"cut": '{"model": 3', "list": "[]", "empty": "", "partial": '{"format": 1}'}
    for name, content in damaged.items():
        (out / f"broken {name}").mkdir()
        (out / f"broken {name}" / "run.json").write_text(content)
    (out / "reference").mkdir()
    (out / "reference" / "run.json").write_text("not a report")
    page = Page(write_index(out).read_text())
    text = "".join(page.text)
    assert text.count("✕ unreadable") == len(damaged)
    assert "reference" not in text
    assert "22.062" in text
    assert report.folder.name + "/00_good.html" in page.links
    assert report.folder.name + "/index.html" in page.links
    links_lead_somewhere(page, out)
    failed = [link for link in page.links if "#" in link]
    assert failed == [f"{report.folder.name}/0{n}.html#failed" for n in ("1_fails", "2_exits")]


def test_the_first_page_sums_up_the_report(report):
    page = Page((report.folder / "index.html").read_text())
    text = " ".join("".join(page.text).split())
    assert "22.062 dense perplexity" in text
    assert f"3 things about {EVIL}" in text
    assert "Is <b>1</b> < 2?" in text
    assert "02_exits failed." in text
    assert "Parameters given: seed=5" in text
    assert {"01_fails.html#failed", "00_good.html#what-the-numbers-say"} <= {*page.links}
    links_lead_somewhere(page, report.folder)


def test_named_runs_of_a_model_stay_beside_each_other(tmp_path, notebooks):
    folder = notebooks("00_a.ipynb", "x = seed").parent
    out = tmp_path / "reports"
    for name, seed in ((None, "1"), ("seed-2", "2"), ("seed-2", "3")):
        given = {"seed": seed}
        render_report("m", parameters=given, out=out, notebooks_dir=folder, name=name)
    seeds = {
        path.parent.name: json.loads(path.read_text())["seed"] for path in out.glob("*/*.json")
    }
    assert seeds == {"m": 1, "m@seed-2": 3}
    page = Page((out / "index.html").read_text())
    assert {"m/index.html", "m%40seed-2/index.html"} <= {*page.links}
    assert "seed=3" in "".join(page.text)
    for name in ("", "../x", "a b", "A", ".hidden", "x" * 42):
        with pytest.raises(InputError, match="run's name"):
            render_report("m", out=out, notebooks_dir=folder, name=name)


def test_slugs_are_safe_and_keep_models_apart(tmp_path):
    hostile = ["../x", "/etc/passwd", "..", ".", "", "a/b", "A", "a b", "reference", EVIL]
    names = [*hostile, "a\0", "a-b", "a", "x" * 299, "x" * 300, "smollm2-135m"]
    for place in (tmp_path / "1" / "same", tmp_path / "2" / "same"):
        place.mkdir(parents=True)
        names.append(str(place))
    slugs = [report_slug(name) for name in names]
    assert len({*slugs}) == len(names)
    for slug in slugs:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,80}", slug), slug
        assert slug != "reference"
    assert report_slug("smollm2-135m") == "smollm2-135m"


def test_usage_errors_come_before_anything_is_written(tmp_path, notebooks):
    folder = notebooks("00_a.ipynb", "x = 1").parent
    out = tmp_path / "reports"
    with pytest.raises(InputError, match="Unknown profile 'fast'"):
        render_report("m", profile="fast", out=out, notebooks_dir=folder)
    with pytest.raises(InputError, match="Unknown parameter 'sed'"):
        render_report("m", parameters={"sed": "1"}, out=out, notebooks_dir=folder)
    with pytest.raises(EsparseError, match="No notebooks named"):
        render_report("m", out=out, notebooks_dir=tmp_path)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(EsparseError, match="Cannot write"):
        render_report("m", out=out, notebooks_dir=folder)


def test_what_is_no_report_is_not_replaced(tmp_path, notebooks):
    source = notebooks("00_a.ipynb", "1").parent
    mine = tmp_path / "out" / "m" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(InputError, match="is no report"):
        render_report("m", out=tmp_path / "out", notebooks_dir=source)
    assert mine.read_text() == "precious"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_the_old_report_whole(tmp_path, notebooks, how):
    started = tmp_path / "kernel"
    folder = notebooks(
        "00_slow.ipynb",
        f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))",
        "time.sleep(120)",
    ).parent
    out = tmp_path / "reports"
    (out / "m").mkdir(parents=True)
    (out / "m" / "old.html").write_text("whole")
    (out / "m" / "run.json").write_text("{}")
    # A job in the background of a shell starts with Ctrl-C ignored, and so would its children.
    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from pathlib import Path; from esparse_lab.reports import render_report; "
        "render_report('m', out=sys.argv[1], notebooks_dir=Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(out), str(folder)], stderr=subprocess.PIPE
    )
    with process:
        _wait(lambda: process.poll() or (started.exists() and started.read_text()))
        os.kill(process.pid, how)
        process.communicate(timeout=30)
    assert process.returncode != 0
    assert (out / "m" / "old.html").read_text() == "whole"
    if how == signal.SIGINT:
        assert [p.name for p in out.iterdir()] == ["m"]
    _wait(lambda: not _alive(int(started.read_text())))
    # The next run clears what the killed one left.
    notebooks("00_slow.ipynb", "x = 1")
    assert render_report("m", out=out, notebooks_dir=folder).failed == []
    assert sorted(p.name for p in out.iterdir()) == ["index.html", "m"]
    assert not (out / "m" / "old.html").exists()


def test_a_kernel_that_dies_is_a_failed_notebook(tmp_path, notebooks):
    folder = notebooks("00_dies.ipynb", "import os\nos.write(2, b'last words')\nos._exit(1)").parent
    notebooks("01_lives.ipynb", "x = 1")
    outcome = render_report("m", out=tmp_path / "reports", notebooks_dir=folder)
    assert outcome.failed == ["00_dies"]
    page = (outcome.folder / "00_dies.html").read_text()
    assert "DeadKernelError" in page
    assert "last words" in page


def _wait(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; nobody has asked for its exit code yet.
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
