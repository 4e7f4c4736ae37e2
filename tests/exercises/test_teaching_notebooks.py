"""Teaching notebooks as a student, an instructor and one who errs meet them, on a tiny model."""

import ast
import importlib.util
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from tiny_models import byte_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from esparse_lab.reports import NOTEBOOKS
from esparse_lab.reports.execute import run_notebook
from esparse_lab.reports.parameters import notebook_parameters

HOME = Path(__file__).parents[2]
ANSWERS = HOME / "answers"
TAUGHT = sorted(path.stem for path in ANSWERS.glob("[0-9]*.py"))
spec = importlib.util.spec_from_file_location("fill_in", ANSWERS / "fill_in.py")
fill_in = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fill_in)

ONE_HOT = "torch.nn.functional.one_hot"
MASK_14 = f"{ONE_HOT}(weight.abs().reshape(len(weight), -1, 4).argmax(-1), 4).reshape(weight.shape)"
# Notebook -> exercise -> wrong answers, as a student might write them, and words of the reason.
WRONG = {
    "02_nm_sparsity": {
        "answer_1": [
            (f"1 - {ONE_HOT}(w.abs().reshape(4, 2, 4).argmin(-1), 4).reshape(4, 8)", "pruned weig"),
            (f"1 - {ONE_HOT}(w.abs().reshape(4, 2, 4).argmax(-1), 4).reshape(4, 8)", "removed one"),
            (f"{ONE_HOT}(w.abs().argmax(0), 4).T", "along the output"),
            (f"{ONE_HOT}(w.reshape(4, 2, 4).argmax(-1), 4).reshape(4, 8)", "signed"),
            ("torch.zeros(4, 8).scatter(1, w.abs().topk(2).indices, 1.0)", "wherever they are"),
            (
                f"w * {ONE_HOT}(w.abs().reshape(4, 2, 4).argmax(-1), 4).reshape(4, 8)",
                "kept weights",
            ),
            ("w.abs() > 100", "24 of 32 entries"),
        ],
        "answer_2": [
            ("[0, -2, 0, 6, 4, 0, 9, 0]", "from the left"),
            ("[6, 9, -2, 4, 0, 0, 0, 0]", "from the row's start"),
            ("[6, -2, 9, 4]", "Expected shape [8]"),
        ],
        "answer_3": [
            ("16 / 32", "forgot the metadata"),
            ("9 / 16", "values of 16 bits"),
            ("12 / 32", "share saved"),
            ("(2 * 8 + 4 * 2) / 32", "each of the four"),
            ("32 / 20", "turn it round"),
            ("2 * 8 + 2 * 2", "divide"),
            ("62.5", "in percent"),
        ],
        "answer_4": [
            ("8", "explicit zero"),
            ("24", "pruned weights instead of kept"),
            ("32", "dense count"),
            ("4", "one row"),
        ],
        "answer_5": [
            ("6 / 70", "one half alone"),
            ("12 / 70", "they multiply"),
            ("1", "not every 4:8"),
            ("70 / 36", "turn it round"),
            ("36", "That is their number"),
            ("34 / 70", "cannot be run"),
        ],
        "answer_6": [
            (f"(x @ (weight - weight * {MASK_14}).T).norm() / (x @ weight.T).norm()", "squares"),
            (f"(weight - weight * {MASK_14}).norm() ** 2 / weight.norm() ** 2", "from the weights"),
            (
                f"(x @ (weight * {MASK_14}).T).norm() ** 2 / (x @ weight.T).norm() ** 2",
                "not of the",
            ),
            (
                f"1 - (x @ (weight * {MASK_14}).T).norm() ** 2 / (x @ weight.T).norm() ** 2",
                "not the difference of the energies",
            ),
            ("of.output_error['2:4']", "That is 2:4"),
            (
                "(x @ (weight * (weight.abs().reshape(len(weight), -1, 4).argsort(-1).argsort(-1) "
                "== 0).reshape(weight.shape)).T).norm() ** 2 / (x @ weight.T).norm() ** 2",
                "1:4 keeps one of four",
            ),
        ],
        "answer_7": [
            ("entropy_by_hand[5]", "100 bins"),
            ("entropy(numpy(x[..., 5])) / np.log(2)", "log2"),
            ("entropy(numpy(x[..., 5])) / np.log(10)", "log10"),
            ("-entropy(numpy(x[..., 5]))", "minus sign"),
            ("entropy(numpy(x[..., 5]), (float(x.min()), float(x.max())))", "whole layer"),
            (
                "entropy(numpy(x[..., 5])) + np.log(np.ptp(numpy(x[..., 5])) / 10)",
                "densities in place of shares",
            ),
            ("np.mean([entropy(numpy(sequence)) for sequence in x[..., 5]])", "averaged"),
            ("float('nan')", "empty bin"),
        ],
        "answer_8": [
            ("weight[0].abs() * (stats.entropy + 3 * stats.norm)", "α = 3"),
            ("weight[0] * (stats.entropy + stats.norm)", "negative weights"),
            ("weight[0].abs() * stats.entropy * stats.norm", "adds them"),
            ("weight[0].abs() * stats.norm", "Wanda's"),
            ("weight[0].abs() * stats.entropy", "norm is missing"),
            ("weight[0].abs() + stats.entropy + stats.norm", "multiplies the sum"),
            ("stats.entropy + stats.norm", "|w| is missing"),
            ("weight[0].abs() * (stats.entropy + x.flatten(0, 1).norm(dim=0))", "all tokens"),
            ("weight[0].abs() * (stats.entropy / math.log(2) + stats.norm)", "bits"),
            ("weight.abs() * (stats.entropy + stats.norm)", "Expected shape"),
        ],
    },
    "03_channel_permutation": {
        "answer_1": [
            ("[1, 2, 2, 0, 2, 1, 2, 1, 0, 1, 0, 0]", "cut the sorted"),
            ("[0, 0, 2, 2, 1, 1, 2, 0, 0, 1, 1, 2]", "there and back"),
            ("[0, 1, 2] * 4", "as stored"),
            ("[0, 0, 0, 2, 1, 1, 2, 2, 2, 1, 1, 0]", "weakest first"),
            ("[5, 11, 8, 3, 10, 4, 9, 6, 0, 7, 1, 2]", "ranks"),
        ],
        "answer_2": [
            ("20922789888000", "counts orders"),
            ("63063000", "by 4! once more"),
            ("20922789888000 // 576", "there are four groups"),
            ("1820", "other 12"),
        ],
        "answer_3": [
            # On paper, from the matrix. Swapping 0 and 11 makes (11 9 7 5) of (0 9 7 5), and
            # (2 0 4 12) of (2 11 4 12); each output keeps the best two.
            ("-(-76 + 81)", "sign"),
            ("58 + 46 + 26 + 36 - 76 - 51 - 64 - 51", "one group"),
            ("66 + 106 + 84 + 51 - 48 - 101 - 46 - 31", "one group"),
            ("-113 + 102", "the places 0 and 11"),  # there stand the channels 1 and 12
            ("5 / 1246", "share of the total"),
        ],
        "answer_4": [
            ("swapped.argsort()", "inverse"),
            ("range(16)", "cannot stay"),
        ],
    },
}


