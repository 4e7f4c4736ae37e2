"""The README says what is so: its links lead somewhere and its figures are the kept ones."""

import re
import shlex
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from esparse_lab.cli import app
from esparse_lab.sweep import kept_cells, paired_table, parts_table, recorded_cells
from esparse_lab.tables import REFERENCE, over_seeds, reference_ladder
from esparse_lab.tasks import paired_difference
from esparse_lab.tasks.paired import KEYS

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text()


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (HOME / link).exists(), link


def test_notebooks_are_all_listed():
    listed = re.findall(r"\(notebooks/(\S+)\.ipynb\)", README)
    assert listed == sorted(p.stem for p in (HOME / "notebooks").glob("[0-9]*.ipynb"))


@pytest.mark.parametrize("line", re.findall(r"^esparse (prune .*?) *(?:#|$)", README, re.MULTILINE))
def test_commands_that_prune_are_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # A name that is refused at once, after the recipe was understood.
    result = CliRunner().invoke(app, shlex.split(line.replace("MODEL", "smolm2-135m")))
    assert "Did you mean 'smollm2-135m'?" in result.stderr


METHODS = "magnitude|wanda|esparse|ria|dass|mask_descent|sparsegpt|isc"
EVIDENCE = README.split("## What it says so far")[1].split("### Every method")[0]


def test_the_error_bars_are_the_kept_ones():
    kept = pd.read_csv(REFERENCE / "tables" / "sweep_seeds.summary.csv").set_index("recipe")
    rows = rows_of_readme(rf"({METHODS}) \|")
    assert len(rows) == len(METHODS.split("|"))
    assert len(kept) == 1 + len(rows) * 6
    for method, *values in rows:
        recipes = [f"{method} {p}{s}" for p in ("2:4", "4:8") for s in ("", ", gns", ", gns+lbs")]
        assert values == [
            f"{cell.perplexity:.1f}" + (f" ± {cell.spread:.1f}" if cell.seeds > 1 else "")
            for cell in kept.loc[recipes].itertuples()
        ]
    assert f"dense {kept.perplexity['dense']:.1f})" in EVIDENCE


def test_the_differences_are_the_kept_ones():
    of_sweeps = [
        kept_cells(*names) for names in (("seeds", "ablation"), ("objective",), ("ceiling",))
    ]
    by_output = ("wanda", "mask_descent", "sparsegpt")
    pairs = [
        *(("esparse 2:4", "wanda 2:4"), ("esparse 4:8", "wanda 4:8")),
        *(("esparse 2:4, gns+lbs", "wanda 2:4, gns+lbs"),),
        *(("esparse 4:8, gns+lbs", "wanda 4:8, gns+lbs"),),
        *(("wanda 2:4, gns+lbs", "wanda 2:4"), ("wanda 4:8, gns+lbs", "wanda 4:8")),
        *(("wanda 2:4, lbs", "wanda 2:4"), ("wanda 4:8, lbs", "wanda 4:8")),
        *((f"{m} 2:4, best-of, by output", f"{m} 2:4, best-of") for m in by_output),
        *(("mask_descent 2:4", "wanda 2:4"), ("mask_descent 2:4, gns+lbs", "sparsegpt 2:4")),
        ("mask_descent 4:8, gns+lbs", "sparsegpt 4:8"),
        ("mask_descent 2:4, best-of, by output", "sparsegpt 2:4"),
        ("sparsegpt 2:4", "wanda 2:4"),
        *(("sparsegpt 2:4, gns+lbs", "sparsegpt 2:4"),),
        *(("isc 2:4, gns+lbs", "sparsegpt 2:4, gns+lbs"),),
    ]
    number = r"[−+][\d.]+"
    said = re.findall(
        rf"{number}\s\[{number}, {number}\]\s\({number} to {number}\)", EVIDENCE.replace("\n ", "")
    )
    assert len(said) == len(pairs)
    for words, (recipe, baseline) in zip(said, pairs, strict=True):
        both = next(
            cells[cells.recipe.isin([recipe, baseline])]
            for cells in of_sweeps
            if {recipe, baseline} <= {*cells.recipe}
        )
        (row,) = paired_table(both, baseline).itertuples()
        wanted = (
            f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}] "
            f"({row.lowest:+.1f} to {row.highest:+.1f})"
        )
        assert words.replace("−", "-") == wanted, (recipe, baseline)


