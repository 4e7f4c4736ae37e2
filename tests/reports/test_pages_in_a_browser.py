"""The pages as a browser shows them, from the disk: sorting, filters, saved figures, paper."""

import html
import re

import pytest
from ladder_row import ROW

from esparse_lab.reports import render_report

pytestmark = pytest.mark.browser

FIGURE = """import plotly.graph_objects as go
from esparse_lab.figures.style import finish
figure = go.Figure(go.Heatmap(z=[[1, 2], [3, 4]]))
finish(figure, title='A <finding>' * 20, caption='What it is of & on', plot_height=300)"""
POINTS = "go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))"
PANELS = """from plotly.subplots import make_subplots
from esparse_lab.figures.style import finish
figure = make_subplots(rows=2, cols=2, shared_yaxes=True)
for i in range(4):
    figure.add_scatter(x=[1, 2], y=[i, 4], row=i // 2 + 1, col=i % 2 + 1)
finish(figure, title='Four panels', caption='', plot_height=300)"""
TABLE = """import pandas as pd
index = pd.MultiIndex.from_product([['b', 'a'], ['2:4', '10:16']], names=['model', 'pattern'])
values = {('measured', 'error'): [9.5, None, 1200.25, 10], ('measured', 'share'): [.5, .25, 1, .1]}
pd.DataFrame(values, index).style.format({('measured', 'error'): '{:,.2f}',
    ('measured', 'share'): '{:.0%}'}, na_rep='–')"""
LADDER = """from esparse_lab.run_record import Run
import pandas as pd
run = Run('00_good', out_dir)
rows = [{ROW}, {ROW} | {'method': 'esparse', 'pattern': '4:8', 'perplexity': 9.0 + seed}]
run.save_table('ladder', pd.DataFrame(rows))
run.finish(seed=seed, headline={'best': 9.0 + seed})"""


@pytest.fixture(scope="module")
def out(tmp_path_factory, notebook_writer):
    """The reports of three models, one of them with a failed notebook."""
    home = tmp_path_factory.mktemp("pages")
    cells = [LADDER.replace("{ROW}", repr(ROW)), FIGURE, POINTS, TABLE]
    notebook_writer(home / "good" / "00_good.ipynb", "# Good", *cells)
    notebook_writer(home / "bad" / "00_bad.ipynb", "# Bad", "1 / 0")
    for model, seed, notebooks in (("one", 1, "good"), ("<two>", 100, "good"), ("bad", 0, "bad")):
        given = {"seed": str(seed)}
        source = home / notebooks
        render_report(model, parameters=given, out=home / "out", notebooks_dir=source)
    return home / "out"


def column(page, table, number):
    """The texts of a column; a negative number counts from the right, as in a list."""
    place = f"nth-child({number})" if number > 0 else f"nth-last-child({-number})"
    cells = f"{table} tbody tr:not([hidden]) > :{place}"
    return [text.strip() for text in page.locator(cells).all_inner_texts()]


def models(page):
    return [text.split()[0] for text in column(page, "#reports", 1)]


def only_itself(page):
    """Nothing was asked for but the page and what it makes itself, and nothing complained."""
    return [line for line in page.seen if not line.startswith("blob:")] == [page.url]


def test_a_notebooks_page_draws_and_asks_for_nothing(visit, out):
    page = visit(out / "one" / "00_good.html")
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=20_000)
    assert only_itself(page)
    titles = page.eval_on_selector_all(".modebar-btn", "all => all.map(b => b.dataset.title)")
    assert {"Zoom", "Save as PNG", "Save as SVG"} <= {*titles}
    assert not [title for title in titles if "hare" in title]  # uploads the figure
    # Whatever a cell's HTML asks for, the policy refuses it.
    page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://x.invalid/'}))")
    page.wait_for_timeout(200)
    assert [line for line in page.seen[1:] if "Content Security Policy" in line]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_saved_figures_hold_their_words_and_are_light(visit, out, scheme):
    page = visit(out / "one" / "00_good.html", color_scheme=scheme)
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=20_000)
    # On the page the words are text of it, not of the figure.
    assert page.locator("figure .title").inner_text() == "A <finding>" * 20
    assert page.locator("figcaption").inner_text() == "What it is of & on"
    assert "finding" not in page.locator(".plot").first.inner_text()
    saved = {}
    for kind in ("SVG", "PNG"):
        with page.expect_download() as download:
            page.locator(f'[data-title="Save as {kind}"]').first.dispatch_event("click")
        name = download.value.suggested_filename
        assert name == f"00_good-figure-0.{kind.lower()}"
        saved[kind] = download.value.path().read_bytes()
    assert saved["PNG"].startswith(b"\x89PNG")
    svg = html.unescape(saved["SVG"].decode())
    assert "What it is of & on" in svg
    assert "A <finding>" in svg
    assert re.search(r'<rect x="0" y="0"[^>]*fill: rgb\(255, 255, 255\)', svg)
    assert only_itself(page)


def test_tables_sort_up_down_and_back(visit, out):
    page = visit(out / "one" / "00_good.html")
    table = ".output table:not(.run-record)"
    error = page.get_by_role("button", name="error")
    assert column(page, table, -2) == ["9.50", "–", "1,200.25", "10.00"]
    error.click()
    assert column(page, table, -2) == ["9.50", "10.00", "1,200.25", "–"]
    # The model's name spanned two rows; now each row has its own.
    assert column(page, table, 1) == ["b", "a", "a", "b"]
    assert page.locator('th[aria-sort="ascending"]').inner_text().startswith("error")
    error.click()
    assert column(page, table, -2) == ["1,200.25", "10.00", "9.50", "–"]
    error.click()
    assert column(page, table, -2) == ["9.50", "–", "1,200.25", "10.00"]
    page.get_by_role("button", name="share").click()
    assert column(page, table, -1) == ["10%", "25%", "50%", "100%"]
    page.get_by_role("button", name="pattern").click()
    assert column(page, table, 2) == ["2:4", "2:4", "10:16", "10:16"]
    assert page.locator("[aria-sort]").count() == 1
    assert only_itself(page)


