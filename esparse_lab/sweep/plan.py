"""A sweep file becomes cells: one for each model, recipe, calibration, seed and evaluation.

What a cell's figure depends on is its `about`, and the hash of that names the cell. Cells that
differ in their pruned model alone share the `about`'s setting, and only such may be compared.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from itertools import product
from pathlib import Path

from esparse_lab.corpora import Corpus, load_corpus, token_windows, tokens_sha256
from esparse_lab.errors import InputError, unknown
from esparse_lab.models import device_of, dtype_of, load_model, stored_model
from esparse_lab.pruning import Recipe, can_be_ordered
from esparse_lab.recipes import method_of, named_search, recipe_label, recipe_of
from esparse_lab.result_cache import COMPUTING, core_hash

DENSE = "dense"
SETTING = ("model", "evaluation", "versions", "source")
"""What two figures must share to be compared: all that is not pruning."""


@dataclass(frozen=True)
class ModelChoice:
    """A model as `load_model` takes it."""

    model: str
    revision: str | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class Calibration:
    """Text that statistics are taken on: `token_windows` draws `sequences` of `length` tokens."""

    corpus: str = "wikipedia"
    split: str = "train"
    draw: str = "windows"
    sequences: int = 8
    length: int = 512


@dataclass(frozen=True)
class Evaluation:
    """Text whose perplexity is measured, in the first `windows` of `length` tokens; None: all."""

    corpus: str = "wikipedia"
    split: str = "test"
    length: int = 512
    windows: int | None = None


KEYS = {
    "sweep": "name, models, recipes, calibrations, seeds, evaluations, baseline, device",
    "recipe": "method, set, pattern, search, calibration, reconstruct, allocation, target, menu, "
    "orders, tune, objective",
} | {
    kind: ", ".join(f.name for f in fields(choice))
    for kind, choice in (
        ("model", ModelChoice),
        ("calibration", Calibration),
        ("evaluation", Evaluation),
    )
}
"""What each mapping of a sweep file may hold."""


@dataclass(frozen=True)
class Cell:
    """One figure of a sweep.

    Attributes:
        evaluation: what is measured.
        about: all that the figure depends on, as JSON has it.
    """

    evaluation: Evaluation
    about: dict = field(hash=False)

    @property
    def key(self) -> str:
        """Names the cell: a SHA-256 of `about`."""
        return hashed(self.about)


@dataclass(frozen=True)
class Job:
    """A pruned model and the cells that are measured on it.

    Attributes:
        model: the dense model.
        device: "cpu" or "cuda".
        recipe: prunes it; None leaves it dense.
        calibration: the text that the recipe reads; None where it reads none.
        seed: of the calibration draws; likewise.
        cells: what is measured.
    """

    model: ModelChoice
    device: str
    recipe: Recipe | None
    calibration: Calibration | None
    seed: int | None
    cells: tuple[Cell, ...]

    @property
    def label(self) -> str:
        """The recipe in words."""
        return DENSE if self.recipe is None else recipe_label(self.recipe)

    def words(self, cell: Cell) -> str:
        """A cell of the job in words."""
        about, parts = cell.about, [self.model.model, self.label]
        if self.calibration is not None:
            parts.append(f"{text_words(about['calibration'])}, seed {self.seed}")
        return " | ".join([*parts, text_words(about["evaluation"])])


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked.

    Attributes:
        name: of its tables.
        baseline: what recipes are compared with; see `paired_table`.
        jobs: those of one model are neighbours.
    """

    name: str
    baseline: str
    jobs: tuple[Job, ...]

    @property
    def cells(self) -> list[Cell]:
        """All cells, in the order of the jobs."""
        return [cell for job in self.jobs for cell in job.cells]


def hashed(about: object) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def setting_of(about: dict) -> dict:
    """The part of a cell's `about` that cells to compare must share."""
    return {part: about[part] for part in SETTING}


def code() -> dict:
    """What computes on this machine: versions of libraries, and the hash of the core's source."""
    return {"versions": {name: metadata.version(name) for name in COMPUTING}, "source": core_hash()}


