#!/bin/sh
# Keeps the requests that a web server answered with 5xx, with the last part of the address hidden.
# grep ends with 1 when no line matches, which is no failure here: only 2 and above are.
set -eu
{ grep -E '" 5[0-9]{2} ' || test $? -eq 1; } | sed -E 's/^([0-9]+\.[0-9]+\.[0-9]+)\.[0-9]+ /\1.0 /'
