"""A bucket in memory: epath reads and writes it by a backend, TensorStore over HTTP as Google Cloud Storage has it.

Like a real one it has objects and no folders: making a folder does nothing, and what has nothing in it is not there.
Objects appear whole, when they are closed. They are neither appended to nor renamed; a "rename" copies.
"""

import contextlib
import fnmatch
import http.server
import io
import itertools
import json
import os
import re
import threading
import urllib.parse

from etils.epath import backend, gpath
from etils.epath.stat_utils import StatResult

from uae_jax import paths


class Bucket(backend.Backend):
    """All buckets: "bucket/folder/name" -> (content, generation), which rises with every change."""

    def __init__(self):
        self.objects = {}
        self.generations = itertools.count(1)
        self.lock = threading.RLock()

    def put(self, name, data):
        with self.lock:
            self.objects[name] = (bytes(data), next(self.generations))
            return self.objects[name][1]

    def names(self, folder="bucket"):
        """Of all objects below a folder, relative to it."""
        with self.lock:
            return sorted(name.removeprefix(f"{folder}/") for name in self.objects if name.startswith(f"{folder}/"))

    def open(self, path, mode):
        if mode.startswith("w"):
            writer = _Writer(self, _name(path))
            return writer if "b" in mode else io.TextIOWrapper(writer, encoding="utf-8")
        if not mode.startswith("r"):
            raise NotImplementedError(f"mode {mode!r}: objects cannot be appended to")
        reader = io.BytesIO(self._get(path))
        return reader if "b" in mode else io.TextIOWrapper(reader, encoding="utf-8")

    def exists(self, path):
        return _name(path) in self.objects or self.isdir(path)

    def isdir(self, path):
        return bool(self.names(_name(path)))

    def listdir(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        return sorted({name.split("/")[0] for name in self.names(_name(path))})

    def glob(self, path):
        folder, pattern = os.fspath(path).rsplit("/", 1)
        return [f"{folder}/{name}" for name in fnmatch.filter(self.listdir(folder), pattern)]

    def walk(self, top, *, top_down=True, on_error=None):
        """As gcsfs does: without "gs://", and what cannot be listed is passed over unless it is told otherwise."""
        try:
            entries = self.listdir(top)
        except OSError as error:
            return on_error(error) if on_error else None
        folders = [name for name in entries if name and self.isdir(f"{top}/{name}")]
        files = [name for name in entries if f"{_name(top)}/{name}" in self.objects]
        yield _name(top), folders, files
        for name in folders:
            yield from self.walk(f"{_name(top)}/{name}")

    def makedirs(self, path, *, exist_ok=False, mode=None):
        if mode is not None:
            raise NotImplementedError("objects have no modes")

    mkdir = makedirs

    def rmtree(self, path):
        if not self.isdir(path):
            raise FileNotFoundError(path)
        for name in self.names(_name(path)):
            del self.objects[f"{_name(path)}/{name}"]

    def remove(self, path):
        self._get(path)
        del self.objects[_name(path)]

    def rename(self, path, dst):
        if not self.isdir(path):
            raise NotImplementedError("objects cannot be renamed")
        for name in self.names(_name(path)):
            self.put(f"{_name(dst)}/{name}", self._get(f"{path}/{name}"))
        self.rmtree(path)

    def replace(self, path, dst):
        raise NotImplementedError("objects cannot be renamed")

    def copy(self, path, dst, overwrite):
        with _either(self, path, "rb") as source, _either(self, dst, "wb") as target:
            target.write(source.read())

    def stat(self, path):
        content, generation = self.objects.get(_name(path), (b"", 0))
        if not self.exists(path):
            raise FileNotFoundError(path)
        return StatResult(is_directory=self.isdir(path), length=len(content), mtime=generation)

    def _get(self, path):
        try:
            return self.objects[_name(path)][0]
        except KeyError:
            raise FileNotFoundError(path) from None


class _Writer(io.BytesIO):
    def __init__(self, bucket, name):
        super().__init__()
        self.bucket, self.name = bucket, name

    def close(self):
        if not self.closed:
            self.bucket.put(self.name, self.getvalue())
        super().close()


def _name(path):
    return os.fspath(path).removeprefix("gs://").rstrip("/")


def _either(bucket, path, mode):
    return bucket.open(path, mode) if paths.is_remote(path) else open(path, mode)


def install(monkeypatch, bucket, cache):
    """Has epath take a bucket for "gs://", and copies of what is fetched lie in a folder."""
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", bucket)
    monkeypatch.setattr(gpath, "_GCS_BACKENDS", {bucket})
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(paths, "LIBRARIES", ("etils",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@contextlib.contextmanager
def served(bucket):
    """Serves a bucket to TensorStore, which does not go through epath."""

    class Handler(_Handler):
        objects = bucket

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {
            "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{server.server_port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    """What TensorStore asks of the JSON interface."""

    objects: Bucket
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        bucket, _ = self._where()
        name = f"{bucket}/{self._query['name']}"
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.objects.lock:
            if not self._as_wanted(name):
                return self._answer(412)
            generation = self.objects.put(name, data)
        self._answer(200, json.dumps({"name": name, "generation": str(generation)}).encode())

    def do_GET(self):
        bucket, name = self._where()
        if name is None:
            found = [n for n in self.objects.names(bucket) if n.startswith(self._query.get("prefix", ""))]
            return self._answer(200, json.dumps({"items": [{"name": n, "size": "1"} for n in found]}).encode())
        content, generation = self.objects.objects.get(f"{bucket}/{name}", (None, 0))
        if content is None:
            return self._answer(404)
        if self._query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        whole = len(content)
        if wanted := re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            first, last = wanted.groups()
            first, last = (int(first), int(last or whole - 1)) if first else (max(whole - int(last), 0), whole - 1)
            part = content[first : last + 1]
            return self._answer(206, part, generation, f"bytes {first}-{first + len(part) - 1}/{whole}")
        self._answer(200, content, generation)

    def do_DELETE(self):
        bucket, name = self._where()
        with self.objects.lock:
            if not self._as_wanted(f"{bucket}/{name}"):
                return self._answer(412)
            there = self.objects.objects.pop(f"{bucket}/{name}", None)
        self._answer(404 if there is None else 204)

    def _where(self):
        url = urllib.parse.urlsplit(self.path)
        self._query = dict(urllib.parse.parse_qsl(url.query))
        bucket, name = re.fullmatch(r".*/b/([^/]+)/o(?:/(.+))?", url.path).groups()
        return bucket, name and urllib.parse.unquote(name)

    def _as_wanted(self, name):
        wanted = self._query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == self.objects.objects.get(name, (None, 0))[1]

    def _answer(self, code, body=b"", generation=None, content_range=None):
        self.send_response(code)
        if generation is not None:
            self.send_header("x-goog-generation", str(generation))
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass
