"""The map of a model: each cell is its layer's number, and leads to it."""

import numpy as np
import pandas as pd
import pytest

import esparse_lab as el
from esparse_lab import tables
from esparse_lab.errors import InputError
from esparse_lab.explorers import Channels, Masks, Model, Shuffle, model_map


@pytest.fixture
def panel(loaded, tokens):
    return Model(loaded, tokens)


def cell(panel, block, role):
    picture = panel.figure().data[0]
    return np.asarray(picture.z)[block, list(picture.x).index(role)]


def test_cells_are_the_summary_of_a_whole_run(panel, loaded, tokens):
    stats = el.collect_layer_stats(loaded.model, tokens, progress=False)
    wanted = tables.layer_summary(tables.channel_table(stats)).set_index(["block", "role"])
    for (block, role), row in wanted.iterrows():
        assert cell(panel, block, role) == pytest.approx(row.entropy_median_nats)
    panel.set(measure="norm")
    assert cell(panel, 2, "up_proj") == pytest.approx(wanted.norm_median[2, "up_proj"])
    given = Model(loaded, tokens, stats=stats)
    pd.testing.assert_frame_equal(given.to_frame(), panel.to_frame())


def test_disagreement_is_that_of_the_two_masks(panel, loaded, tokens):
    panel.set(measure="disagreement", pattern="4:8")
    name = "model.layers.1.self_attn.o_proj"
    stats = el.collect_layer_stats(loaded.model, tokens, progress=False)[name]
    weight = loaded.model.get_submodule(name).weight
    one, other = (
        m.choose(weight, stats, el.Pattern(4, 8)).mask for m in (el.ESparse(), el.Wanda())
    )
    share = float((one != other).float().mean())
    assert share > 0
    assert cell(panel, 1, "o_proj") == pytest.approx(100 * share)
    assert panel.to_frame().set_index("layer").disagreement[name] == pytest.approx(share)


def test_output_errors_are_those_of_pruning_alone(panel, loaded, tokens):
    panel.set(measure="error difference", method="magnitude", other="wanda")
    frame = panel.to_frame().set_index("layer")
    name = "model.layers.2.mlp.gate_proj"
    weight = loaded.model.get_submodule(name).weight.detach()
    x = el.layer_inputs(loaded.model, tokens, name)
    errors = []
    for method in (el.Magnitude(), el.Wanda()):
        stats = el.LayerStats.of(x)
        mask = method.choose(weight, stats, el.Pattern(2, 4)).mask
        errors.append(tables.output_error(weight, weight * mask, x))
    assert frame.output_error[name] == pytest.approx(errors[0], rel=1e-3)
    assert frame.error_difference[name] == pytest.approx(errors[0] - errors[1], abs=1e-5)
    assert cell(panel, 2, "gate_proj") == pytest.approx(100 * (errors[0] - errors[1]), abs=1e-3)


def test_masks_are_measured_once_a_choice(panel, monkeypatch):
    calls = []
    real = model_map.outcome_of
    monkeypatch.setattr(model_map, "outcome_of", lambda *a: (calls.append(1), real(*a))[1])
    panel.set(measure="disagreement")
    assert len(calls) == 2 * 21
    panel.set(measure="retained score")
    panel.set(block=2)
    assert len(calls) == 2 * 21


def test_a_click_opens_the_layer_below(panel):
    def click(row, column):
        panel.plot._js2py_pointsCallback = {
            "event_type": "plotly_click",
            "points": {
                **{"trace_indexes": [0], "point_indexes": [[row, column]]},
                **{"xs": [column], "ys": [row], "zs": [0.0]},
            },
            "device_state": None,
            "selector": None,
        }

    assert len(panel.widget.children) == 4
    click(2, 6)
    assert (panel.settings["block"], panel.settings["role"]) == (2, "down_proj")
    below = panel._opened["channels"]
    assert isinstance(below, Channels)
    assert panel.widget.children[-1] is below.widget
    assert "model.layers.2.mlp.down_proj" in below.figure().layout.title.text
    click(0, 0)
    assert panel._opened == {"channels": below}
    assert "model.layers.0.self_attn.q_proj" in below.plot.layout.title.text
    panel.set(opens="masks", pattern="4:8")
    masks = panel._opened["masks"]
    assert isinstance(masks, Masks)
    assert masks.settings["pattern"] == "4:8"
    panel.set(block=1)
    assert "ready" in masks._status.value
    panel.set(block=0)
    shown = {below.widget: "none", masks.widget: None}
    assert {widget: widget.layout.display for widget in panel.widget.children[4:]} == shown
    panel.set(opens="shuffle")
    shuffle = panel._opened["shuffle"]
    assert isinstance(shuffle, Shuffle)
    taken = [shuffle.settings[name] for name in ("block", "role", "method", "pattern")]
    assert taken == [0, "q_proj", "esparse", "4:8"]
    panel.set(opens="nothing")
    assert {widget.layout.display for widget in panel.widget.children[4:]} == {"none"}


def test_what_cannot_be_opened_changes_nothing(panel):
    panel.set(pattern="50%")
    before = dict(panel.settings)
    with pytest.raises(InputError, match="50%"):
        panel.set(opens="shuffle", block=1)
    assert panel.settings == before
    assert "Marked: model.layers.0." in panel.figure().layout.annotations[-1].text
    panel.set(opens="masks", block=1)
    assert "model.layers.1." in panel._opened["masks"].figure().layout.title.text


def test_experts_without_tokens_stay_empty(mixture, few_tokens):
    panel = Model(mixture, few_tokens, measure="disagreement")
    picture = np.asarray(panel.figure().data[0].z)[0]
    roles = list(panel.figure().data[0].x)
    empty = [r for r, z in zip(roles, picture, strict=True) if np.isnan(z)]
    assert len(empty) == 2 * 2  # two experts of two matrices
    with pytest.raises(InputError, match="has no statistics"):
        panel.set(opens="channels", role=empty[0])


def test_a_model_of_too_many_layers_is_refused(loaded, tokens, monkeypatch):
    monkeypatch.setattr(model_map, "MOST_CELLS", 20)
    with pytest.raises(InputError, match="21 cells are too many to draw, at most 20 are"):
        Model(loaded, tokens)
