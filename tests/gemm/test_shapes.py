"""The products that are timed: the paper's as printed, a model's worked by hand."""

import pytest

from esparse_lab import PAPER_SHAPES, GemmShape, InputError, model_shapes
from esparse_lab.tables import paper_table


def test_the_papers_shapes_are_the_printed_ones_in_their_order():
    printed = paper_table(5)[["stage", "layer", "m", "k", "n"]].drop_duplicates()
    stage = {"context": "Context-stage", "decode": "Decoder"}
    ours = [(stage[s.name.split()[0]], s.name.split()[1], s.m, s.k, s.n) for s in PAPER_SHAPES]
    assert ours == list(printed.itertuples(index=False, name=None))


def test_llama_7b_has_three_different_weights():
    # Hidden 4096, feed-forward 11008; query, key, value and output projections are alike.
    found = [(s.name, s.m, s.k, s.n) for s in model_shapes("LLaMA-7B", [16, 4096])]
    assert found == [
        (name, m, k, n)
        for m in (16, 4096)
        for name, k, n in (
            ("q_proj k_proj v_proj o_proj", 4096, 4096),
            ("gate_proj up_proj", 4096, 11008),
            ("down_proj", 11008, 4096),
        )
    ]


def test_a_shape_is_read_as_tokens_inputs_outputs():
    assert GemmShape.parse("16, 4096,11008") == GemmShape("16,4096,11008", 16, 4096, 11008)


@pytest.mark.parametrize("text", ["16", "16,4096", "1,2,3,4", "a,b,c", "1.5,2,3", "", "0,16,16"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(InputError, match=r"M,K,N|at least 1"):
        GemmShape.parse(text)
