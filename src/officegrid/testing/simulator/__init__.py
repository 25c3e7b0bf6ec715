"""A whole grid in one thread and in virtual time, drawn from a seed.

The coordinator's real service functions run on its real database; machines, the network and time
are simulated and misbehave. Phase one: faults on, and nothing may ever be wrong. Phase two: the
faults stop, and everything must finish.

    python -m officegrid.testing.simulator --seed 7        one universe, with its story on failure
    python -m officegrid.testing.simulator --seconds 600   as many as fit

`universe.run_seed(seed)` is the door for tests.
"""
