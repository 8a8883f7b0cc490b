#!/usr/bin/env bash
# Installs uae_jax into an environment of its own and runs its tests. Needs Python 3.11 or newer, nothing else.
#
#   launch/test.sh                     all tests but the exhaustive ones
#   launch/test.sh -m "not slow"       the quick ones; any pytest arguments may follow
#   launch/test.sh -m exhaustive       every stage killed and resumed, on every mesh, by several processes
#   launch/test.sh --lowest            all tests with the oldest dependencies that setup.py admits
#
# PYTHON names the interpreter, UAE_VENV the environment's folder (default: .venv, or .venv-lowest).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lowest=0
if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi
if [[ "${1:-}" == "--lowest" ]]; then
  lowest=1
  shift
fi

source launch/find_python.sh

python=$(find_python)
venv=${UAE_VENV:-.venv$( ((lowest)) && echo -lowest || true)}
[[ -x "$venv/bin/python" ]] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --upgrade pip
bounds=()
if ((lowest)); then  # every ">=" of the package itself becomes "=="
  while IFS= read -r line; do bounds+=("$line"); done < <(
    sed -n '/install_requires/,/\]/p' setup.py | grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' | tr -d '"' | sed 's/>=/==/'
  )
fi
# --no-compile: what is imported is compiled then, and most of it never is
"$venv/bin/python" -m pip install --quiet --no-compile --editable '.[cpu,docs,test]' ${bounds[@]+"${bounds[@]}"}
"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
exec "$venv/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations 40 "$@"
