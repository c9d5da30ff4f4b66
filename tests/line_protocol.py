"""A parser of the line protocol, written apart from what the worker writes."""

from typing import NamedTuple


class Parsed(NamedTuple):
    """What InfluxDB stores for one line."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, str | int | float]
    time_ns: int


def parse_lines(body: str) -> list[Parsed]:
    """Read line protocol as InfluxDB's engine does, one character after the other.

    Outside of quotes a backslash escapes a comma, an equals sign or a space, and stands for itself before
    anything else; within the quotes of a field it escapes a quote or a backslash.
    """
    found: list[Parsed] = []
    while body:
        parsed, body = _parse_line(body)
        found.append(parsed)
    return found


def _parse_line(text: str) -> tuple[Parsed, str]:
    measurement, text = _word(text, ", ")
    tags: dict[str, str] = {}
    while text[0] == ",":
        key, text = _word(text[1:], "=")
        value, text = _word(text[1:], ", ")
        assert key not in tags
        assert key
        assert value
        tags[key] = value
    assert list(tags) == sorted(tags)
    fields: dict[str, str | int | float] = {}
    while text[0] in (" ", ","):
        key, text = _word(text[1:], "=")
        value, text = _field_value(text[1:])
        assert key not in fields
        assert key
        fields[key] = value
        if text[0] == " ":
            break
    time, end, text = text[1:].partition("\n")
    assert text or not end
    return Parsed(measurement, tags, fields, int(time)), text


def _word(text: str, ends: str) -> tuple[str, str]:
    """A name or a tag value up to one of `ends`, and the rest from that on."""
    found, at = "", 0
    while text[at] not in ends:
        assert text[at] not in "\n=, ", "not escaped"
        if text[at] == "\\":
            found += text[at + 1] if text[at + 1] in ",= " else text[at : at + 2]
            at += 1
        else:
            found += text[at]
        at += 1
    return found, text[at:]


def _field_value(text: str) -> tuple[str | int | float, str]:
    if text[0] == '"':
        found, at = "", 1
        while text[at] != '"':
            if text[at] == "\\" and text[at + 1] in '\\"':
                at += 1
            found += text[at]
            at += 1
        return found, text[at + 1 :]
    end = min(at for at in (text.find(" "), text.find(",")) if at >= 0)
    number = text[:end]
    value = int(number[:-1]) if number.endswith("i") else float(number)
    return value, text[end:]
