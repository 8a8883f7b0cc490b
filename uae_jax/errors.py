"""The errors that end a run for a reason that the user can do something about."""


class RunError(RuntimeError):
    """A run cannot go on; the message says why, and what to do. Not a bug: the command line shows the message alone."""
