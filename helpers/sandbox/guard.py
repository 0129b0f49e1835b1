"""Ends a program, and removes its folder, with the process that wanted them: however that process ends.

A script of its own (``python -I -S guard.py ...``), so that it is small and imports nothing: it holds the reading end
of a pipe whose other end only its owner has. When that closes, also by SIGKILL, the owner is gone. (Linux' "signal when
the parent dies" would strike when the *thread* ends that started the program.)
"""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time

#: Seconds that the program gets to end by itself, per signal; the last one always works.
PATIENCE = 10
SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


def start(command: list, folder="", user: tuple = (), patience: float = PATIENCE, **options) -> subprocess.Popen:
    """In the owner: the guard of ``command`` (none: of the folder only), which is started as ``user`` (uid, gid).

    Close its ``stdin`` to end the program and to remove ``folder``; a line in its ``stdout`` says that the program has
    ended by itself, and how.
    """
    ids = ":".join(map(str, user))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(patience), str(folder), ids, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # an interrupted cell must not take it along
        **options,
    )


def ended(guard: subprocess.Popen) -> bool:
    """Whether the guarded program has ended."""
    return guard.poll() is not None or bool(select.select([guard.stdout], [], [], 0)[0])


def stop(guard: subprocess.Popen) -> None:
    """End the program, remove the folder, and wait until both are gone. Safe to call twice."""
    with contextlib.suppress(BrokenPipeError):
        guard.stdin.close()
    guard.wait(timeout=(len(SIGNALS) + 1) * PATIENCE)
    guard.stdout.close()


def _main(owner: int, patience: float, folder: str, ids: str, *command: str) -> None:
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # only our owner's end ends us
    who = dict(zip(("user", "group"), map(int, ids.split(":")), strict=True)) if ids else {}
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, close_fds=False, **who) if command else None
    told = program is None
    while True:
        if not told and program.poll() is not None:
            told = True
            with contextlib.suppress(BrokenPipeError):
                os.write(1, b"ended %d\n" % program.returncode)
        # A second at most: a forked child of the owner's may hold the pipe open after its end.
        ready = select.select([0, wake], [], [], 1)[0]
        if wake in ready:
            os.read(wake, 100)
        if (0 in ready and not os.read(0, 1)) or os.getppid() != owner:
            break
    if program is not None:
        _end(program, patience)
    end = time.monotonic() + patience
    while folder and os.path.lexists(folder) and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)  # again, as long as somebody still writes into it


def _end(program: subprocess.Popen, patience: float) -> None:
    for number in SIGNALS:
        if program.poll() is None:
            program.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(timeout=patience)


if __name__ == "__main__":
    _main(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
