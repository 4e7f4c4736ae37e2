"""What every explorer does: settings from and to text, two faces, errors where they are seen."""

import json

import pandas as pd
import plotly.graph_objects as go
import pytest

from esparse_lab import explorers
from esparse_lab.errors import InputError
from esparse_lab.explorers.controls import Indices, Menu, Slider, Span, Words
from esparse_lab.explorers.panel import PLOTLY, Panel
from esparse_lab.masks import parse_sparsity

WIDGET = "application/vnd.jupyter.widget-view+json"


def inside(widget):
    """The widget and all that it holds."""
    return [widget, *(w for child in getattr(widget, "children", ()) for w in inside(child))]


class Curve(Panel):
    """y = slope * x over `points` points; knows no slope of 13."""

    drawn = 0

    def __init__(self, **settings):
        defaults = {"slope": 2.0, "points": 4, "shape": "a.line", "marks": (1, 2), "part": (0, 3)}
        super().__init__({"pattern": "2:4", **defaults, **settings})

    def controls(self):
        return {
            "slope": Slider("slope", -20.0, 20.0, 0.5),
            "points": Slider("points", 1, 100),
            "shape": Menu("shape", ("a.line", "b.line", "a.dots")),
            "marks": Indices("marks"),
            "part": Span("part", lambda: self.settings["points"]),
            "pattern": Words("pattern", parse_sparsity),
        }

    def draw(self):
        self.drawn += 1
        if self.settings["slope"] == 13:
            raise InputError("Slope 13 is <unlucky>: take 12.")
        if self.settings["slope"] == 12:
            raise ZeroDivisionError("oh")
        return go.Figure(go.Scatter(self.to_frame().to_dict("list"), name="line"))

    def to_frame(self):
        x = range(self.settings["points"])
        return pd.DataFrame({"x": x, "y": [self.settings["slope"] * i for i in x]})


@pytest.fixture
def curve():
    return Curve()


def test_settings_survive_both_forms_of_text(curve):
    curve.set(slope=-1.5, points=7, shape="b.line", marks=[5, 3], part=(1, 4), pattern="50%")
    options, cell = curve.parameters(), curve.parameters("cell")
    assert "-p slope=-1.5 -p points=7" in options
    assert "-p marks=5,3 -p part=1,4 -p pattern=50%" in options
    assert "marks = [5, 3]" in cell
    for text in (options, cell):
        other = Curve()
        other.apply(text)
        assert other.settings == curve.settings
    scope = {}
    exec(cell, scope)  # a notebook's parameters cell
    assert scope["shape"] == "b.line"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-p slop=1", "Unknown setting of Curve: 'slop'. Did you mean 'slope'?"),
        ("shape=a.lime", "Unknown shape 'a.lime'. Did you mean 'a.line' or 'b.line'?"),
        ("shape=line", "Unknown shape 'line'"),  # two options end so
        ("points=3.5", "points=3.5: expected a whole number from 1 to 100"),
        ("slope=steep", "slope=steep: expected a number from -20.0 to 20.0"),
        ("slope=nan", "slope=nan: expected a number"),
        ("marks=1,x", "marks=1,x: expected whole numbers"),
        ("marks=-1", "an index is at least 0"),
        ("part=4,2", "expected two indices, the first one smaller"),
        ("pattern=4:2", "0 < N < M"),
        ("all of it", "Cannot read the settings 'all of it'"),
        ("slope='", "Cannot read the settings"),
    ],
)
def test_unknown_text_is_refused_and_changes_nothing(curve, text, message):
    before, drawn = dict(curve.settings), curve.drawn
    with pytest.raises(InputError) as error:
        curve.apply(text)
    assert message in str(error.value)
    assert curve.settings == before
    assert curve.drawn == drawn


def test_the_end_of_a_dotted_name_will_do(curve):
    curve.apply("shape=dots")
    assert curve.settings["shape"] == "a.dots"


def test_a_mistake_in_the_call_is_an_exception():
    with pytest.raises(InputError, match="Slope 13"):
        Curve(slope=13)
    with pytest.raises(InputError, match="Did you mean 'slope'"):
        Curve(slop=3)


def test_both_faces_are_in_one_output(curve):
    bundle = curve._repr_mimebundle_()
    figure = json.loads(json.dumps(bundle[PLOTLY]))
    assert list(figure["data"][0]["x"]) == [0, 1, 2, 3] or "bdata" in figure["data"][0]["x"]
    assert bundle[WIDGET]["model_id"] == curve.widget.model_id
    assert bundle["text/plain"] == f"Curve({curve.parameters()})"


def test_the_live_figure_follows_the_settings_and_keeps_the_zoom(curve):
    plot = curve.plot
    plot.layout.xaxis.range = [0, 1]
    curve._widgets["slope"].value = 3.0  # what moving the slider does
    assert curve.plot is plot
    assert list(plot.data[0].y) == [0, 3, 6, 9] == list(curve.figure().data[0].y)
    assert plot.layout.xaxis.range == (0, 1)
    assert "slope=3.0" in curve._text.value
    assert "slope=3.0" in curve._copy.value
    curve._text.value = "-p points=2"
    assert list(plot.data[0].y) == [0, 3]
    assert curve._widgets["points"].value == 2
    assert "ready" in curve._status.value


def test_nothing_is_drawn_where_nothing_changes(curve):
    assert curve.widget is curve.widget
    drawn = curve.drawn
    curve.change(slope=2.0)
    assert curve.drawn == drawn


@pytest.mark.parametrize(
    ("slope", "message"), [(13.0, "&lt;unlucky&gt;"), (12.0, "ZeroDivisionError: oh")]
)
def test_errors_show_on_the_panel_and_the_controls_go_back(curve, slope, message):
    assert curve.widget
    curve._widgets["slope"].value = slope
    assert message in curve._problem.value
    assert curve._widgets["slope"].value == 2.0 == curve.settings["slope"]
    assert list(curve.plot.data[0].y) == [0, 2, 4, 6]
    curve._widgets["slope"].value = 1.0
    assert curve._problem.value == ""


def test_a_change_of_the_kinds_of_traces_makes_a_new_live_figure(curve):
    plot = curve.plot
    curve.draw = lambda: go.Figure([go.Bar(y=[1]), go.Bar(y=[2])])
    curve.set(slope=5)
    assert curve.plot is not plot
    assert curve.plot in inside(curve.widget)
    assert plot not in inside(curve.widget)
    assert [t.type for t in curve.plot.data] == ["bar", "bar"]


def test_what_a_figure_no_longer_sets_goes(curve):
    assert curve.widget
    curve.draw = lambda: go.Figure(go.Scatter(y=[1], visible=False), layout={"title": "old"})
    curve.set(slope=5)
    curve.draw = lambda: go.Figure(go.Scatter(y=[1], name="shown"))
    curve.set(slope=6)
    assert curve.plot.data[0].visible is None
    assert curve.plot.layout.title.text is None


def test_every_explorer_is_a_panel():
    for name in ("Channels", "Masks", "Model"):
        assert issubclass(getattr(explorers, name), Panel)