def test_the_entropy_on_the_other_text_is_the_kept_one():
    parts = parts_table(recorded_cells())
    parts = parts[parts.part == "entropy"].set_index(["beside", "pattern"])
    said = EVIDENCE.split("from C4 to WikiText-2")[1].split("without the norm")[0]
    said = re.findall(r"([−+][\d.]+) \(([−+][\d.]+) to ([−+][\d.]+)\)", said)
    wanted = [parts.loc[key] for key in product(("norm", "GNS + LBS"), ("2:4", "4:8"))]
    assert [tuple(x.replace("−", "-") for x in words) for words in said] == [
        tuple(f"{x:+.1f}" for x in (row.difference, row.lowest, row.highest)) for row in wanted
    ]


def test_what_is_said_of_orders_and_alpha_is_kept():
    sets = pd.read_csv(REFERENCE / "tables" / "proxy_truth_h200.orders.csv")
    means = sets.groupby(["kind", "orders"]).perplexity.mean()
    searched = means.drop("stored")
    assert (
        f"({searched.min():.1f} to {searched.max():.1f} for {means['stored'].item():.1f},"
        in EVIDENCE
    )
    assert len(searched) == 11
    for kind in ("output error", "score"):
        assert f"({means[kind].min():.1f} to {means[kind].max():.1f})" in EVIDENCE
    swept = pd.read_csv(REFERENCE / "tables" / "sweep_sensitivity.summary.csv")
    swept = swept.set_index("recipe").perplexity
    alphas = [f"{swept[f'esparse 2:4, alpha={alpha}']:.1f}" for alpha in ("1.0", "10.0", "30.0")]
    assert f"({', '.join(alphas)} for {swept['esparse 2:4']:.1f})" in EVIDENCE
    assert f"({swept['esparse 2:4, alpha=0.0']:,.0f})" in EVIDENCE
    ladder = over_seeds(reference_ladder()[0]).set_index(["method", "pattern", "search"])
    assert f"gave Wanda with GNS {ladder.perplexity['wanda', '2:4', 'gns']:.1f} in" in EVIDENCE


def test_what_is_said_of_the_blocks_output_is_kept():
    asked = kept_cells("objective")
    seeds = asked[~asked.dense].pivot(index="seed", columns="recipe", values="perplexity")
    seconds = asked.groupby("recipe").prune_seconds.median()
    lower, times = [], []
    for method in ("wanda", "mask_descent", "sparsegpt"):
        plain, by_output = f"{method} 2:4, best-of", f"{method} 2:4, best-of, by output"
        lower.append((seeds[by_output] < seeds[plain]).sum())
        times.append(seconds[by_output] / seconds[plain])
    assert "lower on {}, {} and {} of [five seeds]".format(*lower) in EVIDENCE
    assert len(seeds) == 5
    assert f"in {min(times):.1f} to {max(times):.1f} times the time" in EVIDENCE
    masks = seeds["mask_descent 2:4, best-of, by output"].mean()
    kept = pd.read_csv(REFERENCE / "tables" / "sweep_seeds.summary.csv").set_index("recipe")
    plain = kept.perplexity["sparsegpt 2:4"]
    assert f"come to {masks:.1f} at 2:4 (SparseGPT {plain:.1f};" in EVIDENCE


def test_what_is_said_of_calibration_text_is_kept():
    kept = pd.read_csv(REFERENCE / "tables" / "sweep_calibration.summary.csv")
    kept = kept[kept.recipe == "wanda 2:4"]
    assert set(kept.seeds) == {3}
    ends = kept.groupby(kept.calibration_text.str.split().str[0]).perplexity.agg(["min", "max"])
    said = EVIDENCE.split("* **Calibration text.**")[1].split("* **Zero-shot**")[0]
    texts = {
        "wikipedia": "Wikipedia's own",
        "wiki.valid.raw": "WikiText-2",
        "c4_sample.jsonl": "C4",
    }
    for text, words in texts.items():
        assert f"{ends['min'][text]:.1f} to {ends['max'][text]:.1f} by {words}" in said


