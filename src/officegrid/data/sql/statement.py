"""What may be read: one SELECT, or a table by its name."""

from __future__ import annotations

import re

from officegrid.core.errors import UsageError
from officegrid.data.sql.source import Dialect

# Blanks, comments and opening brackets that may come before the first word.
_LEAD = re.compile(r"(?:[\s(]|--[^\n]*(?:\n|\Z)|/\*(?![!M]).*?\*/)*", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]+")
_READING = {"SELECT", "WITH", "VALUES", "TABLE"}
# MySQL writes files on the server's own disk from a SELECT, which no read-only transaction stops;
# and runs the text of its special comments.
_MYSQL_FILES = re.compile(r"\b(?:outfile|dumpfile)\b|/\*M?!", re.IGNORECASE)


def quoted(name: str, dialect: Dialect) -> str:
    """One identifier. Raises UsageError for names that no database takes."""
    if not name or "\0" in name:
        raise UsageError("A name of a table or column is empty or holds a NUL character.")
    mark = "`" if dialect == "mysql" else '"'
    return mark + name.replace(mark, mark * 2) + mark


def quoted_table(table: str, dialect: Dialect) -> str:
    """`table` or `schema.table`, quoted part by part."""
    parts = table.split(".")
    if len(parts) > 2:
        raise UsageError(
            f"The table {table!r} cannot be named so.",
            "A table is named by itself or with its schema (MySQL: its database) before a dot.",
            'Write "table" or "schema.table".',
        )
    return ".".join(quoted(part, dialect) for part in parts)


def checked_select(sql: str, dialect: Dialect) -> str:
    """The statement without the semicolon at its end. Raises UsageError unless it reads.

    This is a courtesy to whoever wrote it: the transaction it runs in cannot write, and the
    drivers take one statement at a time.
    """
    text = sql.strip().rstrip(";").rstrip()
    lead = _LEAD.match(text)
    word = _WORD.match(text, lead.end() if lead else 0)
    if "\0" in text or word is None or word.group().upper() not in _READING:
        raise UsageError(
            "This SQL cannot be an input.",
            f"It begins with {text[:30]!r}; only a statement that reads may run.",
            "Begin it with SELECT or WITH, or name a table instead.",
        )
    if dialect == "mysql" and (found := _MYSQL_FILES.search(text)):
        raise UsageError(
            "This SQL cannot be an input.",
            f"It holds {found.group()!r}, with which a SELECT can write on the server.",
            "Leave it out.",
        )
    return text
