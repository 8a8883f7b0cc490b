"""The one error of this package."""

import contextlib
from collections.abc import Iterator, Sequence

_MOST = 50  # problems that one message lists
_LONGEST = 10_000  # characters; a hostile file may carry a key of megabytes


class WeightsError(ValueError):
    """A checkpoint cannot be read or written; the message names the file or key, what was got and what was wanted.

    The message is one printable line, whatever a file's keys hold.
    """

    def __init__(self, message: str):
        if len(message) > _LONGEST:
            message = message[:_LONGEST] + "..."
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


def gathered(source: str, problems: Sequence[str]) -> WeightsError:
    """Makes one error of all that is wrong with a checkpoint."""
    shown = [*problems[:_MOST], f"and {len(problems) - _MOST} more"] if len(problems) > _MOST else problems
    return WeightsError(f"{source}: " + "; ".join(shown))


@contextlib.contextmanager
def named(setting: str) -> Iterator[None]:
    """Names the setting that an error of what it names is due to: a default is a path that nobody typed."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{setting}: {error}") from None