def test_how_far_down_is_the_kept_one():
    cells = kept_cells("ceiling")
    mean = cells.groupby("recipe").perplexity.mean()
    order = "sparsegpt 2:4, gns+lbs+assignment"
    tuned = cells[cells.recipe == f"{order}, tuned ahead=1"]
    said = EVIDENCE.split("* **How far down.**")[1].split("* **Calibration")[0].replace("\n ", "")
    assert f"dense {mean['dense']:.2f}): SparseGPT 2:4 {mean['sparsegpt 2:4']:.2f}," in said
    assert f"GNS + LBS + assignment {mean[order]:.2f}," in said
    ends = tuned.perplexity.min(), tuned.perplexity.max()
    assert len(tuned) == 3
    assert "**{:.2f}** ({:.2f} to {:.2f})".format(tuned.perplexity.mean(), *ends) in said
    assert f"{tuned.perplexity.mean() / mean['dense']:.2f} times the dense" in said
    assert tuned.prune_seconds.median() == pytest.approx(5 * 60, rel=0.1)
    solved = mean[[r for r in mean.index if "reconstruct" in r]].min()
    assert f"at a time reach {solved:.2f}." in said


def test_what_is_said_of_the_papers_silence_is_kept():
    paired = pd.read_csv(REFERENCE / "tables" / "sweep_sensitivity.paired.csv")
    counts = []
    for baseline in ("esparse 2:4", "esparse 4:8"):
        others = paired[(paired.baseline == baseline) & ~paired.recipe.isin(["dense"])]
        others = others[others.recipe.str.startswith(f"{baseline}, ")]
        better = others[others.ratio_highest < 1]
        counts += [(others.ratio_lowest > 1).sum(), len(better)]
        assert len(others) == 16
    assert counts[1] == 0
    assert "Of 16 other choices that" in EVIDENCE
    assert f"\n{counts[0]} are worse on [every seed]" in EVIDENCE
    assert f"at 4:8 {counts[2]} are worse and {counts[3]} better" in EVIDENCE
    assert f"by {1 - better.ratio.min():.1%} at most".replace("%", " %") in EVIDENCE


def test_every_method_is_the_kept_one():
    kept = over_seeds(reference_ladder("methods_seed")[0])
    kept = kept[~kept.dense].set_index(["pattern", "search", "method"])
    columns = [
        ("2:4", "none"),
        ("2:4", "gns"),
        ("2:4", "gns+lbs"),
        ("4:8", "none"),
        ("4:8", "gns+lbs"),
        ("50%", "none"),
    ]
    rows = rows_of_readme(r"`\w+` \| [\d.]+ \|")
    assert [row[0].strip("`") for row in rows] == list(dict.fromkeys(r[0].strip("`") for r in rows))
    assert {row[0].strip("`") for row in rows} == set(kept.index.get_level_values("method"))
    for name, *cells, cost in rows:
        of_method = kept.xs(name.strip("`"), level="method")
        assert cells == [f"{of_method.perplexity[column]:.1f}" for column in columns]
        plain = of_method.loc["2:4", "none"]
        assert cost == f"{plain.prune_seconds:.1f} s, {plain.peak_memory_gib:.1f} GiB"


