"""What `bench.start` and its probe call the steps of a worker's start."""

STARTED = "modules loaded"
CLAIMING = "first claim sent"
CLAIMED = "first unit there"
COMMITTED = "first unit committed"
STEPS = (STARTED, CLAIMING, CLAIMED, COMMITTED)
