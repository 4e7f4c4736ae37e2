"""The package's own rules: data flows one way, and its two lists of dependencies are one."""

import ast
import tomllib
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
PACKAGE = HOME / "esparse_lab"

# A file imports only from rooms before its own.
ROOMS = [
    ["errors", "atomic"],
    ["downloads"],
    ["blocks"],
    ["experts"],
    ["discovery"],
    ["architectures", "models", "wikipedia", "corpora", "entropy"],
    ["channel_stats", "masks"],
    ["storage"],
    ["capture", "curvature"],
    ["device_code", "cpu_loops"],
    ["group_scores"],
    ["methods", "reconstruction", "twin", "pairwise", "shuffle_kernel", "gathered_norm"],
    ["tuning"],
    ["permutation", "budget", "sensitivity", "allocation"],
    ["rivals", "optimum"],
    ["planner"],
    ["residual_stream"],
    ["pruning", "likelihood"],
    ["folding"],
    ["comparison"],
    ["streaming"],
    ["run_record", "result_cache", "recipes"],
    ["checkpoints"],
    ["tables", "search_tables"],
    ["experiments", "footprint"],
    ["tasks"],
    ["sweep"],
    ["gemm"],
    ["audit"],
    ["figures"],
    ["exercises"],
    ["explorers"],
    ["reports", "doctor"],
    ["cli"],
]
PLACE = {name: place for place, room in enumerate(ROOMS) for name in room}
CORE = {name for room in ROOMS[: ROOMS.index(["figures"])] for name in room}
CORE_LIBRARIES = {
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "safetensors",
    "tqdm",
    "huggingface_hub",
    "filelock",
    "triton",  # comes with torch where there is CUDA; only the files of kernels need it
}


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module
            found |= {f"{base}.{a.name}" for a in node.names} if base == "esparse_lab" else {base}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_data_flows_one_way(path):
    here = room_of(path)
    assert here in PLACE, f"{here} has no place in ROOMS"
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "esparse_lab" and len(parts) > 1 and parts[1] != here:
            assert parts[1] in PLACE, f"{path.name} imports {name}: name the module it is in"
            assert PLACE[parts[1]] <= PLACE[here], f"{path.name} imports {name} from a later room"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_core_needs_few_libraries(path):
    import sys

    if room_of(path) not in CORE:
        return
    top_level = ast.Module([n for n in ast.parse(path.read_text()).body], [])
    for node in top_level.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imports(ast.Module([node], [])):
                library = name.split(".")[0]
                ours = library == "esparse_lab" or library in sys.stdlib_module_names
                assert ours or library in CORE_LIBRARIES, f"{path.name} needs {library} to import"


def test_environment_and_project_name_the_same_dependencies():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    named = set(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        named |= set(extra)
    lines = (HOME / "environment.yml").read_text().split("- pip:\n")[1].splitlines()
    listed = [line.strip().removeprefix("- ").strip('"') for line in lines if line.strip()]
    assert {item for item in listed if not item.startswith("-e")} == named


def test_every_dependency_is_pinned():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (HOME / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    assert {w.split(">=")[0].lower() for w in wanted} <= pins


def test_public_names_are_what_they_say():
    import esparse_lab

    modules_here = {p.stem for p in PACKAGE.iterdir()}
    for name in esparse_lab.__all__:
        assert getattr(esparse_lab, name) is not None
        # Importing a submodule binds its name in the package and would hide a public one.
        assert name not in modules_here
    with pytest.raises(AttributeError, match="no attribute 'wonda'"):
        _ = esparse_lab.wonda


def test_help_does_not_wait_for_torch():
    import subprocess
    import sys

    code = "import esparse_lab.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
