"""`python -m reasonmill` is the `reasonmill` command."""

from reasonmill.cli import main

main()
