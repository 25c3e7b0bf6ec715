"""How benchmarks speak: a heading, then lines of name, figure and the bar it is held to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: str
    bar: str = ""


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def show(*figures: Figure) -> None:
    for figure in figures:
        bar = f"   ({figure.bar})" if figure.bar else ""
        print(f"  {figure.name:<22} {figure.value}{bar}", flush=True)
