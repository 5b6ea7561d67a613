"""Ties a command's life to its parent's: ``python lifeline.py PARENT_PID COMMAND…`` becomes COMMAND.

The kernel sends SIGTERM to the command when its parent goes away, even by SIGKILL. This is a program and not a
``preexec_fn``, because running Python between fork and exec is unsafe once gRPC has started its threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""``prctl(2)``: the setting survives ``execve``."""


def main(arguments: list[str]) -> None:
    """Asks for the signal, checks that the parent was not lost in between, and becomes the command."""
    parent, command = int(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)  # no shell: the arguments go through as they are


if __name__ == "__main__":
    main(sys.argv[1:])
