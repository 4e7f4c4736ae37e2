"""The map shows each activation of a block once, as the plan says, and safe text."""

import json

import pytest
from tiny_models import random_model

from esparse_lab import InputError, plan_table
from esparse_lab.figures import OKABE_ITO, plan_map

GREEN, ORANGE, RED = OKABE_ITO[2], OKABE_ITO[4], OKABE_ITO[1]


def arrows(figure) -> list[tuple[str, str]]:
    drawn = [trace for trace in figure.data if not trace.showlegend]
    return [(t.line.color, t.line.dash) for t in drawn]


def texts(figure) -> list[str]:
    return [a.text.replace("<br>", "") for a in figure.layout.annotations]


def test_a_llama_block_has_an_arrow_for_each_matrix_that_reads_or_writes():
    figure = plan_map(plan_table(random_model("llama")), block=1, title="t", caption="c")
    # Norms to q, k, v and gate, up; v to o, gate and up to down.
    assert sorted(arrows(figure)) == sorted([(ORANGE, "dash")] * 5 + [(GREEN, "solid")] * 3)
    named = [t.name for t in figure.data if t.showlegend]
    assert named == ["gather after the norm (6 of 12)", "free: rows take the order (6 of 12)"]
    roles = ["q", "k", "v", "o", "gate", "up", "down"]
    assert {f"{role}_proj" for role in roles} <= set(texts(figure))
    assert len(figure.layout.shapes) == 7 + 2
    assert "within heads of 8,alike in 3 query heads" in texts(figure)
    assert figure.layout.title.text == "t"


def test_what_is_impossible_is_drawn_apart():
    model = random_model("opt", do_layer_norm_before=False)
    figure = plan_map(plan_table(model), block=0)
    assert sorted(arrows(figure)) == sorted([(RED, "dot")] * 4 + [(GREEN, "solid")] * 2)
    assert texts(figure).count("keeps its order") == 2


def test_experts_are_drawn_once_and_shared_orders_named():
    figure = plan_map(plan_table(random_model("mixtral")), block=2)
    assert texts(figure).count("each expert's gate_up_proj") == 1
    assert "any order,one for all that read it" in texts(figure)


def test_what_cannot_be_drawn_says_so():
    frame = plan_table(random_model("llama"))
    with pytest.raises(InputError, match="no block 3: 2 is the last"):
        plan_map(frame, block=3)
    with pytest.raises(InputError, match="plan_map misses the column why"):
        plan_map(frame.drop(columns="why"))


def test_names_cannot_inject_tags():
    frame = plan_table(random_model("llama"))
    bad = "<img src=x onerror=alert(1)> & $x$"
    for column in ("layers", "constraint", "why"):
        frame.loc[frame.how == "gather", column] = bad
    drawn = plan_map(frame, title=bad, caption=bad).to_plotly_json()
    shown = json.dumps(drawn["layout"]["annotations"], default=str) + str(drawn["data"])
    assert "&lt;img" in shown
    assert "<img" not in shown
    assert "$x" not in shown
