#!/usr/bin/env bash
# Installs uae_jax into an environment of its own, for the hardware found here, and runs `uae demo`: the whole method on
# a tiny model, in minutes. Needs Python 3.11 or newer, nothing else.
#
#   launch/local.sh                            installs and runs the demo in runs/demo
#   launch/local.sh --workdir DIR [...]        any arguments of `uae demo`
#   launch/local.sh --only-install             leaves it at the installation
#
# Hardware is cuda (an NVIDIA driver answers), tpu (a Cloud TPU VM) or cpu; UAE_HARDWARE overrides what is found.
# PYTHON names the interpreter, UAE_VENV the environment's folder (default: .venv), UAE_EXTRAS further extras of setup.py
# (UAE_EXTRAS=gcs for folders in gs:// buckets).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi

find_hardware() {
  if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    echo cuda
  elif [[ -e /dev/accel0 || (-d /dev/vfio && -n "${TPU_NAME:-}${TPU_WORKER_ID:-}") ]]; then
    echo tpu
  else
    echo cpu
  fi
}

source launch/find_python.sh

hardware=${UAE_HARDWARE:-$(find_hardware)}
if [[ ! "$hardware" =~ ^(cpu|cuda|tpu)$ ]]; then
  echo "launch/local.sh: UAE_HARDWARE is '$hardware', wanted cpu, cuda or tpu" >&2
  exit 2
fi
venv=${UAE_VENV:-.venv}
if [[ ! -x "$venv/bin/python" ]]; then
  python=$(find_python)
  "$python" -m venv "$venv"
fi
echo "launch/local.sh: installing for $hardware into $venv" >&2
"$venv/bin/python" -m pip install --quiet --upgrade pip
"$venv/bin/python" -m pip install --quiet --editable ".[$hardware${UAE_EXTRAS:+,$UAE_EXTRAS}]"
[[ "${1:-}" == "--only-install" ]] && exit 0
exec "$venv/bin/uae" demo "$@"
