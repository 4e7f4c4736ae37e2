"""Methods side by side on matrices worked by hand."""

import pytest
import torch

import esparse_lab as el
from esparse_lab.channel_stats import LayerStats
from esparse_lab.comparison import comparison_table, outcome_of

# Two tokens in one sequence; norms 1, 2, 1, 4; channels 0 and 2 are orthogonal to all others.
X = torch.tensor([[[1.0, 0, 0, 0], [0, 2, 0, 4], [0, 0, 1, 0]]])
W = torch.tensor([[4.0, 3.0, -2.0, 1.0]])


def outcomes():
    stats = LayerStats.of(X)
    return {
        name: outcome_of(el.make_method(name), W, stats, el.Pattern(2, 4))
        for name in ("wanda", "magnitude")
    }


def test_a_hand_worked_row():
    table = comparison_table(outcomes()).set_index("method")
    # Wanda: 4, 6, 2, 4 keeps channels 0 and 1 (a tie goes to the lower one), as magnitude does.
    assert table.disagreement.tolist() == [0, 0]
    assert table.retained_share.tolist() == pytest.approx([10 / 16, 7 / 10])
    # Outputs: 4, 6 + 4 = 10, -2; without channels 2 and 3: 4, 6, 0.
    assert table.output_error.tolist() == pytest.approx([(16 + 4) / (16 + 100 + 4)] * 2)
    assert table.kept_share.tolist() == [0.5, 0.5]


def test_where_two_methods_differ():
    stats = LayerStats.of(X)
    weight = torch.tensor([[4.0, 3.0, -2.0, 2.5]])  # Wanda: 4, 6, 2, 10
    pair = {
        name: outcome_of(el.make_method(name), weight, stats, el.Pattern(2, 4))
        for name in ("wanda", "magnitude")
    }
    assert pair["wanda"].choice.mask.tolist() == [[False, True, False, True]]
    table = comparison_table(pair).set_index("method")
    assert table.disagreement.tolist() == [0, 0.5]
    assert table.score_given_up.tolist() == pytest.approx([0, (16 - 10) / 16])


def test_without_a_gram_matrix_there_is_no_output_error():
    outcome = outcome_of(el.Wanda(), W, LayerStats.of(X, gram=False), el.Pattern(2, 4))
    assert outcome.output_error is None
    assert comparison_table({"wanda": outcome}).output_error.isna().all()


def test_nothing_is_written_to_the_weights():
    weight = W.clone()
    outcome_of(el.SparseGPT(), weight, LayerStats.of(X), el.Pattern(2, 4))
    assert torch.equal(weight, W)
