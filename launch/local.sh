#!/usr/bin/env bash
# Installs uae_jax into an environment of its own, for the hardware found here, and runs it: `uae train` where there is a
# config, else `uae demo`, the whole method on a tiny model, in minutes. Needs Python 3.11 or newer, nothing else.
#
#   launch/local.sh                            installs and runs the demo in runs/demo
#   launch/local.sh --workdir DIR [...]        any arguments of `uae demo`
#   launch/local.sh --config FILE[:ARG] --workdir DIR [--config.KEY=VALUE ...]      any arguments of `uae train`
#   launch/local.sh --only-install             leaves it at the installation, and mends one that is there
#   launch/local.sh --is-installed             only says by its exit code whether there is one for this hardware
#   launch/local.sh ... --dry-run              prints every command and runs none
#
# Hardware is cuda (an NVIDIA driver answers), tpu (a Cloud TPU VM) or cpu; UAE_HARDWARE overrides what is found.
# PYTHON names the interpreter, UAE_VENV the environment's folder (default: .venv), UAE_EXTRAS further extras of setup.py
# (gcs, for folders in gs:// buckets, comes by itself where an argument names one).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "launch/local.sh: error: ${*:2}" >&2
  exit "$1"
}

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

what=demo dry_run=0 config="" workdir=""
arguments=()
while (($#)); do
  case "$1" in
    --help | -h)
      sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --only-install) what=install ;;
    --is-installed) what=ask ;;
    --dry-run) dry_run=1 ;;
    --config | --workdir)
      [[ -n "${2:-}" ]] || fail 2 "$1 has no value"
      [[ "$2" != --* ]] || fail 2 "$1 has no value: '$2', which follows it, is an option itself"
      printf -v "${1#--}" '%s' "$2"
      arguments+=("$1" "$2")
      shift
      ;;
    --config=* | --workdir=*)
      [[ "$1" != *= ]] || fail 2 "${1%=} has no value"
      arguments+=("$1")
      if [[ "$1" == --config=* ]]; then config=${1#*=}; else workdir=${1#*=}; fi
      ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
if [[ -n "$config" && "$what" == demo ]]; then
  what=train
  file=${config%%.py:*}
  [[ "$file" == "$config" ]] || file=$file.py
  [[ -f "$file" ]] || fail 2 "$file: no such config file; paths are relative to $PWD"
  [[ -n "$workdir" ]] || fail 2 "--workdir is missing: the folder that holds the run; see launch/local.sh --help"
fi

hardware=${UAE_HARDWARE:-$(find_hardware)}
[[ "$hardware" =~ ^(cpu|cuda|tpu)$ ]] || fail 2 "UAE_HARDWARE is '$hardware', wanted cpu, cuda or tpu"
extras=${UAE_EXTRAS:-}
if [[ "${arguments[*]-}" == *gs://* && ",$extras," != *,gcs,* ]]; then extras=${extras:+$extras,}gcs; fi
venv=${UAE_VENV:-.venv}

# What was installed, a line each: what setup.py was like, hardware, extras.
record=$venv/uae_extras
setup=$(cksum <setup.py)
is_installed() {
  local each
  [[ -x "$venv/bin/uae" && -f "$record" ]] || return 1
  for each in "$setup" "$hardware" ${extras//,/ }; do
    grep -qxF -- "$each" "$record" || return 1
  done
}

keep_record() {
  # pip only adds: what was there for the same setup.py still is
  grep -qsxF -- "$setup" "$record" || printf '%s\n' "$setup" >"$record"
  printf '%s\n' "$hardware,$extras" | tr , '\n' | grep . >>"$record"
}

run() {
  if ((dry_run)); then printf '%q ' "$@" && echo; else "$@"; fi
}

if [[ "$what" == ask ]]; then
  is_installed
  exit
fi
if [[ "$what" == install ]] || ! is_installed; then
  if [[ ! -x "$venv/bin/python" ]]; then
    python=$(find_python)
    run "$python" -m venv "$venv"
  fi
  echo "launch/local.sh: installing for $hardware into $venv" >&2
  run "$venv/bin/python" -m pip install --quiet --upgrade pip
  run "$venv/bin/python" -m pip install --quiet --editable ".[$hardware${extras:+,$extras}]"
  ((dry_run)) || keep_record
fi
[[ "$what" != install ]] || exit 0
if ((dry_run)); then
  run "$venv/bin/uae" "$what" ${arguments[@]+"${arguments[@]}"}
else
  exec "$venv/bin/uae" "$what" ${arguments[@]+"${arguments[@]}"}
fi
