"""How likely a model finds each choice of each question, as lm-evaluation-harness counts it."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from esparse_lab.capture import TOKENS_AT_ONCE, check_tokens
from esparse_lab.errors import EsparseError, InputError
from esparse_lab.tasks.questions import Question


@dataclass(frozen=True)
class _Stem:
    """A context with the answers that follow it, in tokens; `places` are those of the results."""

    context: list[int]
    answers: list[list[int]]
    places: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.context), len(self.answers)


def choice_loglikelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    progress: bool = True,
) -> list[list[float]]:
    """Log-likelihood in nats of each choice after its context, one list a question.

    A choice follows its context after one blank. Its tokens are those of the joined text beyond
    as many as the context alone has; a context too long for the model loses its beginning. Logits
    become probabilities in float32. A context is read once for all its choices.

    Raises:
        EsparseError: a log-likelihood that is not finite; names the question.
        InputError: a choice too long for the model, tokens that it does not know, or a model in
            training mode.
    """
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or sys.maxsize
    stems = list(_stems(tokenizer, questions, longest))
    scores = torch.empty(sum(len(q.choices) for q in questions), dtype=torch.float64)
    with tqdm(total=len(scores), desc="choices", unit="choice", disable=not progress) as bar:
        for batch in _batches(stems, TOKENS_AT_ONCE.get(model.device.type, 1024)):
            places = [place for stem in batch for place in stem.places]
            scores[places] = _scored(model, batch)
            bar.update(len(places))
    parts = scores.split([len(question.choices) for question in questions])
    for number, part in enumerate(parts):
        if not part.isfinite().all():
            raise EsparseError(
                f"The log-likelihoods of question {number} are {part.tolist()}. Load the model as "
                "float32, or find the layer that breaks with collect_layer_stats."
            )
    return [part.tolist() for part in parts]


def _stems(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question], longest: int
) -> Iterator[_Stem]:
    place = 0
    texts = [f"{q.context} {choice}" for q in questions for choice in q.choices]
    contexts = _encoded(tokenizer, [question.context.rstrip() for question in questions])
    wholes = iter(_encoded(tokenizer, texts))  # at once, so that the tokenizer can use all cores
    for question, read in zip(questions, contexts, strict=True):
        answers = [next(wholes)[len(read) :] for _ in question.choices]
        places = list(range(place, place + len(answers)))
        place += len(answers)
        for choice, answer in zip(question.choices, answers, strict=True):
            if not 0 < len(answer) <= longest:
                raise InputError(
                    f"The choice {choice[:40]!r} has {len(answer)} tokens, expected 1 to {longest}."
                )
        # The last token of an answer is predicted, not read.
        room = [longest + 1 - len(answer) for answer in answers]
        if len(read) <= min(room):
            yield _Stem(read, answers, places)
        else:
            for some, answer, own in zip(room, answers, places, strict=True):
                yield _Stem(read[-some:], [answer], [own])


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts).input_ids if texts else []


def _batches(stems: Iterable[_Stem], tokens_at_once: int) -> Iterator[list[_Stem]]:
    """Stems of one shape, which need no padding to be read together; long ones first."""
    alike = defaultdict(list)
    for stem in stems:
        alike[stem.shape].append(stem)
    for (length, choices), group in sorted(alike.items(), reverse=True):
        group = sorted(group, key=lambda stem: max(map(len, stem.answers)))
        widest = length + choices * max(len(answer) for answer in group[-1].answers)
        size = max(1, tokens_at_once // widest)
        for start in range(0, len(group), size):
            yield group[start : start + size]


@torch.no_grad()
def _scored(model: PreTrainedModel, batch: list[_Stem]) -> Tensor:
    """Log-likelihoods of the answers of stems of one shape, float64 [stem x answer]."""
    contexts = torch.tensor([stem.context for stem in batch], device=model.device)
    answers = [torch.tensor(answer) for stem in batch for answer in stem.answers]
    targets = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True).to(model.device)
    check_tokens(model, contexts)
    check_tokens(model, targets)
    copies = len(batch[0].answers)
    past = None
    if contexts.shape[1] > 1:
        past = model(contexts[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        past.batch_repeat_interleave(copies)
    last = contexts[:, -1:].repeat_interleave(copies, dim=0)
    # Padding is on the right, where no token before it can see it: nothing need be masked.
    inputs = torch.cat([last, targets[:, :-1]], dim=1)
    logits = model(inputs, past_key_values=past).logits
    rows = torch.tensor([row for row, answer in enumerate(answers) for _ in answer])
    columns = torch.tensor([column for answer in answers for column in range(len(answer))])
    rows, columns = rows.to(model.device), columns.to(model.device)
    losses = torch.nn.functional.cross_entropy(
        logits[rows, columns].float(), targets[rows, columns], reduction="none"
    )
    total = torch.zeros(len(answers), dtype=torch.float64, device=model.device)
    return -total.index_add(0, rows, losses.double()).cpu()
