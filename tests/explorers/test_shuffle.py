"""The shuffle explorer draws the searches' own orders, and what masks keep under them."""

import numpy as np
import pytest
import torch
from tiny_models import random_model

import esparse_lab as el
from esparse_lab import tables
from esparse_lab.errors import InputError
from esparse_lab.explorers import Reading, Shuffle, shuffle
from esparse_lab.models import LoadedModel

NAMES = [f"model.layers.1.self_attn.{role}_proj" for role in "qkv"]


@pytest.fixture
def panel(loaded, tokens):
    return Shuffle(loaded, tokens, block=1, role="k_proj", method="wanda")


@pytest.fixture
def by_hand(loaded, tokens):
    """Weights and Wanda's scores of the three layers that read the same, and what they read."""
    weights = [loaded.model.get_submodule(name).weight.detach() for name in NAMES]
    x = el.layer_inputs(loaded.model, tokens, NAMES[0])
    norm = x.square().sum((0, 1)).div(len(tokens)).sqrt()
    return torch.cat(weights), torch.cat(weights).abs() * norm, x


def kept_share(scores, order, n, m):
    """By sorting every group."""
    groups = scores[:, order].numpy().reshape(len(scores), -1, m)
    return np.sort(groups, axis=-1)[..., m - n :].sum() / scores.numpy().sum()


def caption(panel):
    return panel.figure().layout.annotations[-1].text.replace("<br>", " ")


def pictures(panel):
    return [t for t in panel.figure().data if t.type == "heatmap"]


def test_every_step_keeps_what_its_order_keeps(panel, by_hand):
    _, scores, _ = by_hand
    trace = panel._trace
    assert len(trace.steps) > 3  # stored, dealt, swaps
    for step, seconds in zip(trace.steps, trace.seconds, strict=True):
        wanted = kept_share(scores, step.order.index, 2, 4)
        assert step.retained_share == pytest.approx(wanted, rel=1e-5)
        assert seconds >= 0
    shares = [step.retained_share for step in trace.steps]
    assert shares[2:] == sorted(shares[2:])
    assert shares[0] == pytest.approx(kept_share(scores, np.arange(24), 2, 4), rel=1e-5)
    assert shares[-1] == pytest.approx(
        kept_share(scores, el.search_order(scores, el.Pattern(2, 4), el.BlockShuffle()).index, 2, 4)
    )
    assert f"{shares[0]:.2%}" in panel.figure().layout.title.text
    assert f"{shares[-1]:.2%}" in panel.figure().layout.title.text


def test_pictures_are_scores_and_masks_in_the_step_s_order(panel, by_hand):
    _, scores, _ = by_hand
    panel.set(step=1, rows=(3, 30), channels=(4, 21))
    order = panel._trace.steps[1].order.index
    assert not torch.equal(order, torch.arange(24))
    before, mask_before, after, mask_after, *_ = pictures(panel)
    for shown, mask, index in (
        (before, mask_before, torch.arange(24)),
        (after, mask_after, order),
    ):
        window = scores[3:30, index[4:21]]
        custom = np.asarray(shown.customdata)
        assert np.allclose(custom[..., 0], window, rtol=1e-5)
        assert np.array_equal(custom[5, :, 1], index[4:21])
        whole = el.nm_mask(scores[3:30][:, index], el.Pattern(2, 4))
        assert np.array_equal(np.asarray(mask.z), whole[:, 4:21])
        assert list(shown.y) == list(range(3, 30))
        assert (shown.x0, shown.dx) == (4, 1)


def test_from_afar_a_cell_is_what_whole_groups_drop(panel, by_hand, monkeypatch):
    _, scores, _ = by_hand  # [40, 24]
    monkeypatch.setattr(shuffle, "CELLS", (5, 4))
    panel.set(step=0)
    panel.set(channels=(0, 24))
    score, dropped, *_ = pictures(panel)
    assert np.shape(dropped.z) == (5, 3)
    assert (dropped.x0, dropped.dx) == (3.5, 8)
    rows = np.floor(np.asarray(score.y) + 0.5)  # as the hover writes them
    assert rows[0] == 0
    assert rows[-1] == 39
    cell = scores[int(rows[2]), 8:16].numpy()
    assert np.asarray(score.customdata)[2, 1] == pytest.approx(cell.mean(), rel=1e-5)
    kept = np.sort(cell.reshape(2, 4))[:, 2:].sum()
    assert np.asarray(dropped.z)[2, 1] == pytest.approx(100 * (1 - kept / cell.sum()), rel=1e-4)
    assert "5 rows drawn" in caption(panel)


