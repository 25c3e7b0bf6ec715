"""Numbers, times and tables for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from officegrid.core.quantities import duration_text


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(headers))]
    lines = []
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").replace("%", "").replace("-", "").isdigit() or (
        text in ("", "-")
    )


def ago(at: float | None) -> str:
    return "-" if not at else f"{duration_text(time.time() - at)} ago"


def share(done: int, total: int) -> str:
    return f"{100 * done / total:.1f}%" if total else "-"


def bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def on_terminal() -> bool:
    return sys.stderr.isatty()
