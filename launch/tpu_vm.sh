#!/usr/bin/env bash
# Trains on a Cloud TPU VM: makes it or takes the one of that name, copies this code there, installs it on all workers,
# runs `uae train` on all of them and shows what each prints. When the VM is taken away (preemption, maintenance) it is
# made again and the same command goes on from the last checkpoint.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --project PROJECT --tpu-type v5p-64 \
#       --config FILE[:ARG] --workdir gs://BUCKET/FOLDER [--config.KEY=VALUE ...]
#
#   --name, --zone, --project, --tpu-type    or NAME, ZONE, PROJECT, TPU_TYPE in the environment
#   --runtime VERSION      software of the VM (default: by the TPU type)
#   --spot                 a VM that costs less and may be taken away
#   --delete-after         deletes the VM when this script ends: done, failed or interrupted
#   --cache DIR            compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N           how often it may be taken away from a run that had begun (default: 20)
#   --retries N            how often in a row it is asked for again before workers begin, as where there is no capacity:
#                          after 30 s, then twice as long, up to 10 minutes (default: 100, about 16 hours)
#   --dry-run              prints every command and runs none
#
# Ctrl-C leaves VM and training as they are, without --delete-after, and says how to come back, stop and delete. The same
# command looks on again. Without --delete-after one thing is deleted: a VM of this name that is PREEMPTED or TERMINATED,
# which cannot be started again and is made anew. With it nothing is, where it cannot be found out how the VM stands.
# HF_TOKEN, or the token of `hf auth login`, goes to the workers by file. Not run against a real cloud yet.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source launch/tpu_workers.sh

# shellcheck disable=SC2034  # read by common.sh
settings=(RETRIES NAME ZONE PROJECT TPU_TYPE RUNTIME) switches=(SPOT DELETE_AFTER)
parse_arguments "$@"
need_tpu_settings
check_config copied
check_tpu_workdir
check_agent
check_weights elsewhere
deletion=("${tpu[@]}" tpu-vm delete "$NAME" "${place[@]}")
# shellcheck disable=SC2034
look=("${tpu[@]}" tpu-vm describe "$NAME" "${place[@]}")

attempt() {
  have_vm || return
  prepare_workers || return
  on_workers "$(train_line)"
}

# Makes the VM, starts or waits for it, or takes it as it is.
have_vm() {
  while true; do
    ask tpu-vm state
    case "$answer" in
      "")
        create_vm
        return
        ;;
      READY)
        exists=1
        say "taking $NAME, which is there"
        return
        ;;
      STOPPED)
        exists=1
        run "${tpu[@]}" tpu-vm start "$NAME" "${place[@]}"
        return
        ;;
      PREEMPTED | TERMINATED)
        say "$NAME is $answer and cannot be started again; making it anew"
        delete_vm || return
        ;;
      *)
        exists=1
        say "$NAME is $answer; looking again in $RETRY_SECONDS s"
        pause "$RETRY_SECONDS"
        ;;
    esac
  done
}

create_vm() {
  local command=("${tpu[@]}" tpu-vm create "$NAME" --accelerator-type "$TPU_TYPE" --version "$RUNTIME")
  ((${SPOT:-0} == 0)) || command+=(--spot)
  exists=1 # from now on: an interrupt does not tell how far it came
  run "${command[@]}" "${place[@]}" && return
  ask tpu-vm state
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
  lost_vm
}

pack
keep_running
finished