def entropy(values, span=None):
    """Entropy in nats of 10 bins, by numpy."""
    counts, _ = np.histogram(values, bins=10, range=span)
    share = counts[counts > 0] / counts.sum()
    return -(share * np.log(share)).sum()


def numpy(tensor):
    return tensor.double().numpy().ravel()


@pytest.fixture(scope="module")
def parameters(tmp_path_factory) -> dict[str, object]:
    """A tiny Llama with a byte tokenizer, a text, and the smallest sizes."""
    folder = tmp_path_factory.mktemp("taught")
    byte_tokenizer().save_pretrained(folder / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "tiny")
    words = np.random.default_rng(0).integers(10**6, size=800)
    (folder / "text.txt").write_text(" ".join(map(str, words)))
    return {
        "model": str(folder / "tiny"),
        "corpus": str(folder / "text.txt"),
        "block": 1,
        "n_sequences": 4,
        "length": 64,
        "out_dir": str(folder / "out"),
    }


def code_cells(name):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_exercise(cell):
    return "exercise" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("name", TAUGHT)
def test_every_exercise_has_answers_right_and_wrong(name):
    assert sorted(WRONG) == TAUGHT
    asked = [fill_in.OPEN.search(cell.source)[1] for cell in code_cells(name) if is_exercise(cell)]
    assert asked == [f"answer_{number}" for number in range(1, len(asked) + 1)]
    assert asked == list(fill_in.read_answers(ANSWERS / f"{name}.py")) == list(WRONG[name])


@pytest.mark.parametrize("name", TAUGHT)
def test_open_right_and_wrong_answers_are_told_apart(name, parameters):
    """Runs the notebook in this process, and each exercise with every answer."""
    cells = code_cells(name)
    right = fill_in.read_answers(ANSWERS / f"{name}.py")
    values: dict = {"entropy": entropy, "numpy": numpy, "np": np, "display": str}
    for cell in cells:
        if not is_exercise(cell):
            exec(compile(cell.source, name, "exec"), values)
            if "parameters" in cell.metadata.get("tags", []):
                values |= parameters
            continue
        *_, check = ast.parse(cell.source).body
        check = compile(ast.Expression(check.value), name, "eval")
        exec(cell.source, values)  # as it is: None
        answer = fill_in.OPEN.search(cell.source)[1]
        assert eval(check, values).status == "open"
        for code, reason in WRONG[name][answer]:
            values[answer] = eval(code, values)
            verdict = eval(check, values)
            assert verdict.status == "wrong", (answer, code)
            assert reason in verdict.why, (answer, code, verdict.why)
            assert len(verdict.hints) >= 2
        exec(right[answer], values)
        assert eval(check, values).status == "right", (answer, eval(check, values))


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_the_instructors_version_runs_and_every_check_says_right(name, parameters, tmp_path):
    filled = fill_in.filled_in(
        NOTEBOOKS / f"{name}.ipynb", fill_in.read_answers(ANSWERS / f"{name}.py")
    )
    nbformat.write(filled, tmp_path / "with_answers.ipynb")
    declared = notebook_parameters(tmp_path / "with_answers.ipynb")
    given = {key: value for key, value in parameters.items() if key in declared}
    ran = run_notebook(tmp_path / "with_answers.ipynb", tmp_path / "ran.ipynb", given, label=name)
    assert ran.error is None
    executed = nbformat.read(tmp_path / "ran.ipynb", as_version=4)
    boxes = [cell.outputs[-1].data["text/html"] for cell in executed.cells if is_exercise(cell)]
    assert len(boxes) == len(WRONG[name])
    assert all("✓ Right." in box for box in boxes)


def test_answers_that_do_not_fit_the_notebook_are_refused():
    with pytest.raises(ValueError, match=r"asks for .*answer_1.* answers are there for"):
        fill_in.filled_in(NOTEBOOKS / f"{TAUGHT[0]}.ipynb", {"answer_1": "answer_1 = 1"})
