"""The channels explorer shows the package's own numbers, for the channels chosen."""

import numpy as np
import pytest
import torch

import esparse_lab as el
from esparse_lab import tables
from esparse_lab.errors import InputError
from esparse_lab.explorers import Channels, Reading, reading


@pytest.fixture
def panel(loaded, tokens):
    return Channels(loaded, tokens, block=1, role="down_proj", bins=12)


def draw_box(panel, x, y, x0, x1, y0, y1):
    """What the browser sends after a box was drawn."""
    box = {"type": "rect", "xref": x, "yref": y, "x0": x0, "x1": x1, "y0": y0, "y1": y1}
    panel.plot._js2py_relayout = {
        "relayout_data": {"selections": [box]},
        "source_view_id": "view",
    }


def test_the_points_are_those_of_a_whole_run(panel, loaded, tokens):
    stats = el.collect_layer_stats(
        loaded.model, tokens, histogram=el.Histogram(12), progress=False
    )["model.layers.1.mlp.down_proj"]
    wanted = tables.rank_change_table(stats, el.ESparse(alpha=3.0))
    points = panel.figure().data[0]
    order = np.argsort(points.customdata)
    assert np.allclose(np.array(points.x)[order], wanted.norm)
    assert np.allclose(np.array(points.y)[order], wanted.entropy_nats)
    assert np.array_equal(np.array(points.marker.color)[order], wanted.ranks_gained)
    assert (panel.to_frame().drop(columns=["layer", "chosen"]) == wanted).all(axis=None)


def test_alpha_changes_the_ranks(panel):
    panel.set(alpha=0.0)
    frame = panel.to_frame()
    by_entropy = frame.sort_values("entropy_nats", ascending=False, kind="stable")
    assert list(by_entropy.esparse_rank) == list(range(1, len(frame) + 1))


@pytest.mark.parametrize("bin_range", ["channel", "layer", "percentile"])
def test_histograms_hold_every_token_and_have_the_entropy_shown(panel, tokens, bin_range):
    panel.set(bin_range=bin_range, bins=7, channels=(3, 11))
    curves = [t for t in panel.figure().data if t.visible is not False and t.mode == "lines"]
    assert len(curves) == 2
    entropies = panel.to_frame().set_index("channel").entropy_nats
    for curve in curves:
        assert len(curve.x) == 7
        assert sum(c[2] for c in curve.customdata) == tokens.numel()
        share = np.array(curve.y) / 100
        entropy = -sum(p * np.log(p) for p in share if p)
        channel = int(curve.name.split()[1].rstrip(":"))
        assert entropy == pytest.approx(entropies[channel], abs=0.06)  # a value on a bin's edge


def test_a_box_chooses_what_lies_in_it_in_any_panel(panel):
    frame = panel.to_frame()
    for x, y, across, up in (("x", "y", "norm", "entropy_nats"), ("x5", "y5", "channel", None)):
        up = up or "entropy_nats"
        (x0, x1), (y0, y1) = (np.quantile(frame[c], [0.2, 0.7]) for c in (across, up))
        draw_box(panel, x, y, x0, x1, y0, y1)
        inside = frame[frame[across].between(x0, x1) & frame[up].between(y0, y1)].channel
        assert 0 < len(inside) < len(frame)
        assert list(panel.settings["channels"]) == list(inside)
        assert f"channels={','.join(map(str, inside))}" in panel.parameters()
        rings = panel.plot.data[5]
        assert sorted(rings.x) == sorted(frame.norm[list(inside)])


def test_an_empty_box_chooses_none_and_says_so(panel):
    draw_box(panel, "x", "y", 1e8, 1e9, 0, 1)
    assert panel.settings["channels"] == ()
    assert "No channel is chosen" in str(panel.plot.layout.annotations)
    draw_box(panel, "x", "y", 1e-8, 1e9, -1, 9)
    assert len(panel.settings["channels"]) == 40
    assert "No channel is chosen" not in str(panel.plot.layout.annotations)


