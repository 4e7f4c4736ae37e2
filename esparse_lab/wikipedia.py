"""The embedded text: 96 articles of the English Wikipedia, as plain paragraphs split by article.

The source is a small dump of 2016 that the library gensim ships for its tests. Wikitext is read
with a real parser; what is not running prose (tables, lists, references, formulas, captions) is
left out, and so is a paragraph with a hole where such a thing was.
"""

import bz2
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from esparse_lab.downloads import (
    Say,
    WheelFile,
    build_once,
    cache_dir,
    fetch_wheel_file,
    say,
    sha256_of,
)
from esparse_lab.errors import EsparseError

ARCHIVE = WheelFile(
    requirement="gensim==4.4.0",
    member=(
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    ),
    size=1_695_871,
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    # The member is the same in every wheel of the release; one fixed wheel serves every machine.
    pip_target=(
        "--python-version=3.11",
        "--implementation=cp",
        "--abi=cp311",
        "--platform=manylinux_2_28_x86_64",
    ),
)
SOURCE = "English Wikipedia, dump of 2016, 96 articles, as in the PyPI wheel gensim 4.4.0"
LICENCE = "CC-BY-SA-3.0"
# Of the files that mwparserfromhell 0.7.2 gave; other versions may read some markup otherwise.
SPLIT_SHA256 = {
    "test": "0550ee444e902c3c2ab7c356c07e88d48fc3dfef39da7814ece502c7c622c9e3",
    "train": "4d283815b8cd908dd8a44ac279304a299745db5165df45f77176ca905f3d9b64",
    "validation": "c04fb405c7b20e22216c7c47414f5cde235db1eabf433bfd1f50ec771c7f2c0b",
}

# Shares of the text, in characters; train, the rest, calibrates and must hold 128 windows of 2048.
_SHARES = {"test": 0.22, "validation": 0.17, "train": 1.0}
_MIN_ARTICLE = 500  # characters; shorter ones are disambiguation pages and lists
_MIN_PARAGRAPH = 80
_EDITION = 1  # raise with any change of the text, so that caches are made anew
_SOURCE_FILE = "source.json"

_NOT_PROSE = {
    *("center", "div", "gallery", "imagemap", "ref", "references", "score"),
    *("source", "syntaxhighlight", "table", "timeline"),
}
_NOT_PROSE_LINKS = {"category", "file", "image", "media"}
_SHOW_FIRST = {
    *("angbr", "formatnum", "ipa", "music", "nihongo", "nowrap", "quote", "sc", "small"),
    *("smaller", "val", "vanchor", "vr"),
}
_SHOW_LAST = {"lang", "rtl-lang", "transl"}
_SIGNS = {"nbsp": " ", "mdashb": " — ", "snd": " – "}
_RANGE_WORDS = {"to": " to ", "-": "–", "–": "–", "and": " and ", "x": " by ", "by": " by "}
# Put where a list item or a formula was: marks its line as no prose.
_HOLE = "\0"

# What shows that a line is markup, or prose with a word cut out of it ("such as, or .").
_BROKEN = re.compile(
    r"\0|<ref|\{\{|\}\}|\[\[|\]\]|\|\||!!|''|,\s*[,.]|\bthe\s*[,.;:]|\b(?:and|as|of|or)\s*[.;]"
)


def corpus_folder() -> Path:
    """Where the three files of paragraphs lie, or will lie."""
    return cache_dir() / "corpora" / f"wikipedia-{_EDITION}"


def ensure_corpus(*, say: Say = say) -> Path:
    """Fetch the dump and write train.jsonl, validation.jsonl and test.jsonl; at once when there.

    Each line is an article: {"title": ..., "text": paragraphs with an empty line between}.

    Args:
        say: called with progress messages.

    Returns:
        The folder, with a source.json that gives the SHA-256 of each file.

    Raises:
        EsparseError: the dump cannot be fetched or the folder not written.
    """
    folder = corpus_folder()

    def build(folder: Path) -> None:
        archive = fetch_wheel_file(ARCHIVE, say=say)
        say("Reading 96 Wikipedia articles out of it (about 10 s) ...")
        if write_corpus(archive, folder) != SPLIT_SHA256:
            say(
                "Note: this version of mwparserfromhell reads the articles a little differently "
                "from 0.7.2, so figures measured on them differ a little from the reference."
            )

    build_once(folder, build)
    return folder


def read_split(split: str) -> tuple[tuple[str, ...], str]:
    """The articles of one split, and the SHA-256 of its file; fetched on first use.

    Raises:
        EsparseError: it cannot be fetched, or the file was altered since it was made.
    """
    folder = ensure_corpus()
    path = folder / f"{split}.jsonl"
    try:
        written = json.loads((folder / _SOURCE_FILE).read_text(encoding="utf-8"))["sha256"][split]
        found = sha256_of(path)
        if found != written:
            raise ValueError(f"expected SHA-256 {written}, found {found}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EsparseError(
            f"{path} was altered ({error}). Delete the folder {folder} and run `esparse fetch`."
        ) from error
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines), found


