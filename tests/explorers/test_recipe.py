"""The recipe explorer predicts what pruning keeps, and its runs are those of the ladder."""

import threading

import numpy as np
import pytest
import torch

import esparse_lab as el
from esparse_lab.errors import InputError
from esparse_lab.experiments import ladder, perplexity_ladder, weights_fingerprint
from esparse_lab.explorers import Channels, Reading, Recipe, prediction, trial
from esparse_lab.explorers.method_fields import method_from, written
from esparse_lab.models import LoadedModel


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path))


@pytest.fixture
def panel(loaded, tokens):
    return Recipe(loaded, tokens, tokens[:3])


class Gate:
    """Holds a run at its first news of a stage until it is opened."""

    def __init__(self, monkeypatch, stage="pruning"):
        self.reached, self.open = threading.Event(), threading.Event()
        real = trial.ladder_rows

        def rows(loaded, calibration, test, recipes, told):
            def heard(what, done, of):
                if what.startswith(stage) and done == 1:
                    self.reached.set()
                    assert self.open.wait(60)
                told(what, done, of)

            return real(loaded, calibration, test, recipes, heard)

        monkeypatch.setattr(trial, "ladder_rows", rows)


# --- prediction -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude", "wanda", "esparse", "ria", "dass"])
@pytest.mark.parametrize("pattern", ["2:4", "50%"])
def test_a_prediction_from_all_rows_is_what_pruning_keeps(
    loaded, tokens, name, pattern, monkeypatch
):
    monkeypatch.setattr(prediction, "SAMPLED_BLOCKS", 3)  # of 3: nothing is left out
    panel = Recipe(loaded, tokens, tokens, method=name, pattern=pattern, calibration="dense")
    frame = panel.predicted().set_index("layer").retained_share
    pruned = el.prune_model(loaded.model, tokens, panel.recipe, progress=False)
    for layer in pruned:
        if panel.recipe.method.rows_are_apart:  # else layers of one kind are predicted as one
            assert frame[layer.name] == pytest.approx(layer.retained_share, rel=1e-5)
    mean = np.mean([layer.retained_share for layer in pruned])
    assert frame.mean() == pytest.approx(mean, rel=1e-5)
    assert f"{mean:.2%}" in panel.figure().layout.title.text


def test_a_prediction_with_a_search_adds_what_the_order_gains(loaded, tokens, monkeypatch):
    monkeypatch.setattr(prediction, "SAMPLED_BLOCKS", 3)
    plain = Recipe(loaded, tokens, tokens, search="none").predicted().retained_share.mean()
    panel = Recipe(loaded, tokens, tokens, search="gns+lbs", calibration="dense")
    pruned = el.prune_model(loaded.model, tokens, panel.recipe, progress=False)
    mean = np.mean([layer.retained_share for layer in pruned])
    assert panel.predicted().retained_share.mean() == pytest.approx(mean, rel=1e-5)
    assert mean > plain + 1e-3


def test_a_sample_of_rows_comes_close(loaded, tokens, monkeypatch):
    whole = Recipe(loaded, tokens, tokens).predicted().retained_share
    monkeypatch.setattr(prediction, "SAMPLED_WEIGHTS", 1)  # then 4 rows of 8 to 40
    panel = Recipe(loaded, tokens, tokens)
    assert panel.predicted().retained_share.mean() == pytest.approx(whole.mean(), abs=0.02)
    assert "4 rows of every layer" in panel.figure().layout.annotations[-1].text


@pytest.mark.parametrize("name", ["sparsegpt", "isc", "mask_descent"])
def test_methods_whose_mask_is_not_their_score_s_say_so(panel, name):
    panel.set(method=name)
    assert panel.predicted() is None
    assert "prune to see" in str(panel.figure().layout.annotations)


def test_experts_without_tokens_are_left_out(mixture, few_tokens):
    frame = Recipe(mixture, few_tokens, few_tokens.repeat(1, 2)).predicted()
    empty = frame.retained_share.isna()
    assert 0 < empty.sum() < len(frame)
    assert frame[empty].role.str.contains("expert").all()


# --- settings -------------------------------------------------------------------------------------


