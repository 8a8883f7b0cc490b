#!/usr/bin/env bash
# Fetches 785 captioned pictures, many of them photographs: Tux Paint's stamps (GPL-2), from a Debian or Ubuntu mirror.
#
#   launch/fetch_stamps.sh DIR         afterwards: uae data inspect DIR/captions.jsonl, and configs/real/stamps.py
#
# Needs dpkg-deb and curl or apt-get; DEB names a package file that is there already, MIRROR another mirror.
set -euo pipefail

if [[ $# -ne 1 || "$1" == -* ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
package=tuxpaint-stamps-default_2022.06.04-1_all.deb
deb=${DEB:-$folder/$package}

if [[ ! -f "$deb" ]]; then
  url=${MIRROR:-http://deb.debian.org/debian}/pool/main/t/tuxpaint-stamps/$package
  echo "fetching $package (161 MB)" >&2
  if (cd "$folder" && apt-get download tuxpaint-stamps-default) >&2; then
    got=$(ls "$folder"/tuxpaint-stamps-default_*.deb)
    [[ "$got" -ef "$deb" ]] || mv -f "$got" "$deb"
  else
    curl --fail --location --progress-bar --output "$deb.part" "$url"
    mv "$deb.part" "$deb"
  fi
fi
dpkg-deb --extract "$deb" "$folder/package"

# The first line of a stamp's .txt is its English caption; translations follow.
python3 - "$folder" <<'PYTHON'
import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
lines = []
for image in sorted((folder / "package/usr/share/tuxpaint/stamps").rglob("*.png")):
    text = image.with_suffix(".txt")
    if text.exists() and not image.stem.endswith(("_mirror", "_flip")):
        caption = text.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        if caption:
            lines.append(json.dumps({"image": str(image.relative_to(folder)), "caption": caption}))
parts = {"captions": lines, "held_out": lines[::10], "train": [line for i, line in enumerate(lines) if i % 10]}
for name, part in parts.items():
    (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
print(f"{folder}: {len(lines)} pictures in captions.jsonl, one in ten of them in held_out.jsonl, the rest in train.jsonl")
PYTHON
