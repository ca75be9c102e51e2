"""Uses of what Windows or macOS has not, found in a syntax tree."""

import ast
from collections.abc import Iterator


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = words("fcntl resource pwd grp termios tty pty posix posixpath syslog crypt spwd nis readline")
OS = words(
    "fork forkpty killpg setsid setpgid getpgid getpgrp setpgrp getuid geteuid getgid getegid getgroups setuid setgid seteuid setegid "
    "sched_getaffinity sched_setaffinity sched_yield statvfs fstatvfs uname nice getloadavg pread pwrite preadv pwritev readv writev "
    "sendfile mkfifo mknod chown lchown fchown fchmod lchmod chroot wait wait3 wait4 waitid posix_spawn posix_spawnp posix_fadvise "
    "posix_fallocate sysconf confstr pathconf openpty ttyname getpriority setpriority fdatasync sync memfd_create pipe2 getxattr setxattr "
    "listxattr removexattr register_at_fork fchdir lockf symlink link O_DIRECTORY O_NOFOLLOW O_CLOEXEC O_DIRECT O_SYNC O_DSYNC "
    "O_NONBLOCK O_NOATIME O_TMPFILE O_BINARY O_TEMPORARY startfile ctermid getresuid getsid kill splice copy_file_range eventfd"
)
SIGNAL = words(
    "SIGKILL SIGUSR1 SIGUSR2 SIGALRM SIGHUP SIGQUIT SIGCHLD SIGSTOP SIGCONT SIGTSTP SIGXCPU SIGPIPE SIGTTIN SIGTTOU alarm setitimer pause "
    "sigwait sigwaitinfo sigtimedwait pthread_kill pthread_sigmask sigpending siginterrupt"
)
OTHERS = words("cpu_affinity rlimit num_fds tzset clock_gettime AF_UNIX")
"""Attributes of psutil, time and socket."""
LINKS = words("symlink_to hardlink_to lchmod")
"""Methods of a path: a link needs rights on Windows."""
CAUGHT = frozenset(("ImportError", "AttributeError", "ModuleNotFoundError"))
PLACES = ("/proc", "/sys/", "/dev/", "/var/", "/etc/", "/tmp", "/usr/")


def unguarded(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each use that nothing guards.

    A condition that asks for the system or the attribute guards what stands in it, as does what catches that it is missing.
    """
    # Most modules have no use at all, which is sooner found.
    if any(_use(node) is not None for node in ast.walk(tree)):
        yield from _within(tree, guarded=False)


def places(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of each path that only a Unix has."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(PLACES):
            yield node.lineno, node.value


def _within(node: ast.AST, *, guarded: bool) -> Iterator[tuple[int, str]]:
    if not guarded and (name := _use(node)) is not None:
        yield getattr(node, "lineno", 0), name
    for child in ast.iter_child_nodes(node):
        yield from _within(child, guarded=guarded or _guards(node, child))


def _use(node: ast.AST) -> str | None:
    if isinstance(node, ast.Import):
        return next((a.name for a in node.names if a.name.partition(".")[0] in MODULES), None)
    if isinstance(node, ast.ImportFrom):
        names = {"os": OS, "signal": SIGNAL}.get(node.module or "", frozenset())
        return node.module if node.module in MODULES else next((a.name for a in node.names if a.name in names), None)
    if isinstance(node, ast.Attribute):
        owner = getattr(node.value, "id", "")
        missing = {"os": OS, "signal": SIGNAL}.get(owner, OTHERS | LINKS)
        return node.attr if node.attr in missing else None
    if isinstance(node, ast.keyword):
        return node.arg if node.arg in ("preexec_fn", "start_new_session", "process_group", "pass_fds") else None
    return None


def _guards(parent: ast.AST, child: ast.AST) -> bool:
    """Tell whether a statement guards one of its parts."""
    if isinstance(parent, ast.If | ast.IfExp):
        return child is not parent.test and _asks(parent.test)
    if isinstance(parent, ast.Try):
        return child in parent.body and any(h.type is not None and _names(h.type) & CAUGHT for h in parent.handlers)
    if isinstance(parent, ast.With):
        return child in parent.body and any(_names(item.context_expr) & CAUGHT for item in parent.items)
    return False


def _asks(test: ast.expr) -> bool:
    return bool(_names(test) & {"hasattr", "_OPEN_FILES_STAY"}) or any(
        isinstance(n, ast.Attribute) and (getattr(n.value, "id", ""), n.attr) in (("os", "name"), ("sys", "platform"))
        for n in ast.walk(test)
    )


def _names(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def starts_by_fork(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of each way to start a process that copies this one where the system can."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in (
            "multiprocessing",
            "concurrent",
        ):
            names = {"Process", "Pool", "Queue", "Manager", "ProcessPoolExecutor", "set_start_method", "SimpleQueue"}
            yield from ((node.lineno, a.name) for a in node.names if a.name in names)
        if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty", "set_start_method"):
            yield node.lineno, node.attr
        of_the_module = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("multiprocessing", "mp")
        if of_the_module and node.attr in ("Process", "Pool", "Queue", "Manager", "Pipe"):
            yield node.lineno, node.attr
        if isinstance(node, ast.Call):
            yield from _of_another_method(node)


def _of_another_method(call: ast.Call) -> Iterator[tuple[int, str]]:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", "")
    given = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
    if name == "get_context" and [getattr(a, "value", None) for a in call.args] != ["spawn"]:
        yield call.lineno, name
    if "start_method" in given and given["start_method"] != "spawn":
        yield call.lineno, "start_method"
    if name == "DataLoader" and given.get("num_workers", 0) != 0:
        yield call.lineno, name
