"""Unified-Bench's pairing: same name, else same stem, else `recon_` and the stem; nothing is dropped in silence."""

import pytest
from PIL import Image

from uae_jax.bench import pairing


def folder(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / name)
    return root


@pytest.mark.parametrize("painting", ["0.jpg", "0.png", "recon_0.png", "deep/0.jpg", "deep/recon_0.webp"])
def test_each_rule_finds_its_painting(tmp_path, painting):
    found = pairing.pair(folder(tmp_path / "a", "0.jpg"), folder(tmp_path / "b", painting))
    assert found.pairs == {"0.jpg": (tmp_path / "a/0.jpg", tmp_path / "b" / painting)}
    assert found.missing == found.unused == ()


def test_the_same_name_comes_before_the_same_stem(tmp_path):
    generated = folder(tmp_path / "b", "0.png", "0.jpg", "recon_0.jpg")
    found = pairing.pair(folder(tmp_path / "a", "0.jpg"), generated)
    assert found.pairs["0.jpg"][1] == generated / "0.jpg"
    assert found.unused == (generated / "0.png", generated / "recon_0.jpg")


def test_what_has_no_painting_is_told(tmp_path):
    found = pairing.pair(folder(tmp_path / "a", "0.jpg", "1.jpg"), folder(tmp_path / "b", "1.jpg", "2.jpg"))
    assert (list(found.pairs), found.missing) == (["1.jpg"], ("0.jpg",))
    assert found.unused == (tmp_path / "b/2.jpg",)


def test_equal_names_in_different_folders_are_told_apart(tmp_path):
    names = ("x/0.jpg", "y/0.jpg")
    found = pairing.pair(folder(tmp_path / "a", *names), folder(tmp_path / "b", *names))
    assert found.pairs == {name: (tmp_path / "a" / name, tmp_path / "b" / name) for name in names}


@pytest.mark.parametrize(
    ("references", "paintings", "wanted"),
    [
        (("0.jpg",), ("x/0.jpg", "y/0.jpg"), "keep one of them"),
        (("x/0.jpg", "y/0.jpg"), ("0.jpg",), "names of their own"),
        (("0.jpg",), (), "is no folder"),
    ],
)
def test_what_is_ambiguous_is_refused(tmp_path, references, paintings, wanted):
    with pytest.raises(ValueError, match=wanted):
        pairing.pair(folder(tmp_path / "a", *references), folder(tmp_path / "b", *paintings))
