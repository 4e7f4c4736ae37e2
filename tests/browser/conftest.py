"""A JupyterLab server on a free port of this machine, and Chromium on one of its notebooks."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest

TOKEN = "tests"
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
CHROMIUM_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


# Not for the session: Playwright keeps an event loop open, which other tests would meet.
@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium under Playwright; its pages are closed with it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A JupyterLab on an empty folder: `lab.folder`, `lab.url(notebook)`."""
    home = tmp_path_factory.mktemp("lab")
    server = Lab(home)
    yield server
    server.stop()


class Lab:
    def __init__(self, home: Path):
        self.folder = home / "notebooks"
        self.folder.mkdir()
        settings = home / "settings"
        settings.mkdir()
        (settings / "overrides.json").write_text(json.dumps(SETTINGS))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._log = (home / "lab.log").open("w")
        tests = Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                *("--ServerApp.ip=127.0.0.1", f"--port={self.port}"),
                *("--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}"),
                *(f"--ServerApp.root_dir={self.folder}", "--expose-app-in-browser"),
                *("--LabApp.extension_manager=readonly", f"--LabApp.app_settings_dir={settings}"),
            ],
            env=os.environ
            | {
                **{"JUPYTER_CONFIG_DIR": str(home / "config"), "IPYTHONDIR": str(home / "ipython")},
                **{"JUPYTER_DATA_DIR": str(home / "data"), "PYTHONPATH": str(tests)},
                **{"JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")},
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 60
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"JupyterLab did not start:\n{(home / 'lab.log').read_text()[-3000:]}")
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/api/status?token={TOKEN}", timeout=5) as r:
                return r.status == 200
        except (URLError, OSError):
            return False

    def url(self, notebook: str) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{notebook}?reset&token={TOKEN}"

    def write(self, name: str, *cells: str) -> str:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.folder / name)
        return name

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def open_notebook(lab, chromium):
    """Open a notebook of these cells, a `Notebook`; what its page complains of fails the tests."""
    opened = []

    def open_(name: str, *cells: str, width: int = 1500) -> "Notebook":
        context = chromium.new_context(viewport={"width": width, "height": 1300})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        opened.append(Notebook(context.new_page(), lab.url(lab.write(name, *cells)), lab.port))
        return opened[-1]

    yield open_
    for notebook in opened:
        notebook.page.context.close()
        assert notebook.complaints == []
        assert notebook.outside == []


class Notebook:
    """A notebook open in JupyterLab, and what a user does with it."""

    def __init__(self, page, url: str, port: int):
        self.page = page
        self.complaints: list[str] = []
        self.outside: list[str] = []
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._hear)
        here = (f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", "data:", "blob:")
        page.on(
            "request",
            lambda request: request.url.startswith(here) or self.outside.append(request.url),
        )
        page.goto(url, wait_until="domcontentloaded")
        self._wait_for_kernel()

    def _hear(self, message) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _wait_for_kernel(self) -> None:
        # The indicator on the page is idle before there is a kernel, too.
        self.page.wait_for_function(
            "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status"
            " == 'idle'",
            timeout=60_000,
        )
        self.page.wait_for_timeout(300)

    def run_all(self) -> None:
        self.page.evaluate(
            "() => { window.ran = false; window.jupyterapp.commands"
            ".execute('notebook:run-all-cells').then(() => { window.ran = true }) }"
        )
        self.page.wait_for_function("window.ran", timeout=180_000)
        errors = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
        assert errors.count() == 0, errors.first.inner_text()
        self.page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length > 0")

    def restart(self) -> None:
        self.page.evaluate(
            "async () => { const widget = window.jupyterapp.shell.currentWidget;"
            "await widget.sessionContext.session.kernel.restart() }"
        )
        self._wait_for_kernel()

    def cell(self, number: int) -> "Cell":
        """A code cell, counted from 0."""
        return Cell(self.page, number)


class Cell:
    """A code cell with a panel as its output; `plot` counts the figures in it."""

    def __init__(self, page, number: int):
        self.page = page
        self.output = page.locator(".jp-CodeCell").nth(number)
        self._find = (
            f"(i) => {{ const plot = document.querySelectorAll('.jp-CodeCell')[{number}]"
            ".querySelectorAll('.js-plotly-plot')[i]; return %s }"
        )

    def value(self, expression: str, plot: int = 0):
        """A JavaScript expression of `plot`, the graph element."""
        return self.page.evaluate(self._find % expression, plot)

    def wait(self, condition: str, plot: int = 0) -> None:
        """Until a JavaScript condition of `plot`, the graph element, holds."""
        self.page.wait_for_function(
            self._find % f"plot?.data && ({condition})", arg=plot, timeout=60_000
        )

    def place(self, subplot: str, x: float, y: float, plot: int = 0) -> tuple[float, float]:
        """Where in the window a subplot such as "xy" or "x2y2" has these shares of its size."""
        graph = self.output.locator(".js-plotly-plot").nth(plot)
        layer = graph.locator(f".draglayer .{subplot} .nsewdrag")
        layer.scroll_into_view_if_needed()
        box = layer.bounding_box()
        return box["x"] + box["width"] * x, box["y"] + box["height"] * y

    def click(self, subplot: str, at: tuple, plot: int = 0) -> None:
        """Point at a place of a subplot, then click."""
        self.page.mouse.move(*self.place(subplot, *at, plot))
        self.page.wait_for_timeout(300)  # for the hover, of which plotly makes the click
        self.page.mouse.click(*self.place(subplot, *at, plot))

    def drag(self, subplot: str, start: tuple, end: tuple, plot: int = 0) -> None:
        """Drag over a subplot between two places."""
        self.place(subplot, *start, plot)  # scrolls
        first, last = self.place(subplot, *start, plot), self.place(subplot, *end, plot)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        self.page.mouse.move(*[(a + b) / 2 for a, b in zip(first, last, strict=True)], steps=5)
        self.page.mouse.move(*last, steps=5)
        self.page.mouse.up()

    def control(self, label: str):
        """The widgets whose label this is."""
        named = self.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(label)}$"))
        return self.output.locator(".widget-inline-hbox", has=named)

    def key(self, label: str, key: str) -> None:
        """Press a key on the first slider of that label."""
        handle = self.control(label).locator(".noUi-handle").first
        handle.focus()
        handle.press(key)

    def paste(self, settings: str) -> None:
        """Paste into the first panel's settings and press Enter."""
        line = self.control("Settings").locator("input").first
        line.fill(settings)
        line.press("Enter")

    def settings(self) -> str:
        """The text of the first panel's settings."""
        return self.control("Settings").locator("input").first.input_value()
