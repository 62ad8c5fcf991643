"""The file of ``--known``: TOML, a table ``[[known_issue]]`` for each known issue. What is odd is a sentence."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from csa_spec.plug.names import instead
from csa_spec.plug.plain import plain_line
from csa_spec.plug.reading import Unreadable, read_as

TABLES = ("known_issue", "limitation")
"""What the tables may be called; the second is the old name."""
_NEEDED = ("candidate", "stage", "name", "reason")
_KEYS = (*_NEEDED, "url", "versions")
_TYPES = {
    bool: "true or false",
    str: "text",
    dict: "a table",
    list: "a list",
    int: "a number",
    float: "a number",
}


def read_known_file(path: Path) -> list[dict[str, Any]]:
    """Return the tables of a file: each with all texts that it needs, and a ``SpecifierSet`` as versions.

    Raises
    ------
    Unreadable
        If it cannot be read, or anything in it is not as it must be. The message goes on after the file's name.
    """
    data = read_as("TOML", tomllib.loads, path)
    for name in data:
        if name not in TABLES:
            raise Unreadable(f"has {_quoted(name)}, which means nothing; {instead(name, TABLES)}")
        if not isinstance(data[name], list):
            raise Unreadable(
                f"has {_type(data[name])} as {name}; write a table [[known_issue]] for each known issue"
            )
    tables = [table for name in TABLES for table in data.get(name, [])]
    if not tables:
        raise Unreadable("names no known issue; write a table [[known_issue]] for each")
    for number, table in enumerate(tables, 1):
        problem = next(_problems(table), "")
        if problem:
            raise Unreadable(f"is wrong in known issue {number}: it {problem}")
    return [{**table, "versions": SpecifierSet(table.get("versions", ""))} for table in tables]


def _problems(table: Any) -> Iterator[str]:
    """Yield what is wrong with a table, the first thing first."""
    if not isinstance(table, dict):
        yield f"is {_type(table)}; write a table [[known_issue]] with {', '.join(_NEEDED)}"
        return
    missing = [key for key in _NEEDED if key not in table]
    for key in table:
        if key not in _KEYS:
            yield f"has {_quoted(key)}, which means nothing; {instead(key, _KEYS)}"
    if missing:
        yield f"lacks {', '.join(missing)}"
    for key, value in table.items():
        if not isinstance(value, str):
            yield f"has {_type(value)} as {key}; write it as text, in quotes"
        elif not value.strip() and key in _NEEDED:
            yield f"has an empty {key}; write what it is"
    try:
        SpecifierSet(table.get("versions", ""))
    except InvalidSpecifier:
        yield f"has the versions {_quoted(table['versions'])}, which cannot be read; write e.g. '>=5.8,<6'"


def _type(value: object) -> str:
    return next((words for kind, words in _TYPES.items() if isinstance(value, kind)), "a date or time")


def _quoted(text: str) -> str:
    return repr(plain_line(text, 60))
