"""Pure decisions: no clock, no I/O, no randomness of its own. Standard library only."""
