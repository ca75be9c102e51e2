"""`python cli.py ...` is `segpipe ...` from a checkout."""

from segpipe.cli.app import main

main()