def test_telling_channels_are_chosen_first_and_anew_for_another_layer(panel):
    frame = panel.to_frame()
    telling = {frame.entropy_nats.idxmin(), frame.entropy_nats.idxmax(), frame.norm.idxmax()}
    assert set(panel.settings["channels"]) == telling
    panel.set(channels="39")
    panel.set(alpha=1)
    assert panel.settings["channels"] == (39,)
    panel.set(role="q_proj")  # has 24 channels
    assert max(panel.settings["channels"]) < 24


def test_wrong_settings_are_refused(panel, loaded, tokens, mixture):
    with pytest.raises(InputError, match="has channels 0 to 39, got 40"):
        panel.set(channels=(1, 40))
    assert 40 not in panel.settings["channels"]
    with pytest.raises(InputError, match="Did you mean 'down_proj'"):
        Channels(loaded, tokens, role="down_prj")
    with pytest.raises(InputError, match="block=3: expected a whole number from 0 to 2"):
        Channels(loaded, tokens, block=3)
    with pytest.raises(InputError, match="Did you mean 'percentile'"):
        panel.apply("-p bin_range=percentil")
    with pytest.raises(InputError, match="bins=1: expected"):
        panel.set(bins=1)


def test_two_explorers_of_one_model_do_not_disturb_it_or_each_other(loaded, tokens):
    before = loaded.model(tokens).logits
    one = Channels(loaded, tokens, block=2, role="up_proj")
    other = Channels(Reading(loaded, tokens[:2]), block=0, role="o_proj")
    first, second = one.to_frame(), other.to_frame()
    other.set(block=2, role="up_proj")
    one.set(block=0, role="o_proj")
    one.set(block=2, role="up_proj")
    other.set(block=0, role="o_proj")
    assert one.to_frame().equals(first)
    assert other.to_frame().equals(second)
    assert torch.equal(loaded.model(tokens).logits, before)
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())


def test_what_the_browser_selects_goes_back_in_one_message(panel):
    sent = []
    for name in ("_py2js_restyle", "_py2js_update"):
        panel.plot.observe(lambda change: change["new"] and sent.append(change["name"]), name)
    panel.plot._js2py_pointsCallback = {
        "event_type": "plotly_selected",
        "points": {"trace_indexes": [0, 0], "point_indexes": [1, 2], "xs": [0, 0], "ys": [0, 0]},
        "device_state": None,
        "selector": None,
    }
    assert panel.plot.data[0].selectedpoints == (1, 2)
    assert panel.plot.data[1].selectedpoints == ()
    assert sent == ["_py2js_update"]  # the browser draws the whole figure for each


def test_the_next_block_is_read_while_nobody_waits(panel, monkeypatch):
    panel.ahead()
    monkeypatch.setattr(reading, "group_inputs", None)  # nothing is read any more
    panel.set(block=2)
    assert "model.layers.2." in panel.figure().layout.title.text
    panel.ahead()  # it was the last one: nothing lies ahead


def test_a_wide_layer_is_thinned_where_a_channel_has_its_own_place(panel, monkeypatch):
    size = len(panel.to_frame())
    monkeypatch.setattr("esparse_lab.explorers.channels.MOST_IN_A_ROW", 7)
    panel.set(alpha=2.0)
    figure = panel.figure()
    counts = [len(trace.x) for trace in figure.data[:5]]
    assert counts[:1] + counts[3:] == [size, 7, 7]
    said = " ".join(a.text.replace("<br>", " ") for a in figure.layout.annotations)
    assert f"In (e) and (f) 7 of {size} channels, evenly spaced." in said


def test_a_point_tells_what_its_panel_shows(panel):
    hovers = [trace.hovertemplate for trace in panel.figure().data[:5]]
    assert all(h.startswith("channel %{customdata}<br>") for h in hovers)
    assert "norm %{x:.4g}, entropy %{y:.3f} nats" in hovers[0]
    assert "rank %{x} by norm, norm %{y:.4g}" in hovers[1]
    assert "rank %{x} by norm<br>%{marker.color:+d} ranks" in hovers[4]
