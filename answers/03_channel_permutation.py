"""Answers to the exercises of notebooks/03_channel_permutation.ipynb; `make answers` fills them in."""
# ruff: noqa: F821, E402, E501

# %% answer_1
# Best first: 12 and 11 and 10 (channels 8, 10, 11) open the groups, then 9, 8, 7 and so on.
answer_1 = [2, 2, 2, 0, 1, 1, 0, 0, 0, 1, 1, 2]

# %% answer_2
import math

answer_2 = math.factorial(16) // math.factorial(4) ** 4 // math.factorial(4)

# %% answer_3
place_a, place_b = (int((dealt == channel).nonzero()) for channel in (0, 11))
trial = dealt.clone()
trial[[place_a, place_b]] = dealt[[place_b, place_a]]
before, after = (small[:, order].reshape(4, -1, 4).topk(2).values.sum() for order in (dealt, trial))
answer_3 = after - before

# %% answer_4
answer_4 = swapped
