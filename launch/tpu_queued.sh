#!/usr/bin/env bash
# Trains on a Cloud TPU VM that has to be waited for: asks for it as a queued resource, waits until that is ACTIVE, and
# goes on as launch/tpu_vm.sh does. When the VM is taken away it is asked for again.
#
#   launch/tpu_queued.sh --name NAME --zone ZONE --project PROJECT --tpu-type v5p-64 \
#       --config FILE[:ARG] --workdir gs://BUCKET/FOLDER [--config.KEY=VALUE ...]
#
#   --name, --zone, --project, --tpu-type    or NAME, ZONE, PROJECT, TPU_TYPE in the environment
#   --runtime VERSION      software of the VM (default: by the TPU type)
#   --spot, --reserved     what kind of capacity (default: on demand)
#   --valid-until 6h       gives up when nothing came free for so long
#   --delete-after         deletes resource and VM when this script ends: done, failed or interrupted
#   --cache DIR            compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N           how often it may be taken away from a run that had begun (default: 20)
#   --retries N            how often in a row it is asked for again before workers begin, as where there is no capacity:
#                          after 30 s, then twice as long, up to 10 minutes (default: 100, about 16 hours)
#   --dry-run              prints every command and runs none
#
# Ctrl-C leaves all as it is, without --delete-after: a resource that is still queued will be given, and billed, when its
# turn comes. The same command waits or looks on again. Without --delete-after one thing is deleted: a resource of this
# name that is FAILED or SUSPENDED, or whose VM is PREEMPTED, TERMINATED or gone; it is asked for anew. With it nothing
# is, where it cannot be found out how the resource stands. HF_TOKEN, or the token of `hf auth login`, goes to the workers
# by file. Not run against a real cloud yet.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source launch/tpu_workers.sh

# shellcheck disable=SC2034  # read by common.sh
settings=(RETRIES NAME ZONE PROJECT TPU_TYPE RUNTIME VALID_UNTIL) switches=(SPOT RESERVED DELETE_AFTER)
parse_arguments "$@"
need_tpu_settings
check_config copied
check_tpu_workdir
check_agent
check_weights elsewhere
deletion=("${tpu[@]}" queued-resources delete "$NAME" --force "${place[@]}")
# shellcheck disable=SC2034
look=("${tpu[@]}" queued-resources describe "$NAME" "${place[@]}")

attempt() {
  have_vm || return
  prepare_workers || return
  on_workers "$(train_line)"
}

# Asks for the resource unless it is there, and waits until it is ACTIVE.
have_vm() {
  local before="none" asked=0
  while true; do
    ask queued-resources state.state
    [[ "$answer" == "$before" ]] || ((dry_run)) || say "queued resource $NAME: ${answer:-not there}"
    before=$answer
    case "$answer" in
      "")
        request || return
        asked=1
        ;;
      ACTIVE)
        exists=1
        return
        ;;
      FAILED | SUSPENDED)
        if ((asked)); then
          run "${look[@]}"
          say "error: the request for $NAME ended as $answer, see above"
          return 1
        fi
        delete_vm || return
        ;;
      *)
        exists=1
        pause "$RETRY_SECONDS"
        ;;
    esac
    ((dry_run)) && return
  done
}

request() {
  local command=("${tpu[@]}" queued-resources create "$NAME" --node-id "$NAME" --accelerator-type "$TPU_TYPE")
  command+=(--runtime-version "$RUNTIME")
  ((${SPOT:-0} == 0)) || command+=(--spot)
  ((${RESERVED:-0} == 0)) || command+=(--reserved)
  [[ -z "${VALID_UNTIL:-}" ]] || command+=(--valid-until-duration "$VALID_UNTIL")
  exists=1 # from now on: an interrupt does not tell how far it came
  run "${command[@]}" "${place[@]}" && return
  ask queued-resources state.state
  [[ -n "$answer" ]] || exists=0
  return "$LOST"
}

delete_vm() {
  run "${deletion[@]}" && exists=0
}

taken_away() {
  if (($1 == LOST)); then
    ((restarts + retries)) || return 1 # the first time, gcloud's reason is for the user to read
    return 0
  fi
  ((exists)) || return 1
  ask queued-resources state.state
  case "$answer" in
    SUSPENDING | SUSPENDED) say "queued resource $NAME is $answer" ;;
    ACCEPTED | CREATING | PROVISIONING | WAITING_FOR_RESOURCES)
      say "queued resource $NAME is $answer, and waited for again"
      ;;
    ACTIVE)
      ask tpu-vm state
      if [[ "$answer" =~ ^(PREEMPTED|TERMINATED|)$ ]]; then # its resource stays ACTIVE for a while, but is of no use
        say "$NAME is ${answer:-gone}"
        delete_vm
      else
        lost_vm
      fi
      ;;
    *)
      say "error: queued resource $NAME is ${answer:-gone}, which is not our doing; the same command asks for it again"
      [[ -n "$answer" ]] || exists=0
      return 1
      ;;
  esac
}

pack
keep_running
finished