def test_groups_hold_the_channels_that_sit_together(panel, by_hand):
    _, scores, _ = by_hand
    mean = scores.mean(dim=0).numpy()
    panel.set(search="gns")
    frame = panel.groups()
    assert list(frame.channel[frame["rank"] == 1]) == [int(mean.argmax())]
    assert sorted(frame["rank"]) == list(range(1, 25))
    # Dealt like cards: ranks 1 to 6 go to different groups, as do 7 to 12, and so on.
    dealt = frame.sort_values("rank").group_now.to_numpy().reshape(4, 6)
    assert all(sorted(hand) == list(range(6)) for hand in dealt)
    assert list(frame.group_stored) == list(np.arange(24) // 4)
    picture = pictures(panel)[5]
    members = np.asarray(picture.customdata)[..., 0]  # [place, group]
    for group in range(6):
        assert set(members[:, group]) == set(frame.channel[frame.group_now == group])
    ranks = -np.asarray(picture.z)
    assert (np.diff(ranks, axis=0) > 0).all()
    assert "100%" in caption(panel)  # all groups balanced


def test_searches_are_compared_by_the_error_of_their_masks(panel, by_hand):
    weight, scores, x = by_hand
    frame = panel.comparison().set_index("search")
    assert list(frame.index) == list(el.SEARCHES)
    for name, search in el.SEARCHES.items():
        order = el.search_order(scores, el.Pattern(2, 4), search)
        mask = el.ordered_mask(scores, el.Pattern(2, 4), order)
        wanted = tables.output_error(weight, weight * mask, x)
        assert frame.output_error[name] == pytest.approx(wanted, rel=1e-4)
    assert frame.gained["none"] == 0
    assert frame.retained_share["gns+lbs"] >= frame.retained_share["gns"] - 1e-9
    table = next(t for t in panel.figure().data if t.type == "table")
    assert table.cells["values"][1][2] == f"{frame.retained_share['gns+lbs']:.2%}"


def test_one_layer_alone_has_an_order_of_its_own(panel, by_hand):
    _, scores, _ = by_hand
    panel.set(scope="layer")
    own = scores[24:32]  # k_proj
    assert panel._shape == (8, 24)
    stored = kept_share(own, np.arange(24), 2, 4)
    assert panel.to_frame().retained_share[0] == pytest.approx(stored, rel=1e-5)


def test_dass_orders_the_outputs_of_gate_and_up(loaded, tokens):
    panel = Shuffle(loaded, tokens, role="up_proj", method="dass", scope="layer")
    name = "model.layers.0.mlp.up_proj"
    needs = el.DaSS().needs
    stats = Reading(loaded, tokens).block_stats(0, needs)[name]
    weight = loaded.model.get_submodule(name).weight.detach()
    scores = el.DaSS().score(weight, stats).T
    assert panel._shape == tuple(scores.shape) == (24, 40)
    step = panel._trace.steps[-1]
    wanted = kept_share(scores, step.order.index, 2, 4)
    assert step.retained_share == pytest.approx(wanted, rel=1e-5)
    mask = el.ordered_mask(scores, el.Pattern(2, 4), step.order).T
    x = el.layer_inputs(loaded.model, tokens, name)
    wanted = tables.output_error(weight, weight * mask, x)
    assert panel.comparison().output_error.iloc[-1] == pytest.approx(wanted, rel=1e-4)


def test_a_search_runs_once_a_choice_and_scrubbing_only_draws(panel, monkeypatch):
    runs = []
    real = shuffle.search_steps
    monkeypatch.setattr(shuffle, "search_steps", lambda *a: (runs.append(1), real(*a))[1])
    for step in (0, 2, 1):
        panel.set(step=step, against="seconds")
    panel.set(search="gns")
    panel.set(channels=(0, 8))
    assert runs == []
    panel.set(pattern="4:8")
    assert len(runs) == len(el.SEARCHES)


def test_play_and_slider_move_the_step(panel):
    assert panel.widget is not None
    scrubber = panel._widgets["step"]
    last = len(panel._trace.steps) - 1
    assert (scrubber.slider.value, scrubber.slider.max, scrubber.play.max) == (last, last, last)
    scrubber.play.value = 1
    assert panel.settings["step"] == 1 == scrubber.slider.value
    assert "step 1 of gns+lbs" in panel.plot.layout.title.text.replace("<br>", " ")
    assert "-p step=1 " in panel.parameters()
    scrubber.slider.value = 0
    assert panel.settings["step"] == 0 == scrubber.play.value
    panel.set(search="gns")
    assert panel.settings["step"] == 1 == scrubber.slider.max == scrubber.slider.value
    panel.apply("-p search=none -p step=9")
    assert panel.settings["step"] == 0


def test_the_last_group_may_be_shorter(loaded, tokens):
    panel = Shuffle(loaded, tokens, role="o_proj", pattern="3:7", search="gns")
    picture = np.asarray(pictures(panel)[4].z)  # 24 channels: 3 groups of 7 and one of 3
    assert picture.shape == (7, 4)
    assert np.isnan(picture).sum() == 4
    assert "Not run: gns+lbs: A block of 256" in caption(panel)
    assert list(panel.comparison().search) == ["none", "gns"]
    traces = len(panel.figure().data)
    with pytest.raises(InputError, match="does not hold whole groups of 7"):
        panel.set(search="gns+lbs")
    assert panel.settings["search"] == "gns"
    panel.set(pattern="2:4")
    assert len(panel.figure().data) == traces  # a live figure that is replaced goes on listening


def test_a_large_matrix_sends_few_points(tokens):
    model = random_model("llama", hidden_size=600, num_attention_heads=3)
    panel = Shuffle(LoadedModel(model, None, "wide", "none"), tokens, role="o_proj")
    assert panel._shape[0] == 600
    assert 5e3 < sum(np.size(t.z) for t in pictures(panel)) < 1e5


def test_wrong_settings_are_refused(panel, mixture, few_tokens):
    with pytest.raises(InputError, match="Did you mean 'gns'"):
        panel.apply("-p search=gms")
    with pytest.raises(InputError, match="expected N:M"):
        panel.set(pattern="50%")
    with pytest.raises(InputError, match="step=-1: expected a whole number"):
        panel.set(step=-1)
    experts = Shuffle(mixture, few_tokens, role="q_proj", pattern="2:4")
    refused = []
    for role in experts.reading.roles[4:]:
        for method in ("wanda", "dass"):
            try:
                experts.set(role=role, method=method)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) == 2 * 2 * 2
    assert all("has no statistics" in reason for reason in refused)
