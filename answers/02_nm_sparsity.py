"""Answers to the exercises of notebooks/02_nm_sparsity.ipynb; `make answers` fills them in."""
# ruff: noqa: F821

# %% answer_1
largest = w.abs().reshape(4, 2, 4).argmax(dim=-1)
answer_1 = torch.nn.functional.one_hot(largest, 4).reshape(4, 8) == 1

# %% answer_2
# From the right: 00, 10 belong to channels 0 to 3; 01, 11 to channels 4 to 7.
answer_2 = [6, 0, -2, 0, 0, 9, 0, 4]

# %% answer_3
answer_3 = (2 * 8 + 2 * 2) / (4 * 8)

# %% answer_4
# Two slots in each of the 8 groups; in each group one of them holds a zero.
answer_4 = 8 * 2

# %% answer_5
answer_5 = math.comb(4, 2) ** 2 / math.comb(8, 4)

# %% answer_6
pruned = weight * el.Pattern(1, 4).mask(weight.abs())
whole = x.flatten(0, 1) @ weight.T
lost = whole - x.flatten(0, 1) @ pruned.T
answer_6 = lost.square().sum() / whole.square().sum()

# %% answer_7
count_7 = torch.histc(x[:, :, 5], bins=10)
share_7 = count_7[count_7 > 0] / count_7.sum()
answer_7 = -(share_7 * share_7.log()).sum()

# %% answer_8
answer_8 = weight[0].abs() * (stats.entropy + 1 * stats.norm)
