"""Zero-shot tasks: the harness's own prompts and scores, sums by hand, and files that are wrong."""

import hashlib
import json
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom, binomtest
from tiny_models import TINY_CONFIGS, byte_tokenizer, random_model
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from esparse_lab import EsparseError, InputError, paired_difference, task_scores, zero_shot
from esparse_lab.cli import app
from esparse_lab.models import LoadedModel, embedded_model_folder, load_model
from esparse_lab.reports import NOTEBOOKS
from esparse_lab.reports.execute import run_notebook
from esparse_lab.reports.parameters import notebook_parameters
from esparse_lab.tasks import TASKS, accuracy_layout, published_table2, read_task, task_ladder
from esparse_lab.tasks.harness import run_harness
from esparse_lab.tasks.paired import mcnemar
from esparse_lab.tasks.scoring import _batches, _Stem, choice_loglikelihoods

needs_harness = pytest.mark.skipif(
    not find_spec("lm_eval"), reason="needs lm-evaluation-harness: pip install '.[zero-shot]'"
)
quiet = pytest.mark.filterwarnings("ignore")  # the harness's own

# Items as their authors publish them: what the harness reads from the hub.
UPSTREAM = {
    "hellaswag": [
        {
            "activity_label": "Baking cookies",
            "ctx_a": "A bowl [title] is shown. [substeps] Butter melts.",
            "ctx_b": "the BAKER",
            "endings": ["stirs it.", "flies  away [step] now.", "sings loudly", "is naïve."],
            "label": "2",
        },
        {
            "activity_label": "Rowing",
            "ctx_a": "Two boats leave.",
            "ctx_b": "",
            "endings": ["They row.", "They sink.", "They sing.", "They sleep in the boats."],
            "label": "0",
        },
    ],
    "piqa": [
        {"goal": "dry a towel", "sol1": "hang it up", "sol2": "put it in {water}", "label": 0},
        {"goal": "Open a jar? ", "sol1": "twist", "sol2": "Twist the lid to the left.", "label": 1},
    ],
    "openbookqa": [
        {
            "question_stem": "Frogs begin as",
            "choices": {"text": ["eggs", "big birds"], "label": ["A", "B"]},
            "answerKey": " A",
        },
        {
            "question_stem": "Ice is ",
            "choices": {"text": ["hot", "frozen water", "air"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        },
    ],
    "sciq": [
        {
            "support": "\n  Water boils at 100 °C.\n",
            "question": "What boils?",
            "distractor1": "stone",
            "distractor2": "iron",
            "distractor3": "sand",
            "correct_answer": "water",
        },
        {
            "support": "",
            "question": "Who wrote Faust?",
            "distractor1": "Kant",
            "distractor2": "Bach",
            "distractor3": "Gauß",
            "correct_answer": "Goethe",
        },
    ],
    "logiqa": [
        {
            "label": "c ",
            "context": "All cats are grey. " * 8,  # longer than the tiny model reads
            "question": "Which follows?",
            "options": ["Tom is red", "No cat", "Tom, a cat, is grey", "None."],
        },
        {
            "label": "a",
            "context": "P.",
            "question": "Q?",
            "options": ["yes", "no", "both", "neither of them"],
        },
    ],
}
# HellaSwag's file holds cleaned text, by the rules of its harness task, here by hand.
CLEANED = [
    {
        "query": "Baking cookies: A bowl. is shown. Butter melts. The baker",
        "choices": ["stirs it.", "flies away now.", "sings loudly", "is naïve."],
        "gold": 2,
    },
    {
        "query": "Rowing: Two boats leave.",
        "choices": UPSTREAM["hellaswag"][1]["endings"],
        "gold": 0,
    },
]
LOCAL = {**UPSTREAM, "hellaswag": CLEANED}
SPLIT = {"openbookqa": "test", "sciq": "test", "logiqa": "test"}


def write_lines(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for task, lines in LOCAL.items():
        write_lines(folder / f"{task}_{SPLIT.get(task, 'validation')}.jsonl", lines)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    return byte_tokenizer(eos_token="a")


def lively(model_type: str, **changes):
    """A random model whose logits are far apart."""
    model = random_model(model_type, **changes)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(12)
    return model


@pytest.fixture
def model():
    return lively("llama", max_position_embeddings=120)


def by_hand(model, tokenizer, context: str, choice: str) -> float:
    """Log-likelihood of a choice by one plain forward."""
    read, whole = (tokenizer.encode(text) for text in (context, f"{context} {choice}"))
    assert whole[: len(read)] == read
    with torch.no_grad():
        predicted = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(predicted[i - 1, whole[i]]) for i in range(len(read), len(whole)))


@pytest.fixture
def manager(tmp_path, data):
    """The harness's own definitions of the five tasks, on the items above instead of the hub's."""
    import lm_eval.tasks

    home = Path(lm_eval.tasks.__file__).parent
    folder = tmp_path / "yaml"
    folder.mkdir()
    for task, lines in UPSTREAM.items():
        split = SPLIT.get(task, "validation")
        items = write_lines(folder / f"{task}.jsonl", lines)
        config = {
            "include": str(home / task / f"{task}.yaml"),
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "validation_split": split if split == "validation" else None,
            "dataset_kwargs": {
                "data_files": {split: str(items)},
                "cache_dir": str(tmp_path / "cache"),
            },
        }
        (folder / f"{task}.yaml").write_text(json.dumps({**config, "task": task}))
    return lm_eval.tasks.TaskManager(include_path=folder, include_defaults=False)


@needs_harness
@quiet
@pytest.mark.parametrize("task", TASKS)
def test_a_question_is_what_the_harness_makes_of_the_item(task, manager, data):
    theirs = manager.load([task])["tasks"][task]
    theirs.set_config(key="num_fewshot", value=0)
    questions = read_task(task, data).questions
    docs = list(theirs.eval_docs)
    assert len(docs) == len(questions) == 2
    for doc, ours in zip(docs, questions, strict=True):
        context = theirs.fewshot_context(doc, 0)
        requests = theirs.construct_requests(doc, context, metadata=(task, 0, 1))
        assert [r.args for r in requests] == [(ours.context, f" {c}") for c in ours.choices]
        assert theirs.doc_to_target(doc) in (ours.answer, str(ours.answer))


@needs_harness
@quiet
def test_scores_are_those_of_the_harness(manager, data, model, tokenizer):
    figures, items, source = run_harness(model, tokenizer, list(TASKS), manager=manager)
    ours = task_scores(model, tokenizer, data=data, progress=False)
    keys = ["task", "metric"]
    both = ours.table[ours.table.task != "mean"].merge(figures, on=keys, validate="1:1")
    assert len(both) == len(figures) == 10
    assert both.value_x.tolist() == both.value_y.tolist()
    assert both.stderr_x.tolist() == pytest.approx(both.stderr_y.tolist(), abs=1e-12)
    assert both.items_x.tolist() == both.items_y.tolist() == [2] * 10
    paired = ours.items.merge(items, on=[*keys, "item"], validate="1:1")
    assert len(paired) == len(items) == 20
    assert paired.value_x.tolist() == paired.value_y.tolist()
    assert 0 < paired.value_x.mean() < 1
    assert source["versions"] == dict.fromkeys(TASKS, 1.0)


@needs_harness
@quiet
def test_loglikelihoods_are_those_of_the_harness(data, model, tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    questions = [question for task in TASKS for question in read_task(task, data).questions]
    requests = [
        Instance("loglikelihood", {}, (question.context, f" {choice}"), 0)
        for question in questions
        for choice in question.choices
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(requests)
    ours = choice_loglikelihoods(model, tokenizer, questions, progress=False)
    assert list(chain(*ours)) == pytest.approx([score for score, _ in theirs], rel=1e-5)
    # One of them is longer than the model reads.
    assert max(len(tokenizer.encode(q.context)) for q in questions) > 120


@needs_harness
@quiet
def test_an_unknown_task_of_the_harness_names_the_nearest(manager, model, tokenizer):
    with pytest.raises(InputError, match=r"Unknown task 'helaswag'. Did you mean 'hellaswag'"):
        run_harness(model, tokenizer, ["helaswag"], manager=manager)


def test_a_missing_harness_says_how_to_get_it(model, tokenizer, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(EsparseError, match=r"pip install 'esparse_lab\[zero-shot\]'.*--tasks-data"):
        zero_shot(model, tokenizer, ["piqa"])


@pytest.mark.parametrize("model_type", TINY_CONFIGS)
def test_every_family_scores_a_choice_as_one_plain_forward_does(model_type, tokenizer, data):
    model = lively(model_type)
    questions = [
        q
        for t in ("piqa", "openbookqa")
        for q in read_task(t, data).questions
        if q.context[-1] > " "
    ]
    assert len({len(q.choices) for q in questions}) == 1
    found = choice_loglikelihoods(model, tokenizer, questions, progress=False)
    for question, scores in zip(questions, found, strict=True):
        wanted = [by_hand(model, tokenizer, question.context, c) for c in question.choices]
        assert scores == pytest.approx(wanted, rel=1e-4)


def test_batches_hold_stems_of_one_shape_and_no_more_tokens_than_may_run_together():
    generator = np.random.default_rng(0)
    stems = [
        _Stem([0] * length, [[0] * n for n in generator.integers(1, 30, choices)], [])
        for length, choices in generator.integers((5, 2), (8, 4), (200, 2))
    ]
    batches = list(_batches(stems, 400))
    assert sorted(map(id, chain(*batches))) == sorted(map(id, stems))
    assert max(map(len, batches)) > 1
    for batch in batches:
        assert len({stem.shape for stem in batch}) == 1
        longest = max(len(answer) for stem in batch for answer in stem.answers)
        length, choices = batch[0].shape
        assert len(batch) == 1 or len(batch) * (length + choices * longest) <= 400


def test_accuracy_and_its_error_by_hand(model, tokenizer, data):
    """Right and wrong from plain forwards; the error of a share p of n is sqrt(p (1-p) / (n-1))."""
    lines = [
        {"goal": f"count to {n}", "sol1": "one" * (n % 4 + 1), "sol2": f"say {n}", "label": n % 2}
        for n in range(12)
    ]
    write_lines(data / "piqa_validation.jsonl", lines)
    right, right_norm = [], []
    for line in lines:
        choices = [line["sol1"], line["sol2"]]
        context = f"Question: {line['goal']}\nAnswer:"
        scores = [by_hand(model, tokenizer, context, choice) for choice in choices]
        right.append((scores[1] > scores[0]) == line["label"])
        per_character = [s / len(c) for s, c in zip(scores, choices, strict=True)]
        right_norm.append((per_character[1] > per_character[0]) == line["label"])
    table = zero_shot(model, tokenizer, ["piqa"], data=data, progress=False)
    table = table.set_index("metric")
    for metric, wanted in {"acc": right, "acc_norm": right_norm}.items():
        share = sum(wanted) / 12
        assert 0 < share < 1
        assert table.value[metric] == pytest.approx(share)
        assert table.stderr[metric] == pytest.approx((share * (1 - share) / 11) ** 0.5)
    assert right != right_norm
    assert set(table.task) == {"piqa"}  # of one task there is no mean


def test_means_over_tasks_are_computed(model, tokenizer, data):
    table = zero_shot(model, tokenizer, data=data, progress=False)
    for _, of_metric in table.groupby("metric"):
        tasks, mean = of_metric.iloc[:-1], of_metric.iloc[-1]
        assert mean.task == "mean"
        assert mean.value == pytest.approx(tasks.value.sum() / 5)
        assert mean.stderr == pytest.approx((tasks.stderr**2).sum() ** 0.5 / 5)
        assert mean["items"] == 10


def test_limit_takes_the_first_questions_and_the_hash_is_of_the_file(model, tokenizer, data):
    found = task_scores(model, tokenizer, ["sciq", "piqa"], limit=1, data=data, progress=False)
    whole = task_scores(model, tokenizer, ["sciq", "piqa"], data=data, progress=False)
    firsts = whole.items[whole.items["item"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.items, firsts)
    digest = hashlib.sha256((data / "sciq_test.jsonl").read_bytes()).hexdigest()
    assert found.source["sciq"] == {"file": "sciq_test.jsonl", "sha256": digest, "items": 1}


@pytest.mark.parametrize(
    ("task", "line", "says"),
    [
        ("piqa", {"goal": "g", "sol1": "a", "label": 0}, "line 3: piqa needs the field sol2; the"),
        ("sciq", {"question": "q"}, "needs the fields support, distractor1, distractor2, distra"),
        ("logiqa", [1], "the line has no fields"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": 2}, "the answer 2 is none of 2"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": " ", "label": 0}, "a choice is empty"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": 7, "label": 0}, "a choice is empty or no text"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b", "label": True}, "the answer True"),
        (
            "logiqa",
            {**UPSTREAM["logiqa"][1], "label": "e"},
            "line 3: no question of logiqa: 'e' is",
        ),
        ("logiqa", {**UPSTREAM["logiqa"][1], "options": ["x"]}, "line 3: no question of logiqa"),
        ("openbookqa", {"question_stem": "q", "choices": {}, "answerKey": "A"}, "'label'"),
        ("hellaswag", {"query": "q", "choices": 5, "gold": 0}, "no question of hellaswag"),
    ],
)
def test_a_bad_line_is_named(task, line, says, data):
    path = next(data.glob(f"{task}*"))
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    with pytest.raises(InputError, match=says) as error:
        read_task(task, data)
    assert str(error.value).startswith(f"{path.name}, line 3: ")


def test_a_line_that_is_no_json_is_named(data):
    path = data / "piqa_validation.jsonl"
    path.write_bytes(path.read_bytes() + b"\n{\xff}\n")
    with pytest.raises(InputError, match="line 4: not JSON in UTF-8"):
        read_task("piqa", data)


def test_files_and_limits_that_cannot_be_used(data):
    with pytest.raises(InputError, match=r"'helaswag'. Did you mean 'hellaswag'"):
        read_task("helaswag", data)
    (data / "piqa_train.jsonl").write_text("")
    with pytest.raises(InputError, match=r"one file piqa\*.jsonl in .*piqa_train.jsonl, piqa_vali"):
        read_task("piqa", data)
    (data / "piqa_validation.jsonl").unlink()
    with pytest.raises(InputError, match="holds no questions"):
        read_task("piqa", data)
    (data / "piqa_train.jsonl").unlink()
    with pytest.raises(InputError, match=r"found none. Its lines have the fields goal, sol1"):
        read_task("piqa", data)
    with pytest.raises(InputError, match="limit must be at least 1"):
        read_task("sciq", data, limit=0)


def test_broken_models_and_long_choices_are_errors(model, tokenizer, data):
    write_lines(data / "piqa_validation.jsonl", [{**UPSTREAM["piqa"][0], "sol2": "x" * 121}])
    with pytest.raises(InputError, match="has 122 tokens, expected 1 to 120"):
        zero_shot(model, tokenizer, ["piqa"], data=data, progress=False)
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(EsparseError, match=r"log-likelihoods of question 0 are \[nan, nan"):
        zero_shot(model, tokenizer, ["sciq"], data=data, progress=False)


def items_of(results: dict[str, list[int]], metric: str = "acc") -> pd.DataFrame:
    rows = [
        (task, i, f"{task}{i}", metric, float(value))
        for task, values in results.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["task", "item", "question", "metric", "value"])


def test_paired_difference_by_hand():
    ours = items_of({"a": [1, 1, 0, 0, 1, 0, 0, 0], "b": [1, 0, 1, 1]})
    base = items_of({"a": [1, 0, 1, 1, 1, 1, 1, 0], "b": [1, 0, 1, 1]})
    shuffled = base.sample(frac=1, random_state=0)
    found = paired_difference(ours, shuffled).set_index("task")
    assert found.difference.to_dict() == {"a": -3 / 8, "b": 0.0, "mean": -3 / 16}
    assert found.loc["a", ["gained", "lost", "items"]].tolist() == [1, 4, 8]
    assert found.loc["mean", ["gained", "lost", "items"]].tolist() == [1, 4, 12]
    assert found.p_value["a"] == pytest.approx(12 / 32)  # 2 (1 + 5) of 2^5 throws
    assert found.loc["b", ["low", "high", "p_value"]].tolist() == [0, 0, 1]
    # Where nothing differs nothing is uncertain, so the mean's interval is half of a's.
    assert found.low["mean"] == pytest.approx(found.low["a"] / 2, abs=0.07)
    assert paired_difference(ours, base).equals(paired_difference(ours, shuffled))


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_the_interval_is_the_binomials_where_only_losses_occur(confidence):
    """Resampling 40 items of which 10 were lost draws Binomial(40, 1/4) losses."""
    ours, base = items_of({"a": [0] * 10 + [1] * 30}), items_of({"a": [1] * 40})
    row = paired_difference(ours, base, confidence=confidence, draws=200_000).iloc[0]
    few, many = binom.ppf([(1 - confidence) / 2, (1 + confidence) / 2], 40, 0.25)
    assert (row.low, row.high) == pytest.approx((-many / 40, -few / 40))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(3)
    base_rate, gain, loss = 0.6, 0.05, 0.15  # truth: -0.10
    held = 0
    for _ in range(200):
        kind = generator.choice(4, 300, p=[gain, loss, base_rate - loss, 1 - base_rate - gain])
        ours, base = np.isin(kind, (0, 2)), np.isin(kind, (1, 2))
        row = paired_difference(items_of({"a": ours}), items_of({"a": base}), draws=2000).iloc[0]
        held += row.low <= gain - loss <= row.high
    assert 0.90 <= held / 200 <= 0.99


def test_pairing_is_tighter_than_two_errors_side_by_side():
    generator = np.random.default_rng(0)
    base = generator.random(400) < 0.5
    ours = np.where(generator.random(400) < 0.05, ~base, base)
    row = paired_difference(items_of({"a": ours}), items_of({"a": base})).iloc[0]
    unpaired = 1.96 * (2 * 0.25 / 400) ** 0.5
    assert (row.high - row.low) / 2 < 0.5 * unpaired


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (1, 9), (40, 20), (900, 1100)])
def test_mcnemar_is_the_binomial_test(gained, lost):
    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(wanted, rel=1e-9)


def test_other_questions_are_not_compared():
    ours, base = items_of({"a": [1, 0]}), items_of({"a": [1, 0, 1]})
    with pytest.raises(InputError, match="1 results of one have no partner, beginning with a 2"):
        paired_difference(ours, base)
    with pytest.raises(InputError, match="not asked the same questions: 2"):
        paired_difference(ours, ours.assign(question=["a0", "other"]))
    with pytest.raises(InputError, match="confidence between 0 and 1"):
        paired_difference(ours, ours, confidence=1.0)


def test_a_ladder_is_kept_and_leaves_the_model_dense(model, tokenizer, data, tmp_path, monkeypatch):
    from esparse_lab.experiments import ladder, weights_fingerprint

    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))
    loaded = LoadedModel(model, tokenizer, "tiny", "revision")
    asked = {"tasks": ["sciq", "hellaswag"], "data": data, "progress": False}
    recipes = ladder(["magnitude"], ["2:4"], ["none"])
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    before = weights_fingerprint(model)
    first = dict(task_ladder(loaded, tokens, recipes, **asked))
    assert weights_fingerprint(model) == before
    assert list(first) == ["dense", "magnitude 2:4"]
    dense = task_scores(model, tokenizer, **asked)
    pd.testing.assert_frame_equal(first["dense"].table, dense.table)
    assert first["dense"].source == dense.source
    assert not first["magnitude 2:4"].items.equals(dense.items)
    monkeypatch.setattr("esparse_lab.tasks.ladder.file_scores", None)
    again = dict(task_ladder(loaded, tokens, recipes, **asked))
    assert all(again[label].items.equals(first[label].items) for label in first)


