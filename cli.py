"""`python cli.py ...` is `segpipe ...` from a checkout."""

from segpipe.cli.app import main

if __name__ == "__main__":  # not again in the processes of --devices
    main()
