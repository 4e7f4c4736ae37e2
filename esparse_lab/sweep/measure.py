"""One job of a sweep, in whichever process it runs: prune, then measure each cell."""

import threading
import time
from datetime import UTC, datetime
from functools import cache

from esparse_lab.corpora import load_corpus, tokens_sha256
from esparse_lab.errors import EsparseError
from esparse_lab.experiments import device_name, pruned
from esparse_lab.likelihood import perplexity
from esparse_lab.models import load_model
from esparse_lab.sweep.plan import Calibration, Evaluation, Job, ModelChoice, code, windows_of


class _AtHand:
    """A loaded model and windows of text: the next job often needs the same."""

    def __init__(self, choice: ModelChoice, device: str):
        self.loaded = load_model(
            choice.model, revision=choice.revision, dtype=choice.dtype, device=device
        )
        corpus = cache(load_corpus)
        self._windows = cache(
            lambda text, seed: windows_of(self.loaded.tokenizer, text, seed, corpus)
        )

    def windows(self, text: Calibration | Evaluation, seed: int | None, facts: dict):
        """The windows, if they are those that the sweep was planned with."""
        found = self._windows(text, seed)
        _require_same(f"the tokens of {text.corpus}", tokens_sha256(found), facts["tokens_sha256"])
        return found


_at_hand: dict[tuple, _AtHand] = {}
_one_at_a_time = threading.Lock()  # a worker may have several threads; the model is one


def measure(job: Job) -> list[dict]:
    """What is found for each cell of a job, or why there is nothing: "error_kind" and "error"."""
    with _one_at_a_time:
        try:
            found = _measured(job)
        except Exception as error:
            found = [failure(error)] * len(job.cells)
        if any("error" in facts for facts in found):
            _at_hand.clear()  # what went wrong may be in it
    return found


def failure(error: BaseException) -> dict:
    """What a failed cell keeps."""
    return {"error_kind": type(error).__name__, "error": str(error), "finished": _now()}


def _measured(job: Job) -> list[dict]:
    about = job.cells[0].about
    for what, found in code().items():
        _require_same(f"the {what} of esparse_lab", found, about[what])
    here = _model_at_hand(job)
    _require_same(f"the model {job.model.model}", here.loaded.revision, about["model"]["revision"])
    calibration = None
    if job.calibration is not None:
        calibration = here.windows(job.calibration, job.seed, about["calibration"])
    with pruned(here.loaded.model, calibration, job.recipe) as facts:
        return [facts | _evaluated(here, cell) for cell in job.cells]


def _model_at_hand(job: Job) -> _AtHand:
    wanted = (job.model, job.device)
    if wanted not in _at_hand:
        _at_hand.clear()  # first: two large models need not fit
        _at_hand[wanted] = _AtHand(*wanted)
    return _at_hand[wanted]


def _evaluated(here: _AtHand, cell) -> dict:
    started = time.perf_counter()
    try:
        test = here.windows(cell.evaluation, None, cell.about["evaluation"])
        found = perplexity(here.loaded.model, test, progress=False)
    except Exception as error:
        return failure(error)
    return {
        "perplexity": found.value,
        "nll": found.nll.tolist(),
        "eval_seconds": time.perf_counter() - started,
        "device": device_name(here.loaded.model),
        "finished": _now(),
    }


def _require_same(what: str, found: object, planned: object) -> None:
    if found != planned:
        raise EsparseError(
            f"On this worker {what} is not what the sweep was planned with: {found}, expected "
            f"{planned}. Give every machine the same files and the same environment."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
