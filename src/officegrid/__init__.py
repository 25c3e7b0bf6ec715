"""Office Grid: makes idle office desktops one batch engine."""

__version__ = "0.1.0"
