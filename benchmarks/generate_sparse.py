"""A real model, pruned 2:4 and converted, writes text: the same as its masked dense form?

    python benchmarks/generate_sparse.py --out reports/reference
        [--model smollm2-135m] [--corpus wikipedia] [--method wanda] [--new 64]

Both forms hold the same weights in float16 and continue the same prompts greedily. Where their
tokens part, the table says by how much the dense form preferred its own token: rounding can turn
round two that are nearly alike, and nothing more.
"""

import argparse
import copy
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel

from esparse_lab.corpora import token_windows
from esparse_lab.gemm.convert import sparsify
from esparse_lab.masks import Pattern
from esparse_lab.methods import make_method
from esparse_lab.models import load_model
from esparse_lab.pruning import prune_model
from esparse_lab.recipes import Recipe
from esparse_lab.run_record import Run


@torch.inference_mode()
def continued(model: PreTrainedModel, prompts: torch.Tensor, new: int) -> torch.Tensor:
    """Greedy continuations, int64 [prompt, new]."""
    ids = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return ids[:, prompts.shape[1] :]


@torch.inference_mode()
def parting(dense: PreTrainedModel, prompt: torch.Tensor, mine: torch.Tensor, other: torch.Tensor):
    """Where two continuations part (None: nowhere), and the dense form's preference in logits."""
    differing = (mine != other).nonzero()
    if not len(differing):
        return None, 0.0
    at = int(differing[0])
    logits = dense(torch.cat([prompt, mine[:at]])[None]).logits[0, -1].float()
    return at, float(logits[mine[at]] - logits[other[at]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--corpus", default="wikipedia")
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    run = Run("generate_h100", args.out)
    loaded = load_model(args.model, dtype="float16", device="cuda")
    model, tokenizer = loaded.model, loaded.tokenizer
    calibration = token_windows(
        tokenizer, args.corpus, split="train", length=1024, count=32, seed=0
    )
    prune_model(model, calibration, Recipe(make_method(args.method), Pattern(2, 4)))
    prompts = token_windows(tokenizer, args.corpus, split="test", length=64, count=16, seed=0)
    prompts = prompts.cuda()
    sparse = copy.deepcopy(model)
    layers = sparsify(sparse, tokens=[16, 1024], policy="sparse")
    with torch.inference_mode():
        dense_logits, sparse_logits = (m(prompts).logits.float() for m in (model, sparse))
    error = float((sparse_logits - dense_logits).norm() / dense_logits.norm())
    rows = []
    theirs, ours = (continued(m, prompts, args.new) for m in (model, sparse))
    for i, prompt in enumerate(prompts):
        at, preference = parting(model, prompt, theirs[i], ours[i])
        rows.append(
            {
                "prompt": tokenizer.decode(prompt[-24:]),
                "dense": tokenizer.decode(theirs[i]),
                "sparse": tokenizer.decode(ours[i]),
                "same_tokens": int((theirs[i] == ours[i]).sum()) if at is None else at,
                "parts_at": at,
                "preference": preference,
            }
        )
    table = pd.DataFrame(rows)
    run.save_table("texts", table)
    run.finish(
        device=torch.cuda.get_device_name(),
        model=loaded,
        tokens={"calibration": calibration, "prompts": prompts},
        seed=0,
        logits_error=error,
        same=int(table.parts_at.isna().sum()),
        new=args.new,
        dense_bytes=sum(layer.dense_bytes for layer in layers),
        stored_bytes=sum(layer.stored_bytes for layer in layers),
    )
    print(table[["same_tokens", "parts_at", "preference"]].to_string())
    print(rows[0]["prompt"], "|", rows[0]["sparse"])
    print("logits error", error)


if __name__ == "__main__":
    main()
