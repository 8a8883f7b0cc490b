"""Folders of Hugging Face `datasets`, read with pyarrow alone."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

from tests.data.sources.checks import check_contract, png, shown
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import SourceError, open_source


def dataset(numbers=range(5)):
    columns = {
        "image": [{"bytes": png(n), "path": None} for n in numbers],
        "text": [f"picture {n}" for n in numbers],
        "captions": [["a", f"b{n}"] for n in numbers],
        "label": list(numbers),
    }
    features = datasets.Features(
        image=datasets.Image(),
        text=datasets.Value("string"),
        captions=datasets.List(datasets.Value("string")),
        label=datasets.Value("int64"),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def opened(path, **settings):
    return open_source(SourceConfig(path=str(path), **settings))


def test_a_saved_data_set(tmp_path):
    dataset().save_to_disk(tmp_path / "d", num_shards=2)
    source = opened(tmp_path / "d")
    assert [shown(source[n]) for n in range(len(source))] == [0, 1, 2, 3, 4]
    assert dict(source[4].captions) == {"text": "picture 4", "captions": ["a", "b4"]}
    assert source[4].id == "data-00001-of-00002.arrow:1"
    check_contract(source)


def test_splits(tmp_path):
    splits = {"train": dataset(), "test": dataset(range(7, 9))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    assert len(opened(tmp_path / "d")) == 5
    assert shown(opened(tmp_path / "d", split="test")[1]) == 8
    with pytest.raises(SourceError, match="no split 'tests', the nearest is 'test'; all: train, test"):
        opened(tmp_path / "d", split="tests")


def test_selected_rows_are_the_rows(tmp_path):
    dataset().select([3, 1]).save_to_disk(tmp_path / "d")
    source = opened(tmp_path / "d")
    assert [shown(source[n]) for n in range(len(source))] == [3, 1]


def test_parquet_files_by_split(tmp_path):
    (tmp_path / "data").mkdir()
    for name, numbers in (
        ("train-00000-of-00002", [0, 1]),
        ("train-00001-of-00002", [2]),
        ("test-00000-of-00001", [9]),
    ):
        dataset(numbers).to_parquet(tmp_path / "data" / f"{name}.parquet")
    source = opened(tmp_path)
    assert [shown(source[n]) for n in range(len(source))] == [0, 1, 2]
    assert [source[n].id for n in (1, 2)] == ["train-00000-of-00002.parquet:1", "train-00001-of-00002.parquet:0"]
    check_contract(source)
    assert shown(opened(tmp_path, split="test")[0]) == 9
    with pytest.raises(SourceError, match="no split 'validation'"):
        opened(tmp_path, split="validation")


def test_parquet_files_whose_names_tell_no_split(tmp_path):
    dataset([0, 1]).to_parquet(tmp_path / "a.parquet")
    dataset([2]).to_parquet(tmp_path / "b.parquet")
    assert len(opened(tmp_path)) == 3


def test_what_is_broken_is_told(tmp_path):
    with pytest.raises(SourceError, match=r"neither state.json nor .parquet files"):
        opened(tmp_path, kind="huggingface")
    dataset().save_to_disk(tmp_path / "d")
    with pytest.raises(SourceError, match="no column 'txt', the nearest is 'text'"):
        opened(tmp_path / "d", captions=("txt",))
    state = tmp_path / "d" / "state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(SourceError, match=r"names '\.\./secret\.arrow'"):
        opened(tmp_path / "d")
    state.write_text("{")
    with pytest.raises(SourceError, match=r"state\.json: not JSON"):
        opened(tmp_path / "d")


def test_datasets_itself_is_not_needed_and_without_pyarrow_is_told_what_is(tmp_path):
    dataset().save_to_disk(tmp_path / "d")
    code = """
import sys
sys.modules[sys.argv[2]] = None  # as if it were not installed
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import open_source
try:
    print(len(open_source(SourceConfig(path=sys.argv[1]))), "datasets" in sys.modules and sys.argv[2] != "datasets")
except ValueError as error:
    print(error)
"""
    for absent, wanted in (("datasets", "5 False"), ("pyarrow", "needs pyarrow, which is not installed; pip install")):
        run = [sys.executable, "-c", code, str(tmp_path / "d"), absent]
        assert wanted in subprocess.run(run, capture_output=True, text=True, check=True).stdout