def read_sweep(path: str | Path) -> Sweep:
    """The sweep that a YAML file describes.

    A list inside an entry of `models`, `recipes`, `calibrations` or `evaluations` stands for as
    many entries. A recipe that reads no calibration text (magnitude, dense) has one cell for all
    calibrations and seeds; a search is tried at N:M patterns alone. Models and texts are looked at,
    fetched if need be; relative paths start at the working directory.

    Raises:
        InputError: the file is no such description; the message says which part and what to do.
        EsparseError: a model or a text cannot be had.
    """
    path = Path(path)
    given = _mapping(_yaml(path), "sweep", str(path))
    for part in ("models", "recipes", "evaluations"):
        if not _list(given.get(part), part):
            raise InputError(
                f"{path} has no {part}, so there is nothing to measure. Add at least one."
            )
    models = [ModelChoice(**entry) for entry in _entries(given, "model", path)]
    recipes = list(_recipes(given, path))
    calibrations = [Calibration(**entry) for entry in _entries(given, "calibration", path)]
    evaluations = [Evaluation(**entry) for entry in _entries(given, "evaluation", path)]
    seeds = _list(given.get("seeds", [0]), "seeds")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"{path}, seeds: expected whole numbers, got {seed!r}.")
    reading = [recipe for recipe in recipes if recipe is not None and recipe.reads_tokens]
    calibrations = calibrations if "calibrations" in given else [Calibration()]
    for part, found in (("seeds", seeds), ("calibrations", calibrations)):
        if reading and not found:
            raise InputError(
                f"{path}: {part} is empty, but {recipe_label(reading[0])} reads calibration text. "
                f"Add at least one, or leave {part} out."
            )
    device = str(given.get("device", "auto"))
    if device not in (known := ("auto", "cpu", "cuda")):
        raise unknown("device", device, known)
    device = device_of("auto").type if device == "auto" else device
    axes = (recipes, calibrations, seeds, evaluations)
    axes = [list(dict.fromkeys(axis)) for axis in axes]  # an entry that is written twice is one
    jobs = [job for model in dict.fromkeys(models) for job in _jobs(model, device, *axes)]
    baseline = str(given.get("baseline", DENSE))
    labels = {name for job in jobs for name in (job.label, without_pattern(job.label))}
    if "baseline" in given and baseline not in labels:
        raise unknown("baseline", baseline, labels)
    name = re.sub(r"[^a-z0-9_]+", "_", str(given.get("name", path.stem)).lower())
    return Sweep(name, baseline, tuple(jobs))


def planned_draws(path: str | Path) -> list[tuple[str, int | None]]:
    """Label and calibration seed of every recipe of a sweep file; no model or text is looked at.

    The seed is None for a recipe that reads no calibration text.

    Raises:
        InputError: the file is no mapping, or a recipe of it is none.
    """
    given = _mapping(_yaml(Path(path)), "sweep", str(path))
    draws = []
    for recipe in dict.fromkeys(_recipes(given, Path(path))):
        reads = recipe is not None and recipe.reads_tokens
        label = DENSE if recipe is None else recipe_label(recipe)
        draws += [(label, seed) for seed in (given.get("seeds", [0]) if reads else [None])]
    return draws


def without_pattern(label: str) -> str:
    """A recipe's label for any pattern.

    >>> without_pattern("esparse 2:4, gns+lbs"), without_pattern("ria 50% per layer")
    ('esparse, gns+lbs', 'ria')
    """
    return re.sub(r"^(\w+) [^,]+", r"\1", label)


