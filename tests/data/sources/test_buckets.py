"""Sources in a bucket."""

import io
import tarfile

import pytest

from tests import buckets
from tests.data.sources.checks import png, shown
from uae_jax import cli, paths
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import SourceError, open_source


class Bucket(buckets.Bucket):
    """As gcsfs shows one: nothing matches in a folder that is not there, and to rename is to copy."""

    def glob(self, path):
        return super().glob(path) if self.isdir(path.rpartition("/")[0]) else []

    def replace(self, path, dst):
        self.copy(path, dst, overwrite=True)
        self.remove(path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = Bucket()
    buckets.install(monkeypatch, bucket, tmp_path / "cache")
    return bucket


def shards():
    """One of two samples."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for number in (0, 1):
            for suffix, data in (("png", png(number)), ("txt", b"picture %d" % number)):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return written.getvalue()


@pytest.mark.parametrize(
    "path", ["gs://bucket/photos/captions.jsonl", "gs://bucket/shards", "gs://bucket/shards/*.tar"]
)
def test_tables_and_shards_are_read_from_a_bucket(bucket, path):
    for number in (0, 1):
        bucket.put(f"bucket/photos/{number}.png", png(number))
    lines = "".join(f'{{"image": "{number}.png", "caption": "picture {number}"}}\n' for number in (0, 1))
    bucket.put("bucket/photos/captions.jsonl", lines.encode())
    bucket.put("bucket/shards/0.tar", shards())
    source = open_source(SourceConfig(path=path))
    assert [shown(source[index]) for index in range(len(source))] == [0, 1]
    captions = [next(iter(source[index].captions.values())) for index in (0, 1)]
    assert [text if isinstance(text, str) else text.decode() for text in captions] == ["picture 0", "picture 1"]


def test_a_folder_of_images_is_read_from_a_bucket(bucket, monkeypatch):
    for name in ("1.png", "b/0.png", "b/.hidden/2.png", ".3.png", ""):  # the last marks the folder itself
        bucket.put(f"bucket/photos/{name}", png(4))
    bucket.put("bucket/photos/b/0.txt", b"a picture")
    source = open_source(SourceConfig(path="gs://bucket/photos", captions=("caption",)))
    assert [source.id(index) for index in (0, 1)] == ["gs://bucket/photos/1.png", "gs://bucket/photos/b/0.png"]
    assert (len(source), shown(source[1]), source[1].captions["caption"]) == (2, 4, b"a picture")

    def unreachable(self, path):
        if path.endswith("b"):
            raise OSError("503")
        return buckets.Bucket.listdir(self, path)

    monkeypatch.setattr(Bucket, "listdir", unreachable)
    with pytest.raises(SourceError, match="gs://bucket/photos"):  # and not half of the images
        open_source(SourceConfig(path="gs://bucket/photos"))


@pytest.mark.parametrize("kind", ["auto", "folder"])
def test_without_its_library_one_line_says_what_to_install(monkeypatch, kind):
    monkeypatch.setattr(paths, "LIBRARIES", ("no_such_library",))
    with pytest.raises(SourceError, match=r"gs://bucket/d: no_such_library is not installed.*uae_jax\[gcs\]"):
        open_source(SourceConfig(path="gs://bucket/d", kind=kind))
    with pytest.raises(SourceError, match="wanted two slashes: gs://bucket/d"):
        open_source(SourceConfig(path="gs:/bucket/d", kind=kind))


def test_the_command_says_it_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(paths, "LIBRARIES", ("no_such_library",))
    config = "configs/pretrain.py:size=tiny,data=gs://bucket/d"
    assert cli.main(["train", "--config", config, "--workdir", str(tmp_path / "run")]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "gs://" in line]
    assert line.startswith("uae: error: gs://bucket/d: ") and "pip install" in line
