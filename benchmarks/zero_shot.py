"""Table 2 on one GPU: the dense model and nine recipes on the five tasks, whole.

    python benchmarks/zero_shot.py --data shared/data --corpus shared/data/c4_sample.jsonl
        --out reports/reference

Reads local files and scores them without lm-evaluation-harness, so it runs where nothing can be
fetched: it needs torch, transformers, pandas and pyarrow alone. Tables are on disk after every
recipe, and a run that was stopped goes on where it was; its record is written at the end. Notebook
05_zero_shot shows what it leaves in reports/reference.
"""

import argparse
import io
import time
from pathlib import Path

import pandas as pd

from esparse_lab.atomic import write_atomically
from esparse_lab.corpora import load_corpus, token_windows
from esparse_lab.methods import make_method
from esparse_lab.models import load_model
from esparse_lab.recipes import recipe_of
from esparse_lab.run_record import Run
from esparse_lab.tasks import DENSE, TASKS, paired_difference, task_ladder
from esparse_lab.tasks.ladder import KEPT
from esparse_lab.tasks.paired import KEYS

# Those of the paper's Table 2, then each part alone, then what the lab has beyond the paper.
RECIPES = (
    ("magnitude", "none", False),
    ("sparsegpt", "none", False),
    ("wanda", "none", False),
    ("esparse", "gns+lbs", False),
    ("esparse", "none", False),
    ("wanda", "gns+lbs", False),
    ("sparsegpt", "gns+lbs", False),
    ("isc", "gns+lbs", False),
    ("mask_descent", "gns+lbs", True),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default=KEPT, help="of the tables and their record")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--limit", type=int, help="first questions of each task; all if left out")
    parser.add_argument("--patterns", nargs="+", default=["2:4"])
    parser.add_argument("--recipes", type=int, default=len(RECIPES), help="try the first ones")
    parser.add_argument("--corpus", default="wikipedia", help="calibration text: a name or a path")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--draw", default="windows", help="windows or documents (Wanda's)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    run = Run(args.name, args.out)
    asked = {"tasks": args.tasks, "limit": args.limit, "data": args.data}
    recipes = [
        recipe_of(make_method(method), pattern=pattern, search=search, reconstruct=solved)
        for pattern in args.patterns
        for method, search, solved in RECIPES[: args.recipes]
    ]
    loaded = load_model(args.model, dtype=args.dtype, device=args.device)
    text = load_corpus(args.corpus, "train")
    tokens = token_windows(
        loaded.tokenizer,
        text,
        split="train",
        length=args.length,
        count=args.sequences,
        seed=args.seed,
        draw=args.draw,
    )
    accuracy, paired, items = [], [], []
    started = time.perf_counter()
    for label, scores in task_ladder(loaded, tokens, recipes, **asked, progress=False):
        accuracy.append(scores.table.assign(model=label))
        items.append(scores.items.set_index(KEYS).value.astype("int8").rename(label))
        if label == DENSE:
            dense = scores.items
        else:
            paired.append(paired_difference(scores.items, dense).assign(model=label))
            run.save_table("paired", pd.concat(paired, ignore_index=True))
        run.save_table("accuracy", pd.concat(accuracy, ignore_index=True))
        # A row a question and metric, a column a model: small enough to keep.
        table = io.BytesIO()
        pd.concat(items, axis=1).reset_index().to_parquet(table, index=False)
        write_atomically(args.out / "tables" / f"{args.name}.items.parquet", table.getvalue())
        means = scores.table[scores.table.task == "mean"].set_index("metric").value
        print(
            f"{time.perf_counter() - started:7.1f} s  {label}: "
            + ", ".join(f"mean {metric} {value:.4f}" for metric, value in means.items()),
            flush=True,
        )
    run.finish(
        model=loaded,
        tokens={"calibration": tokens},
        corpora={"calibration": text},
        seed=args.seed,
        draw=args.draw,
        limit=args.limit,
        questions=scores.source,
    )


if __name__ == "__main__":
    main()
