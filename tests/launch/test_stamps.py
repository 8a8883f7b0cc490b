"""The set of real pictures: read out of its package, a part of it held out."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "launch/fetch_stamps.sh"
pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


def package(folder):
    """A package like the real one: twelve pictures, one of them another's mirror image, one without a caption."""
    stamps = folder / "root/usr/share/tuxpaint/stamps/animals"
    stamps.mkdir(parents=True)
    for name in (*(f"{n:02}" for n in range(10)), "00_mirror", "silent"):
        Image.new("RGB", (20, 20)).save(stamps / f"{name}.png")
        if name != "silent":
            (stamps / f"{name}.txt").write_text(f"Animal {name}.\nde.utf8=Tier {name}.\n")
    control = folder / "root/DEBIAN/control"
    control.parent.mkdir()
    control.write_text("Package: stamps\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a test\n")
    deb = folder / "stamps.deb"
    subprocess.run(["dpkg-deb", "--build", folder / "root", deb], check=True, capture_output=True)
    return deb


def test_pictures_with_a_caption_are_listed_and_one_in_ten_is_held_out(tmp_path):
    target = tmp_path / "stamps"
    done = subprocess.run(
        [SCRIPT, target], env=os.environ | {"DEB": str(package(tmp_path))}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = {
        part: [json.loads(line) for line in (target / f"{part}.jsonl").read_text().splitlines()]
        for part in ("captions", "train", "held_out")
    }
    assert [line["caption"] for line in lines["captions"]] == [f"Animal {n:02}." for n in range(10)]
    assert all((target / line["image"]).is_file() for line in lines["captions"])
    assert lines["held_out"] == lines["captions"][:1] and lines["train"] == lines["captions"][1:]
