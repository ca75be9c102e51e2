"""Records and refuses every connection beyond this machine. Python runs it first where its folder is in PYTHONPATH, in workers too.

Python tells its audit hooks of each connection before it is made, whichever function makes it (``connect``, ``connect_ex``,
``create_connection``), and of each name that is looked up.
"""

import os
import sys

RECORD = "SEGPIPE_TEST_CONNECTIONS"
"""Variable that names the file to which attempts are added."""
TO_ADDRESS = ("socket.connect", "socket.sendto", "socket.sendmsg")
OF_NAME = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
LOCAL = ("", "localhost", "::1", "::", "0.0.0.0")


def beyond(event: str, args: tuple) -> str | None:
    """Return the other machine that an event is about; None where it is about none."""
    if event in TO_ADDRESS:
        # The address of a socket of this machine is a path, or numbers of the kernel.
        host = args[1][0] if isinstance(args[1], tuple) and args[1] else None
    elif event in OF_NAME:
        host = args[0]
    elif event == "socket.getnameinfo":
        host = args[0][0]
    else:
        return None
    host = os.fsdecode(host) if isinstance(host, bytes | str) else None
    return None if host is None or host in LOCAL or host.startswith(("127.", "::ffff:127.")) else host


def watch(event: str, args: tuple) -> None:
    if not event.startswith("socket.") or (host := beyond(event, args)) is None:
        return
    if RECORD in os.environ:
        with open(os.environ[RECORD], "a", encoding="utf-8") as file:  # noqa: PTH123 - the first thing that runs loads little
            file.write(f"{event} {host} by {sys.argv}\n")
    raise OSError(f"{event} {host}: the tests allow no connection beyond this machine")


if not hasattr(sys, "_segpipe_tests_watch"):
    sys._segpipe_tests_watch = True
    sys.addaudithook(watch)
