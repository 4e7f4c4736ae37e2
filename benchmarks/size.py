"""Pruning at true size, streamed: seconds, peak GPU memory and CPU memory of each block.

    python benchmarks/size.py --work FOLDER [--shape llama-7b] [--blocks 32] [--device cuda]
        [--methods wanda esparse] [--sequences 128] [--length 2048] [--activations device]

Weights are random at the true shape (no published weights are needed to measure size and speed);
tokens are random too. FOLDER needs room for two copies of the model.
"""

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from esparse_lab import Pattern, Recipe, make_method, prune_checkpoint
from esparse_lab.permutation import SEARCHES

# hidden, feed-forward, blocks, query heads, key and value heads
SHAPES = {
    "tiny": (256, 688, 4, 4, 4),
    "llama-7b": (4096, 11008, 32, 32, 32),
    "llama-13b": (5120, 13824, 40, 40, 40),
    "llama-65b": (8192, 22016, 80, 64, 64),
    "llama2-70b": (8192, 28672, 80, 64, 8),
}


def write_random_model(folder: Path, shape: str, blocks: int, device: str) -> None:
    """A Llama of random float16 weights, one file a block."""
    hidden, inner, _, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    kv = hidden // heads * kv_heads
    of_block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    torch.manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return (torch.randn(*size, device=device) * 0.02).half().cpu()

    weight_map: dict[str, str] = {}

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))

    for index in range(blocks):
        prefix = f"model.layers.{index}."
        tensors = {f"{prefix}{path}.weight": normal(*size) for path, size in of_block.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(hidden).half()
        save(f"block-{index:03}.safetensors", tensors)
    rest = {
        "model.embed_tokens.weight": normal(32000, hidden),
        "lm_head.weight": normal(32000, hidden),
    }
    save("rest.safetensors", rest | {"model.norm.weight": torch.ones(hidden).half()})
    index_file = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))


def resident_gib() -> float:
    """Memory of this process now, without files that are only mapped."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", default="llama-7b", choices=SHAPES)
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--methods", nargs="+", default=["wanda", "esparse"])
    parser.add_argument("--search", default="none", choices=SEARCHES)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--activations", default="device", choices=["device", "cpu", "disk"])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    blocks = args.blocks or SHAPES[args.shape][2]
    source = args.work / args.shape
    if not (source / "config.json").is_file():
        started = time.perf_counter()
        source.mkdir(parents=True)
        write_random_model(source, args.shape, blocks, args.device)
        print(f"{args.shape}, {blocks} blocks written in {time.perf_counter() - started:.0f} s")
    tokens = torch.randint(32000, (args.sequences, args.length), generator=torch.manual_seed(0))
    cuda = args.device.startswith("cuda")
    rows = []
    for name in args.methods:
        recipe = Recipe(make_method(name), Pattern.parse(args.pattern), SEARCHES[args.search])
        out = args.work / f"{args.shape}-{name}"
        shutil.rmtree(out, ignore_errors=True)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        clock = [time.perf_counter()]

        def after_block(index: int, name=name, clock=clock) -> None:
            if cuda:
                torch.cuda.synchronize()
            now = time.perf_counter()
            peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
            rows.append(
                {
                    "shape": args.shape,
                    "method": name,
                    "search": args.search,
                    "block": index,
                    "seconds": now - clock[-1],
                    "peak_gpu_gib": peak,
                    "resident_cpu_gib": resident_gib(),
                }
            )
            clock.append(now)

        prune_checkpoint(
            source,
            out,
            tokens,
            recipe,
            device=args.device,
            activations=args.activations,
            progress=False,
            after_block=after_block,
        )
        whole = time.perf_counter() - clock[0]
        shutil.rmtree(out)
        mine = pd.DataFrame(r for r in rows if r["method"] == name)
        print(
            f"{args.shape} {name} {args.pattern} {args.search}: {len(mine)} blocks {whole:.1f} s "
            f"(median {mine.seconds.median():.2f} s a block, first with set-up "
            f"{mine.seconds.iloc[0]:.1f} s), peak GPU {mine.peak_gpu_gib.max():.2f} GiB, CPU "
            f"{mine.resident_cpu_gib.iloc[1:].min():.2f} to {mine.resident_cpu_gib.max():.2f} GiB",
            flush=True,
        )
    frame = pd.DataFrame(rows)
    frame["tokens"] = f"{args.sequences} x {args.length}"
    frame["device"] = torch.cuda.get_device_name() if cuda else "CPU"
    if args.csv:
        frame.to_csv(args.csv, index=False)


if __name__ == "__main__":
    main()
