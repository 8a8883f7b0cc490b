#!/usr/bin/env bash
# Trains on several GPU machines that are reached by ssh: copies this code to each, installs it, runs `uae train` once on
# each, with all its GPUs, and shows what each prints. When a node is lost the same command runs again once it is back.
#
#   launch/gpu_nodes.sh --nodes "node1 node2" --config FILE[:ARG] --workdir FOLDER [--config.KEY=VALUE ...]
#
#   --nodes "[USER@]HOST ..."    or NODES in the environment; the first one coordinates
#   --coordinator HOST           its address as the others reach it (default: HOST of the first node)
#   --port N                     on which it coordinates (default: 8476)
#   --cache DIR                  compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N                 how often nodes may be lost by a run that had begun (default: 20)
#   --retries N                  how often in a row a lost node is tried again until it is back: after 30 s, then twice
#                                as long, up to 10 minutes (default: 100, about 16 hours)
#   --dry-run                    prints every command and runs none
#
# WORKDIR is a folder that all nodes share, or gs://BUCKET/FOLDER. ssh asks for no passwords: keys or an agent must do.
# Ctrl-C leaves the training running; the same command looks on again. HF_TOKEN, or the token of `hf auth login`, goes to
# the nodes by stdin. UAE_HARDWARE=cpu is for trying it out. Run against stand-ins of ssh and scp only so far.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034  # read by common.sh
settings=(RETRIES NODES COORDINATOR PORT)
parse_arguments "$@"
require NODES
IFS=', ' read -r -a nodes <<<"$NODES"
PORT=${PORT:-8476}
COORDINATOR=${COORDINATOR:-${nodes[0]#*@}}
GRACE_SECONDS=${GRACE_SECONDS:-150} # for the others to notice that one is gone; they do within 120
[[ "$PORT" =~ ^[0-9]+$ ]] || fail 2 "--port is '$PORT', wanted a number"
need ssh "install an ssh client"
need scp "install an ssh client"
check_config copied
if [[ "$WORKDIR" =~ ^(/|[a-z0-9]+://) ]] || ((${#nodes[@]} == 1)); then :; else
  fail 2 "--workdir $WORKDIR is below each node's own home; wanted an absolute folder that all nodes share, or gs://..."
fi
check_weights

ssh=(ssh -o BatchMode=yes -o ServerAliveInterval=30 -o ServerAliveCountMax=4)

begun=0 # whether all nodes could be reached once: what fails before is for the user to mend

attempt() {
  if ! on_nodes copy_to || ! on_nodes install_on; then
    ((begun)) && return "$LOST"
    return 1
  fi
  begun=1
  on_nodes train_on
}

# on_nodes STEP: runs it for all nodes at once, `STEP NUMBER NODE`, and shows and keeps what they print. Returns LOST
# where a node could not be reached, else the first exit code that is not 0. Where one fails, the rest is told to stop.
on_nodes() {
  local number pids=() codes=() left code first=0 failed_at=""
  for number in "${!nodes[@]}"; do
    if ((dry_run)); then
      "$1" "$number" "${nodes[number]}"
      continue
    fi
    piped_on "$@" "$number" "${nodes[number]}" &
    pids+=($!)
    codes+=("")
  done
  ((dry_run)) && return
  children="${pids[*]}"
  while [[ -n "$children" ]]; do
    left=""
    for number in "${!nodes[@]}"; do
      [[ -z "${codes[number]}" ]] || continue
      if kill -0 "${pids[number]}" 2>/dev/null; then
        left+="${pids[number]} "
        continue
      fi
      code=0
      wait "${pids[number]}" || code=$?
      codes[number]=$code
      ((code == 0 || first)) || first=$code
      if ((code == 255)); then # ssh's own, as no step of ours
        say "${nodes[number]}: the connection broke"
        first=$LOST
      fi
      ((code == 0)) || failed_at=${failed_at:-$SECONDS}
    done
    children=$left
    if [[ -n "$left" && -n "$failed_at" ]] && ((SECONDS - failed_at > GRACE_SECONDS)); then
      stop_nodes
      failed_at=$((SECONDS + GRACE_SECONDS))
    fi
    [[ -z "$left" ]] || watch
  done
  return "$first"
}

# A moment, which a signal may cut short.
watch() {
  local sleeper
  sleep 0.3 &
  sleeper=$!
  wait "$sleeper" || true
}

piped_on() {
  set -o pipefail
  "$@" 2>&1 | tee -a "$log"
}

copy_to() {
  shown_and_run "" scp -q -o BatchMode=yes "$staging/$CODE" "$2:" || return
  [[ -z "$token" ]] ||
    shown_and_run "$staging/hf_token" "${ssh[@]}" "$2" "umask 077; cat > hf_token"
}

install_on() {
  local worker_name=("UAE_WORKER=$2")
  shown_and_run "" "${ssh[@]}" "$2" "$(unpack_line cuda)"
}

train_on() {
  shown_and_run "" "${ssh[@]}" "$2" "$(train_line "UAE_WORKER=$2" "JAX_COORDINATOR_ADDRESS=$COORDINATOR:$PORT" \
    "JAX_NUM_PROCESSES=${#nodes[@]}" "JAX_PROCESS_ID=$1")"
}

# shown_and_run INPUT COMMAND...: already in the background, so as it is.
shown_and_run() {
  local line
  line=$(quote "${@:2}")
  show "$line${1:+ < $(quote "$1")}"
  ((dry_run)) || "${@:2}" <"${1:-/dev/null}"
}

stop_nodes() {
  local node
  for node in "${nodes[@]}"; do
    "${ssh[@]}" "$node" "bash uae_jax/launch/worker.sh stop" </dev/null >&2 || true
  done
}

taken_away() {
  (($1 == LOST))
}

left_behind() {
  local node
  ((was_interrupted)) || return 0
  {
    printf '%s\n' "a run that had begun goes on on ${nodes[*]}; to look on again:" "  $(again)"
    printf '%s\n' "to have it save and stop:"
    for node in "${nodes[@]}"; do
      printf '%s\n' "  $(quote ssh "$node" "bash uae_jax/launch/worker.sh stop")"
    done
    printf '%s\n' "nothing else needs clearing up: files made here are removed, $WORKDIR stays as it is"
  } >&2
}

pack
keep_running
finished
