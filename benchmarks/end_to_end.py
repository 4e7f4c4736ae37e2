"""A whole model, dense against sparse under the same execution: prefill, decode, memory.

    python benchmarks/end_to_end.py --out reports/reference [--shape LLaMA-7B]
        [--batches 1 4 16 64] [--prefill 4x1024] [--positions 1024]

Weights are random at true shape, pruned 2:4 by magnitude; both forms multiply the same weights and
their logits are compared. In both forms torch.compile fuses the norms, the rotary embedding and the
MLP around its products, and each step is one CUDA graph. Decode is one token a sequence with a
filled KV cache.
"""

import argparse
import statistics
import sys
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.footprint import LLAMA
from esparse_lab.gemm.clock import kernel_names
from esparse_lab.gemm.convert import sparsify
from esparse_lab.masks import Pattern, nm_mask
from esparse_lab.run_record import Run


def pruned_random_model(shape: str, dtype: torch.dtype) -> PreTrainedModel:
    """A LLaMA of random weights, 2:4 by magnitude, on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(LLAMA[shape].config, dtype=dtype)
    for layer in prunable_layers(model).values():
        weight = layer.weight
        weight *= nm_mask(weight.abs(), Pattern(2, 4))
    return model.eval()


class Step:
    """One forward as a CUDA graph: new tokens of every sequence after `positions` in its KV cache.

    A prefill fills a new cache; a decode step writes into a static one, which is put back by as
    many positions before every replay.
    """

    def __init__(self, model: PreTrainedModel, batch: int, new: int, positions: int):
        self.model, self.positions, self.cache = model, positions, None
        generator = torch.Generator("cuda").manual_seed(0)
        self.tokens, prompt = (
            torch.randint(model.config.vocab_size, (batch, n), generator=generator, device="cuda")
            for n in (new, max(positions, 1))
        )
        if positions:
            self.cache = StaticCache(config=model.config, max_cache_len=positions + new)
            with torch.inference_mode():  # in parts: a long prompt in one takes much memory
                for part in prompt.split(256, dim=1):
                    model(part, past_key_values=self.cache, logits_to_keep=1)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._forward()
            stream.synchronize()
            self._rewind()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.logits = self._forward(rewind=False)
        torch.cuda.synchronize()
        self.replay()

    @torch.inference_mode()  # its tensors were made in it
    def _rewind(self) -> None:
        for layer in self.cache.layers if self.cache else []:
            layer.cumulative_length.fill_(self.positions)

    def _forward(self, rewind: bool = True) -> torch.Tensor:
        if rewind:
            self._rewind()
        cache = self.cache or DynamicCache(config=self.model.config)
        with torch.inference_mode():
            return self.model(self.tokens, past_key_values=cache, logits_to_keep=1).logits

    def replay(self) -> None:
        """Run the captured step once."""
        self._rewind()
        self.graph.replay()

    def ms(self, replays: int = 20) -> float:
        """Median device time of a replay."""
        times = []
        for _ in range(replays):
            self._rewind()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)


def fuse(model: PreTrainedModel) -> None:
    """Compile what stands between the products. One compilation serves all blocks."""
    for block in transformer_blocks(model):
        for module in block.module.children():
            if "Norm" in type(module).__name__ or "MLP" in type(module).__name__:
                module.compile()
    code = sys.modules[type(model).__module__]
    if not hasattr(code.apply_rotary_pos_emb, "_torchdynamo_orig_callable"):
        code.apply_rotary_pos_emb = torch.compile(code.apply_rotary_pos_emb)


def measure(model: PreTrainedModel, form: str, args: argparse.Namespace) -> tuple[list, dict]:
    """Rows of the table and the logits of each phase, for one form of the model."""
    fuse(model)
    rows, logits = [], {}
    prefill_batch, length = (int(part) for part in args.prefill.split("x"))
    phases = [("prefill", prefill_batch, length, 0)]
    phases += [("decode", batch, 1, args.positions) for batch in args.batches]
    for phase, batch, new, positions in phases:
        torch.cuda.reset_peak_memory_stats()
        step = Step(model, batch, new, positions)
        ms = step.ms()
        logits[phase, batch] = step.logits.float().clone()
        names = kernel_names(step.replay)
        rows.append(
            {
                "shape": args.shape,
                "form": form,
                "phase": phase,
                "batch": batch,
                "positions": positions or new,
                "ms": ms,
                "tokens_per_second": batch * new / ms * 1e3,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
                "kernel": names[0],
            }
        )
        print(rows[-1], flush=True)
        del step
        torch.cuda.empty_cache()
    return rows, logits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="end_to_end_h100")
    parser.add_argument("--shape", default="LLaMA-7B", choices=LLAMA)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prefill", default="4x1024")
    parser.add_argument("--positions", type=int, default=1024, help="in the KV cache at decode")
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64
    run = Run(args.name, args.out)
    model = pruned_random_model(args.shape, getattr(torch, args.dtype))
    rows, dense_logits = measure(model, "dense", args)
    torch._dynamo.reset()
    prefill = args.prefill.split("x")
    tokens = sorted({*args.batches, int(prefill[0]) * int(prefill[1])})
    layers = sparsify(model, tokens=tokens)
    more, sparse_logits = measure(model, "sparse", args)
    rows += more
    run.save_table("steps", pd.DataFrame(rows))
    run.save_table(
        "layers",
        pd.DataFrame(
            {
                "rows": layer.rows,
                "columns": layer.columns,
                "tokens": choice.tokens,
                "algorithm": "dense" if choice.algorithm is None else str(choice.algorithm),
                "dense_ms": dense_ms,
                "chosen_ms": chosen_ms,
            }
            for layer in {(one.rows, one.columns): one for one in layers}.values()
            for choice, dense_ms, chosen_ms in zip(
                layer.choices, layer.dense_ms, layer.chosen_ms, strict=True
            )
        ),
    )
    errors = {
        f"{phase} {batch}": float((sparse_logits[phase, batch] - logits).norm() / logits.norm())
        for (phase, batch), logits in dense_logits.items()
    }
    run.finish(device=torch.cuda.get_device_name(), logits_error=errors)
    steps = pd.DataFrame(rows).pivot(index=["phase", "batch"], columns="form", values="ms")
    print(steps.assign(speedup=steps.dense / steps.sparse))
    print(errors)


if __name__ == "__main__":
    main()
