"""Text by name or path, and its tokens cut into windows of one length.

Conventions are those of Wanda and SparseGPT, whose tables the E-Sparse paper extends: documents are
joined by an empty line, tokenised as one text and cut into windows that do not overlap.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from esparse_lab import wikipedia
from esparse_lab.errors import EsparseError, InputError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Draw = Literal["consecutive", "windows", "documents"]

_SEPARATOR = "\n\n"
# Of C4 only the beginning of the first shard is used: it holds about 600 documents of over 2048
# tokens, and the whole shard would take gigabytes of memory for 128 draws.
_C4_DOCUMENTS = 20_000


@dataclass(frozen=True)
class Corpus:
    """The documents of one split of a text collection.

    Attributes:
        name: the registered name, or the file's name without its folder.
        split: as asked for; a file has one split, under any name.
        documents: in order, each a text.
        sha256: of the file; for a collection from the hub, of its documents.
        source: where the text comes from, for people.
        licence: of the text; "" where a file does not say.
    """

    name: str
    split: str
    documents: tuple[str, ...]
    sha256: str
    source: str
    licence: str


@dataclass(frozen=True)
class RegisteredCorpus:
    """A text collection that has a name.

    Attributes:
        name: what `load_corpus` takes.
        splits: their names.
        source: where it comes from, for people.
        licence: of the text.
        read: gives a split's documents and their SHA-256.
    """

    name: str
    splits: tuple[str, ...]
    source: str
    licence: str
    read: Callable[[str], tuple[tuple[str, ...], str]]


def load_corpus(corpus: str | Path, split: str) -> Corpus:
    """The text of one split.

    Args:
        corpus: a registered name ("wikipedia", fetched on first use; "wikitext2" and "c4", from the
            Hugging Face hub), or the path of a UTF-8 file: .txt is one document; .jsonl has one
            object a line with its text under "text"; .raw is a WikiText file, joined as Wanda does.
        split: "train", "validation" or "test"; for a path any name, kept as a label.

    Returns:
        The documents, and what they are.

    Raises:
        InputError: the name, split or file cannot be used.
        EsparseError: the text cannot be fetched.
    """
    name = str(corpus)
    if (known := CORPORA.get(name)) is not None:
        if split not in known.splits:
            raise unknown(f"split of {name}", split, known.splits)
        documents, sha256 = known.read(split)
        return Corpus(name, split, documents, sha256, known.source, known.licence)

    path = Path(corpus).expanduser()
    if not path.exists() and len(path.parts) == 1 and path.suffix not in _READERS:
        error = unknown("corpus", name, CORPORA)
        raise InputError(f"{error} Or give the path of a {', '.join(_READERS)} file.")
    documents, sha256 = _read_file(path)
    return Corpus(path.name, split, documents, sha256, f"file {path.name}", "")


def token_windows(
    tokenizer: "PreTrainedTokenizerBase",
    corpus: str | Path | Corpus,
    *,
    split: str,
    length: int,
    count: int | None = None,
    seed: int | None = None,
    draw: Draw | None = None,
) -> torch.Tensor:
    """Tokens of a text in windows of one length.

    Args:
        tokenizer: of the model; adds what it adds at the start of a text.
        corpus: as in `load_corpus`, or a Corpus.
        split: as in `load_corpus`.
        length: tokens in a window, at least 2.
        count: number of windows; None takes all there are.
        seed: of the random draws; the same seed gives the same windows on every machine.
        draw: "consecutive" cuts the joined documents from the start into windows that do not
            overlap, and takes the first `count`; `seed` has no effect. It is Wanda's evaluation and
            the default without a seed. "windows" draws `count` of those windows without
            replacement; the default with a seed. "documents" draws, as Wanda's calibration does, a
            document of more than `length` tokens and one slice of it, `count` times, with
            replacement.

    Returns:
        Token ids, int64 [sequence, position].

    Raises:
        InputError: a value out of range, or fewer tokens than asked for.
    """
    draw = draw or ("consecutive" if seed is None else "windows")
    if draw not in get_args(Draw):
        raise unknown("draw", str(draw), get_args(Draw))
    if length < 2:
        raise InputError(f"A window needs at least 2 tokens to predict one, got length={length}.")
    if count is not None and count < 1:
        raise InputError(f"count must be at least 1, or None for all windows; got {count}.")
    if draw != "consecutive" and seed is None:
        raise InputError(f"draw={draw!r} is random and needs a seed, such as seed=0.")
    if draw == "documents" and count is None:
        raise InputError("draw='documents' has no end and needs a count, such as count=128.")

    if not isinstance(corpus, Corpus):
        corpus = load_corpus(corpus, split)
    elif corpus.split != split:
        raise InputError(
            f"The corpus given is split {corpus.split!r} of {corpus.name}, but split={split!r}. "
            "Load that split, or leave the corpus's own."
        )

    if draw == "documents":
        return _draw_slices(tokenizer, corpus, length, count, random.Random(seed))
    windows = _cut(tokenizer, corpus, length)
    if count is not None and count > len(windows):
        raise InputError(
            f"{corpus.name} ({split}) has {len(windows)} windows of {length} tokens, {count} were "
            "asked for. Ask for fewer or shorter windows, or give a longer text."
        )
    if draw == "windows":
        chosen = random.Random(seed).sample(range(len(windows)), count or len(windows))
        return windows[torch.tensor(chosen)]
    return windows[:count].clone()  # not a view that keeps all tokens in memory


def tokens_sha256(tokens: torch.Tensor) -> str:
    """SHA-256 that names a set of windows: of the shape and the ids, as little-endian int64.

    Args:
        tokens: token ids, [sequence, position].

    >>> tokens_sha256(torch.tensor([[1, 2]])) == tokens_sha256(torch.tensor([[1], [2]]))
    False
    """
    shape = torch.tensor(tokens.shape)
    return hashlib.sha256(_little_endian(shape) + _little_endian(tokens)).hexdigest()


def _little_endian(values: torch.Tensor) -> bytes:
    return values.detach().cpu().to(torch.int64).numpy().astype("<i8").tobytes()


def _token_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # verbose=False: a text longer than the model's context is what we want here.
    return tokenizer(text, return_attention_mask=False, verbose=False)["input_ids"]


def _cut(tokenizer: "PreTrainedTokenizerBase", corpus: Corpus, length: int) -> torch.Tensor:
    ids = _token_ids(tokenizer, _SEPARATOR.join(corpus.documents))
    n_windows = len(ids) // length
    if n_windows == 0:
        raise InputError(
            f"{corpus.name} ({corpus.split}) has {len(ids)} tokens, one window needs {length}. "
            "Give a longer text or a shorter length."
        )
    return torch.tensor(ids[: n_windows * length]).view(n_windows, length)


def _draw_slices(
    tokenizer: "PreTrainedTokenizerBase",
    corpus: Corpus,
    length: int,
    count: int,
    rng: random.Random,
) -> torch.Tensor:
    slices: list[list[int]] = []
    seen: dict[int, list[int] | None] = {}  # None: too short
    while len(slices) < count:
        index = rng.randint(0, len(corpus.documents) - 1)
        if index not in seen:
            ids = _token_ids(tokenizer, corpus.documents[index])
            seen[index] = ids if len(ids) > length else None
        if (ids := seen[index]) is not None:
            start = rng.randint(0, len(ids) - length - 1)
            slices.append(ids[start : start + length])
        elif len(seen) == len(corpus.documents) and not any(seen.values()):
            raise InputError(
                f"None of the {len(seen)} documents of {corpus.name} ({corpus.split}) has more "
                f"than {length} tokens. Use draw='windows', which joins documents, or a shorter "
                "length."
            )
    return torch.tensor(slices)


def _read_file(path: Path) -> tuple[tuple[str, ...], str]:
    if path.suffix not in _READERS:
        raise InputError(
            f"{path} is no text file this package reads. Expected {', '.join(_READERS)}, or a "
            f"registered corpus ({', '.join(CORPORA)})."
        )
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}. Save "
            "it as UTF-8."
        ) from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    text = text.replace("\r\n", "\n")
    documents = tuple(_READERS[path.suffix](text, path)) if text.strip() else ()
    if not any(document.strip() for document in documents):
        raise InputError(f"{path} holds no text ({len(content)} bytes). Give a file with text.")
    return documents, hashlib.sha256(content).hexdigest()


def _json_lines(text: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number} is not JSON ({error.msg} at column {error.colno}). Each "
                'line must be an object such as {"text": "..."}.'
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(
                f'{path}, line {number} has no string under "text". Each line must be an object '
                'such as {"text": "..."}.'
            )
        yield row["text"]


def _wikitext_rows(rows: list[str]) -> str:
    """One text out of WikiText's rows, each of which keeps its own newline unless it is blank."""
    return _SEPARATOR.join(f"{row}\n" if row.strip() else "" for row in rows)


