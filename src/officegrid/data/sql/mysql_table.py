"""What MySQL's information_schema says of a table, and what follows for writing to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from officegrid.core.errors import InputError
from officegrid.data.records import RecordError
from officegrid.data.sql.columns import Kind
from officegrid.data.sql.statement import quoted
from officegrid.data.sql.target import RECORD, TargetColumn, TargetTable

Query = Callable[..., list[tuple[Any, ...]]]

_KINDS: dict[str, Kind] = {
    "tinyint": "integer", "smallint": "integer", "mediumint": "integer", "int": "integer",
    "bigint": "integer", "year": "integer", "decimal": "decimal", "float": "float",
    "double": "float", "date": "date", "time": "time", "datetime": "timestamp",
    "timestamp": "timestamptz", "bit": "bit", "json": "json", "binary": "blob",
    "varbinary": "blob", "tinyblob": "blob", "blob": "blob", "mediumblob": "blob",
    "longblob": "blob", "geometry": "blob",
}  # fmt: skip


def describe_table(query: Query, database: str, name: str) -> tuple[TargetTable, str] | None:
    """The table and its engine; None if there is none. Raises InputError for a view."""
    found = query(
        "SELECT table_type, engine FROM information_schema.tables "
        "WHERE table_schema = %s AND table_name = %s",
        database, name,
    )  # fmt: skip
    if not found:
        return None
    if found[0][0] != "BASE TABLE":
        raise InputError(f"{name} is a {str(found[0][0]).lower()}.", "Only a table can be filled.")
    rows = query(
        "SELECT column_name, data_type, column_type, is_nullable, column_default, extra, "
        "numeric_scale FROM information_schema.columns "
        "WHERE table_schema = %s AND table_name = %s ORDER BY ordinal_position",
        database, name,
    )  # fmt: skip
    columns = [
        TargetColumn(
            str(column),
            _KINDS.get(str(kind).lower(), "text"),
            str(declared),
            nullable == "YES",
            default is not None or "auto_increment" in str(extra).lower(),
            any(word in str(extra).upper() for word in ("VIRTUAL", "STORED", "PERSISTENT")),
            None if scale is None or kind != "decimal" else int(scale),
        )
        for column, kind, declared, nullable, default, extra, scale in rows
    ]
    indexes: dict[str, list[Any]] = {}
    for index, column, part in query(
        "SELECT index_name, column_name, sub_part FROM information_schema.statistics "
        "WHERE table_schema = %s AND table_name = %s AND non_unique = 0 "
        "ORDER BY index_name, seq_in_index",
        database, name,
    ):  # fmt: skip
        indexes.setdefault(str(index), []).append(column if part is None else None)
    unique = tuple(tuple(map(str, names)) for names in indexes.values() if None not in names)
    return TargetTable(tuple(columns), unique), str(found[0][1])


def refuse_swap(query: Query, database: str, name: str) -> None:
    """Raises InputError for a table that another one in its place would not equal."""
    keys = query(
        "SELECT COUNT(*) FROM information_schema.key_column_usage "
        "WHERE referenced_table_name IS NOT NULL AND ((table_schema = %s AND table_name = %s) "
        "OR (referenced_table_schema = %s AND referenced_table_name = %s))",
        database, name, database, name,
    )[0][0]  # fmt: skip
    triggers = query(
        "SELECT COUNT(*) FROM information_schema.triggers "
        "WHERE event_object_schema = %s AND event_object_table = %s",
        database, name,
    )[0][0]  # fmt: skip
    if keys or triggers:
        what = "foreign keys" if keys else "triggers"
        raise InputError(
            f"The table {name} has {what}, so it cannot be replaced as a whole.",
            f"The new table is put in its place, and MySQL would leave {what} with the old one.",
            'Use mode = "upsert", or drop them.',
        )


def sweep(query: Query, database: str, own: str, deliveries: str) -> None:
    """Drop what runs of other deliveries left when they died: nobody holds their lock any more."""
    for (name,) in query(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = %s "
        "AND (table_name LIKE 'og\\_stage\\_%%' OR table_name LIKE 'og\\_old\\_%%')",
        database,
    ):
        stage = "og_stage_" + str(name).removeprefix("og_stage_").removeprefix("og_old_")
        if stage == own or query("SELECT GET_LOCK(%s, 0)", stage)[0][0] != 1:
            continue
        try:
            noted = name == stage and _noted(query, stage, deliveries)
            if not noted:
                query(f"DROP TABLE IF EXISTS {quoted(database, 'mysql')}.{quoted(name, 'mysql')}")
        finally:
            query("SELECT RELEASE_LOCK(%s)", stage)


def _noted(query: Query, stage: str, deliveries: str) -> bool:
    """Whether that staging table is complete and waits for its RENAME in the next run."""
    schema, _, table = deliveries.replace("`", "").rpartition(".")
    there = query(
        "SELECT COUNT(*) FROM information_schema.tables "
        "WHERE table_schema = COALESCE(NULLIF(%s, ''), DATABASE()) AND table_name = %s",
        schema, table,
    )  # fmt: skip
    if not there[0][0]:
        return False
    digest = "CONCAT('og_stage_', LEFT(SHA2(delivery_id, 256), 20))"
    return bool(query(f"SELECT 1 FROM {deliveries} WHERE {digest} = %s LIMIT 1", stage))


def unused_by_others(
    query: Query, unique: Sequence[Sequence[str]], columns: Sequence[str], key: set[str],
    tables: tuple[str, str], quote: Callable[[str], str],
) -> None:  # fmt: skip
    """ON DUPLICATE KEY UPDATE takes any unique index for the key: a row that only equals another
    one there would be overwritten. Raises RecordError for such a record, and locks the rows."""
    stage, target = tables
    for index in unique:
        if {name.casefold() for name in index} == key or not set(index) <= set(columns):
            continue
        same = " AND ".join(f"s.{quote(name)} = t.{quote(name)}" for name in index)
        keys = [name for name in columns if name.casefold() in key]
        other = " AND ".join(f"s.{quote(name)} <=> t.{quote(name)}" for name in keys)
        found = query(
            f"SELECT s.{RECORD} FROM {stage} s JOIN {target} t ON {same} WHERE NOT ({other}) "
            f"ORDER BY 1 LIMIT 1 FOR UPDATE"
        )
        names = ", ".join(map(quote, index))
        own = ", ".join(f"COALESCE({quote(name)}, '')" for name in keys)
        known = " AND ".join(f"{quote(name)} IS NOT NULL" for name in index)
        found = found or query(
            f"SELECT MAX({RECORD}) FROM {stage} WHERE {known} GROUP BY {names} "
            f"HAVING COUNT(DISTINCT {own}) > 1 LIMIT 1"
        )
        if found:
            raise RecordError(
                f"Record {int(found[0][0]) + 1} does not fit: another row has its "
                f"{', '.join(index)}.",
                "The table has a second unique index over it. Nothing was changed.",
                "Correct the record, or drop that index.",
                record=int(found[0][0]),
            )
