"""Draw the README's picture: the paper's Figure 2 for two layers of the embedded model.

    python benchmarks/readme_figure.py reports/reference/figures/channels.png

Needs Chromium (for kaleido).
"""

import sys

from esparse_lab import collect_layer_stats, find_layer, load_model, token_windows
from esparse_lab.figures import channel_figure
from esparse_lab.tables import channel_table


def main(path: str) -> None:
    loaded = load_model("smollm2-135m", device="cpu")
    tokens = token_windows(
        loaded.tokenizer, "wikipedia", split="train", length=512, count=8, seed=0
    )
    stats = collect_layer_stats(loaded.model, tokens)
    layers = [find_layer(loaded.model, 3, role) for role in ("q_proj", "down_proj")]
    figure = channel_figure(
        channel_table({layer: stats[layer] for layer in layers}),
        title="Norm and entropy of input channels, SmolLM2-135M, block 3",
        caption="The layout of the paper's Figure 2. 8 × 512 tokens of Wikipedia; 100 bins over "
        "each channel's range. Notebook 01_channel_statistics.",
    )
    figure.write_image(path, width=1000, height=figure.layout.height, scale=1.5)


if __name__ == "__main__":
    main(sys.argv[1])
