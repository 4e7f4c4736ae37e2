"""What all pages share: the templates, numbers as a reader says them, and markdown."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@cache
def environment() -> Environment:
    """The templates, every value escaped unless it is marked as HTML."""
    made = Environment(
        loader=PackageLoader("esparse_lab.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"duration": duration, "number": number}
    return made


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> duration(48.2), duration(187), duration(7260)
    ('48 s', '3 min 7 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: object, digits: int = 5) -> str:
    """A value in some significant digits; whole numbers with thousands separated.

    >>> number(22.0604), number(5660.4), number(559123), number("2:4"), number(None)
    ('22.06', '5,660.4', '559,123', '2:4', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}g}"


def markdown(text: str, *, escape: bool, attachments: dict | None = None) -> Markup:
    """Markdown as HTML; with `escape`, HTML in it is shown as text.

    Computed text is escaped, because it may hold names that users gave.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(
        escape=escape, attachments=attachments or {}, exclude_anchor_links=True
    )
    return Markup(MarkdownWithMath(renderer=renderer).render(text))


def anchored(html: str, taken: set[str]) -> tuple[Markup, list[dict]]:
    """HTML whose second-level headings can be linked to.

    Args:
        html: of one cell.
        taken: the anchors of the page so far; those of this cell are added.

    Returns:
        The HTML, and the `id` and `title` of each of those headings.
    """
    sections = []

    def named(heading: re.Match) -> str:
        title = Markup(heading[1]).striptags()
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor = next(a for n in range(999) if (a := f"{stem}-{n}" if n else stem) not in taken)
        taken.add(anchor)
        sections.append({"id": anchor, "title": title})
        return f'<h2 id="{anchor}">{heading[1]}</h2>'

    return Markup(re.sub(r"<h2>(.*?)</h2>", named, html, flags=re.DOTALL)), sections
