"""Laws of what every method chooses; a new method is covered by name."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from oracles import layer_case
from torch import Tensor

from esparse_lab import METHODS, LayerStats, Pattern, Reconstruction
from esparse_lab.masks import Unstructured
from esparse_lab.methods import PruningMethod

PATTERNS = [Pattern(2, 4), Pattern(4, 8), Pattern(1, 4), Pattern(3, 4), Pattern(3, 5)]
WITHOUT_GROUPS = [Unstructured(0.5), Unstructured(0.3), Unstructured(0.4, "layer")]
SPARSITIES = PATTERNS + WITHOUT_GROUPS


@dataclass(frozen=True)
class Subject:
    """A method and the kind of layer that it meets."""

    method: PruningMethod
    before_activation: bool = False

    def stats(self, activations: Tensor, rows: int) -> LayerStats:
        stats = LayerStats.of(activations)
        if self.before_activation:
            norm = torch.rand(rows, generator=torch.Generator().manual_seed(rows))
            stats = replace(stats, output_norm=norm * 30)
        return stats

    def choose(self, weight: Tensor, activations: Tensor, sparsity):
        return self.method.choose(weight, self.stats(activations, len(weight)), sparsity)


SUBJECTS = {name: Subject(kind()) for name, kind in METHODS.items()}
SUBJECTS["dass before the activation"] = Subject(METHODS["dass"](), before_activation=True)


@pytest.fixture(params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]


def those(holds) -> dict[str, list]:
    """Arguments of `parametrize` for the subjects of which `holds` is true."""
    names = [name for name, subject in SUBJECTS.items() if holds(subject)]
    return {"argnames": "subject", "argvalues": [SUBJECTS[n] for n in names], "ids": names}


def after(weight: Tensor, choice) -> Tensor:
    return weight * choice.mask if choice.weight is None else choice.weight


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("rows", "channels"), [(16, 24), (13, 22), (3, 3)])
def test_every_group_keeps_exactly_n(subject, pattern, rows, channels):
    if subject.method.updates_weights:  # sweeps hold whole groups
        subject = replace(subject, method=replace(subject.method, block=pattern.m * 2))
    weight, activations = layer_case(seed=1, rows=rows, channels=channels)
    choice = subject.choose(weight, activations, pattern)
    assert choice.mask.shape == weight.shape
    assert choice.mask.dtype == torch.bool
    axis = subject.method.group_axis(subject.stats(activations, rows))
    assert axis == ("out" if subject.before_activation else "in")
    for line in (choice.mask if axis == "in" else choice.mask.T).tolist():
        for left in range(0, len(line), pattern.m):
            group = line[left : left + pattern.m]
            assert sum(group) == min(pattern.n, len(group))


@pytest.mark.parametrize("sparsity", WITHOUT_GROUPS, ids=str)
def test_without_groups_the_share_is_kept(subject, sparsity):
    weight, activations = layer_case(seed=2, rows=12, channels=22)
    mask = subject.choose(weight, activations, sparsity).mask
    if sparsity.within == "layer":
        assert int(mask.sum()) == math.ceil(sparsity.density * 12 * 22)
    elif subject.before_activation:
        assert mask.sum(dim=0).tolist() == [math.ceil(sparsity.density * 12)] * 22
    else:
        assert mask.sum(dim=1).tolist() == [math.ceil(sparsity.density * 22)] * 12


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), *WITHOUT_GROUPS], ids=str)
def test_only_some_methods_touch_kept_weights(subject, sparsity):
    weight, activations = layer_case(seed=3)
    choice = subject.choose(weight, activations, sparsity)
    if not subject.method.updates_weights:
        assert choice.weight is None
        return
    assert choice.weight.shape == weight.shape
    assert choice.weight.dtype == torch.float32
    assert not choice.weight[~choice.mask].any()
    assert choice.weight.isfinite().all()
    assert not torch.equal(choice.weight, weight * choice.mask)


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5)], ids=str)
@pytest.mark.parametrize(**those(lambda subject: subject.method.rows_are_apart))
def test_rows_are_apart_where_the_method_says_so(subject, sparsity):
    weight, activations = layer_case(seed=4, rows=12)
    together = subject.choose(weight, activations, sparsity)
    parts = weight.split([3, 1, 8])
    apart = [subject.choose(part, activations, sparsity) for part in parts]
    assert torch.equal(torch.cat([choice.mask for choice in apart]), together.mask)
    torch.testing.assert_close(
        torch.cat([after(part, choice) for part, choice in zip(parts, apart, strict=True)]),
        after(weight, together),
        rtol=1e-4,
        atol=1e-5,
    )


def test_rias_rows_are_not_apart():
    weight, activations = layer_case(seed=5, rows=16)
    weight[8:] *= torch.linspace(0.1, 10, 24)
    ria = SUBJECTS["ria"]
    together = ria.choose(weight, activations, Pattern(2, 4)).mask
    apart = [ria.choose(part, activations, Pattern(2, 4)).mask for part in weight.split(8)]
    assert not torch.equal(torch.cat(apart), together)


@pytest.mark.parametrize("sparsity", SPARSITIES[:2] + WITHOUT_GROUPS, ids=str)
@pytest.mark.parametrize("factor", [2.0, -0.25])
def test_a_factor_of_the_weights_changes_no_mask(subject, sparsity, factor):
    weight, activations = layer_case(seed=6)
    once = subject.choose(weight, activations, sparsity)
    scaled = subject.choose(factor * weight, activations, sparsity)
    assert torch.equal(scaled.mask, once.mask)
    if once.weight is not None:
        assert torch.equal(scaled.weight, factor * once.weight)


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5)], ids=str)
# E-Sparse adds an entropy, which has no unit, to the norm.
@pytest.mark.parametrize(**those(lambda s: s != SUBJECTS["esparse"]))
def test_the_loudness_of_the_whole_input_changes_no_mask(subject, sparsity):
    weight, activations = layer_case(seed=7)
    once = subject.choose(weight, activations, sparsity)
    louder = subject.choose(weight, 16 * activations, sparsity)
    assert torch.equal(louder.mask, once.mask)
    torch.testing.assert_close(after(weight, louder), after(weight, once))


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), *WITHOUT_GROUPS], ids=str)
def test_two_runs_give_the_same_bits_and_leave_their_inputs(subject, sparsity):
    weight, activations = layer_case(seed=8, channels=40)
    stats = subject.stats(activations, len(weight))
    kept, gram = weight.clone(), stats.gram.clone()
    first, second = (subject.method.choose(weight, stats, sparsity) for _ in range(2))
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(after(weight, first), after(weight, second))
    assert torch.equal(weight, kept)
    assert torch.equal(stats.gram, gram)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5)], ids=str)
def test_halves_are_chosen_as_their_float32_is(subject, dtype, sparsity):
    weight, activations = layer_case(seed=9)
    half = weight.to(dtype)
    from_half = subject.choose(half, activations, sparsity)
    from_float = subject.choose(half.float(), activations, sparsity)
    assert torch.equal(from_half.mask, from_float.mask)
    if subject.method.updates_weights:
        assert torch.equal(from_half.weight, from_float.weight)


def unusual(case: str) -> tuple[Tensor, Tensor]:
    shape = {"one row": (1, 24), "one column": (5, 1), "one weight": (1, 1)}.get(case, (5, 24))
    weight, activations = layer_case(seed=10, rows=shape[0], channels=shape[1])
    if case == "weights all zero":
        weight.zero_()
    if case == "a row and a column of zeros":
        weight[1] = 0
        weight[:, 2] = 0
    if case == "activations all zero":
        activations.zero_()
    if case == "dead channels":
        activations[:, 4:9] = 0
    if case == "twin channels":
        activations[:, 3] = activations[:, 1]
    if case == "fewer tokens than channels":
        activations = activations[:3]
    if case == "loud channel":
        activations[:, 0] *= 3000
    return weight, activations


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), *WITHOUT_GROUPS], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        "one row",
        "one column",
        "one weight",
        "weights all zero",
        "a row and a column of zeros",
        "activations all zero",
        "dead channels",
        "twin channels",
        "fewer tokens than channels",
        "loud channel",
    ],
)
def test_unusual_layers_are_pruned_like_any_other(subject, sparsity, case):
    weight, activations = unusual(case)
    choice = subject.choose(weight, activations, sparsity)
    if isinstance(sparsity, Pattern):
        groups = choice.mask.T if subject.before_activation else choice.mask
        expected = sum(min(2, groups.shape[1] - left) for left in range(0, groups.shape[1], 4))
        assert groups.sum(dim=1).tolist() == [expected] * len(groups)
    elif sparsity.within == "layer":
        assert int(choice.mask.sum()) == math.ceil(sparsity.density * weight.numel() - 1e-9)
    result = after(weight, choice)
    assert result.isfinite().all()
    solved = Reconstruction().solve(weight, choice.mask, LayerStats.of(activations))
    assert solved.isfinite().all()
    if case == "weights all zero":
        assert not result.any()
        assert not solved.any()


@pytest.mark.parametrize("sparsity", [Pattern(2, 4), Unstructured(0.5)], ids=str)
# A sweep sees its channels from left to right.
@pytest.mark.parametrize(**those(lambda s: not (s.method.updates_weights or s.before_activation)))
def test_the_order_inside_a_group_does_not_matter(subject, sparsity):
    weight, activations = layer_case(seed=11, rows=8)
    stats = subject.stats(activations, 8)
    order = torch.tensor([3, 0, 2, 1]).repeat(6) + torch.arange(0, 24, 4).repeat_interleave(4)
    permuted = subject.method.choose(weight[:, order], stats.ordered(order), sparsity).mask
    assert torch.equal(permuted, subject.method.choose(weight, stats, sparsity).mask[:, order])
