"""What the pages say of files, events and variables exists. A page that is wrong costs more than none."""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from worker.__main__ import parser
from worker.settings import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
SERVICES = "docs/architecture/services.md"
PROTOCOL = "docs/protocol/README.md"
RUNBOOK = "docs/operations/runbook.md"

FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTED_EVENT = re.compile(r"`([a-z]+\.[a-z_]+)`")
LOGGED_EVENT = re.compile(r'"event": ?"([^"]+)"')
COMMAND_LINE = re.compile(r"python -m worker\b([^`\n]*)")
VARIABLE = re.compile(r"\b(?:(?:WORKER|REDIS|DATABASE|INFLUXDB)_[A-Z][A-Z_]*|[A-Z][A-Z_]*_URL)\b")

#: Quoted words with a dot that are files, not events.
FILE = re.compile(r"\w+\.(conf|csv|env|html|json|lock|log|lp|lua|md|pml|py|sql|toml|yaml)")


@pytest.fixture(params=PAGES, ids=str)
def page(request: pytest.FixtureRequest) -> Path:
    """Each page in turn."""
    return PAGES[request.param]


def test_there_are_pages() -> None:
    assert {"README.md", SERVICES} <= PAGES.keys()


# --- links ---


def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    broken = [link for link in links(page) if not leads_somewhere(page, link)]
    assert not broken


def links(page: Path) -> list[str]:
    found: list[str] = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or (target.suffix == ".md" and anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings: list[str] = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_broken_link_is_seen() -> None:
    page = PAGES["README.md"]
    assert not leads_somewhere(page, "docs/no_such_page.md")
    assert not leads_somewhere(page, "#no-such-heading")


# --- events ---


def events_of_the_code() -> set[str]:
    modules = [*ROOT.glob("worker/**/*.py"), *ROOT.glob("streams/**/*.py")]
    return {event for module in modules for event in logged(module.read_text(encoding="utf-8"))}


def logged(source: str) -> Iterator[str]:
    """The first argument of every `log.…(…)`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="log")),
                args=[ast.Constant(value=str(event)), *_],
            ):
                yield event
            case _:
                pass


def quoted_events(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    words = {word for word in QUOTED_EVENT.findall(FENCED.sub("", text)) if not is_file(word)}
    return words | set(LOGGED_EVENT.findall(text))


def is_file(word: str) -> bool:
    return bool(FILE.fullmatch(word)) or any(ROOT.glob(f"{word.replace('.', '/')}.py"))


def test_events_named_in_a_page_are_those_of_the_code(page: Path) -> None:
    assert quoted_events(page) <= events_of_the_code()


def test_the_page_of_services_has_every_event() -> None:
    section = PAGES[SERVICES].read_text(encoding="utf-8").partition("\n## All events\n")[2]
    listed: list[str] = re.findall(r"^\| `([a-z_.]+)` \|", section, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == events_of_the_code()


# --- variables ---


def test_variables_named_in_a_page_exist(page: Path) -> None:
    named = set(VARIABLE.findall(page.read_text(encoding="utf-8")))
    assert {name.removesuffix("_FILE") for name in named} <= VARIABLES.keys() | of_compose()


def of_compose() -> set[str]:
    """What compose.yaml takes from .env, the worker's variables and a few of its own."""
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    return set(re.findall(r"^(\w+)=", text, flags=re.MULTILINE))


# --- the runbook's commands ---


def test_every_command_line_of_the_runbook_is_one() -> None:
    lines = command_lines(PAGES[RUNBOOK])
    assert len(lines) > 20
    assert not [line for line in lines if not is_accepted(line)]


@pytest.mark.parametrize("line", ["exlain A-17", "audit --repare", "dead-letters replay --set x"])
def test_a_command_line_that_is_none_is_seen(line: str) -> None:
    assert not is_accepted(line)


def command_lines(page: Path) -> list[str]:
    """What stands behind each `python -m worker`, a comment apart."""
    found: list[str] = COMMAND_LINE.findall(page.read_text(encoding="utf-8"))
    return [line.partition(" #")[0].strip() for line in found]


def is_accepted(line: str) -> bool:
    try:
        parser().parse_args(shlex.split(line))
    except (SystemExit, ValueError):
        return False
    return True


def test_the_runbook_knows_every_command_and_every_option() -> None:
    text = PAGES[RUNBOOK].read_text(encoding="utf-8")
    words = set(words_of(parser()))
    assert {"check", "dead-letters", "purge", "--drain", "--repair"} <= words
    assert not [word for word in words if not re.search(rf"(?<![\w-]){word}(?![\w-])", text)]


def words_of(of: argparse.ArgumentParser) -> Iterator[str]:
    """The names of commands and the long names of options, `--help` apart."""
    for action in of._actions:  # pyright: ignore[reportPrivateUsage] # noqa: SLF001 - argparse shows them nowhere else
        yield from (it for it in action.option_strings if it[:2] == "--" and it != "--help")
        if isinstance(action.choices, dict):
            commands = cast("dict[str, argparse.ArgumentParser]", action.choices)
            for name, command in commands.items():
                yield name
                yield from words_of(command)


# --- the model's map ---


def test_the_model_is_mapped_to_names_that_the_code_has() -> None:
    section = (
        PAGES[PROTOCOL].read_text(encoding="utf-8").partition("\n## What stands for what\n")[2]
    )
    cells = re.findall(r"^\| .+? \| (.+) \|$", section.partition("\n## ")[0], flags=re.MULTILINE)
    quoted = {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}
    names = {word for word in quoted if re.fullmatch(r"_?[A-Za-z]\w*(\.\w+)?", word)}
    files = {word for word in quoted if "/" in word}
    assert len(names) > 20
    assert len(files) > 5
    assert names <= names_of_the_code()
    assert not [name for name in files if not is_there(name)]


def is_there(name: str) -> bool:
    return (ROOT / name).exists() or (ROOT / "worker" / name).exists()


def names_of_the_code() -> set[str]:
    """Classes, functions, `Class.member`s, settings and constants of Python and functions of SQL."""
    modules = [*ROOT.glob("worker/*.py"), *ROOT.glob("streams/*.py")]
    found = {name for module in modules for name in defined(module.read_text(encoding="utf-8"))}
    for migration in ROOT.glob("worker/migrations/*.sql"):
        text = migration.read_text(encoding="utf-8")
        found |= set(re.findall(r"^CREATE FUNCTION (\w+)", text, flags=re.MULTILINE))
    return found


def defined(source: str) -> Iterator[str]:
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name, body=body):
                yield name
                for member in body:
                    match member:
                        case ast.FunctionDef(name=own) | ast.AsyncFunctionDef(name=own):
                            yield f"{name}.{own}"
                        case ast.AnnAssign(target=ast.Name(id=own)):
                            yield own
                            yield f"{name}.{own}"
                        case _:
                            pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case _:
                pass