def test_settings_are_fields_of_the_method_s_dataclass(panel):
    assert panel.widget is not None
    box = panel._widgets["method_settings"]
    names = [w.description for w in box.children]
    assert names == ["alpha", "norm scale", "form", "bins", "bin range", "skip first"]
    box.children[0].value = 1.5
    box.children[3].value = 20
    assert panel.recipe.method == el.ESparse(alpha=1.5, histogram=el.Histogram(bins=20))
    assert "-p method_settings=alpha=1.5,histogram.bins=20 " in panel.parameters()
    box.children[0].value = -1.0
    assert "alpha must be a number of at least 0" in panel._problem.value
    assert box.children[0].value == 1.5
    panel._widgets["method"].value = "mask_descent"
    assert [w.description for w in box.children] == ["damping", "sweeps"]
    assert panel.settings["method_settings"] == ""
    panel.apply("-p method=esparse -p method_settings=form=product,alpha=3 -p reconstruct=True")
    assert panel.recipe.method == el.ESparse(form="product")
    assert panel.settings["method_settings"] == "form=product"  # alpha is 3 anyway
    assert panel.recipe.reconstruct == el.Reconstruction()


@pytest.mark.parametrize("name", el.METHODS)
def test_settings_are_read_as_they_are_written(name):
    assert method_from(name, written(el.METHODS[name]())) == el.METHODS[name]()
    changed = {
        "esparse": el.ESparse(0.5, "rms", "product", el.Histogram(7, "layer", True)),
        "ria": el.RIA(exponent=1.0),
        "sparsegpt": el.SparseGPT(damping=0.1, block=64),
    }.get(name)
    if changed is not None:
        assert method_from(name, written(changed)) == changed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method_settings": "alhpa=1"}, "Did you mean 'alpha'"),
        ({"method_settings": "alpha=much"}, "expected alpha to be of type float"),
        ({"method_settings": "form=sums"}, "Did you mean 'sum'"),
        ({"method_settings": "histogram.skip_first=maybe"}, "of type bool"),
        ({"method_settings": "alpha"}, "expected settings such as"),
        ({"method": "wanda", "method_settings": "alpha=1"}, "'wanda' has no settings"),
        ({"pattern": "50%", "search": "gns"}, "A channel order needs the groups"),
        ({"pattern": "3:7", "search": "gns+lbs"}, "no whole groups of 7"),
        ({"calibration": "denes"}, "Did you mean 'dense'"),
        ({"reconstruct": "perhaps"}, "expected reconstruct=True or"),
    ],
)
def test_wrong_settings_are_refused_and_change_nothing(panel, changes, reason):
    before = panel.parameters()
    with pytest.raises(InputError, match=reason):
        panel.set(**changes)
    assert panel.parameters() == before


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_is_a_row_of_the_ladder_and_is_kept(panel, loaded, tokens):
    before = weights_fingerprint(loaded.model)
    panel.run()
    panel.set(method="wanda", search="gns")
    panel.run()
    frame = panel.run()  # again: the same row
    recipes = ladder(["esparse"], ["2:4"], ["none"])
    recipes += ladder(["wanda"], ["2:4"], ["gns"], shuffled=["wanda"])
    wanted = perplexity_ladder(loaded, tokens, tokens[:3], recipes, progress=False)
    assert frame.equals(wanted)
    assert weights_fingerprint(loaded.model) == before
    figure = panel.figure()
    assert f"perplexity {frame.perplexity[2]:,.2f}" in figure.layout.title.text.replace("<br>", " ")
    dots = next(t for t in figure.data if t.type == "scatter")
    assert list(dots.x) == list(frame.perplexity[1:])
    table = next(t for t in figure.data if t.type == "table").cells["values"]
    assert list(table[1]) == ["wanda", "esparse", "dense"]
    assert table[5][0] == f"{frame.perplexity[2]:,.2f}"
    given = Recipe(Reading(loaded, tokens), None, tokens[:3], method="wanda", runs=frame)
    assert given.to_frame().equals(frame)
    given.set(search="gns")
    assert f"perplexity {frame.perplexity[2]:,.2f}" in given.figure().layout.title.text.replace(
        "<br>", " "
    )


def test_a_run_in_a_thread_shows_its_progress_and_its_end(panel, loaded, monkeypatch):
    gate = Gate(monkeypatch)
    before = weights_fingerprint(loaded.model)
    assert panel.widget is not None
    panel._run_button.click()
    assert gate.reached.wait(60)
    assert panel._run_button.disabled
    assert not panel._cancel_button.disabled
    assert weights_fingerprint(loaded.model) != before
    panel.set(method="magnitude")  # rows are in hand: predicted all the same
    gate.open.set()
    panel.join()
    assert panel._news.value == "done: esparse 2:4"
    assert panel._cancel_button.disabled
    assert list(panel.to_frame().method) == ["dense", "esparse"]
    assert len(panel.plot.data[1].x) == 1
    assert weights_fingerprint(loaded.model) == before


