"""Recipes from words: what methods, searches, sparsities and allocations are called."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace

from esparse_lab.allocation import ALLOCATIONS
from esparse_lab.errors import InputError, unknown
from esparse_lab.masks import Sparsity, Unstructured, parse_sparsity
from esparse_lab.methods import METHODS, PruningMethod, make_method, method_name
from esparse_lab.permutation import SEARCHES, BlockShuffle, OrderSearch
from esparse_lab.pruning import Calibration, Objective, Orders, Recipe, can_be_ordered
from esparse_lab.reconstruction import Reconstruction
from esparse_lab.rivals import RIVALS, BestOf, SlotAssignment, StripePairs
from esparse_lab.tuning import BlockTuning

BEST_SEARCH = "gns+lbs"
READERS = {
    int: int,
    float: float,
    str: str,
    bool: lambda text: {"true": True, "false": False}[text.lower()],
}
"""How a setting of each type is read from text."""


def named_search(name: str) -> OrderSearch | None:
    """The entry of `SEARCHES` or `RIVALS`; raises `InputError` with the nearest names."""
    known = SEARCHES | RIVALS
    if name not in known:
        raise unknown("search", name, known)
    return known[name]


def search_name(search: OrderSearch | None) -> str:
    """The name of a search in `SEARCHES` or `RIVALS`, else its settings."""
    known = SEARCHES | RIVALS
    return next((name for name in known if known[name] == search), repr(search))


def recipe_label(recipe: Recipe) -> str:
    """A recipe in words, such as "esparse 2:4, gns+lbs"; only settings off the default."""
    method, defaults = recipe.method, flat_settings(type(recipe.method)())
    parts = [f"{method_name(method)} {recipe.pattern}"]
    parts += [f"{name}={v}" for name, v in flat_settings(method).items() if v != defaults[name]]
    parts += [search_name(recipe.search)] if recipe.search is not None else []
    parts += ["by output"] if recipe.objective == "output" else []
    parts += ["reconstruct"] if recipe.reconstruct is not None else []
    parts += [_tuned(recipe.tuning)] if recipe.tuning is not None else []
    parts += [f"calibration {recipe.calibration}"] if recipe.calibration != "sequential" else []
    parts += [repr(recipe.allocation)] if recipe.allocation is not None else []
    parts += [f"orders {recipe.orders}"] if recipe.orders != "mask" else []
    return ", ".join(parts)


def _tuned(tuning: BlockTuning) -> str:
    """The word for it, and its settings that are off the default."""
    usual = vars(BlockTuning())
    changed = [f"{name}={v}" for name, v in vars(tuning).items() if v != usual[name]]
    return " ".join(["tuned", *changed])


def flat_settings(method: PruningMethod) -> dict[str, object]:
    """A method's settings by name; those of its histogram stand beside its own.

    >>> flat_settings(METHODS["esparse"](alpha=2.0))["bins"]
    100
    """
    flat: dict[str, object] = {}
    for f in fields(method):
        value = getattr(method, f.name)
        flat |= vars(value) if is_dataclass(value) else {f.name: value}
    return flat


def method_of(name: str, settings: Mapping[str, str]) -> PruningMethod:
    """The method called `name`, its settings read from text, those of its histogram by their names.

    Raises:
        InputError: for a method or setting that is not known, or text that is not of its kind.
    """
    plain = METHODS[name]() if name in METHODS else None
    defaults = flat_settings(plain) if plain is not None else {}
    values: dict[str, object] = {}
    for setting, text in settings.items():
        kind = type(defaults.get(setting, text))
        if kind not in READERS or is_dataclass(getattr(plain, setting, None)):
            raise InputError(f"{setting} of method {name!r} cannot be given as text.")
        try:
            values[setting] = READERS[kind](text)
        except (KeyError, ValueError):
            raise InputError(
                f"{setting}={text}: expected {setting} of method {name!r} to be of type "
                f"{kind.__name__}, for example {setting}={defaults[setting]}."
            ) from None
    for f in fields(plain) if plain is not None else ():
        part = getattr(plain, f.name)
        if is_dataclass(part):
            inner = {key: values.pop(key) for key in vars(part) if key in values}
            values |= {f.name: replace(part, **inner)} if inner else {}
    return make_method(name, **values)


def recipe_of(
    method: PruningMethod,
    *,
    pattern: str | None = None,
    search: str | None = None,
    calibration: Calibration = "sequential",
    reconstruct: bool = False,
    allocation: str | None = None,
    target: float | None = None,
    menu: str | None = None,
    orders: Orders = "mask",
    tune: bool | Mapping[str, float] = False,
    objective: Objective = "score",
) -> Recipe:
    """A recipe from the words of the command line.

    Args:
        method: chooses the weights.
        pattern: such as "2:4" or "50%"; without it 2:4, or with an allocation what its menu holds
            nearest to the target.
        search: a name in `SEARCHES` or `RIVALS`; without it the best that the pattern's groups fit,
            or none where no order means anything.
        calibration: where statistics come from; see `Recipe`.
        reconstruct: solve for the kept weights.
        allocation: a name in `ALLOCATIONS`; without it every layer gets `pattern`.
        target: share of the weights that an allocation keeps; without it that of `pattern`.
        menu: what an allocation may give to a layer; without it unstructured shares.
        orders: which channel orders may be searched; see `Recipe`.
        tune: move the kept weights of each block towards the dense model's output; a mapping gives
            settings of `BlockTuning` by their names.
        objective: what decides between the searches of "best-of"; see `Recipe`.

    Raises:
        InputError: for words that are not known or do not go together.
    """
    sparsity = parse_sparsity("2:4" if pattern is None else pattern)
    spread = None
    if allocation is not None:
        if allocation not in ALLOCATIONS:
            raise unknown("allocation", allocation, ALLOCATIONS)
        target = sparsity.density if target is None else target
        menu = "unstructured" if menu is None else menu
        spread = ALLOCATIONS[allocation](target=target, menu=menu)
        if pattern is None:
            sparsity = min(
                spread.patterns,
                key=lambda each: abs(each.density - target),
                default=Unstructured(target),
            )
    elif target is not None or menu is not None:
        raise InputError(
            "A target and a menu belong to an allocation: choose one of "
            f"{', '.join(ALLOCATIONS)}, or leave them out."
        )
    if search is None:
        search = "none"
        if can_be_ordered(sparsity, spread):
            search = BEST_SEARCH if _holds_groups(SEARCHES[BEST_SEARCH], sparsity) else "gns"
    solver = Reconstruction() if reconstruct else None
    recipe = Recipe(
        method,
        sparsity,
        named_search(search),
        calibration,
        solver,
        spread,
        orders,
        _tuning(tune),
        objective,
    )
    if not _holds_groups(recipe.search, sparsity):
        raise InputError(
            f"The search {search!r} shuffles inside blocks of {max(_blocks(recipe.search))} "
            f"channels, which hold no whole groups of {sparsity.m}. Take 'gns' or 'none', or "
            "another pattern."
        )
    return recipe


def _tuning(tune: bool | Mapping[str, float]) -> BlockTuning | None:
    if not isinstance(tune, Mapping):
        return BlockTuning() if tune else None
    kinds = {f.name: f.type for f in fields(BlockTuning)}
    for name, value in tune.items():
        if name not in kinds:
            raise unknown("setting of the tuning", str(name), kinds)
        wanted = (int, float) if kinds[name] is float else (int,)
        if isinstance(value, bool) or not isinstance(value, wanted):
            expected = "a number" if float in wanted else "a whole number"
            raise InputError(f"tune: {name} got {value!r}, expected {expected}.")
    return BlockTuning(**tune)


def _holds_groups(search: OrderSearch | None, sparsity: Sparsity) -> bool:
    return not any(block % sparsity.m for block in _blocks(search))


def _blocks(search: OrderSearch | None) -> list[int]:
    """The blocks that a search, or one that it begins with, shuffles channels in."""
    match search:
        case BlockShuffle():
            return [search.block, *_blocks(search.start)]
        case SlotAssignment() | StripePairs():
            return _blocks(search.start)
        case BestOf():
            return [block for one in search.searches for block in _blocks(one)]
    return []
