#!/bin/sh
# All tests, in three processes; arguments go to pytest.
#
# Guests, servers and hundreds of child processes share the cores with the tests that watch for
# moments. A test that failed in the crowd is therefore run once more by itself, in a new process:
# what is broken fails again, and what passes only now is named, to be made sturdier.
set -u
cd "$(dirname "$0")/.."

# The tests start thousands of processes. Where Python is told to write no bytecode, each of them
# would compile what it loads anew.
.venv/bin/python -m compileall -q src

.venv/bin/python -m pytest -q --cache-clear -n 3 --dist loadfile --no-loadscope-reorder "$@"
status=$?
# 1 is "some tests failed"; anything else (nothing collected, a mistake in a file) is final.
[ "$status" = 1 ] || exit "$status"

echo
echo "test: some tests failed in the crowd. Each is run once more, alone; the first that fails again ends it."
.venv/bin/python -m pytest -v --last-failed --last-failed-no-failures none --maxfail 1 "$@"
status=$?
[ "$status" = 0 ] && echo "test: the tests above passed only when they ran alone."
exit "$status"
