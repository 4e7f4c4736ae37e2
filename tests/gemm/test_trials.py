"""The child process that times: what is asked and answered, and what a crash leaves.

The children here are tiny programs that stand for the process alone; nothing is timed.
"""

import json
import sys
import time

import pytest
import torch

from esparse_lab import EsparseError
from esparse_lab.gemm import trials
from esparse_lab.gemm.algorithms import AlgorithmStore
from esparse_lab.gemm.clock import Milliseconds
from esparse_lab.gemm.cusparselt import OUTPUTS, Algorithm, Product
from esparse_lab.gemm.search import found
from esparse_lab.gemm.trials import Trial, Trials

CUDA = torch.device("cuda", 0)
PRODUCT = Product(64, 32, 16, torch.float16)
ECHO = "answer({'ms': {'median': len(line), 'least': 1.0, 'most': 2.0}})"


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Start children that do this with each `line` they read."""
    popen = trials.subprocess.Popen

    def use(does: str, *, first: str = "") -> None:
        program = tmp_path / "child.py"
        program.write_text(
            "import json, os, sys, time\n"
            "def answer(content): print(json.dumps(content), flush=True)\n"
            f"{first}\nfor line in sys.stdin:\n    {does}\n"
        )
        command = [sys.executable, str(program)]
        monkeypatch.setattr(trials.subprocess, "Popen", lambda _, **how: popen(command, **how))

    return use


@pytest.mark.parametrize("dtype", OUTPUTS, ids=str)
@pytest.mark.parametrize("algorithm", [None, Algorithm(3), Algorithm(3, 4, "TWO_KERNELS")], ids=str)
@pytest.mark.parametrize("flags", [{}, {"dense": True}, {"at_length": True}], ids=str)
def test_a_trial_comes_through_json_as_it_was(dtype, algorithm, flags):
    trial = Trial(Product(64, 32, 16, dtype, x_by_feature=True), algorithm, **flags)
    assert trials._from_json(json.loads(json.dumps(trials._to_json(trial)))) == trial


def test_one_child_answers_every_question(child):
    child("answer({'ms': {'median': os.getpid(), 'least': 1.0, 'most': 2.0}})")
    with Trials(CUDA) as asking:
        first, second = (asking.time(Trial(PRODUCT, Algorithm(i))) for i in range(2))
    assert first == second == Milliseconds(first.median, 1.0, 2.0)
    assert asking.crashed == 0


def test_what_does_not_work_is_no_time(child):
    child("answer({'ms': None})")
    with Trials(CUDA) as asking:
        assert asking.time(Trial(PRODUCT)) is None
        assert asking.crashed == 0


def test_algorithms_come_back_as_they_are(child):
    child("answer({'algorithms': [{'config': 2, 'split_k': 1, 'split_mode': ''}]})")
    with Trials(CUDA) as asking:
        assert asking.algorithms(PRODUCT) == [Algorithm(2)]


@pytest.mark.parametrize("dies", ["os._exit(1)", "os.kill(os.getpid(), 11)"])
def test_a_child_that_dies_is_counted_and_another_answers(child, dies):
    child(f"{ECHO} if '\"config\": 1' in line else {dies}")
    with Trials(CUDA) as asking:
        assert asking.time(Trial(PRODUCT, Algorithm(1))) is not None
        assert asking.time(Trial(PRODUCT, Algorithm(2))) is None
        assert asking.crashed == 1
        assert asking.time(Trial(PRODUCT, Algorithm(1))) is not None
        assert asking.algorithms(PRODUCT) == []
        assert asking.crashed == 2


def test_a_child_that_died_unasked_is_counted_too(child):
    child(f"{ECHO}; os.close(0); os._exit(1)")
    with Trials(CUDA) as asking:
        assert asking.time(Trial(PRODUCT)) is not None
        asking._child.wait()  # the next question goes to a pipe that nobody reads
        assert asking.time(Trial(PRODUCT)) is None
        assert asking.time(Trial(PRODUCT)) is not None
        assert asking.crashed == 1


def test_a_child_that_hangs_is_ended(child, monkeypatch):
    monkeypatch.setattr(trials, "TIMEOUT_SECONDS", 0.5)
    child("time.sleep(60)")
    started = time.monotonic()
    with Trials(CUDA) as asking:
        assert asking.time(Trial(PRODUCT)) is None
    assert asking.crashed == 1
    assert time.monotonic() - started < 20


def test_a_failure_that_is_told_is_an_error(child):
    child("answer({'failed': 'CUDA out of memory'})")
    with (
        Trials(CUDA) as asking,
        pytest.raises(EsparseError, match="Timing failed: CUDA out of memory"),
    ):
        asking.time(Trial(PRODUCT))


def test_no_child_outlives_the_block(child):
    child(ECHO)
    with Trials(CUDA) as asking:
        asking.time(Trial(PRODUCT))
        process = asking._child
    assert process.poll() is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="the child runs where there is a device")
def test_a_process_that_cannot_time_is_an_error_at_once(capfd, tmp_path):
    with pytest.raises(EsparseError, match="ended before the dense product was done"):
        found(
            [PRODUCT],
            CUDA,
            AlgorithmStore(CUDA, tmp_path / "found.json", made_on={"device": "none"}),
        )
    assert "Error" in capfd.readouterr().err  # the child says why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dies", ["os._exit(1)", "os.kill(os.getpid(), 11)", "1 / 0"])
def test_a_crash_costs_a_fork_and_not_a_process(monkeypatch, tmp_path, dies):
    program = tmp_path / "serving.py"
    program.write_text(
        "import os, torch\n"
        "from esparse_lab.gemm import trials\n"
        "class Child:\n"
        "    def __init__(self, device): self.asked = 0\n"
        "    def answer(self, question):\n"
        "        self.asked += 1\n"
        f"        if question['time']['algorithm']['config'] == 1: {dies}\n"
        "        ms = {'median': os.getpid(), 'least': self.asked, 'most': os.getppid()}\n"
        "        return {'ms': ms}\n"
        "trials._Child, torch.cuda.set_device = Child, lambda _: None\n"
        "trials._serve(torch.device('cuda'))\n"
    )
    popen = trials.subprocess.Popen
    monkeypatch.setattr(
        trials.subprocess, "Popen", lambda _, **how: popen([sys.executable, str(program)], **how)
    )
    with Trials(CUDA) as asking:
        times = [asking.time(Trial(PRODUCT, Algorithm(i))) for i in (0, 0, 1, 1, 0)]
        process = asking._child
    assert [time is None for time in times] == [False, False, True, True, False]
    assert asking.crashed == 2
    first, again, last = times[0], times[1], times[4]
    assert (first.median, first.least, again.least) == (again.median, 1, 2)
    assert last.median != first.median
    assert last.least == 1
    assert {first.most, last.most} == {process.pid}  # of the same process
