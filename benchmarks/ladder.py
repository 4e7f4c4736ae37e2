"""The perplexity ladder of a model: methods x patterns x channel orders, with and without solving.

    python benchmarks/ladder.py --out reports/reference --name methods_seed0 --seed 0 --reconstruct
        --corpus c4_sample.jsonl --test wiki.test.raw

Writes the tables that notebook 04_perplexity shows beside a quick run of its own: those of one
calibration seed each. The table is on disk after every cell, and a run that was stopped goes on
where it was; its record is written at the end. A search is tried at N:M patterns alone: without
groups of channels their order changes nothing.
"""

import argparse
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.capture import BlockWalk
from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.experiments import ladder, ladder_rows, ladder_table, weights_restored
from esparse_lab.methods import METHODS, ESparse
from esparse_lab.models import load_model
from esparse_lab.permutation import SEARCHES
from esparse_lab.pruning import Recipe, layer_sparsities, prune_block, twin_of
from esparse_lab.run_record import Run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="ladder", help="of the table and its record")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--patterns", nargs="+", default=["2:4", "4:8", "50%"])
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES))
    parser.add_argument("--reconstruct", action="store_true", help="also solve for kept weights")
    parser.add_argument("--calibration", default="sequential", help="see Recipe")
    parser.add_argument("--alpha", type=float, default=ESparse().alpha)
    parser.add_argument("--norm-scale", default=ESparse().norm_scale)
    parser.add_argument("--corpus", default="wikipedia", help="calibration text: a name or a path")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--draw", default="windows", help="windows or documents (Wanda's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test", default="wikipedia", help="test text: a name or a path")
    parser.add_argument("--test-windows", type=int, help="the first ones; all when left out")
    return parser.parse_args()


def warm_up(model: PreTrainedModel, tokens: Tensor, recipes: list[Recipe]) -> None:
    """Compile every kernel, on the first block: that is no time of a method's."""
    with weights_restored(model):
        for recipe in {(type(r.method), r.pattern): r for r in recipes}.values():
            if recipe.needs is None:
                continue
            walk = BlockWalk.start(model, tokens)
            twin = twin_of(walk, recipe)
            prune_block(
                walk.blocks[0], walk, twin, 0, recipe, layer_sparsities(model, tokens, recipe)
            )


def main() -> None:
    args = arguments()
    run = Run(args.name, args.out)
    recipes = ladder(
        args.methods,
        args.patterns,
        args.searches,
        shuffled=args.methods,
        reconstruct=args.reconstruct,
        calibration=args.calibration,
        **{"alpha": args.alpha, "norm_scale": args.norm_scale},
    )
    loaded = load_model(args.model, dtype=args.dtype, device=args.device)
    texts = {
        "calibration": load_corpus(args.corpus, "train"),
        "test": load_corpus(args.test, "test"),
    }
    tokens = {
        "calibration": token_windows(
            loaded.tokenizer,
            texts["calibration"],
            split="train",
            length=args.length,
            count=args.sequences,
            seed=args.seed,
            draw=args.draw,
        ),
        "test": token_windows(
            loaded.tokenizer,
            texts["test"],
            split="test",
            length=args.length,
            count=args.test_windows,
        ),
    }
    if loaded.model.device.type == "cuda":
        warm_up(loaded.model, tokens["calibration"][:8], recipes)
    rows = []
    for row in ladder_rows(loaded, tokens["calibration"], tokens["test"], recipes):
        rows.append(row)
        run.save_table("perplexity", ladder_table(rows))
        print(
            f"{len(rows) - 1:>3}/{len(recipes)} {row['method']} {row['pattern']} {row['search']}"
            f"{' + reconstruct' if row['reconstruct'] else ''}: perplexity "
            f"{row['perplexity']:.2f}, {row['prune_seconds']:.1f} s"
            + ("" if row["peak_memory_gib"] is None else f", {row['peak_memory_gib']:.2f} GiB"),
            flush=True,
        )
    run.finish(
        model=loaded,
        tokens=tokens,
        corpora=texts,
        seed=args.seed,
        draw=args.draw,
        alpha=args.alpha,
        norm_scale=args.norm_scale,
    )


if __name__ == "__main__":
    main()
