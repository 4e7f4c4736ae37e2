"""Draw the README's pictures from the embedded model: a figure and two explorers.

    python benchmarks/readme_figure.py reports/reference/figures

Writes channels.png, map.png and shuffle.png. Needs Chromium (for kaleido).
"""

import sys
from pathlib import Path

from esparse_lab import Histogram, Needs, explorers, find_layer, load_model, token_windows
from esparse_lab.figures import channel_figure
from esparse_lab.tables import channel_table


def main(folder: str) -> None:
    loaded = load_model("smollm2-135m", device="cpu")
    tokens = token_windows(
        loaded.tokenizer, "wikipedia", split="train", length=512, count=8, seed=0
    )
    reading = explorers.Reading(loaded, tokens)
    near = {"rows": (0, 24), "channels": (0, 48)}
    layers = [find_layer(loaded.model, 3, role) for role in ("q_proj", "o_proj")]
    stats = reading.block_stats(3, Needs(Histogram()))
    channels = channel_figure(
        channel_table({layer: stats[layer] for layer in layers}),
        title="Norm and entropy of input channels, SmolLM2-135M, block 3",
        caption="The layout of the paper's Figure 2. 8 × 512 tokens of Wikipedia; 100 bins over "
        "each channel's range. Notebook 01_channel_statistics.",
    )
    panels = {
        "map": explorers.Model(reading, measure="disagreement", block=0, role="o_proj"),
        "shuffle": explorers.Shuffle(reading, block=0, role="q_proj", **near),
    }
    figures = {"channels": channels} | {name: panel.figure() for name, panel in panels.items()}
    for name, figure in figures.items():
        path = Path(folder, f"{name}.png")
        figure.write_image(path, width=840, height=figure.layout.height, scale=0.9)


if __name__ == "__main__":
    main(sys.argv[1])
