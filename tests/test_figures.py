"""Each figure shows exactly the data it was given, with units, safe colours and safe text."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from esparse_lab import figures as F
from esparse_lab.errors import InputError
from esparse_lab.figures import style

# Written from the source (Okabe & Ito 2008), not from our table.
OKABE_ITO = {
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
}
BAD = "<img src=x onerror=alert(1)> & $x$ <b>q</b>"


def channels(layers=("up",), n=6):
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, n),
            "channel": np.tile(np.arange(n), len(layers)),
            "norm": [float(1 + (7 * i) % 11) for i in range(n * len(layers))],
            "entropy_nats": [0.1 * i for i in range(n * len(layers))],
        }
    )


def binning():
    rows = [
        (k, r, c, 0.1 * k + c * (r == "layer"), 0.9)
        for k in (10, 100)
        for r in ("channel", "layer")
        for c in range(3)
    ]
    return pd.DataFrame(
        rows, columns=["bins", "bin_range", "channel", "entropy_nats", "rank_correlation"]
    )


def histograms(channel_names=(4, 9)):
    rows = [(c, -1.0 + i, float(i), 10 * i + 1, 1.25) for c in channel_names for i in range(3)]
    return pd.DataFrame(rows, columns=["channel", "bin_left", "bin_right", "count", "entropy_nats"])


def ranks():
    return pd.DataFrame(
        {
            "channel": [7, 8, 9],
            "norm_rank": [1, 2, 3],
            "esparse_rank": [1, 3, 2],
            "entropy_nats": [0.5, 1.0, 2.0],
        }
    )


def traces(search="gns+lbs"):
    return pd.DataFrame(
        {
            "search": ["none", search, search, search],
            "swaps": [0, 0, 1, 2],
            "retained_share": [0.7, 0.75, 0.78, 0.79],
        }
    )


def race():
    steps = [(layer, s, t, t / 9) for layer in "ab" for s in ("gns", "none") for t in (0, 1, 4)]
    return pd.DataFrame(steps, columns=["layer", "search", "seconds", "recovered_share"])


def proxies():
    rows = [("gns", 0.8, 0.05, 30.0), ("gns", 0.81, 0.04, 28.0), ("random", 0.7, 0.09, 90.0)]
    return pd.DataFrame(rows, columns=["kind", "retained_share", "output_error", "perplexity"])


def retained(layer="model.layers.{}.q"):
    rows = [
        (layer.format(b), b, r, s, 0.7 + 0.01 * b + 0.1 * (s == "gns"))
        for b in range(3)
        for r in ("down", "q")
        for s in ("none", "gns")
    ]
    return pd.DataFrame(rows, columns=["layer", "block", "role", "search", "retained_share"])


def ladder(method="wanda"):
    rows = [
        ("dense", "", "", 20.0, True),
        (method, "2:4", "none", 100.0, False),
        (method, "2:4", "gns", 60.0, False),
        ("magnitude", "2:4", None, 5000.0, False),
        (method, "4:8", "none", 50.0, False),
    ]
    return pd.DataFrame(rows, columns=["method", "pattern", "search", "perplexity", "dense"])


def spread():
    """A ladder over seeds, where one method is also solved for."""
    frame = ladder().assign(reconstruct=False)
    frame = pd.concat([frame, frame[1:2].assign(perplexity=30.0, reconstruct=True)])
    return frame.assign(lowest=0.9 * frame.perplexity, highest=1.2 * frame.perplexity)


def parts(model="7B"):
    rows = [
        (model, "up", 3.0, 2.0, 0.5, 0.25),
        (model, "embedding", 1.0, 1.0, 0.25, 0.0),
        ("tiny", "up", 0.04, 0.02, 0.5, 0.5),
    ]
    columns = ["model", "part", "dense_gb", "compressed_gb", "kept_share", "saved_share"]
    return pd.DataFrame(rows, columns=columns)


def terms(term="third FFN matrix"):
    rows = [
        (model, form, name, gb * (2 if form == "dense" else 1))
        for model in ("7B", "13B")
        for form in ("dense", "compressed")
        for name, gb in (("counted by the paper", 5.5), (term, 1.25))
    ]
    return pd.DataFrame(rows, columns=["model", "form", "term", "gb"])


def timings(name="Q/K/V"):
    """Two products at 16 tokens and one at 4096, of two dtypes; the first without a default."""
    rows = [
        (name, m, k, n, dtype, "2:4", "cusparselt", dense, default, sparse, 0.5 * sparse, "Alg")
        for dtype, dense in (("float16", 2.0), ("bfloat16", 1.0))
        for m, k, n, default, sparse in (
            (16, 64, 32, None, 1.25),
            (16, 32, 64, 4.0, 1.6),
            (4096, 64, 32, 3.0, 2.5),
        )
    ]
    columns = "name m k n dtype pattern kernel dense_ms default_ms sparse_ms floor_ms algorithm"
    frame = pd.DataFrame(rows, columns=columns.split())
    return frame.assign(dense_floor_ms=0.75, speedup=frame.dense_ms / frame.sparse_ms)


def roofs(name="Q/K/V"):
    """A slope of 10 up to 1000 TFLOP/s for dense and 2000 for sparse."""
    rows = [
        (name, 16, 64, 32, "float16", form, intensity, 0.8 * roof, roof)
        for form, peak in (("dense", 1000.0), ("sparse", 2000.0))
        for intensity in (10.0, 50.0, 400.0)
        for roof in [min(peak, 10 * intensity)]
    ]
    columns = "name m k n dtype form intensity tflops roof_tflops"
    return pd.DataFrame(rows, columns=columns.split())


def speedups(row="q"):
    """Two forms of two rows and one of a third, in two panels."""
    rows = [
        ("1 token", row, "cusparselt 2:4", 1.5),
        ("1 token", row, "compressed 4:8", 0.5),
        ("1 token", "down", "compressed 4:8", 1.05),
        ("16 tokens", row, "cusparselt 2:4", 2.0),
    ]
    return pd.DataFrame(rows, columns=["panel", "row", "form", "speedup"])


def picture(**changes):
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 2, (5, 8))
    mask = np.tile([True, True, False, False], (5, 2))
    given = {"before": before, "after": before[:, ::-1], "mask_before": mask, "mask_after": ~mask}
    return F.score_picture(**(given | {"m": 4, "title": "t", "caption": "c"} | changes))


def matrix(text="t"):
    panel = F.MatrixPanel(text, np.eye(2), np.array([[text, "1"], ["2", "3"]]), columns=[text, "b"])
    return F.matrix_picture([panel], names=("removed", text), title=text, caption="c " + text)


def paired():
    rows = [
        (model, task, metric, d, d - 0.02, d + 0.01)
        for model, d in (("wanda", -0.05), ("esparse", 0.03))
        for metric in ("acc", "acc_norm")
        for task in ("piqa", "mean")
    ]
    return pd.DataFrame(rows, columns=["model", "task", "metric", "difference", "low", "high"])


def seeds():
    rows = [("dense", "", 20.0), ("wanda", "2:4", 90.0), ("wanda", "2:4", 110.0)]
    rows += [("esparse, gns", "2:4", 80.0), ("wanda", "4:8", 50.0)]
    return pd.DataFrame(rows, columns=["recipe", "pattern", "perplexity"])


def ratios():
    rows = [("esparse 2:4", "wanda 2:4", 0.8, 0.75, 0.9, 0.7, 0.95)]
    rows += [("ria 2:4", "wanda 2:4", 0.5, np.nan, np.nan, 0.4, 0.6)]
    rows += [("ria 4:8", "wanda 4:8", 2.0, 1.5, 2.5, 1.8, 2.2)]
    ends = ["ratio", "ratio_low", "ratio_high", "ratio_lowest", "ratio_highest"]
    return pd.DataFrame(rows, columns=["recipe", "baseline", *ends])


def costs():
    rows = [
        ("wanda", "2:4", "none", False, 50.0, 1.0, np.nan),
        ("ria", "2:4", "none", False, 60.0, 1.5, 0.5),
        ("isc", "2:4", "gns", False, 30.0, 4.0, 0.5),
        ("isc", "2:4", "gns+lbs", False, 29.0, 9.0, 0.5),
        ("magnitude", "2:4", "none", False, 5000.0, 0.1, 0.5),
        ("wanda", "4:8", "none", False, 25.0, 1.0, 0.5),
        ("dense", None, None, True, 20.0, 0.0, np.nan),
    ]
    columns = ["method", "pattern", "search", "dense", "perplexity"]
    return pd.DataFrame(rows, columns=[*columns, "prune_seconds", "peak_memory_gib"])


FRAMES = {
    F.channel_figure: channels,
    F.entropy_norm_figure: channels,
    F.binning_figure: binning,
    F.activation_histogram_figure: histograms,
    F.rank_change_figure: ranks,
    F.search_trace_figure: traces,
    F.race_figure: race,
    F.proxy_figure: lambda: proxies().drop(columns="perplexity"),
    F.retained_figure: retained,
    F.perplexity_figure: ladder,
    F.methods_figure: spread,
    F.cost_figure: costs,
    F.footprint_figure: parts,
    F.table6_figure: terms,
    F.gemm_figure: lambda: timings().drop(columns=["pattern", "kernel", "algorithm", "speedup"]),
    F.roofline_figure: roofs,
    F.speedup_figure: speedups,
    F.atlas_figure: lambda: timings().drop(columns=["default_ms", "floor_ms", "dense_floor_ms"]),
    F.paired_figure: paired,
    F.seeds_figure: seeds,
    F.ratios_figure: ratios,
}
EVERY = [pytest.param(f, id=f.__name__) for f in FRAMES]


def every_figure():
    return [f(frame(), title="t", caption="c") for f, frame in FRAMES.items()] + [
        picture(),
        matrix(),
    ]


def strings(node):
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)


# --- the data ---------------------------------------------------------------------------------


def test_channel_figure_sorts_by_norm_and_keeps_storage_order():
    frame = channels(("up", "down"))
    fig = F.channel_figure(frame.sample(frac=1, random_state=1), shown=4)
    norm, entropy, stored = (t for t in fig.data if t.name == "up")
    best = sorted(zip(frame.norm[:6], frame.entropy_nats[:6], strict=True), reverse=True)[:4]
    assert list(norm.x) == list(entropy.x) == [1, 2, 3, 4]
    assert list(norm.y) == [n for n, _ in best]
    assert list(entropy.y) == [e for _, e in best]
    assert list(stored.x) == [0, 1, 2, 3, 4, 5]
    assert list(stored.y) == list(frame.entropy_nats[:6])
    assert {t.name for t in fig.data} == {"up", "down"}
    assert len(fig.data) == 6


def test_one_layer_gets_a_wide_lower_panel():
    fig = F.channel_figure(channels())
    assert tuple(fig.layout.xaxis3.domain) == (0, 1)
    with pytest.raises(InputError, match="one or two layers, the frame has 3"):
        F.channel_figure(channels(("a", "b", "c")))
    with pytest.raises(InputError, match="shown must be 1 to 2000, got 0"):
        F.channel_figure(channels(), shown=0)


def test_entropy_norm_figure_draws_each_channel_and_counts_each_once():
    frame = channels(("up", "down"))
    fig = F.entropy_norm_figure(frame)
    points = next(t for t in fig.data if t.mode == "markers" and t.name == "down")
    assert sorted(zip(points.x, points.y, strict=True)) == sorted(
        zip(frame.norm[6:], frame.entropy_nats[6:], strict=True)
    )
    above = next(t for t in fig.data if t.mode == "lines" and t.name == "down")
    assert sum(above.y) == 2 * 6  # each step is drawn by its two ends


def test_more_than_five_layers_get_a_drop_down_that_shows_one():
    names = list("abcdefg")
    fig = F.entropy_norm_figure(channels(names))
    buttons = fig.layout.updatemenus[0].buttons
    assert [b.label for b in buttons] == names
    for name, button in zip(names, buttons, strict=True):
        shown = [t.name for t, on in zip(fig.data, button.args[1], strict=True) if on]
        assert set(shown) == {name}
    assert {t.name for t in fig.data if t.visible} == {"a"}
    with pytest.raises(InputError, match="at most 60 layers, the frame has 61"):
        F.entropy_norm_figure(channels([str(i) for i in range(61)]))


def test_channels_of_norm_zero_are_counted_in_the_caption():
    frame = channels()
    frame.loc[2, "norm"] = 0.0
    assert "Not drawn: 1 channels of norm 0" in caption_of(F.entropy_norm_figure(frame))
    assert "Not in (a): 1 channels of norm 0" in caption_of(F.channel_figure(frame))


def test_binning_figure_holds_every_value_and_the_bound():
    frame = binning()
    fig = F.binning_figure(frame)
    boxes = [t for t in fig.data if isinstance(t, go.Box)]
    assert [t.name for t in boxes] == ["range: channel", "range: layer"]
    for box, bin_range in zip(boxes, ("channel", "layer"), strict=True):
        of_range = frame[frame.bin_range == bin_range]
        drawn = sorted(zip(box.x, box.y, strict=True))
        assert drawn == sorted(zip(of_range.bins.astype(str), of_range.entropy_nats, strict=True))
    assert [s.y0 for s in fig.layout.shapes] == pytest.approx([2.302585, 4.605170])
    lines = [t for t in fig.data if t.type == "scatter"]
    assert [list(t.y) for t in lines] == [[0.9, 0.9]] * 2
    assert all(
        t.type == "box" for t in F.binning_figure(frame.drop(columns="rank_correlation")).data
    )


def test_histograms_keep_edges_and_counts():
    fig = F.activation_histogram_figure(histograms())
    for bars in fig.data:
        assert list(bars.x) == [-1.0, 0.0, 1.0]
        assert list(bars.width) == [1.0, 1.0, 1.0]
        assert list(bars.y) == [1, 11, 21]
        assert bars.offset == 0
    assert [a.text for a in fig.layout.annotations] == [
        "channel 4: 1.25 nats",
        "channel 9: 1.25 nats",
    ]
    with pytest.raises(InputError, match="at most 12 channels, the frame has 13"):
        F.activation_histogram_figure(histograms(range(13)))


def test_rank_change_is_positive_where_the_entropy_lifts_a_channel():
    fig = F.rank_change_figure(ranks())
    (points,) = fig.data
    assert list(points.x) == [1, 2, 3]
    assert list(points.y) == [0, -1, 1]
    assert list(points.marker.color) == [0.5, 1.0, 2.0]


def test_score_picture_shows_the_corner_on_one_colour_scale():
    rng = np.random.default_rng(3)
    before = rng.uniform(1, 100, (70, 100))
    after = before[:, ::-1]
    mask = before > 50
    fig = picture(before=before, after=after, mask_before=mask, mask_after=mask[:, ::-1])
    scores, kept = fig.data[:2], fig.data[2:]
    for trace, given in zip(scores, (before, after), strict=True):
        assert np.array_equal(trace.customdata, given[:64, :64])
        assert trace.coloraxis == "coloraxis"
        # colour = log10, with the smallest 5 % at one value
        cut = trace.z > trace.z.min()
        assert np.allclose(trace.z[cut], np.log10(given[:64, :64])[cut])
        assert 0.9 < cut.mean() < 0.99
    for trace, given in zip(kept, (mask, mask[:, ::-1]), strict=True):
        assert np.array_equal(trace.z, given[:64, :64])
        assert trace.coloraxis == "coloraxis2"
    assert "64 of 70 output and 64 of 100 input channels" in caption_of(fig)


@pytest.mark.parametrize(("m", "lines"), [(4, [3.5]), (3, [2.5, 5.5]), (8, [])])
def test_group_boundaries_lie_between_groups(m, lines):
    fig = picture(m=m)
    drawn = [s.path for s in fig.layout.shapes]
    expected = " ".join(f"M{x},-0.5V4.5" for x in lines)
    assert drawn == ([expected] * 4 if lines else [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"after": np.ones((5, 4))}, "one shape"),
        ({"m": 0}, "m must be 1 or more"),
        ({"rows": 65}, "rows must be 1 to 64, got 65"),
        ({"before": np.full((5, 8), np.nan)}, "finite"),
        ({"before": np.full((5, 8), -1.0)}, "negative"),
    ],
)
def test_score_picture_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        picture(**changes)


def test_score_picture_of_zeros_is_drawn():
    fig = picture(before=np.zeros((5, 8)), after=np.zeros((5, 8)))
    assert np.isfinite(fig.data[0].z).all()
    assert fig.layout.coloraxis.cmin < fig.layout.coloraxis.cmax


def test_search_trace_steps_and_starts():
    fig = F.search_trace_figure(traces())
    line = next(t for t in fig.data if t.mode == "lines")
    assert list(line.x) == [0, 1, 2]
    assert list(line.y) == [0.75, 0.78, 0.79]
    assert line.line.shape == "hv"
    assert line.name == "gns+lbs: 75.00% → 79.00% (2 swaps)"
    starts = {(t.x[0], t.y[0]) for t in fig.data if t.mode == "markers"}
    assert starts == {(0, 0.7), (0, 0.75)}


def test_a_race_has_a_panel_a_layer_and_marks_the_ends():
    fig = F.race_figure(race())
    assert [a.text for a in fig.layout.annotations if a.text in ("a", "b")] == ["a", "b"]
    assert [t.name for t in fig.data if t.showlegend] == ["gns", "none"]
    for trace in fig.data:
        assert list(trace.x) == [1e-4, 1, 4]  # a logarithm has no 0
        assert list(trace.y) == pytest.approx([0, 1 / 9, 4 / 9])
        assert [size > 0 for size in trace.marker.size] == [False, False, True]


def test_proxies_stand_against_perplexity_where_it_was_measured():
    fig = F.proxy_figure(proxies())
    assert [(t.name, *t.x) for t in fig.data] == [
        ("gns", 0.8, 0.81),
        ("random", 0.7),
        ("gns", 0.05, 0.04),
        ("random", 0.09),
    ]
    assert [list(t.y) for t in fig.data] == [[30, 28], [90], [30, 28], [90]]
    assert fig.layout.yaxis.type == "log"
    assert all(t.error_y.array is None for t in fig.data)
    over_seeds = F.proxy_figure(proxies()[:2].assign(lowest=[29, 25], highest=[34, 30]))
    for trace in over_seeds.data:
        assert list(trace.error_y.array) == [4, 2]
        assert list(trace.error_y.arrayminus) == [1, 3]
    assert over_seeds.layout.yaxis.type is None  # a narrow range
    alone = F.proxy_figure(proxies().drop(columns="perplexity"))
    assert [list(t.y) for t in alone.data] == [[0.05, 0.04], [0.09]]


def test_retained_figure_has_a_panel_a_role_and_means_in_the_legend():
    fig = F.retained_figure(retained())
    assert [a.text for a in fig.layout.annotations] == ["q", "down"]
    assert [t.name for t in fig.data if t.showlegend] == ["none: mean 71.00%", "gns: mean 81.00%"]
    for trace in fig.data:
        base = 0.8 if trace.legendgroup == "gns" else 0.7
        assert list(trace.x) == [0, 1, 2]
        assert list(trace.y) == pytest.approx([base, base + 0.01, base + 0.02])


def test_perplexities_are_sorted_named_and_written():
    fig = F.perplexity_figure(ladder())
    marks = [
        (x, y, t.yaxis)
        for t in fig.data
        if t.mode == "markers+text"
        for x, y in zip(t.x, t.y, strict=True)
    ]
    assert sorted(marks) == [(50.0, 0, "y2"), (60.0, 0, "y"), (100.0, 1, "y"), (5000.0, 2, "y")]
    assert list(fig.layout.yaxis.ticktext) == ["wanda + gns", "wanda", "magnitude"]
    written = {text.strip() for t in fig.data if t.text is not None for text in t.text}
    assert written == {"50.00", "60.00", "100.00", "5,000"}
    dense = [t for t in fig.data if t.mode == "lines"]
    assert [list(t.x) for t in dense] == [[20.0, 20.0]] * 2
    assert fig.layout.xaxis.type == "log"


def test_costs_are_drawn_and_the_front_is_what_nothing_beats():
    fig = F.cost_figure(costs(), most=1000)
    marks = {
        (x, y, t.yaxis)
        for t in fig.data
        if t.mode == "markers+text"
        for x, y in zip(t.x, t.y, strict=True)
    }
    assert marks == {
        *((1.0, 50.0, "y"), (1.5, 60.0, "y"), (4.0, 30.0, "y"), (9.0, 29.0, "y")),
        *((0.5, 60.0, "y2"), (0.5, 30.0, "y2"), (0.5, 29.0, "y2")),  # one has no known memory
        *((1.0, 25.0, "y3"), (0.5, 25.0, "y4")),
    }
    fronts = [list(zip(t.x, t.y, strict=True)) for t in fig.data if t.mode == "lines"]
    of_seconds = [(1.0, 50.0), (4.0, 30.0), (9.0, 29.0)]
    assert fronts == [of_seconds, [(0.5, 29.0)], [(1.0, 25.0)], [(0.5, 25.0)]]
    without = F.cost_figure(costs().assign(peak_memory_gib=np.nan), most=1000)
    assert {t.yaxis for t in without.data} == {"y", "y2"}
    # Named from the best on, and no two that are within a tenth of each other.
    written = {x.strip() for t in fig.data if t.text is not None for x in t.text if x.strip()}
    assert written == {"isc 29", "wanda 50", "wanda 25"}
    assert "Not drawn: 1 model" in caption_of(fig)
    with pytest.raises(InputError, match="none of 6 models"):
        F.cost_figure(costs(), most=10)


@pytest.mark.parametrize("seed", range(30))
def test_a_front_is_not_beaten_and_beats_the_rest(seed):
    draw = np.random.default_rng(seed)
    frame = pd.DataFrame(draw.integers(0, 6, (12, 2)).astype(float), columns=["cost", "perplexity"])
    frame.loc[draw.integers(0, 12), "cost"] = np.nan
    on = F.pareto_front(frame, "cost")
    known = frame.dropna()
    for row, (cost, value) in known.iterrows():
        others = known.drop(row)
        better = others[(others.cost <= cost) & (others.perplexity <= value)]
        strictly = better[(better.cost < cost) | (better.perplexity < value)]
        assert not (on[row] and len(strictly))
        equal = better.drop(strictly.index)  # of equals the first is on the front
        assert on[row] or len(strictly) or (equal.index < row).any()
    assert not on[frame.cost.isna()].any()


def test_perplexity_figure_refuses_two_dense_models_and_none_pruned():
    frame = ladder()
    with pytest.raises(InputError, match="dense perplexities 20, 21"):
        F.perplexity_figure(pd.concat([frame, frame[:1].assign(perplexity=21.0)]))
    with pytest.raises(InputError, match="dense = False"):
        F.perplexity_figure(frame[:1])
    with pytest.raises(InputError, match=r"True or False .* None"):
        F.perplexity_figure(frame.assign(dense=[True, False, False, False, None]))


def test_a_model_that_broke_is_named_in_the_caption():
    frame = ladder()
    frame.loc[3, "perplexity"] = np.inf
    fig = F.perplexity_figure(frame)
    assert "1 models without a finite perplexity" in caption_of(fig)
    assert np.isfinite(fig.layout.xaxis.range).all()


def test_methods_have_a_row_each_with_a_mark_a_search_and_the_range_of_its_seeds():
    fig = F.methods_figure(spread().reset_index(drop=True))
    assert list(fig.layout.yaxis.ticktext) == [
        "wanda + reconstruct  30.00",
        "wanda  60.00",
        "magnitude  5,000",
    ]
    assert list(fig.layout.yaxis2.ticktext) == ["wanda  50.00"]
    found = {}
    for trace in (t for t in fig.data if t.mode == "markers" and len(t.x)):
        assert np.allclose(trace.error_x.array, 0.2 * np.array(trace.x))
        assert np.allclose(trace.error_x.arrayminus, 0.1 * np.array(trace.x))
        for x, y in zip(trace.x, trace.y, strict=True):
            found[x] = (trace.legendgroup, round(y), trace.yaxis)
    assert found == {
        30.0: ("none", 0, "y"),
        100.0: ("none", 1, "y"),
        60.0: ("gns", 1, "y"),
        5000.0: ("none", 2, "y"),
        50.0: ("none", 0, "y2"),
    }
    low, high = fig.layout.xaxis.range
    assert low < np.log10(20) < np.log10(6000) < high


def test_a_solved_recipe_says_so():
    fig = F.perplexity_figure(spread())
    assert "wanda + reconstruct" in fig.layout.yaxis.ticktext


def test_a_part_shows_what_stays_and_what_is_saved_of_it():
    fig = F.footprint_figure(parts())
    bars = {(t.name, t.yaxis): t for t in fig.data}
    assert list(bars["still stored", "y"].x) == [0.5, 0.25]
    assert list(bars["saved", "y"].x) == [0.25, 0.0]
    assert [t.strip() for t in bars["saved", "y"].text] == ["3 → 2 GB", "1 GB"]
    assert [t.strip() for t in bars["saved", "y2"].text] == ["40 → 20 MB"]
    assert list(fig.layout.yaxis.ticktext) == ["up", "embedding"]
    titles = [a.text for a in fig.layout.annotations if a.name != "caption"]
    assert titles == ["7B: 4 → 3 GB (−25.0%)", "tiny: 40 → 20 MB (−50.0%)"]


def test_terms_are_stacked_to_the_whole():
    fig = F.table6_figure(terms())
    assert fig.layout.barmode == "stack"
    assert [(t.name, list(t.x), list(t.y), t.yaxis) for t in fig.data] == [
        ("counted by the paper", [11.0, 5.5], [0, 1], "y"),
        ("third FFN matrix", [2.5, 1.25], [0, 1], "y"),
        ("counted by the paper", [11.0, 5.5], [0, 1], "y2"),
        ("third FFN matrix", [2.5, 1.25], [0, 1], "y2"),
    ]
    wholes = [(a.text, a.x, a.y) for a in fig.layout.annotations if a.text.endswith("GB")]
    assert wholes == [("13.50 GB", 13.5, 0), ("6.75 GB", 6.75, 1)] * 2
    assert list(fig.layout.yaxis2.ticktext) == ["dense", "compressed"]


def test_times_are_bars_with_a_floor_a_panel_a_number_of_tokens():
    fig = F.gemm_figure(timings())
    bars = {(t.name, t.yaxis): t for t in fig.data if t.type == "bar"}
    assert list(bars["dense", "y"].x) == [2, 2, 1, 1]
    assert list(bars["searched", "y"].x) == [1.25, 1.6, 1.25, 1.6]
    assert [t.strip() for t in bars["searched", "y"].text] == [
        *("1.25 (1.60×)", "1.6 (1.25×)", "1.25 (0.80×)", "1.6 (0.62×)")
    ]
    assert [t.strip() for t in bars["default", "y"].text] == ["", "4 (0.50×)", "", "4 (0.25×)"]
    assert [t.strip() for t in bars["dense", "y2"].text] == ["2", "1"]
    floor = next(t for t in fig.data if t.name == "floor" and t.yaxis == "y")
    drawn = {
        (x, round(float(y), 6))
        for x, y in zip(floor.x, floor.y, strict=True)
        if x is not None and not np.isnan(x)
    }
    for bar in ("dense", "searched"):
        for place, y in enumerate(bars[bar, "y"].y):
            wanted = 0.75 if bar == "dense" else [0.625, 0.8][place % 2]
            assert {(wanted, round(float(y) + end, 6)) for end in (-0.125, 0.125)} <= drawn
    assert [a.text.strip() for a in fig.layout.annotations].count("no default") == 2
    assert fig.layout.yaxis.ticktext[0] == "Q/K/V<br>64 → 32, float16"
    titles = [a.text for a in fig.layout.annotations if "tokens" in a.text]
    assert titles == ["16 tokens", "4,096 tokens"]


def test_ratios_stand_beside_the_line_of_dense_and_under_their_floors():
    fig = F.speedup_figure(speedups().assign(most_speedup=[1.75, 0.9, np.nan, 2.5]))
    marks = {(t.name, t.yaxis): t for t in fig.data if t.mode == "markers+text"}
    assert list(marks["compressed 4:8", "y"].x) == [0.5, 1.05]
    assert [t.strip() for t in marks["compressed 4:8", "y"].text] == ["0.50", "1.05"]
    # Words stand left of their mark, but not across the line at 1.
    assert list(marks["compressed 4:8", "y"].textposition) == ["middle left", "middle right"]
    above, below = marks["cusparselt 2:4", "y"].y[0], marks["compressed 4:8", "y"].y[0]
    assert -0.5 < above < 0 < below < 0.5
    assert above == -below
    assert marks["compressed 4:8", "y"].y[1] == pytest.approx(1 + below)
    floors = {t.yaxis: {x for x in t.x if x} for t in fig.data if t.name == "floor"}
    assert floors == {"y": {1.75, 0.9}, "y2": {2.5}}
    assert sorted(t.name for t in fig.data if t.showlegend) == [
        *("compressed 4:8", "cusparselt 2:4", "floor")
    ]
    assert {(s.x0, s.x1) for s in fig.layout.shapes} == {(1, 1)}
    assert len(fig.layout.shapes) == 2
    # A form has one look, whichever others are drawn.
    alone = F.speedup_figure(speedups().query("form == 'compressed 4:8'")).data[0]
    assert alone.marker.color == marks["compressed 4:8", "y"].marker.color


def test_a_roof_is_drawn_no_further_than_its_products_reach():
    fig = F.roofline_figure(roofs())
    roof = {t.name: t for t in fig.data if t.mode == "lines"}
    assert list(roof["dense roof"].x) == [10, 100, 400]
    assert list(roof["dense roof"].y) == [100, 1000, 1000]
    assert list(roof["sparse roof"].x) == [10, 200, 400]
    assert list(roof["sparse roof"].y) == [100, 2000, 2000]
    few = F.roofline_figure(roofs().query("intensity < 100 and form == 'dense'"))
    line = next(t for t in few.data if t.mode == "lines")
    assert list(zip(line.x, line.y, strict=True)) == [(10, 100), (50, 500)]
    marks = next(t for t in fig.data if t.name == "sparse")
    assert list(marks.y) == [80, 400, 1600]


def test_the_atlas_parts_what_pays_from_what_does_not():
    frame = timings().query("dtype == 'float16'")
    fig = F.atlas_figure(pd.concat([frame, frame[:1].assign(speedup=0.5)]))
    cells, line = fig.data
    # Rows are shapes and columns tokens; of one cell's rows the fastest counts.
    assert np.array_equal(cells.z, [[1.6, 0.8], [1.25, np.nan]], equal_nan=True)
    assert list(fig.layout.xaxis.ticktext) == ["16", "4,096"]
    assert list(fig.layout.yaxis.ticktext) == ["Q/K/V<br>64 → 32", "Q/K/V<br>32 → 64"]
    # One edge: between the columns of the first row. Beside an empty cell nothing is known.
    assert list(zip(line.x, line.y, strict=True)) == [(0.5, -0.5), (0.5, 0.5), (None, None)]
    down = F.atlas_figure(frame[:2].assign(speedup=[2.0, 0.5])).data[1]
    assert list(zip(down.x, down.y, strict=True)) == [(-0.5, 0.5), (0.5, 0.5), (None, None)]
    assert len(F.atlas_figure(frame[:2]).data) == 1  # everything pays: no line


# --- what all share ---------------------------------------------------------------------------


def caption_of(fig):
    (one,) = (a for a in fig.layout.annotations if a.name == "caption")
    return one.text.replace("<br>", " ")


def test_every_figure_is_covered_here():
    drawn = {"score_picture", "matrix_picture"}
    drawn |= {"averages_figure", "size_perplexity_figure"}  # from the audit: in test_audit.py
    assert {f.__name__ for f in FRAMES} | drawn == {
        name for name in F.__all__ if name.endswith(("_figure", "_picture"))
    }


def test_axis_titles_carry_units():
    for fig in every_figure():
        titles = [a.title.text for a in fig.select_xaxes() if a.title.text]
        titles += [a.title.text for a in fig.select_yaxes() if a.title.text]
        assert titles
        for text in titles:
            assert "(" in text, text
            assert ")" in text, text


def test_each_figure_names_the_template_title_and_caption():
    for fig in every_figure():
        assert fig.layout.template == pio.templates["esparse"]
        assert fig.layout.title.text == "t"
        assert caption_of(fig).startswith("c")
        assert fig.layout.width is None  # follows the page
        assert fig.layout.height > 0
    assert pio.templates.default != "esparse"


def test_colours_are_okabe_ito_or_cividis():
    assert set(F.OKABE_ITO) == OKABE_ITO
    for fig in every_figure():
        for trace in fig.data:
            if trace.type == "heatmap":
                continue
            color = trace.marker.color if trace.marker.color is not None else trace.line.color
            if isinstance(color, str):
                assert color in OKABE_ITO | {style.INK}
            else:
                scale = [c for _, c in trace.marker.colorscale]
                assert scale == list(px_cividis())


def px_cividis():
    from plotly.colors import sequential

    return sequential.Cividis


def test_names_get_distinct_looks_and_the_papers_searches_keep_theirs():
    looks = style.looks(["lbs", "gns", "none"], {"none": 6, "gns": 4})
    assert looks["none"] == 6
    assert looks["gns"] == 4
    assert len(set(looks.values())) == 3
    assert len(set(style.looks([str(i) for i in range(8)]).values())) == 8
    assert len(style.looks([str(i) for i in range(20)], {"3": 3})) == 20


def test_paired_figure_shows_points_and_intervals_a_row_a_task():
    fig = F.paired_figure(paired())
    assert len(fig.data) == 4  # model x metric
    wanda, esparse = (t for t in fig.data if t.yaxis == "y2")
    assert list(wanda.x) == pytest.approx([-5, -5])
    assert list(wanda.error_x.array) == pytest.approx([1, 1])
    assert list(wanda.error_x.arrayminus) == pytest.approx([2, 2])
    assert list(fig.layout.yaxis2.ticktext) == ["piqa", "mean"]
    assert [round(y) for y in wanda.y] == [round(y) for y in esparse.y] == [0, 1]
    assert all(w < e for w, e in zip(wanda.y, esparse.y, strict=True))


def test_more_models_than_colours_are_still_told_apart():
    many = pd.concat([paired()[:4].assign(model=f"model {n}") for n in range(12)])
    marks = [(t.marker.color, t.marker.symbol) for t in F.paired_figure(many).data if t.showlegend]
    assert len(set(marks)) == len(marks) == 12


def test_seeds_figure_shows_every_seed_its_mean_and_its_spread():
    fig = F.seeds_figure(seeds())
    points, means, *_ = fig.data
    assert list(points.x) == [90, 110, 80]
    assert list(points.y) == [1, 1, 0]  # best first
    assert list(means.x) == [80, 100]
    assert list(means.error_x.array) == pytest.approx([0, 200**0.5])  # of 90 and 110
    assert [line.x0 for line in fig.layout.shapes] == [20, 20]  # the dense model, a panel each
    assert "dashed line is the dense" in fig.layout.annotations[-1].text


def test_ratios_figure_shows_seeds_and_the_intervals_that_are_known():
    fig = F.ratios_figure(ratios())
    ranges, means = fig.data[:2]
    assert list(ranges.x[:2]) == [0.4, 0.6]
    assert list(means.x) == [0.5, 0.8]
    assert list(means.error_x.array) == pytest.approx([0, 0.1])
    assert list(means.error_x.arrayminus) == pytest.approx([0, 0.05])
    assert [line.x0 for line in fig.layout.shapes] == [1, 1]


@pytest.mark.parametrize("figure", EVERY)
def test_a_missing_column_is_named(figure):
    frame = FRAMES[figure]()
    for column in frame.columns:
        if column in ("rank_correlation", "reconstruct"):  # the optional ones
            continue
        with pytest.raises(InputError, match=rf"{figure.__name__} misses the column {column}\b"):
            figure(frame.drop(columns=column))


@pytest.mark.parametrize("figure", EVERY)
def test_no_rows_and_no_frame_are_refused(figure):
    with pytest.raises(InputError, match="without rows"):
        figure(FRAMES[figure]()[:0])
    with pytest.raises(InputError, match="needs a pandas DataFrame"):
        figure({"layer": []})


@pytest.mark.parametrize("figure", EVERY)
def test_user_text_cannot_inject_tags_or_latex(figure):
    frame = FRAMES[figure]()
    names = ["layer", "bin_range", "role", "search", "method", "pattern"]
    names += ["name", "dtype", "kernel", "algorithm"]
    for column in [*names, "model", "part", "term", "form"]:
        if column in frame:
            frame[column] = BAD
    if figure in (F.activation_histogram_figure, F.rank_change_figure):
        frame["channel"] = BAD
    fig = figure(frame, title=BAD, caption=BAD)
    shown = [s for s in strings(json.loads(fig.to_json())) if "onerror" in s or "&" in s]
    assert any("&lt;img" in s for s in shown)
    for text in strings(json.loads(fig.to_json())):
        bare = text.replace("<br>", "").replace("<extra>", "").replace("</extra>", "")
        if bare == BAD:  # grouping keys are never shown
            continue
        assert "<" not in bare, text
        assert "$" not in bare, text


def test_the_texts_of_a_matrix_cannot_inject_either():
    for text in strings(json.loads(matrix(BAD).to_json())):
        bare = text.replace("<br>", "").replace("<extra>", "").replace("</extra>", "")
        assert "<" not in bare or bare == BAD, text  # a grouping key is never shown


def test_plain_text():
    assert style.plain("a < b & $c$") == "a &lt; b &amp; &#36;c&#36;"
    assert style.plain("two\nlines") == "two lines"
    long = style.plain("x" * 100 + "end", limit=20)
    assert len(long) <= 20
    assert long.endswith("end")


def test_many_points_are_thinned_evenly_and_the_caption_says_so():
    n = 50_000
    frame = pd.DataFrame(
        {"layer": "up", "channel": range(n), "norm": np.arange(1.0, n + 1), "entropy_nats": 1.0}
    )
    for figure in (F.channel_figure, F.entropy_norm_figure):
        fig = figure(frame)
        assert sum(len(t.x) for t in fig.data) <= 20_000
        assert "of 50,000 channels, evenly spaced" in caption_of(fig)
    kept = style.thinned(frame, 7)["channel"].tolist()
    assert kept[0] == 0
    assert kept[-1] == n - 1
    assert np.ptp(np.diff(kept)) <= 1


def test_long_titles_and_captions_wrap_and_the_figure_grows():
    short = F.rank_change_figure(ranks(), title="t", caption="c")
    long = F.rank_change_figure(ranks(), title="word " * 40, caption="word " * 100)
    assert long.layout.title.text.count("<br>") >= 2
    assert caption_of(long).count("word") == 100
    assert long.layout.height > short.layout.height
    plot = [f.layout.height - f.layout.margin.t - f.layout.margin.b for f in (short, long)]
    assert plot[0] == plot[1]


def test_log_ticks_lie_on_round_numbers_within_the_data():
    axis = style.log_axis([3.0, 700.0, 0.0, float("nan")])
    low, high = axis["range"]
    seen = [t for t in axis["tickvals"] if low <= np.log10(t) <= high]
    assert seen == pytest.approx([5, 10, 20, 50, 100, 200, 500])
    assert style.log_axis([0.0]) == {"type": "log"}
    assert style.log_axis([3.21, 3.456])["tickvals"] == [3.21, 3.46]
    assert style.log_axis([0.881, 1.22])["tickvals"] == [0.881, 1, 1.22]
    assert style.log_axis([0.99, 1.22])["tickvals"] == [0.99, 1.22]  # names would touch
