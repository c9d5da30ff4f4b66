"""The kinds of I/O call that a worker can make, read off the sources.

What a run reaches is compared with these: a call that is added to the product and that no scenario makes is
noticed, whatever its name. Followed is what `serve` refers to, name by name; a command to Redis is a string
in a call, a statement is text or one of `worker/sql`, a script is a file.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis

from tests.chaos.faulty_io import TWO_WORDS, scripts, statement_kind, statements

PACKAGES = ("streams", "worker")
STATEMENT_CALLS = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany", "cursor"}
#: What is done with a client of Redis that is no command of its own.
CLIENT_CALLS = {
    "aclose",
    "connection_pool",
    "register_script",
    "set_response_callback",
    "execute_command",
}
#: Connections, the command that redis-py sends for a script that Redis does not know, and what a sink does.
ALWAYS = {"redis SCRIPT LOAD", "redis connect", "postgres connect", "influxdb write"}


class Name(NamedTuple):
    """A class, function or value at the top of a module."""

    module: str
    name: str


def call_kinds(redis_commands: frozenset[str]) -> set[str]:
    """Every kind of call, as `FaultyIO` names it.

    :param redis_commands: the words that Redis knows as commands
    """
    nodes = [node for top in _followed(Name("worker.service", "serve")) for node in ast.walk(top)]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    kinds = set(ALWAYS)
    kinds |= {
        f"redis {script.name}"
        for script in scripts().values()
        if not texts.isdisjoint({script.name, script.name.removesuffix(".lua")})
    }
    kinds |= {f"postgres {name}" for name in statements().values() if name in texts}
    for node in nodes:
        if isinstance(node, ast.Call):
            kinds |= _kinds_of(node, redis_commands)
    return kinds


def _followed(start: Name) -> Iterator[ast.stmt]:
    """What a name stands for, and all that this refers to, in our packages."""
    todo, seen = [start], {start}
    while todo:
        module, name = todo.pop()
        for top in _module(module).get(name, ()):
            yield top
            words = {node.id for node in ast.walk(top) if isinstance(node, ast.Name)}
            found = {_target(module, word) for word in words} - {None}
            todo += [it for it in found if it and it not in seen]
            seen |= {it for it in found if it}


def _target(module: str, word: str) -> Name | None:
    """What a word in a module stands for, where that is ours."""
    if word in _module(module):
        return Name(module, word)
    for node in _imports(module):
        for alias in node.names:
            if (alias.asname or alias.name) == word:
                return Name(node.module or "", alias.name)
    return None


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(import_module(module).__file__ or "").read_text(encoding="utf-8"))


@cache
def _imports(module: str) -> list[ast.ImportFrom]:
    """The imports from our packages, those within functions included."""
    return [
        node
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES)
    ]


@cache
def _module(module: str) -> dict[str, list[ast.stmt]]:
    """The statements at the top of a module, by the names that they give."""
    tops: dict[str, list[ast.stmt]] = {}
    for top in _tree(module).body:
        given = {getattr(top, "name", "")} | {
            node.id
            for node in ast.walk(top)
            if isinstance(top, ast.Assign | ast.AnnAssign)
            and isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Store)
        }
        for name in given - {""}:
            tops.setdefault(name, []).append(top)
    return tops


def _kinds_of(call: ast.Call, redis_commands: frozenset[str]) -> set[str]:
    words = [it.value for it in call.args if isinstance(it, ast.Constant)]
    words = [word for word in words if isinstance(word, str)]
    kinds: set[str] = set()
    if words and words[0].isupper() and words[0].split()[0] in redis_commands:
        kinds |= _redis_kinds(words)
    if isinstance(call.func, ast.Attribute):
        owner = ast.unparse(call.func.value)
        if call.func.attr in STATEMENT_CALLS and words and " " in words[0]:
            kinds.add(statement_kind(words[0]))
        if call.func.attr == "transaction":
            kinds |= {"postgres BEGIN", "postgres COMMIT", "postgres ROLLBACK"}
        is_client = owner.rpartition(".")[2].endswith("redis") and hasattr(Redis, call.func.attr)
        if is_client and call.func.attr not in CLIENT_CALLS:
            kinds.add(f"redis {call.func.attr.upper()}")
    return kinds


def _redis_kinds(words: list[str]) -> set[str]:
    if words[0] == "XREADGROUP":
        return {"redis XREADGROUP own", "redis XREADGROUP new"}
    return {f"redis {words[0]} {words[1]}" if words[0] in TWO_WORDS else f"redis {words[0]}"}