def test_the_index_sorts_and_filters(visit, out):
    page = visit(out / "index.html")
    assert sorted(models(page)) == ["<two>", "bad", "one"]
    page.locator("#reports").get_by_role("button", name="best").click()
    assert models(page) == ["one", "<two>", "bad"]
    assert column(page, "#reports", 6) == ["10", "109", ""]
    page.get_by_label("method").select_option("esparse")
    assert column(page, "#recipes", 2) == ["esparse", "esparse"]
    assert page.locator('[data-count="recipes"]').inner_text() == "2 of 4 shown"
    page.get_by_label("pattern").select_option("2:4")
    assert column(page, "#recipes", 2) == []
    page.get_by_label("method").select_option("")
    assert column(page, "#recipes", 3) == ["2:4", "2:4"]
    page.get_by_label("model").fill("TWO")
    assert column(page, "#recipes", 1) == ["<two>"]
    assert models(page) == ["<two>"]
    assert page.locator('[data-count="reports"]').inner_text() == "1 of 3 shown"
    assert only_itself(page)


def test_a_failed_run_is_red_and_leads_to_its_traceback(visit, out):
    page = visit(out / "index.html")
    red = page.locator("#reports tr.failed .bad")
    assert red.evaluate("cell => getComputedStyle(cell).color") == "rgb(179, 38, 30)"
    red.get_by_role("link", name="00_bad").click()
    assert page.url.endswith("00_bad.html#failed")
    assert page.locator("#failed .output.failed").is_visible()
    assert "Traceback" in page.locator("#failed").inner_text()


@pytest.mark.parametrize("width", [1500, 800, 420])
@pytest.mark.parametrize("name", ["index.html", "one/index.html", "one/00_good.html"])
def test_no_page_is_wider_than_its_window(visit, out, name, width):
    page = visit(out / name, viewport={"width": width, "height": 900})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_in_a_narrow_window_panels_go_below_each_other(visit, tmp_path, notebook_writer):
    notebook_writer(tmp_path / "from" / "00_wide.ipynb", "# Wide", FIGURE, PANELS)
    folder = render_report("one", out=tmp_path / "out", notebooks_dir=tmp_path / "from").folder
    shown = (
        "() => { const plot = document.querySelectorAll('.plot')[1], full = plot._fullLayout;"
        "const axes = letter => ['', 2, 3, 4].map(i => full[`${letter}axis${i}`]);"
        "return {across: axes('x').map(x => x.domain), up: axes('y').map(y => y.domain),"
        "labels: axes('y').map(y => y.showticklabels), height: full.height,"
        "hidden: plot.parentElement.scrollWidth - plot.parentElement.clientWidth} }"
    )
    drawn = {}
    for width in (1200, 520):
        page = visit(folder / "00_wide.html", viewport={"width": width, "height": 900})
        page.wait_for_function("document.querySelectorAll('.plot')[1]?._fullLayout?.yaxis4")
        drawn[width] = page.evaluate(shown)
    wide, narrow = drawn[1200], drawn[520]
    assert wide["across"] == [[0, 0.45], [0.55, 1]] * 2
    assert wide["labels"] == [True, False] * 2  # shared in a row
    assert narrow["across"] == [[0, 1]] * 4
    ends = [end for low, high in narrow["up"] for end in (high, low)]
    assert ends == sorted(ends, reverse=True)
    assert (ends[0], ends[-1]) == (1, pytest.approx(0))
    assert narrow["labels"] == [True] * 4
    assert narrow["height"] > 1.5 * wide["height"]
    assert narrow["hidden"] == 0
    # What stays wide can be scrolled, and says so.
    hint = "all => all.map(each => getComputedStyle(each.parentElement, '::before').content)"
    first, second = page.eval_on_selector_all(".plot", hint)
    assert "scroll sideways" in first
    assert second == "none"


def test_on_a_dark_screen_figures_are_dark_but_pictures_keep_their_colours(visit, out):
    page = visit(out / "one" / "00_good.html", color_scheme="dark")
    page.wait_for_selector(".js-plotly-plot .main-svg", timeout=20_000)
    filters = "all => all.map(plot => getComputedStyle(plot).filter)"
    picture, points = page.eval_on_selector_all(".plot", filters)
    assert picture == "none"
    assert "invert" in points
    page.emulate_media(color_scheme="light")
    assert page.eval_on_selector_all(".plot", filters) == ["none", "none"]


def test_figures_fit_on_paper_and_come_back(visit, out):
    page = visit(
        out / "one" / "00_good.html",
        viewport={"width": 1500, "height": 900},
        color_scheme="dark",
    )
    drawn = page.locator(".plot .main-svg").first
    drawn.wait_for(timeout=20_000)
    before = drawn.bounding_box()["width"]
    assert before > 800
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 703, "height": 900})  # A4 without its margins
    page.wait_for_timeout(300)
    assert 600 < drawn.bounding_box()["width"] < 703
    assert page.evaluate("document.documentElement.scrollWidth") == 703
    filters = "all => all.map(plot => getComputedStyle(plot).filter)"
    assert page.eval_on_selector_all(".plot", filters) == ["none", "none"]
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1500, "height": 900})
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_timeout(300)
    assert drawn.bounding_box()["width"] == before
