"""TensorBoard event files behind clu's writer interface, without TensorFlow and without PyTorch.

clu's package of writers imports TensorFlow for a writer of its own, tensorboardX imports PyTorch where it is installed;
both are told here that there is none, which saves seconds and hundreds of megabytes. Events are written by
tensorboardX's synchronous writer, so that what cannot be written is known at once.
"""

import contextlib
import os
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax import paths

_TENSORFLOW_WRITER = "clu.metric_writers.tf.summary_writer"


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Lets imports of a package that nobody has imported yet fail."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]


if _TENSORFLOW_WRITER not in sys.modules:
    _stand_in = types.ModuleType(_TENSORFLOW_WRITER)
    _stand_in.SummaryWriter = type("SummaryWriter", (), {"__doc__": "Stands in for the TensorFlow writer."})
    sys.modules[_TENSORFLOW_WRITER] = _stand_in
with _hidden("torch"):
    from clu.metric_writers import interface
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import directory_check


class TensorBoardWriter(interface.MetricWriter):
    """Writes scalars, images, texts and histograms into one event file; in a bucket into one for each flush.

    Args:
      folder: local, made if it is not there; or in a bucket, which sees nothing before a flush.
      after_step: of a run that goes on from this step; TensorBoard then hides what earlier files hold of later ones.
        None for a run that begins.

    Raises:
      OSError: from every method that writes, if it cannot.
    """

    def __init__(self, folder: str | os.PathLike, after_step: int | None = None):
        # tensorboardX's own writer for buckets raises what is no OSError, and sends all since the start at each flush.
        self._bucket = paths.as_path(folder) if paths.is_remote(folder) else None
        self._waiting = tempfile.TemporaryDirectory() if self._bucket else None
        self._folder = self._waiting.name if self._waiting else os.fspath(folder)
        self._events: EventsWriter | None = None
        self._begin()
        if after_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=after_step + 1, session_log=log))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes a number per name; NaN and infinities too."""
        for name, value in scalars.items():
            self._write(step, summary.scalar(name, float(value)))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes u8[H, W, 3] per name."""
        for name, image in images.items():
            self._write(step, summary.image(name, np.asarray(image), dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes a text per name, which TensorBoard shows as Markdown."""
        for name, text in texts.items():
            self._write(step, summary.text(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Writes the distribution of an array per name, in 30 buckets where nothing else is said."""
        for name, array in arrays.items():
            buckets = (num_buckets or {}).get(name, 30)
            self._write(step, summary.histogram(name, np.asarray(array), bins=buckets))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes settings as a table."""
        rows = "".join(f"| {name} | {value} |\n" for name, value in hparams.items())
        self.write_texts(0, {"settings": f"| name | value |\n| --- | --- |\n{rows}"})

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError("raw summaries are not written; use scalars, images, texts or histograms")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Not offered."""
        raise NotImplementedError("videos are not written; use images")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Not offered."""
        raise NotImplementedError("audio is not written")

    def flush(self) -> None:
        """Puts into the file what was written."""
        if self._bucket is None:
            self._events.flush()
        elif self._events is not None:
            self._send()

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._bucket is None:
            self._events.close()
            return
        self.flush()
        self._waiting.cleanup()

    def _begin(self) -> None:
        directory_check(self._folder)
        # Without the suffix, a second file of the same second would overwrite the first; files are read in name order.
        self._events = EventsWriter(os.path.join(self._folder, "events"), f".{time.time_ns()}")

    def _send(self) -> None:
        self._events.close()
        self._events = None
        for file in sorted(Path(self._folder).iterdir()):
            paths.write(self._bucket / file.name, file.read_bytes())
            file.unlink()

    def _write(self, step: int, value: Any) -> None:
        if self._events is None:
            self._begin()
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=value))
