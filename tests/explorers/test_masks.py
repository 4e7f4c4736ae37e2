"""The masks explorer draws the methods' own masks, whatever is in view."""

import numpy as np
import pytest
import torch
from tiny_models import random_model

import esparse_lab as el
from esparse_lab import tables
from esparse_lab.errors import InputError
from esparse_lab.explorers import Masks, masks
from esparse_lab.models import LoadedModel


@pytest.fixture
def panel(loaded, tokens):
    return Masks(loaded, tokens, block=1, role="down_proj", method="wanda", other="magnitude")


@pytest.fixture
def by_hand(loaded, tokens):
    """Weights, inputs, and the two masks, by the library's plain calls."""
    name = "model.layers.1.mlp.down_proj"
    weight = loaded.model.get_submodule(name).weight.detach()
    x = el.layer_inputs(loaded.model, tokens, name)
    scores = weight.abs() * x.square().sum((0, 1)).div(len(tokens)).sqrt()
    both = [el.nm_mask(s, el.Pattern(2, 4)) for s in (scores, weight.abs())]
    return weight, x, scores, *both


def pictures(panel):
    return [t for t in panel.figure().data if t.type == "heatmap"]


def test_near_by_a_cell_is_a_weight(panel, by_hand):
    _, _, scores, one, other = by_hand
    panel.set(rows=(2, 9), channels=(4, 30))
    score, kept, differing = pictures(panel)
    view = slice(2, 9), slice(4, 30)
    assert np.allclose(score.customdata, scores[view], rtol=1e-5)
    assert np.array_equal(kept.z, 100 * one[view])
    assert np.array_equal(differing.z, 2 * one[view].int() + other[view].int())
    words = {(1, 1): "both", (1, 0): "wanda alone", (0, 1): "magnitude alone", (0, 0): "neither"}
    for i, j in ((0, 0), (3, 8), (6, 25)):
        word = words[int(one[view][i, j]), int(other[view][i, j])]
        assert str(differing.customdata[i][j]).startswith(word)
    assert (kept.x0, kept.dx, kept.y0, kept.dy) == (4, 1, 2, 1)


def test_from_afar_a_cell_is_a_mean_and_no_weight_is_left_out(panel, by_hand, monkeypatch):
    _, _, scores, one, other = by_hand  # [24, 40]
    monkeypatch.setattr(masks, "CELLS", (5, 10))
    panel.set(pattern="2:4", channels=(0, 40), rows=(0, 24))
    panel.set(rows=(0, 23))
    score, kept, differing = pictures(panel)
    assert np.shape(kept.z) == (5, 10)  # 5 x 4 weights a cell, the last row of cells 3 x 4
    assert np.asarray(kept.z)[1, 2] == pytest.approx(100 * float(one[5:10, 8:12].float().mean()))
    assert np.asarray(score.customdata)[4, 9] == pytest.approx(float(scores[20:23, 36:40].mean()))
    differ = (one != other).float()
    assert np.asarray(differing.z)[4, 0] == pytest.approx(100 * float(differ[20:23, :4].mean()))
    assert (kept.y0, kept.dy) == (2, 5)  # centre of rows 0 to 4


def test_a_large_matrix_sends_few_points():
    model = random_model("llama", intermediate_size=3000, hidden_size=600, num_attention_heads=3)
    tokens = torch.randint(256, (2, 8))
    panel = Masks(LoadedModel(model, None, "wide", "none"), tokens, role="gate_proj")
    sent = sum(
        np.size(getattr(t, name))
        for t in panel.figure().data
        for name in (("z", "customdata") if t.type == "heatmap" else ("x", "y"))
    )
    assert 3 * 60 * 100 < sent < 2e5
    assert sum(np.size(t.z) for t in pictures(panel)) < 1e5


def test_the_comparison_is_that_of_plain_calls(panel, by_hand):
    weight, x, scores, one, other = by_hand
    frame = panel.to_frame().set_index("method")
    assert frame.disagreement["magnitude"] == pytest.approx(float((one != other).float().mean()))
    for name, mask in (("wanda", one), ("magnitude", other)):
        wanted = tables.output_error(weight, weight * mask, x)
        assert frame.output_error[name] == pytest.approx(wanted, rel=1e-3)
    kept = float((scores * one).sum())
    given_up = 1 - float((scores * other).sum()) / kept
    assert frame.score_given_up["magnitude"] == pytest.approx(given_up, rel=1e-3)
    assert f"{frame.disagreement['magnitude']:.2%}" in panel.figure().layout.title.text


def test_shares_are_those_of_rows_and_columns(panel, by_hand):
    *_, one, other = by_hand
    inputs, outputs = panel.shares("in"), panel.shares("out")
    assert np.allclose(inputs.kept_share, one.float().mean(0))
    assert np.allclose(inputs.differing_share, (one != other).float().mean(0))
    assert np.allclose(outputs.other_kept_share, other.float().mean(1))


@pytest.mark.parametrize(
    ("view", "edges"),
    [
        ({"rows": (0, 10), "channels": (5, 17)}, [7.5, 11.5, 15.5]),
        ({"rows": (0, 10), "channels": (4, 12), "pattern": "4:8"}, [7.5]),
        ({"rows": (0, 10), "channels": (0, 8), "pattern": "50%"}, []),
    ],
)
def test_lines_part_the_groups_in_view(panel, view, edges):
    panel.set(**view)
    shapes = panel.figure().layout.shapes
    paths = {shape.path for shape in shapes}
    assert len(shapes) == (3 if edges else 0)
    found = [float(part.split(",")[0]) for path in paths for part in path.split("M") if part]
    first, end = panel.settings["channels"]
    assert [e for e in found if first - 0.5 < e < end - 0.5] == edges


def test_groups_of_dass_run_the_other_way(loaded, tokens):
    panel = Masks(loaded, tokens, role="gate_proj", method="dass", rows=(0, 12), channels=(0, 9))
    assert "H" in panel.figure().layout.shapes[0].path
    groups = np.asarray(pictures(panel)[1].z).reshape(3, 4, 9)
    assert (groups.sum(axis=1) == 200).all()


def test_zooming_in_the_browser_draws_what_is_in_view(panel):
    def zoom(x, y):
        panel.plot._js2py_relayout = {
            "relayout_data": {"xaxis4.range": x, "yaxis4.range": y},
            "source_view_id": "view",
        }

    zoom([3.2, 11.7], [9.6, 1.9])  # the axis of rows points downwards
    assert panel.settings["channels"] == (3, 13)
    assert panel.settings["rows"] == (2, 11)
    assert np.shape(panel.plot.data[1].z) == (9, 10)
    assert panel._widgets["channels"].value == (3, 13)
    zoom([-50, 900], [900, -50])
    assert panel.settings["channels"] == (0, 40)
    panel.set(channels=(30, 40))
    panel.set(role="q_proj")
    assert panel.settings["channels"] == (0, 24)
    assert panel._widgets["channels"].max == 24


def test_one_method_twice_differs_nowhere(panel):
    panel.set(other="wanda")
    assert panel.to_frame().disagreement.tolist() == [0, 0]


def test_wrong_settings_are_refused(panel, monkeypatch):
    with pytest.raises(InputError, match="Did you mean 'wanda'"):
        panel.apply("-p method=wonda")
    with pytest.raises(InputError, match="expected two indices"):
        panel.apply("-p rows=9,3")
    monkeypatch.setattr(masks, "MOST_WEIGHTS", 24 * 24)
    with pytest.raises(InputError, match="960 weights; at most 576"):
        panel.set(method="ria")
    panel.set(role="q_proj", method="ria")