def _wikitext_file(text: str, path: Path) -> Iterator[str]:
    yield _wikitext_rows(text.removesuffix("\n").split("\n"))


_READERS: dict[str, Callable[[str, Path], Iterator[str]]] = {
    ".txt": lambda text, path: iter([text]),
    ".jsonl": _json_lines,
    ".raw": _wikitext_file,
}


def _read_wikitext2(split: str) -> tuple[tuple[str, ...], str]:
    rows = _hub_rows("wikitext2", "Salesforce/wikitext", "wikitext-2-raw-v1", split=split)
    text = _wikitext_rows([row.removesuffix("\n") for row in rows])
    return (text,), _documents_sha256([text])


def _read_c4(split: str) -> tuple[tuple[str, ...], str]:
    shards = {
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    }
    rows = _hub_rows(
        "c4",
        "allenai/c4",
        data_files={split: shards[split]},
        split=f"{split}[:{_C4_DOCUMENTS}]",
    )
    return tuple(rows), _documents_sha256(rows)


def _hub_rows(name: str, *arguments: str, **options: object) -> list[str]:
    try:
        import datasets
    except ImportError as error:
        raise EsparseError(
            f"The corpus {name} needs the package `datasets`: run `pip install 'esparse_lab[hub]'`."
        ) from error
    try:
        return list(datasets.load_dataset(*arguments, **options)["text"])
    except Exception as error:  # whatever datasets, the hub client and HTTP raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EsparseError(
            f"The corpus {name} could not be loaded from the Hugging Face hub ({reason}). Connect "
            "to the network, give a copy by its path (.raw, .jsonl or .txt), or use the corpus "
            "wikipedia, which needs no hub."
        ) from error


def _documents_sha256(documents: list[str]) -> str:
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document).encode() + b"\n")
    return digest.hexdigest()


_ALL_SPLITS = ("train", "validation", "test")
CORPORA = {
    corpus.name: corpus
    for corpus in (
        RegisteredCorpus(
            "wikipedia", _ALL_SPLITS, wikipedia.SOURCE, wikipedia.LICENCE, wikipedia.read_split
        ),
        RegisteredCorpus(
            "wikitext2",
            _ALL_SPLITS,
            "Hugging Face data set Salesforce/wikitext, wikitext-2-raw-v1",
            "CC-BY-SA-3.0",
            _read_wikitext2,
        ),
        RegisteredCorpus(
            "c4",
            ("train", "validation"),
            f"Hugging Face data set allenai/c4, en, first {_C4_DOCUMENTS} documents",
            "ODC-BY",
            _read_c4,
        ),
    )
}