def _yaml(path: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{path}{place} is not YAML: {reason}.") from error


def _mapping(value: object, kind: str, place: str) -> dict:
    """The value if it is a mapping with known keys alone."""
    if not isinstance(value, dict):
        raise InputError(f"{place}: expected a mapping with keys of {KEYS[kind]}; got {value!r}.")
    for key in value:
        if key not in (known := KEYS[kind].split(", ")):
            raise InputError(f"{place}: {unknown(f'key of a {kind}', str(key), known)}")
    return value


def _list(value: object, part: str) -> list:
    if value is not None and not isinstance(value, list):
        raise InputError(f"{part}: expected a list, one entry a line after a '-'; got {value!r}.")
    return value or []


def _entries(given: dict, kind: str, path: Path) -> Iterator[dict]:
    """Every entry of `models` and so on, lists inside it multiplied out, values checked."""
    for number, entry in enumerate(_list(given.get(f"{kind}s"), f"{kind}s"), start=1):
        place = f"{path}, {kind}s, entry {number}"
        named = isinstance(entry, str) and kind in ("model", "recipe")
        entry = {"method" if kind == "recipe" else "model": entry} if named else entry
        for values in _product(_mapping(entry, kind, place)):
            if kind != "recipe":
                _check_values(values, kind, place)
            yield values | ({"place": place} if kind == "recipe" else {})


def _product(entry: Mapping) -> Iterator[dict]:
    choices = []
    for key, value in entry.items():
        if key in ("set", "tune") and isinstance(value, Mapping):
            value = list(_product(value))
        choices.append([(key, one) for one in (value if isinstance(value, list) else [value])])
    return map(dict, product(*choices))


def _check_values(values: dict, kind: str, place: str) -> None:
    needed = {"model": "model", "calibration": "corpus", "evaluation": "corpus"}[kind]
    if needed not in values:
        raise InputError(f"{place} names no {needed}. Add `{needed}: ...`.")
    for key, value in values.items():
        counts = key in ("sequences", "length", "windows")
        wanted = int if counts else str
        if isinstance(value, bool) or not isinstance(value, wanted) or (counts and value < 1):
            expected = "a whole number of at least 1" if counts else "text"
            raise InputError(f"{place}: {key} got {value!r}, expected {expected}.")
    if kind == "model":
        dtype_of(values.get("dtype", "float32"))


def _recipes(given: dict, path: Path) -> Iterator[Recipe | None]:
    """Every recipe, None for the dense model."""
    made: dict[str, list[Recipe | None]] = {}
    for entry in _entries(given, "recipe", path):
        place = entry.pop("place")
        try:
            made.setdefault(place, []).extend(_recipe(**entry))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    for place, recipes in made.items():
        if not recipes:
            raise InputError(
                f"{place}: no recipe is left, since a search needs groups: an N:M pattern. Add the "
                "search none, or such a pattern."
            )
        yield from recipes


def _recipe(
    method: str | None = None,
    set: Mapping | None = None,  # noqa: A002 - the file's word
    pattern: str | int = "2:4",
    search: str = "none",
    objective: str = "score",
    **words: object,
) -> list[Recipe | None]:
    """One recipe, or none where the pattern has no groups for the search to order."""
    if method is None:
        raise InputError("it names no method. Add `method: ...`.")
    if method == DENSE:
        if set or words or pattern != "2:4" or search != "none" or objective != "score":
            raise InputError(f"{DENSE} is not pruned, so it takes nothing else.")
        return [None]
    if isinstance(pattern, int):
        kept, of = divmod(pattern, 60)
        raise InputError(
            f"the pattern {kept}:{of} needs quotes, '{kept}:{of}': YAML reads it as {pattern}."
        )
    settings = {str(name): str(value) for name, value in (set or {}).items()}
    made = method_of(str(method), settings)
    plain = recipe_of(made, pattern=str(pattern), search="none", **words)
    wanted = named_search(str(search))
    if wanted is None and objective == "score":
        return [plain]
    if wanted is not None and not can_be_ordered(plain.pattern, plain.allocation):
        return []
    words["objective"] = objective
    return [recipe_of(made, pattern=str(pattern), search=str(search), **words)]


def _jobs(
    model: ModelChoice,
    device: str,
    recipes: Iterable[Recipe | None],
    calibrations: Iterable[Calibration],
    seeds: Iterable[int],
    evaluations: list[Evaluation],
) -> Iterator[Job]:
    """The jobs of one model."""
    if Path(model.model).expanduser().is_file():  # a .gguf file is all or nothing
        found = load_model(model.model, revision=model.revision, device="cpu")
    else:
        found = stored_model(model.model, revision=model.revision)
    facts = {"name": found.name, "revision": found.revision, "dtype": model.dtype, "device": device}
    text = cache(load_corpus)
    about_text = cache(lambda choice, seed=None: text_facts(found.tokenizer, choice, seed, text))
    for recipe in recipes:
        reads = recipe is not None and recipe.reads_tokens
        draws = product(calibrations, seeds) if reads else [(None, None)]
        for calibration, seed in draws:
            pruning = {
                "recipe": DENSE if recipe is None else repr(recipe),
                "calibration": about_text(calibration, seed) if reads else None,
            }
            cells = tuple(
                Cell(e, {"model": facts, **pruning, "evaluation": about_text(e), **code()})
                for e in evaluations
            )
            yield Job(model, device, recipe, calibration, seed, cells)


def windows_of(tokenizer, choice: Calibration | Evaluation, seed: int | None, text=load_corpus):
    """The token windows that a choice of text stands for, int64 [window, position]."""
    corpus = text(choice.corpus, choice.split)
    if isinstance(choice, Evaluation):
        return token_windows(
            tokenizer, corpus, split=choice.split, length=choice.length, count=choice.windows
        )
    return token_windows(
        tokenizer,
        corpus,
        split=choice.split,
        length=choice.length,
        count=choice.sequences,
        seed=seed,
        draw=choice.draw,
    )


def text_words(facts: dict) -> str:
    """What `text_facts` found, in words.

    >>> text_words({"corpus": "a.txt", "split": "test", "windows": 8, "length": 512})
    'a.txt test, 8 × 512'
    """
    drawn = f", {facts['draw']}" if facts.get("draw", "windows") != "windows" else ""
    return f"{facts['corpus']} {facts['split']}, {facts['windows']} × {facts['length']}{drawn}"


def text_facts(tokenizer, choice: Calibration | Evaluation, seed: int | None, text) -> dict:
    """What is known of the windows of a choice of text."""
    corpus: Corpus = text(choice.corpus, choice.split)
    windows = windows_of(tokenizer, choice, seed, text)
    facts = {
        "corpus": corpus.name,
        "split": corpus.split,
        "corpus_sha256": corpus.sha256,
        "windows": windows.shape[0],
        "length": windows.shape[1],
        "tokens_sha256": tokens_sha256(windows),
    }
    return facts if isinstance(choice, Evaluation) else facts | {"draw": choice.draw, "seed": seed}
