"""A whole model, dense against sparse under the same execution: prefill, decode, memory.

    python benchmarks/end_to_end.py --out reports/reference [--shape LLaMA-7B]
        [--batches 1 4 16 64] [--prefill 4x1024] [--positions 1024]

Weights are random at true shape, pruned 2:4 by magnitude; both forms multiply the same weights and
their logits are compared. In both forms each block is compiled by torch.compile, and each step is
one CUDA graph. Decode is one token a sequence with a filled KV cache.
"""

import argparse
import gc
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, StaticCache

from esparse_lab.architectures import prunable_layers, transformer_blocks
from esparse_lab.footprint import LLAMA
from esparse_lab.gemm.clock import kernel_names
from esparse_lab.gemm.convert import sparsify
from esparse_lab.masks import Pattern, nm_mask
from esparse_lab.run_record import Run

FORMS = ("dense", "cusparselt 2:4", "compressed 2:4", "compressed 4:8")
"""The kernel and the pattern that weights are stored in; what is 2:4 is 4:8 as well."""


def pruned_random_model(shape: str, dtype: torch.dtype) -> PreTrainedModel:
    """A LLaMA of random weights, 2:4 by magnitude, on the GPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(LLAMA[shape].config, dtype=dtype)
    for layer in prunable_layers(model).values():
        weight = layer.weight
        weight *= nm_mask(weight.abs(), Pattern(2, 4))
    return model.eval()


@dataclass
class Slot:
    """A block's part of the KV cache, as far as attention sees it.

    A step writes at the same positions every time, so nothing is put back before the next.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor

    def update(self, keys: torch.Tensor, values: torch.Tensor, *_, **__):
        """Store the new tokens' keys and values; all of them, old and new."""
        self.keys.index_copy_(2, self.positions, keys)
        self.values.index_copy_(2, self.positions, values)
        return self.keys, self.values


class Step:
    """One forward as a CUDA graph: new tokens of every sequence after `positions` in its KV cache.

    Blocks are compiled, once for them all.
    """

    def __init__(self, model: PreTrainedModel, batch: int, new: int, positions: int):
        config, blocks = model.config, [block.module for block in transformer_blocks(model)]
        device = model.device
        generator = torch.Generator(device).manual_seed(0)
        draw = partial(torch.randint, config.vocab_size, generator=generator, device=device)
        self.model, self.tokens, prompt = model, draw((batch, new)), draw((batch, positions))
        at = torch.arange(positions, positions + new, device=device)
        for number, block in enumerate(blocks):
            block.self_attn.layer_idx = number
        if positions:
            cache = StaticCache(config=config, max_cache_len=positions + new)
            with torch.inference_mode():  # in parts: a long prompt in one takes much memory
                for part in prompt.split(256, dim=1):
                    model(part, past_key_values=cache, logits_to_keep=1)
            kept = [(layer.keys, layer.values) for layer in cache.layers]
        else:
            size = batch, config.num_key_value_heads, new, config.head_dim
            kept = [
                [torch.empty(size, dtype=model.dtype, device=device) for _ in range(2)]
                for _ in blocks
            ]
        with torch.inference_mode():
            # Views, since the cache's own tensors are marked to be compiled for one address each.
            slots = [Slot(k.view(k.shape), v.view(v.shape), at) for k, v in kept]
        self.blocks, self.at = list(zip(blocks, slots, strict=True)), at[None]
        for block in blocks:  # a number of its own would be compiled for each; slots know theirs
            block.self_attn.layer_idx = 0
        self.block = torch.compile(run_block, dynamic=False)

    def capture(self) -> None:
        """Compile and capture."""
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.forward()
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=stream):
                self.logits = self.forward()
        torch.cuda.synchronize()
        self.graph.replay()

    def forward(self) -> torch.Tensor:
        """Logits of the last token of every sequence.

        The model's own forward makes an attention mask while a graph is captured and none before;
        none is needed: a prompt's attention is causal, and a new token sees all that is cached.
        """
        inner = self.model.model
        with torch.inference_mode():
            hidden = inner.embed_tokens(self.tokens)
            rotary = inner.rotary_emb(hidden, position_ids=self.at)
            for block, slot in self.blocks:
                hidden = self.block(block, hidden, slot, rotary)
            return self.model.lm_head(inner.norm(hidden[:, -1:]))

    def ms(self, replays: int = 20) -> float:
        """Median device time of a replay."""
        times = []
        for _ in range(replays):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times)


def run_block(
    block: torch.nn.Module, hidden: torch.Tensor, slot: Slot, rotary: tuple
) -> torch.Tensor:
    """A block's output, [batch, new, hidden]."""
    return block(hidden, past_key_values=slot, position_embeddings=rotary)


def measure(model: PreTrainedModel, form: str, args: argparse.Namespace) -> tuple[list, dict]:
    """Rows of the table and the logits of each phase, for one form of the model."""
    rows, logits = [], {}
    prefill_batch, length = (int(part) for part in args.prefill.split("x"))
    phases = [("prefill", prefill_batch, length, 0)]
    phases += [("decode", batch, 1, args.positions) for batch in args.batches]
    for phase, batch, new, positions in phases:
        torch.cuda.reset_peak_memory_stats()
        step = Step(model, batch, new, positions)
        step.capture()
        ms = step.ms()
        logits[phase, batch] = step.logits.float().clone()
        names = kernel_names(step.graph.replay)
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
                "kernel": "; ".join(names[:4]),  # the longest first
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
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--prefill", default="4x1024")
    parser.add_argument("--positions", type=int, default=1024, help="in the KV cache at decode")
    args = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64
    run, rows, logits, choices, errors = Run(args.name, args.out), [], {}, [], {}
    prefill = args.prefill.split("x")
    tokens = sorted({*args.batches, int(prefill[0]) * int(prefill[1])})
    for form in FORMS if args.forms is None else args.forms:
        model = pruned_random_model(args.shape, getattr(torch, args.dtype))
        if form != "dense":
            kernel, pattern = form.split()
            layers = sparsify(model, tokens=tokens, kernel=kernel, pattern=Pattern.parse(pattern))
            choices += [
                {
                    "form": form,
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
            ]
        torch._dynamo.reset()
        more, logits[form] = measure(model, form, args)
        rows += more
        run.save_table("steps", pd.DataFrame(rows))
        run.save_table("layers", pd.DataFrame(choices))
        errors |= {
            f"{form}, {phase} {batch}": float((found - exact).norm() / exact.norm())
            for (phase, batch), exact in logits.get("dense", {}).items()
            for found in [logits[form][phase, batch]]
        }
        run.finish(device=torch.cuda.get_device_name(), logits_error=errors)
        del model
        gc.collect()
        torch.cuda.empty_cache()
    steps = pd.DataFrame(rows).pivot(index=["phase", "batch"], columns="form", values="ms")
    print(steps)
    print(steps.rdiv(steps.get("dense", float("nan")), axis=0))
    print(errors)


if __name__ == "__main__":
    main()
