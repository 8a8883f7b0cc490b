"""A prepared tensorflow-datasets builder, without TensorFlow."""

import io
import sys

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")

from etils import epath

from tests.data.sources.checks import check_contract, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import SourceError, open_source


class Pictures(tfds.core.GeneratorBasedBuilder):
    """Five pictures to train on and three to test on."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = epath.Path(__file__)  # found in another way, it takes a package that is not a dependency

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "parts": tfds.features.Sequence({"text": tfds.features.Text(), "number": tfds.features.Scalar(np.int64)}),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(range(5)), "test": self._generate_examples(range(5, 8))}

    def _generate_examples(self, numbers):
        for n in numbers:
            parts = [{"text": f"part {n}", "number": n}, {"text": "other", "number": 0}]
            texts = {"caption": f"picture {n}", "captions": ["a", f"b{n}"], "parts": parts}
            yield n, {"image": io.BytesIO(png(n)), "label": 0, **texts}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = Pictures(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return root


@pytest.fixture
def by_name(folder, monkeypatch):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(folder))
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))


def opened(path, **settings):
    return open_source(SourceConfig(path=str(path), **settings))


def test_records_of_a_prepared_folder(folder):
    source = opened(folder / "pictures" / "1.0.0", captions=("caption", "captions"))
    numbers = [shown(source[n]) for n in range(len(source))]
    assert sorted(numbers) == [0, 1, 2, 3, 4]  # the builder shuffles as it writes
    assert isinstance(source[0].image, bytes)  # not decoded
    assert dict(source[0].captions) == {
        "caption": f"picture {numbers[0]}".encode(),
        "captions": [b"a", f"b{numbers[0]}".encode()],
    }
    assert source[0].id == "pictures/1.0.0/train:0"
    check_contract(source)


def test_texts_inside_other_features(folder):
    source = opened(folder / "pictures" / "1.0.0", captions=("parts/text",))
    assert dict(source[1].captions) == {"parts/text": [f"part {shown(source[1])}".encode(), b"other"]}


@pytest.mark.parametrize("name", ["tfds:pictures/test", "tfds:pictures:1.0.0/test"])
def test_a_split_by_name(by_name, name):
    source = opened(name)
    assert sorted(shown(source[n]) for n in range(len(source))) == [5, 6, 7]


def test_the_split_of_the_settings(by_name, folder):
    assert len(opened("tfds:pictures", split="test")) == 3
    assert len(opened("tfds:pictures:1.0.0")) == 5
    assert len(opened("pictures:1.0.0", kind="tfds", split="test[:2]")) == 2
    assert len(opened(folder / "pictures" / "1.0.0", split="test")) == 3


def test_what_is_not_there_is_told(by_name):
    with pytest.raises(SourceError, match="no split 'tset', the nearest is 'test'; all: train, test"):
        opened("tfds:pictures/tset")
    with pytest.raises(SourceError, match="no image feature 'picture', the nearest is 'parts"):
        opened("tfds:pictures", image="picture")
    with pytest.raises(SourceError, match="tfds:nosuchthing: no such data set"):
        opened("tfds:nosuchthing/train")


def test_tensorflow_is_not_imported(folder):
    opened(folder / "pictures" / "1.0.0")[0]
    assert "tensorflow" not in sys.modules
