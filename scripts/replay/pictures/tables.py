"""Tables, and lists of facts, that scroll on a narrow screen instead of breaking it."""

from collections.abc import Collection, Iterable, Sequence
from xml.etree.ElementTree import Element

from scripts.replay.pictures.markup import Child, tag


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Collection[int] = ()
) -> Element:
    """A table whose first column names its rows; the others are numbers, but for those in `texts`."""
    titles = (tag("th", text, scope="col", class_=_kind(n, texts)) for n, text in enumerate(head))
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *titles)),
            tag("tbody", *(_row(it, texts) for it in rows)),
        ),
        class_="scroll",
        role="region",
        tabindex="0",
        aria_label=f"Table of {head[0]}",
    )


def folded(title: str, *content: Child) -> Element:
    """Content that opens on demand."""
    return tag("details", tag("summary", title), *content)


def facts(pairs: Iterable[tuple[str, Child]]) -> Element:
    """Names with what they are."""
    rows = (tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs)
    return tag("dl", *rows, class_="facts")


def _row(cells: Sequence[str], texts: Collection[int]) -> Element:
    first, *others = cells
    rest = (tag("td", text, class_=_kind(n, texts)) for n, text in enumerate(others, start=1))
    return tag("tr", tag("th", first, scope="row"), *rest)


def _kind(column: int, texts: Collection[int]) -> str | None:
    return "number" if column and column not in texts else None
