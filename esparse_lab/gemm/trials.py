"""Times algorithms in a process of its own: a kernel that crashes takes only that process with it.

Some kernels of the library stop the device with an illegal instruction at some shapes, and after
that nothing works in the process that ran them (seen with cuSPARSELt 0.8.0 on an H100). Importing
takes most of a process's start, so the child imports and then forks the one that times, and forks
another when that one crashes. Questions and answers are a line of JSON each.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from typing import TextIO

import torch

from esparse_lab.errors import EsparseError
from esparse_lab.gemm.clock import Milliseconds, device_ms
from esparse_lab.gemm.cusparselt import (
    Algorithm,
    Plan,
    Product,
    algorithms,
    device_index,
    split_versions,
)
from esparse_lab.gemm.operands import Operands
from esparse_lab.masks import Pattern

WRONG = 0.02
"""Relative error from which a result counts as wrong; rounding makes 0.0002 (fp16) to 0.004."""
TIMEOUT_SECONDS = 120


@dataclass(frozen=True)
class Trial:
    """What to time: a product by an algorithm, by the library's own choice (None), or dense."""

    product: Product
    algorithm: Algorithm | None = None
    dense: bool = False
    at_length: bool = False


class Trials:
    """A child process that times; a new one is started when it dies. Use it in a `with` block."""

    def __init__(self, device: torch.device):
        self.device = torch.device("cuda", device_index(device))
        self.crashed = 0
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def time(self, trial: Trial) -> Milliseconds | None:
        """Device time, or None: the library refuses, the result is wrong, or the kernel crashes."""
        answer = self._ask({"time": _to_json(trial)})
        return Milliseconds(**answer["ms"]) if answer and answer["ms"] else None

    def algorithms(self, product: Product) -> list[Algorithm]:
        """The library's kernels for a product."""
        answer = self._ask({"algorithms": asdict(product) | {"dtype": _name(product.dtype)}})
        return [Algorithm(**entry) for entry in answer["algorithms"]] if answer else []

    def split_versions(self, algorithm: Algorithm, product: Product) -> list[Algorithm]:
        """As of `cusparselt.split_versions`."""
        return list(split_versions(algorithm, product))

    def _ask(self, question: dict) -> dict | None:
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "esparse_lab.gemm.trials", str(self.device)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    "OPENBLAS_NUM_THREADS": "1",  # a process is forked safely while it has no other
                },
            )
        child = self._child
        too_long = threading.Timer(TIMEOUT_SECONDS, _kill, [child])
        too_long.start()
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            too_long.cancel()
        answer = json.loads(line) if line else None
        if answer is None:
            self._stop()
        elif "failed" in answer:
            raise EsparseError(f"Timing failed: {answer['failed']}")
        if not answer:
            self.crashed += 1
        return answer or None

    def _stop(self) -> None:
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):  # a question that a dead child never read
                self._child.stdin.close()
            self._child.stdout.close()
            _kill(self._child)
            self._child.wait()
            self._child = None


def _kill(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # and what it forked


class _Child:
    """The other end: keeps the operands of one product."""

    def __init__(self, device: torch.device):
        self.device = device
        self.product: Product | None = None
        self.plans: dict[bool, Plan] = {}

    def answer(self, question: dict) -> dict:
        if "algorithms" in question:
            product = _product(question["algorithms"])
            return {"algorithms": [asdict(a) for a in algorithms(product, self.device)]}
        trial = _from_json(question["time"])
        if trial.product != self.product:
            self.operands = self.stored = None  # the old ones first: there may be room for one set
            self.plans = {}
            self.operands = Operands.random(trial.product, self.device, Pattern(2, 4))
            self.stored = self.operands.compressed()
            self.product = trial.product
        time = self._time(trial)
        return {"ms": asdict(time) if time else None}

    def _time(self, trial: Trial) -> Milliseconds | None:
        length = {} if trial.at_length else {"least_ms": 1.0, "replays": 3}
        if trial.dense:
            return device_ms(self.operands.dense_calls(), **length)
        try:
            calls = self.operands.sparse_calls(self._plan(trial), self.stored)
            self.operands.y.fill_(float("nan"))
            time = device_ms(calls, **length)
        except EsparseError:
            torch.cuda.synchronize()  # raises if the device is lost
            return None
        return time if self.operands.error() < WRONG else None

    def _plan(self, trial: Trial) -> Plan:
        """A plan that stays, and is changed: one for whole sums, one for those that are split."""
        algorithm = trial.algorithm
        if algorithm is None:
            return Plan(trial.product, self.device)
        split = bool(algorithm.split_mode)
        if split in self.plans:
            self.plans[split].change(algorithm)
        else:
            self.plans[split] = Plan(trial.product, self.device, algorithm)
        return self.plans[split]


def _to_json(trial: Trial) -> dict:
    return {
        **asdict(trial),
        "product": asdict(trial.product) | {"dtype": _name(trial.product.dtype)},
    }


def _from_json(entry: dict) -> Trial:
    algorithm = entry["algorithm"]
    return Trial(
        _product(entry["product"]),
        Algorithm(**algorithm) if algorithm else None,
        entry["dense"],
        entry["at_length"],
    )


def _product(entry: dict) -> Product:
    return Product(**{**entry, "dtype": getattr(torch, entry["dtype"])})


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _serve(device: torch.device) -> None:
    """Fork a process that answers, and another when it crashes, until the pipe ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    while (pid := os.fork()) and os.waitpid(pid, 0)[1]:
        answers.write("{}\n")  # to the question that it died of
        answers.flush()
    if not pid:
        _answer_all(device, answers)


def _answer_all(device: torch.device, answers: TextIO) -> None:
    child = None
    for line in sys.stdin:
        try:
            if child is None:  # not before a question, so that a crash here is the answer to it
                torch.cuda.set_device(device)
                child = _Child(device)
            answer = child.answer(json.loads(line))
        except torch.cuda.OutOfMemoryError as error:
            answer = {"failed": str(error).splitlines()[0]}
        except EsparseError as error:
            answer = {"failed": str(error)}
        except torch.AcceleratorError:
            os._exit(1)  # the device is lost to this process, and so is a clean end
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(torch.device(sys.argv[1]))