def test_layout_is_table_2s_in_percent():
    rows = [("dense", task, 0.5, 0.02) for task in ("sciq", "hellaswag", "other", "mean")]
    table = pd.DataFrame(rows, columns=["model", "task", "value", "stderr"]).assign(metric="acc")
    found = accuracy_layout(table)
    assert list(found.columns) == ["hellaswag", "sciq", "other", "mean"]
    assert set(found.loc["dense"]) == {"50.0 ± 2.0"}


def test_published_means_are_computed_and_differ_from_the_printed_ones():
    table = published_table2().set_index(["model", "method"])
    row = table.loc[("LLaMA-13B", "dense")]
    assert row["printed mean"] == 59.77
    assert row["mean"] == pytest.approx(288.54 / 5)
    assert len(table) == 20
    off = (table["mean"] - table["printed mean"]).abs() > 0.006
    assert off.sum() == 6  # METHODS.md names them


def esparse(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="esparse")


def test_the_command_prints_the_scores_and_the_paired_differences(model, tokenizer, data, tmp_path):
    for name, broken in (("tiny", False), ("other", True)):
        if broken:
            model.lm_head.weight.data.neg_()
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    options = ["--tasks-data", data, "--limit", 1, "--against", tmp_path / "tiny", "--json"]
    result = esparse("eval", tmp_path / "other", *options)
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    ours = zero_shot(model, tokenizer, data=data, limit=1, progress=False)
    assert [row["value"] for row in told["tasks"]] == ours.value.tolist()
    assert told["tasks"][0]["stderr"] is None  # one question has no spread
    assert (told["model"], told["against"]["model"]) == ("other", "tiny")
    differences = {row["difference"] for row in told["paired"] if row["task"] != "mean"}
    assert {-1.0, 1.0} & differences <= differences <= {-1.0, 0.0, 1.0}
    result = esparse("eval", tmp_path / "tiny", "--tasks", "piqa, sciq", "--tasks-data", data)
    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == (
        ["piqa"] * 2 + ["sciq"] * 2 + ["mean"] * 2
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tasks", "pica"], "Did you mean 'piqa'?"),
        (["--tasks", "piqa", "--windows", 3], "--windows belongs to perplexity"),
        (["--tasks", "piqa", "--limit", 0], "Invalid value for '--limit'"),
    ],
)
def test_the_command_refuses_what_does_not_go_together(options, says, data):
    # The model does not exist: it would be the next thing to be missed.
    result = esparse("eval", "nowhere", "--tasks-data", data, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "--limit and --against belong to --tasks" in esparse("eval", "x", "--limit", 3).stderr


@pytest.mark.parametrize("measured", [True, False])
def test_the_notebook_with_and_without_questions(
    measured, model, tokenizer, data, tmp_path, monkeypatch
):
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path / "cache"))
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("What a model reads is a row of numbers. " * 9)
    source = NOTEBOOKS / "05_zero_shot.ipynb"
    values = {name: each.default for name, each in notebook_parameters(source).items()} | {
        "model": str(tmp_path / "tiny"),
        "tasks_data": str(data) if measured else "",
        "corpus": str(tmp_path / "text.txt"),
        "searches": ["gns"],
        "n_sequences": 2,
        "length": 16,
        "out_dir": str(tmp_path / "out"),
    }
    ran = run_notebook(source, tmp_path / "ran.ipynb", values, label="")
    assert ran.error is None, ran
    record = json.loads((tmp_path / "out" / "records" / "05_zero_shot.json").read_text())
    cells = nbformat.read(tmp_path / "ran.ipynb", as_version=4).cells
    shown = json.dumps([cell.get("outputs") for cell in cells])
    assert ("Nothing was measured here" in shown) != measured
    published = pd.read_csv(tmp_path / "out" / "tables" / "05_zero_shot.published.csv")
    assert len(published) == 20
    if not measured:
        assert record["tables"] == ["05_zero_shot.published"]
        return
    digest = hashlib.sha256((data / "sciq_test.jsonl").read_bytes()).hexdigest()
    assert record["facts"]["questions"]["sciq"]["sha256"] == digest
    items = pd.read_parquet(tmp_path / "out" / "tables" / "05_zero_shot.items.parquet")
    assert set(items.model) == {"dense", "wanda 2:4", "esparse 2:4, gns"}
    paired = pd.read_parquet(tmp_path / "out" / "tables" / "05_zero_shot.paired.parquet")
    means = items[items.metric == "acc"].groupby(["model", "task"]).value.mean()
    row = paired.set_index(["model", "task", "metric"]).loc[("wanda 2:4", "logiqa", "acc")]
    assert row.difference == means["wanda 2:4", "logiqa"] - means["dense", "logiqa"]


@pytest.mark.embedded
@pytest.mark.skipif(
    not embedded_model_folder().is_dir(), reason="needs the model that `esparse fetch` brings"
)
def test_the_embedded_model_by_plain_forwards(data):
    loaded = load_model("smollm2-135m", device="cpu")
    questions = [read_task(task, data).questions[1] for task in ("hellaswag", "piqa", "sciq")]
    found = choice_loglikelihoods(loaded.model, loaded.tokenizer, questions, progress=False)
    for question, scores in zip(questions, found, strict=True):
        for choice, score in zip(question.choices, scores, strict=True):
            wanted = by_hand(loaded.model, loaded.tokenizer, question.context, choice)
            assert score == pytest.approx(wanted, abs=1e-3)
