#!/usr/bin/env bash
# Builds the documentation site, strictly: whatever is amiss ends it. Needs Python 3.11 or newer, nothing else, no JAX.
#
#   launch/docs.sh             into build/docs; open build/docs/index.html
#   launch/docs.sh DIR [...]   into DIR; any arguments of sphinx-build may follow
#
# PYTHON names the interpreter, UAE_VENV the environment's folder (default: .venv-docs).
set -euo pipefail
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=$PWD/build/docs
if [[ $# -gt 0 ]]; then
  output=$1
  [[ "$output" == /* ]] || output=$from/$output
  shift
fi

source launch/find_python.sh

venv=${UAE_VENV:-.venv-docs}
if [[ ! -x "$venv/bin/python" ]]; then
  python=$(find_python)
  "$python" -m venv "$venv"
fi
wanted=()  # what the extra `docs` names
while IFS= read -r line; do wanted+=("$line"); done < <(
  sed -n 's/^ *"docs": \[\(.*\)\],$/\1/p' setup.py | grep -oE '[A-Za-z0-9_-]+>=[0-9.]+'
)
"$venv/bin/python" -m pip install --quiet "${wanted[@]}"
"$venv/bin/python" -m sphinx --fail-on-warning --keep-going --quiet --builder html docs "$output" "$@"
echo "$output/index.html"
