"""HTML and SVG as elements, so that every text is escaped by being a text, and none can be forgotten."""

from xml.etree.ElementTree import Element, SubElement, tostring

#: Nothing may be loaded or run, whatever a page holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

Child = Element | str | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Children that are None are left out, and so are such attributes.

    `class_` is the attribute class, `aria_label` aria-label.
    """
    given = {key: value for key, value in attributes.items() if value is not None}
    named = {key.rstrip("_").replace("_", "-"): _text(value) for key, value in given.items()}
    return append(Element(name, named), *children)


def append(element: Element, *children: Child) -> Element:
    """Add children to an element; gives the element."""
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child:
            _append_text(element, child)
    return element


def document(title: str, style: str, *body: Child) -> bytes:
    """A whole page, in UTF-8."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        tag("style", style),
    )
    root = tag("html", head, lang="en")
    append(SubElement(root, "body"), *body)
    html = tostring(root, encoding="unicode", method="html")
    return f"<!doctype html>\n{html}\n".encode()


def _append_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
