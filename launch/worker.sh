#!/usr/bin/env bash
# Runs on every worker of a TPU VM or GPU cluster; tpu_vm.sh, tpu_queued.sh and gpu_nodes.sh call it there.
#
#   launch/worker.sh install         as launch/local.sh --only-install; finds a Python where the machine's is too old
#   launch/worker.sh run [...]       `uae train` with these arguments, cut loose from the connection that started it,
#                                    and shows what it prints; where it is under way already, looks on
#   launch/worker.sh busy            whether a run is under way
#   launch/worker.sh stop            asks it to save and stop; it ends with exit code 143 then
#
# ~/.uae_jax/HOST/ holds log, process, command and exit code; UAE_WORKER names this worker (default: by the TPU).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/find_python.sh

home=$HOME/.uae_jax
state=$home/$(hostname)
venv=${UAE_VENV:-.venv}
STOP_SECONDS=120
UV_PYTHON=3.12

name_worker() {
  local host
  host=$(hostname)
  if [[ -n "${UAE_WORKER:-}" ]]; then
    echo "$UAE_WORKER"
  elif [[ -n "${TPU_WORKER_ID:-}" ]]; then
    echo "worker $TPU_WORKER_ID"
  elif [[ "$host" =~ -w-([0-9]+)$ ]]; then # as Cloud TPU names its hosts
    echo "worker ${BASH_REMATCH[1]}"
  else
    echo "$host"
  fi
}
worker=$(name_worker)

prefixed() {
  sed -u "s|^|[${worker//|/}] |"
}

# A process number alone could be somebody else's after a restart of the machine.
busy() {
  [[ -s "$state/pid" ]] && ps -o args= -p "$(<"$state/pid")" 2>/dev/null | grep -q 'worker.sh supervise'
}

install() {
  local python
  mkdir -p "$home"
  if ! python=$(find_python 2>/dev/null) || ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "no Python 3.11 or newer that can make environments; fetching $UV_PYTHON with uv"
    export UV_PYTHON_PREFERENCE=only-managed
    python3 -m pip install --quiet --upgrade --target "$home/uv" uv || return
    "$home/uv/bin/uv" python install --quiet "$UV_PYTHON" || return
    python=$("$home/uv/bin/uv" python find "$UV_PYTHON") || return
  fi
  PYTHON=$python launch/local.sh --only-install
}

run() {
  local wanted from=+1
  wanted=$(printf '%q ' "$@")
  if busy; then
    if [[ "$(<"$state/command")" != "$wanted" ]]; then
      echo "another run is under way: uae train $(<"$state/command")"
      echo "to end it: bash uae_jax/launch/worker.sh stop"
      return 1
    fi
    echo "the run is under way already; looking on"
    from=20
  else
    mkdir -p "$state"
    [[ ! -f "$state/log" ]] || mv -f "$state/log" "$state/log.1"
    rm -f "$state/code"
    : >"$state/log"
    printf '%s' "$wanted" >"$state/command"
    setsid bash launch/worker.sh supervise "$@" </dev/null >/dev/null 2>&1 &
    echo $! >"$state/pid"
  fi
  tail -n "$from" --pid="$(<"$state/pid")" -f "$state/log"
  return "$(cat "$state/code" 2>/dev/null || echo 137)" # none: killed together with its supervisor
}

supervise() {
  local code=0
  trap : TERM # the run gets it too; this one is to see how the run ends
  [[ ! -f "$home/hf_token" ]] || export HF_TOKEN_PATH=$home/hf_token
  "$venv/bin/uae" train "$@" >>"$state/log" 2>&1 || code=$?
  echo "$code" >"$state/code"
}

stop() {
  local pid seconds
  if ! busy; then
    echo "no run is under way"
    return 0
  fi
  pid=$(<"$state/pid")
  kill -TERM -- "-$pid"
  for ((seconds = 0; seconds < STOP_SECONDS; seconds++)); do
    busy || return 0
    sleep 1
  done
  echo "process $pid has not stopped after $STOP_SECONDS s; to end it without saving: kill -KILL -- -$pid"
  return 1
}

# Says how a step ended in a line that the caller looks for; failures only where success goes without saying.
told() {
  local code=0
  "${@:2}" 2>&1 | prefixed || code=${PIPESTATUS[0]}
  [[ "$1" == install && "$code" == 0 ]] || echo "== $worker: $1 ended with exit code $code =="
  return "$code"
}

case "${1:-}" in
  install) told install install ;;
  run) told run run "${@:2}" ;;
  busy) busy ;;
  stop) stop 2>&1 | prefixed ;;
  supervise) supervise "${@:2}" ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 2 ;;
esac
