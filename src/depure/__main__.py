"""`python -m depure` is `depure`."""

from depure.cli import main

main()
