"""What a check says: right, wrong and why, or open; whatever it is given, it does not raise."""

import numpy as np
import pytest
import torch

from esparse_lab.errors import InputError
from esparse_lab.exercises import Exercise, Mistake

NUMBER = Exercise(
    0.5625,
    "nine of sixteen",
    ("count bits", "288 of 512"),
    (Mistake(0.5, "you forgot the metadata"), Mistake(float("nan"), "0 · ln 0")),
)
MATRIX = Exercise(torch.tensor([[True, False, False], [False, True, True]]), "", ("look",))


@pytest.mark.parametrize("answer", [None, ...])
def test_no_answer_is_open_and_offers_the_hints(answer):
    verdict = NUMBER.check(answer)
    assert verdict.status == "open"
    assert verdict.hints == ("count bits", "288 of 512")
    assert repr(verdict).startswith("○ Not answered yet.")


@pytest.mark.parametrize(
    "answer", [9 / 16, 0.5625, 0.563, torch.tensor(9 / 16), np.float32(0.5625), [0.5625], "0.5625"]
)
def test_a_right_number_is_right_in_any_clothes_and_to_three_digits(answer):
    verdict = NUMBER.check(answer)
    assert (verdict.status, verdict.why, verdict.hints) == ("right", "nine of sixteen", ())


@pytest.mark.parametrize(
    "answer",
    [
        [[1, 0, 0], [0, 1, 1]],
        np.array([[1.0, 0, 0], [0, 1, 1]]),
        torch.tensor([[1.0, 0, 0], [0, 1, 1]], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([1, 0, 0]), torch.tensor([0, 1, 1])],
    ],
)
def test_a_right_matrix_is_right_in_any_clothes(answer):
    assert MATRIX.check(answer).status == "right"


@pytest.mark.parametrize(
    ("exercise", "answer", "why"),
    [
        (NUMBER, 0.5, "you forgot the metadata"),
        (NUMBER, float("nan"), "0 · ln 0"),
        (NUMBER, 0.6, "It is too large."),
        (NUMBER, -0.5625, "It is too small."),
        (NUMBER, float("inf"), "It holds NaN or infinity."),
        (NUMBER, "9/16", "Expected one number, got '9/16' (str)."),
        (NUMBER, [1, 2], "Expected one number, got shape [2]."),
        (NUMBER, [[1], [2, 3]], "Expected one number, got '[[1], [2, 3]]' (list)."),
        (NUMBER, {}, "Expected one number, got '{}' (dict)."),
        (NUMBER, [], "Expected one number, got shape [0]."),
        (MATRIX, np.zeros((2, 3)), "3 of 6 entries are right; the first wrong one is at [0, 0]."),
        (MATRIX, [[1, 0, 0], [0, 1, 0]], "5 of 6 entries are right; the first wrong one is at"),
        (MATRIX, [[1, 0], [0, 1], [0, 1]], "got shape [3, 2]. It is the transpose."),
        (MATRIX, 1, "Expected shape [2, 3], got shape []."),
        (MATRIX, print, "Expected numbers of shape [2, 3], got '<built-in function print>'"),
    ],
)
def test_a_wrong_answer_is_told_why(exercise, answer, why):
    verdict = exercise.check(answer)
    assert verdict.status == "wrong"
    assert why in verdict.why
    assert verdict.hints == exercise.hints


def test_one_wrong_digit_in_a_large_array_is_found():
    answer = np.linspace(1, 2, 2000)
    exercise = Exercise(answer.copy(), "", ())
    answer[1234] *= 1.002
    assert "1999 of 2000 entries are right; the first wrong one is at [1234]" in repr(
        exercise.check(answer)
    )


def test_hints_are_counted_from_one():
    assert [NUMBER.hint(), NUMBER.hint(2)] == ["count bits", "288 of 512"]
    for number in (0, 3):
        with pytest.raises(InputError, match=f"hints 1 to 2, got {number}"):
            NUMBER.hint(number)


def test_the_box_folds_hints_and_escapes_what_a_student_wrote():
    box = NUMBER.check("<script>alert(1)</script>")._repr_html_()
    assert box.count("<details>") == 2
    assert "<summary>Hint 2 of 2</summary>" in box
    assert "288 of 512" in box
    assert "<script>" not in box
    assert "✗ Not yet." in box
    assert "<details>" not in NUMBER.check(9 / 16)._repr_html_()


def test_an_exercise_shows_no_wrong_answers_of_its_own():
    assert "metadata" not in repr(NUMBER)
