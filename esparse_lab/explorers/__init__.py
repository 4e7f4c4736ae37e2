"""Explorers: a model seen layer by layer, live in a notebook and as a figure in a report.

Each is one call in a notebook, such as `explorers.Channels(loaded, tokens)`, and a `Panel`.
"""

from esparse_lab.explorers.channels import Channels
from esparse_lab.explorers.masks import Masks
from esparse_lab.explorers.model_map import Model
from esparse_lab.explorers.panel import Panel
from esparse_lab.explorers.reading import Reading
from esparse_lab.explorers.recipe import Recipe
from esparse_lab.explorers.shuffle import Shuffle

__all__ = ["Channels", "Masks", "Model", "Panel", "Reading", "Recipe", "Shuffle"]