@pytest.mark.parametrize("stage", ["pruning", "perplexity"])
def test_a_cancelled_run_leaves_the_weights_and_no_row(panel, loaded, tokens, monkeypatch, stage):
    monkeypatch.setattr("esparse_lab.likelihood.sequences_at_once", lambda *_: 1)
    before = weights_fingerprint(loaded.model)
    panel.run()
    panel.set(method="magnitude")
    gate = Gate(monkeypatch, stage)
    assert panel.widget is not None
    panel._run_button.click()
    assert gate.reached.wait(60)
    panel._cancel_button.click()
    gate.open.set()
    panel.join()
    assert "cancelled: magnitude 2:4; the weights are as they were" in panel._news.value
    assert weights_fingerprint(loaded.model) == before
    assert list(panel.to_frame().method) == ["dense", "esparse"]
    panel.run()
    assert list(panel.to_frame().method) == ["dense", "esparse", "magnitude"]


def test_a_run_that_fails_is_told_and_leaves_the_weights(panel, loaded, monkeypatch):
    before = weights_fingerprint(loaded.model)

    def broken(*_args, **_keywords):
        raise RuntimeError("out of <memory>")

    monkeypatch.setattr("esparse_lab.experiments.perplexity", broken)
    assert panel.widget is not None
    panel._run_button.click()
    panel.join()
    assert "RuntimeError: out of &lt;memory&gt;" in panel._problem.value
    assert panel._news.value == "failed: esparse 2:4"
    assert weights_fingerprint(loaded.model) == before
    monkeypatch.undo()
    panel._run_button.click()
    panel.join()
    assert panel._news.value == "done: esparse 2:4"


def test_other_explorers_of_the_model_are_busy_meanwhile(panel, loaded, tokens, monkeypatch):
    other = Recipe(loaded, tokens, tokens, method="wanda")
    channels = Channels(loaded, tokens)
    seen = channels.to_frame()
    gate = Gate(monkeypatch)
    assert other.widget is not None
    panel.start()
    assert gate.reached.wait(60)
    for blocked in (
        lambda: channels.set(block=1),
        lambda: other.set(search="gns"),
        lambda: Channels(loaded, tokens),
        other.run,
    ):
        with pytest.raises(InputError, match="Busy: an explorer is measuring esparse 2:4"):
            blocked()
    other._run_button.click()
    assert "Busy" in other._problem.value
    assert not other._cancel_button.disabled  # it may be the only one left to cancel with
    other._cancel_button.click()
    gate.open.set()
    panel.join()
    assert "cancelled" in panel._news.value
    channels.set(block=1)  # from nothing that was read meanwhile
    assert channels.to_frame().equals(Channels(loaded, tokens, block=1).to_frame())
    channels.set(block=0)
    assert channels.to_frame().equals(seen)
    assert list(other.run().method) == ["dense", "wanda"]


def test_models_of_their_own_do_not_wait_for_each_other(panel, tokens, monkeypatch):
    from tiny_models import random_model

    another = LoadedModel(random_model("llama", seed=1), None, "another", "none")
    gate = Gate(monkeypatch)
    panel.start()
    assert gate.reached.wait(60)
    gate.open.set()
    assert len(Recipe(another, tokens, tokens).run()) == 2
    panel.join()


def test_nothing_to_cancel_is_said(panel):
    with pytest.raises(InputError, match="No run to cancel"):
        panel.cancel()


def test_long_lists_of_runs_are_cut_in_the_figure_alone(panel, tokens):
    frame = panel.run()
    many = frame.loc[[0] + [1] * 20].assign(perplexity=np.arange(21.0) + 5)
    many["settings"] = ["", *(f"ESparse(alpha={i}.5)" for i in range(20))]
    panel = Recipe(panel.reading, None, tokens, runs=many.reset_index(drop=True))
    assert len(panel.to_frame()) == 21
    table = next(t for t in panel.figure().data if t.type == "table").cells["values"]
    assert list(table[5][:2]) == ["25.00", "24.00"]
    assert len(table[5]) == 13
    assert "the latest 12 of 20 runs" in panel.figure().layout.annotations[-1].text.replace(
        "<br>", " "
    )


def test_the_model_computes_the_same_after_all(panel, loaded, tokens):
    before = loaded.model(tokens).logits
    panel.set(method="sparsegpt", reconstruct=True)
    panel.run()
    assert torch.equal(loaded.model(tokens).logits, before)
    assert not any(m._forward_pre_hooks for m in loaded.model.modules())