def rows_of_readme(pattern: str) -> list[list[str]]:
    """The cells of the table rows that begin so."""
    found = [line for line in README.splitlines() if re.match(rf"\| {pattern}", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_sizes_are_the_kept_ones():
    kept = pd.read_csv(REFERENCE / "tables" / "size_h100.csv")
    for shape, method, time, gpu, cpu in rows_of_readme("Llama-.*block"):
        key = shape.split(",")[0].lower().replace("llama-2-", "llama2-")
        run = kept[(kept["shape"] == key) & (kept.method == method)]
        assert len(run) == int(re.search(r", (\d+) ", shape)[1])
        wanted = run.seconds.median() if "a block" in time else run.seconds.sum()
        assert float(time.split()[0]) == pytest.approx(wanted, rel=0.02)
        assert float(gpu.split()[0]) == pytest.approx(run.peak_gpu_gib.max(), abs=0.05)
        ends = run.resident_cpu_gib
        said = [float(x) for x in re.findall(r"[\d.]+", cpu)]
        assert said[0] == pytest.approx(ends.iloc[0], abs=0.06)
        assert said[-1] == pytest.approx(ends.max(), abs=0.06)


def test_the_comparison_with_the_authors_code_is_the_kept_one():
    kept = pd.read_csv(REFERENCE / "tables" / "peers_h100.csv").set_index("method")
    for name, theirs, ours, ratio, perplexities in rows_of_readme(r"(Wanda|SparseGPT) \| [\d.]+ s"):
        row = kept.loc[name.lower()]
        assert theirs == f"{row.seconds_theirs:.1f} s"
        assert ours == f"{row.seconds_ours:.1f} s"
        assert ratio == f"{row.times_as_fast:.1f}"
        assert perplexities == f"{row.perplexity_theirs:.1f}, {row.perplexity_ours:.1f}"


def test_times_of_sparse_products_are_the_kept_ones():
    times, tokens, steps = (
        pd.read_csv(REFERENCE / "tables" / f"{name}.csv")
        for name in ("gemm_h100.times", "gemm_few_tokens_h100.times", "end_to_end_h100.steps")
    )
    larger = pd.read_csv(REFERENCE / "tables" / "end_to_end_13b_h100.steps.csv")
    ms = pd.concat([steps, larger]).set_index(["shape", "form", "phase", "batch"]).ms
    rows = rows_of_readme(r"(Table 5, |16 tokens, |LLaMA-\d+B, \w+, batch)")
    assert len(rows) == 15
    for what, *figures, kernel in rows:
        form = {"cuSPARSELt": "cusparselt", "ours, compressed": "compressed"}[kernel]
        first, *words, last = what.split(", ")
        if first.startswith("LLaMA"):
            key = words[0], int(words[1].split()[1])
            dense, sparse = ms[first, "dense", *key], ms[first, f"{form} {last}", *key]
        elif first == "Table 5":
            row = times[(times.name == words[0]) & (times.dtype == last)].squeeze()
            dense, sparse = row.dense_ms, row.sparse_ms
        else:
            row = tokens[(tokens.m == 16) & (tokens.n == 11008) & (tokens.pattern == last)]
            row = row[row.kernel == form].squeeze()
            dense, sparse = row.dense_ms, row.sparse_ms
        assert figures == [f"{dense:.4g}", f"{sparse:.4g}", f"{dense / sparse:.2f}"]
    calls = pd.read_csv(REFERENCE / "tables" / "call_overhead_h100.calls.csv").groupby("form")
    least, most = calls.microseconds.min().round(), calls.microseconds.max().round()
    assert f"CPU {least.SparseLinear:.0f} to {most.SparseLinear:.0f} µs" in README
    assert f"path {least['torch.sparse']:.0f} to {most['torch.sparse']:.0f}" in README


def test_searches_and_gathers_are_the_kept_ones():
    race = pd.read_csv(REFERENCE / "tables" / "searches_h100.race.csv")
    race = race.set_index(["search", "case"])
    names = {
        "apex `channel_swap`": "apex channel_swap",
        "apex, stripe groups of two": "apex stripe groups of two",
        "GNS + LBS": "gns+lbs",
        "GNS + LBS + assignment": "gns+lbs+assignment",
    }

    def took(seconds):
        return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"

    rows = rows_of_readme(r"(apex|GNS \+ LBS).* % in ")
    assert [row[0] for row in rows] == [*names]
    for name, *cells in rows:
        for case, said in zip(("random1024", "real1024"), cells, strict=True):
            row = race.loc[names[name], case]
            assert said == f"{row.retained_share:.3%} in {took(row.seconds)}".replace("%", " %")
    lbs = race.loc["gns+lbs"].seconds
    assert f"takes {took(lbs.random4096)} for 4,096" in README
    assert f"4,096, {lbs.embedded * 1e3:.0f} ms for all 210" in README
    assert f"and {took(lbs.llama7b)} for the 224" in README
    on_cores = pd.read_csv(REFERENCE / "tables" / "shuffle_cpu.csv").set_index("search")
    assert f"({on_cores.seconds['gns+lbs']:.1f} s on two CPU cores" in README
    times = pd.read_csv(REFERENCE / "tables" / "gather_norm_h100.times.csv")
    of_size = times[(times.norm == "rms") & (times.width == 4096) & (times.tokens == 4096)]
    least = of_size.set_index("form").microseconds
    alone, apart = least["norm, compiled"], least["norm + index_select, compiled"]
    assert f"takes {alone:.1f} µs compiled, {least['ours']:.1f} µs with a gather" in README
    assert f"{apart:.1f} µs with `index_select`" in README


def test_the_converted_model_and_its_memory_are_the_kept_ones():
    texts = pd.read_csv(REFERENCE / "tables" / "generate_h100.texts.csv")
    alike = texts[texts["dense"] == texts["sparse"]]
    assert len(alike) == len(texts)
    assert set(texts.same_tokens) == {64}
    assert f"continued {len(texts)} prompts by the same 64 tokens" in README
    held = pd.read_csv(REFERENCE / "tables" / "memory_h100.weights.csv")
    held = held.set_index(["model", "form"]).allocated_gib
    for model, words in (("LLaMA-7B", "fell from\n{} to {} GiB"), ("LLaMA-13B", "from {} to {} (")):
        both = (f"{held[model, form]:.2f}" for form in ("dense", "sparse"))
        assert words.format(*both) in README


def test_zero_shot_accuracies_are_the_kept_ones():
    said = (
        EVIDENCE.split("* **Zero-shot**")[1].split("\n\n")[0].replace("\n ", "").replace("−", "-")
    )
    table = pd.read_csv(REFERENCE / "tables" / "zero_shot.accuracy.csv")
    mean = table[(table.task == "mean") & (table.metric == "acc")].set_index("model").value
    after = [mean[f"{name} 2:4, gns+lbs"] for name in ("wanda", "esparse", "sparsegpt")]
    assert f"{mean['dense']:.1%} dense".replace("%", " %") in said
    for name, words in (
        ("wanda", "by Wanda"),
        ("esparse", "by E-Sparse's"),
        ("sparsegpt", "by Sp"),
    ):
        assert f"{mean[f'{name} 2:4']:.1%} {words}".replace("%", " %") in said
    assert "{:.1f}, {:.1f} and {:.1f} %".format(*(100 * one for one in after)) in said
    assert f"by ISC then {mean['isc 2:4, gns+lbs']:.1%}".replace("%", " %") in said
    solved = mean["mask_descent 2:4, gns+lbs, reconstruct"]
    assert f"solved for {solved:.1%}".replace("%", " %") in said
    items = pd.read_parquet(REFERENCE / "tables" / "zero_shot.items.parquet")
    assert f"{len(items[items.metric == 'acc']):,} questions" in said

    def of(model):
        return items[KEYS].assign(value=items[model].astype(float))

    pairs = [
        ("esparse 2:4", "wanda 2:4"),
        ("esparse 2:4, gns+lbs", "wanda 2:4, gns+lbs"),
        ("wanda 2:4, gns+lbs", "wanda 2:4"),
        ("sparsegpt 2:4, gns+lbs", "sparsegpt 2:4"),
    ]
    words = re.findall(r"[-+][\d.]+ \[[-+][\d.]+, [-+][\d.]+\]", said)
    assert len(words) == len(pairs)
    for one, (model, other) in zip(words, pairs, strict=True):
        found = paired_difference(of(model), of(other))
        row = found[(found.task == "mean") & (found.metric == "acc")].squeeze()
        difference, low, high = (100 * x for x in (row.difference, row.low, row.high))
        assert one == f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
