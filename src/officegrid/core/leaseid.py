"""What a lease id tells: `<random>-<pin>.<generation>`.

The pin says which version of its job's code and data a unit runs, the generation after how many
retries. Both are fixed when the unit is given out, so they travel with its id and cost no look-up.
Ids of before pins existed have no pin; their jobs have only the first one.
"""

from __future__ import annotations


def lease_id(unique: str, pin: int, generation: int) -> str:
    """The id of a new lease; `unique` makes it one that nobody can guess."""
    return f"{unique}-{pin}.{generation}"


def pin_of(text: str) -> int:
    """Number of the pin; 0 where the id names none."""
    head, dot, _ = text.rpartition(".")
    _, dash, number = head.rpartition("-")
    return int(number) if dot and dash and number.isdecimal() else 0


def generation_of(text: str) -> str:
    """The generation, as text; empty where the id names none."""
    _, dot, generation = text.rpartition(".")
    return generation if dot else ""
