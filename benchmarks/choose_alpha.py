"""Choose E-Sparse's default alpha: a sweep on validation text, never on test.

    python benchmarks/choose_alpha.py --out reports/reference [--sequences 128] [--length 2048]

For each way to scale the norm and each alpha, the embedded model is pruned 2:4 (statistics from the
embedded corpus' train split) and its perplexity on the validation split taken, once with channels
in their own order and once after GNS+LBS. alpha = 0 is the entropy alone; a large alpha is Wanda.
"""

import argparse
from pathlib import Path

from esparse_lab import ESparse, Pattern, Recipe, Wanda
from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.experiments import perplexity_ladder
from esparse_lab.models import load_model
from esparse_lab.recipes import named_search
from esparse_lab.run_record import Run

ALPHAS = {
    "wanda": [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0],
    "relative": [0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--windows", type=int)
    args = parser.parse_args()
    run = Run("choose_alpha", args.out)
    loaded = load_model("smollm2-135m", device=args.device)
    calibration = token_windows(
        loaded.tokenizer,
        "wikipedia",
        split="train",
        length=args.length,
        count=args.sequences,
        seed=0,
    )
    validation = token_windows(
        loaded.tokenizer, "wikipedia", split="validation", length=args.length, count=args.windows
    )
    methods = [Wanda()]
    methods += [ESparse(a, norm_scale=s) for s, alphas in ALPHAS.items() for a in alphas]
    methods += [ESparse(form="product")]
    recipes = [
        Recipe(method, Pattern(2, 4), named_search(search))
        for search in ("none", "gns+lbs")
        for method in methods
    ]
    frame = perplexity_ladder(loaded, calibration, validation, recipes, progress=False)
    tried = [None, *(recipe.method for recipe in recipes)]  # the dense model comes first
    for setting in ("form", "norm_scale", "alpha"):
        frame[setting] = [getattr(method, setting, None) for method in tried]
    sweep = frame.sort_values(["search", "perplexity"])
    run.save_table("sweep", sweep)
    run.finish(
        model=loaded,
        tokens={"calibration": calibration, "validation": validation},
        corpora={
            "calibration": load_corpus("wikipedia", "train"),
            "validation": load_corpus("wikipedia", "validation"),
        },
        seed=0,
    )
    columns = ["method", "form", "norm_scale", "alpha", "search", "perplexity", "retained_share"]
    print(sweep[columns].to_string(index=False))


if __name__ == "__main__":
    main()
