"""The errors that end a run for a reason that the user can do something about, and the exit codes of `uae`.

What ends with FAILED would fail again. STOPPED and ABANDONED lie above 127, as codes of what a signal ended do: so what
starts containers again takes them for no failure (xpk, for one, does so from 127 on).
"""

FAILED = 1
STOPPED = 143  # told to stop, and saved: 128 + SIGTERM, as shells put it
ABANDONED = 203  # the other processes are gone, and else all is well: 128 + sysexits' "temporary failure"; no signal's


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and what to do. Not a bug: the command line shows the message alone."""

    exit_code = FAILED
