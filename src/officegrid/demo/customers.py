"""A generated customer file: realistic dirt, the same bytes for the same seed.

Columns: id, name, email, phone, born, balance, note. Notes hold quotes, commas and line breaks
inside quotes. About one row in 500 is broken on purpose: an e-mail that is none, a date that
does not exist, an amount in words, a missing or extra field, bytes that are not UTF-8.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

HEADER = b"id,name,email,phone,born,balance,note\r\n"
BROKEN_EVERY = 500
BATCH_ROWS = 20_000

FIRST = (
    "Anna", "Björn", "Chloé", "Dmitri", "Elif", "François", "Grace", "Håkon", "Ines", "Jürgen",
    "Katarzyna", "Liam", "Mária", "Noah", "Olga", "Priya", "Quentin", "Rosa", "Søren", "Tomasz",
)  # fmt: skip
LAST = (
    "Müller", "O'Brien", "García", "Novák", "Kowalski", "Öztürk", "Lindqvist", "van der Berg",
    "Smith", "Nguyen", "Rossi", "Jensen", "Dubois", "Horváth", "Ivanova", "Schäfer",
)  # fmt: skip
ASCII = str.maketrans("äöüßéíóáåøçñ'", "aouseioaaocn-")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DOMAINS = ("example.com", "example.org", "mail.example.net", "Post.Example.DE")
NOTES = (
    "", "", "", "VIP", "prefers e-mail", '"said ""call me later"""', '"moved, new address unknown"',
    '"line one\nline two"', '"asked for: 2 chairs, 1 desk\r\npaid ""in full"", see file"',
)  # fmt: skip


def write_customers(path: Path, records: int, seed: int = 2026) -> int:
    """Write `records` rows; returns how many of them are broken on purpose."""
    source = random.Random(seed)
    broken = 0
    with path.open("wb") as file:
        file.write(HEADER)
        for start in range(0, records, BATCH_ROWS):
            rows = []
            for number in range(start, min(start + BATCH_ROWS, records)):
                row = _row(source, number)
                if number % BROKEN_EVERY == BROKEN_EVERY // 2:
                    row = _break(source, row)
                    broken += 1
                rows.append(b",".join(row))
            file.write(b"\r\n".join(rows) + b"\r\n")
    return broken


def _row(source: random.Random, number: int) -> list[bytes]:
    pick = source.random()
    first = FIRST[int(pick * len(FIRST))]
    last = LAST[int(pick * 7919) % len(LAST)]
    bits = source.getrandbits(48)
    name = f"  {first}  {last}" if bits & 7 == 0 else f"{first} {last}"
    if bits & 56 == 0:
        name = name.upper()
    local = f"{first}.{last}".translate(ASCII).replace(" ", "").lower()
    local = "".join(c for c in local if c.isascii()) or "customer"
    email = f"{local}{number % 1000}@{DOMAINS[bits >> 6 & 3]}"
    year, month, day = 1940 + (bits >> 8 & 63), 1 + (bits >> 14) % 12, 1 + (bits >> 20) % 28
    born = (
        f"{year}-{month:02d}-{day:02d}",
        f"{day:02d}.{month:02d}.{year}",
        f"{day} {MONTHS[month - 1]} {year}",
    )[(bits >> 26) % 3]
    cents = bits >> 28 & 0xFFFFF
    whole, rest = divmod(cents, 100)
    balance = (
        f"{whole}.{rest:02d}",
        f'"{whole:,}.{rest:02d}"' if whole > 999 else f"{whole}.{rest:02d}",
        f'"{whole},{rest:02d} EUR"',
    )[(bits >> 30) % 3]
    phone = (
        f"0{171 + (bits >> 3 & 7)} {cents:07d}",
        f"+44 20 {cents:08d}",
        f"(0{30 + (bits >> 5 & 31)}) {cents}-{bits & 15}",
    )[(bits >> 33) % 3]
    note = NOTES[(bits >> 36) % len(NOTES)]
    return [text.encode() for text in (str(number), name, email, phone, born, balance, note)]


def _break(source: random.Random, row: list[bytes]) -> list[bytes]:
    def bad_email() -> list[bytes]:
        return [*row[:2], b"not an address", *row[3:]]

    def bad_date() -> list[bytes]:
        return [*row[:4], b"31.02.1990", *row[5:]]

    def bad_amount() -> list[bytes]:
        return [*row[:5], b"about forty", row[6]]

    def too_short() -> list[bytes]:
        return row[:5]

    def too_long() -> list[bytes]:
        return [*row, b"one field too many"]

    def bad_bytes() -> list[bytes]:
        return [row[0], b"M\xfcller (Latin-1)", *row[2:]]

    kinds: tuple[Callable[[], list[bytes]], ...] = (
        bad_email, bad_date, bad_amount, too_short, too_long, bad_bytes,
    )  # fmt: skip
    return source.choice(kinds)()