def write_corpus(archive: Path, folder: Path) -> dict[str, str]:
    """Turn a dump into one .jsonl file a split and a source.json with their hashes.

    Args:
        archive: a MediaWiki XML export, bz2-compressed.
        folder: exists; the files are written into it.

    Returns:
        The SHA-256 of each split's file.
    """
    texts = {title: "\n\n".join(prose(wikitext)) for title, wikitext in articles(archive)}
    texts = {title: text for title, text in texts.items() if len(text) >= _MIN_ARTICLE}
    hashes = {}
    for split, titles in split_by_article(texts).items():
        rows = [{"title": title, "text": texts[title]} for title in titles]
        path = folder / f"{split}.jsonl"
        # ASCII escapes: no character of the text can then be taken for the end of a line.
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
        hashes[split] = sha256_of(path)
    source = {"source": SOURCE, "licence": LICENCE, "archive": ARCHIVE.sha256, "sha256": hashes}
    (folder / _SOURCE_FILE).write_text(json.dumps(source, indent=1) + "\n", encoding="utf-8")
    return hashes


def articles(archive: Path) -> Iterator[tuple[str, str]]:
    """Title and wikitext of each article of a dump, without redirects and other namespaces."""
    with bz2.open(archive) as file:
        events = ElementTree.iterparse(file, events=("start", "end"))
        _, root = next(events)
        for event, page in events:
            if event == "start" or page.tag.rpartition("}")[2] != "page":
                continue
            redirect = page.find("{*}redirect") is not None
            if not redirect and page.findtext("{*}ns") == "0":
                yield page.findtext("{*}title", ""), page.findtext("{*}revision/{*}text") or ""
            root.clear()  # else every page read so far stays in memory


def split_by_article(texts: dict[str, str]) -> dict[str, list[str]]:
    """Deal whole articles to test, validation and train, until each has its share of characters.

    The order is that of the SHA-256 of the titles: it has nothing to do with the subject, and does
    not change with the machine or the order in the dump.
    """
    titles = sorted(texts, key=lambda title: hashlib.sha256(title.encode()).digest())
    total = sum(map(len, texts.values()))
    splits: dict[str, list[str]] = {split: [] for split in _SHARES}
    names = iter(_SHARES)
    split, filled = next(names), 0
    for title in titles:
        if filled >= _SHARES[split] * total:
            split, filled = next(names), 0
        splits[split].append(title)
        filled += len(texts[title])
    return splits


def prose(wikitext: str) -> list[str]:
    """The running text of an article, a string a paragraph, without markup.

    >>> sentence = "[[Algorithm|Programs]] for a machine<ref>A book.</ref> that ''nobody'' built, "
    >>> prose(sentence + sentence.lower() + "were written.")[0][:51]
    'Programs for a machine that nobody built, programs '
    """
    import mwparserfromhell

    paragraphs = []
    for line in _text(mwparserfromhell.parse(wikitext)).split("\n"):
        line = re.sub(r"\s+", " ", line)
        line = re.sub(r"\(\s*[;,:\s]+", "(", line)  # the pronunciation at the start of a bracket
        line = re.sub(r"[;,\s]+\)", ")", line)
        line = re.sub(r"\s*\(\)", "", line)
        line = re.sub(r" (?=[,.;:!?](?:\s|$))", "", line).strip()
        if len(line) >= _MIN_PARAGRAPH and line[-1] in ".!?\"”')" and not _BROKEN.search(line):
            paragraphs.append(line)
    return paragraphs


def _text(code) -> str:
    """What a reader of the page sees of parsed wikitext, with _HOLE for lists and formulas."""
    from mwparserfromhell import nodes

    seen = []
    for node in code.nodes:
        match node:
            case nodes.Text():
                seen.append(node.value)
            case nodes.HTMLEntity():
                seen.append(node.normalize())
            case nodes.Wikilink():
                namespace, colon, _ = str(node.title).strip().lower().partition(":")
                if not (colon and namespace in _NOT_PROSE_LINKS):
                    seen.append(str(node.title) if node.text is None else _text(node.text))
            case nodes.ExternalLink():
                seen.append("" if node.title is None else _text(node.title))
            case nodes.Template():
                seen.append(_template(node))
            case nodes.Heading():
                seen.append("\n")
            case nodes.Tag():
                seen.append(_tag(node))
    return "".join(seen)


def _tag(node) -> str:
    name = str(node.tag).strip().lower()
    if name in _NOT_PROSE:
        return ""
    if name in ("li", "dd", "dt", "math", "code"):
        return _HOLE
    if name == "br" or node.contents is None:
        return " "
    return _text(node.contents)


def _template(node) -> str:
    """The visible text of templates common inside sentences; notes and boxes are left out."""
    name = str(node.name).strip().lower()
    shown = [_text(argument.value).strip() for argument in node.params if not argument.showkey]
    if not shown:
        return _SIGNS.get(name, "")
    if name in _SHOW_FIRST or name.startswith("lang-"):
        return shown[0]
    if name in _SHOW_LAST:
        return shown[-1]
    if name == "as of":
        return f"as of {shown[0]}"
    if name == "chem":
        return "".join(shown)
    if name == "convert":
        return _quantity(shown)
    return ""


def _quantity(shown: list[str]) -> str:
    """{{convert|1300|mi|km}}: the first quantity, as it was measured."""
    if len(shown) >= 4 and shown[1] in _RANGE_WORDS:
        value, unit = shown[0] + _RANGE_WORDS[shown[1]] + shown[2], shown[3]
    else:
        value, unit = shown[0], shown[1] if len(shown) > 1 else ""
    unit = unit.replace("e6", "million ").replace("e9", "billion ")
    return f"{value} {unit}".strip()
