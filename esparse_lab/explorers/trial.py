"""One recipe measured on a model: in a thread of its own, watched, stopped at any time.

While it runs the model's weights change, so a model takes one trial at a time, and explorers that
would read the weights meanwhile are refused. However it ends, the weights are put back.
"""

import threading
from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import PreTrainedModel

from esparse_lab.errors import InputError
from esparse_lab.experiments import ladder_rows
from esparse_lab.likelihood import Told
from esparse_lab.models import LoadedModel
from esparse_lab.pruning import Recipe


class Cancelled(Exception):
    """The trial was cancelled."""


_RUNNING: WeakKeyDictionary[PreTrainedModel, "Trial"] = WeakKeyDictionary()
_GUARD = threading.Lock()


def running_on(model: PreTrainedModel) -> "Trial | None":
    """The trial that is changing a model's weights now."""
    return _RUNNING.get(model)


def refuse_if_busy(model: PreTrainedModel) -> None:
    """Raise `InputError` while a trial changes a model's weights."""
    trial = running_on(model)
    if trial is not None:
        raise InputError(
            f"Busy: an explorer is measuring {trial.what} on this model, and its weights change "
            "meanwhile. Wait until that has ended, or cancel it."
        )


class Trial:
    """Perplexity of one recipe, and of the dense model before it; both kept on disk.

    Attributes:
        what: the recipe, for people.
    """

    def __init__(
        self, loaded: LoadedModel, calibration: Tensor, test: Tensor, recipe: Recipe, what: str
    ):
        self.what = what
        self._loaded = loaded
        self._rows = (calibration, test, [recipe])
        self._cancelled = threading.Event()
        self._thread: threading.Thread | None = None

    def measure(self, told: Told) -> list[dict]:
        """Measure in this thread: the rows of `ladder_rows`, the dense model's first.

        Raises:
            InputError: another trial runs on the model.
            Cancelled: `cancel` was called.
        """
        self._claim()
        return self._measured(told)

    def start(self, told: Told, ended: Callable[[list[dict], Exception | None], None]) -> None:
        """Measure in another thread, which calls both functions; `ended` once, with any error.

        Raises:
            InputError: another trial runs on the model.
        """
        self._claim()

        def run() -> None:
            rows, error = [], None
            try:
                rows = self._measured(told)
            except Exception as what:
                error = what
            ended(rows, error)

        self._thread = threading.Thread(target=run, name=f"trial of {self.what}", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Have it end before the next block or window."""
        self._cancelled.set()

    def join(self) -> None:
        """Wait for its end."""
        if self._thread is not None:
            self._thread.join()

    def _claim(self) -> None:
        with _GUARD:
            refuse_if_busy(self._loaded.model)
            _RUNNING[self._loaded.model] = self

    def _measured(self, told: Told) -> list[dict]:
        def heard(*news) -> None:
            if self._cancelled.is_set():
                raise Cancelled
            told(*news)

        try:
            return list(ladder_rows(self._loaded, *self._rows, heard))
        finally:
            del _RUNNING[self._loaded.model]
