"""`python -m officegrid` is the `officegrid` command."""

from officegrid.cli.main import main

main()
