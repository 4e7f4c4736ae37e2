"""The perplexity ladder of a model at full calibration: methods x patterns x channel orders.

    python benchmarks/ladder.py --out reports/reference [--device cuda] [--sequences 128]
        [--length 2048] [--alpha 1.0] [--corpus wikipedia] [--test PATH]

Writes the table that notebook 04_perplexity shows beside a quick run of its own.
"""

import argparse
from pathlib import Path

from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.experiments import ladder, perplexity_ladder
from esparse_lab.methods import ESparse
from esparse_lab.models import load_model
from esparse_lab.permutation import SEARCHES
from esparse_lab.run_record import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="ladder")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--alpha", type=float, default=ESparse().alpha)
    parser.add_argument("--norm-scale", default=ESparse().norm_scale)
    parser.add_argument("--corpus", default="wikipedia", help="calibration text: a name or a path")
    parser.add_argument("--test", default="wikipedia", help="test text: a name or a path")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run = Run(args.name, args.out)
    loaded = load_model(args.model, device=args.device)
    calibration = token_windows(
        loaded.tokenizer,
        args.corpus,
        split="train",
        length=args.length,
        count=args.sequences,
        seed=args.seed,
    )
    test = token_windows(loaded.tokenizer, args.test, split="test", length=args.length)
    recipes = ladder(
        ["magnitude", "wanda", "esparse"],
        ["2:4", "4:8"],
        SEARCHES,
        shuffled=["wanda", "esparse"],
        alpha=args.alpha,
        norm_scale=args.norm_scale,
    )
    frame = perplexity_ladder(loaded, calibration, test, recipes, progress=False)
    run.save_table("perplexity", frame)
    run.finish(
        model=loaded,
        tokens={"calibration": calibration, "test": test},
        corpora={
            "calibration": load_corpus(args.corpus, "train"),
            "test": load_corpus(args.test, "test"),
        },
        seed=args.seed,
        alpha=args.alpha,
        norm_scale=args.norm_scale,
    )
    print(frame.drop(columns=["settings", "dense"]).to_string(index=False))


if __name__ == "__main__":
    main()
