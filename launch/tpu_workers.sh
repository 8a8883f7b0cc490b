# shellcheck shell=bash disable=SC2154  # variables of common.sh
# Sourced by tpu_vm.sh and tpu_queued.sh, after common.sh: the way from a TPU VM that is there to a run on its workers.
# Needs NAME, ZONE, PROJECT; the sourcing script defines `delete_vm`, sets `deletion` and `look` to what deletes and
# shows it, and `exists` to 1 before it makes the VM.

exists=0 # whether there is something that costs
begun=0  # whether its workers have begun to speak
tpu=(gcloud compute tpus)
SETTLE_SECONDS=${SETTLE_SECONDS:-30}

need_tpu_settings() {
  require NAME ZONE PROJECT TPU_TYPE
  place=(--zone "$ZONE" --project "$PROJECT" --quiet) # no questions: nobody may be there to answer
  need gcloud "https://cloud.google.com/sdk/docs/install"
  [[ -n "${RUNTIME:-}" ]] && return
  case "$TPU_TYPE" in
    v2-* | v3-* | v4-*) RUNTIME="tpu-ubuntu2204-base" ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    *) fail 2 "TPU_TYPE is '$TPU_TYPE', wanted e.g. v4-8, v5litepod-16, v5p-64, v6e-8; for others set RUNTIME too" ;;
  esac
}

check_tpu_workdir() {
  if ((${DELETE_AFTER:-0})); then
    check_workdir "--delete-after would delete it"
  elif ((${SPOT:-0})); then
    check_workdir "a spot VM may be taken away"
  else
    check_workdir
  fi
}

# Where an ssh agent runs, gcloud reaches several workers only if that holds its key, and says so once they are rented.
check_agent() {
  local key=${HOME:-}/.ssh/google_compute_engine held code=0 print=""
  [[ -n "${SSH_AUTH_SOCK:-}" && "$TPU_TYPE" =~ -([0-9]+)$ ]] && ((!dry_run)) || return 0
  ((BASH_REMATCH[1] > 8)) || return 0 # of all types up to 8 are one host
  held=$(ssh-add -l 2>/dev/null) || code=$?
  ((code < 2)) || return 0 # no agent answers there
  read -r _ print _ < <(ssh-keygen -lf "$key" 2>/dev/null) || true
  [[ -n "$print" ]] || fail 1 "an ssh agent runs, and gcloud reaches several workers only with its key in that; there is" \
    "no key yet: ssh-keygen -t rsa -f ~/.ssh/google_compute_engine, then ssh-add ~/.ssh/google_compute_engine"
  [[ "$held" == *"$print"* ]] || fail 1 "an ssh agent runs that does not hold gcloud's key, without which gcloud does not" \
    "reach several workers: ssh-add ~/.ssh/google_compute_engine"
}

# ask KIND FIELD: sets `answer` to a field of the VM or queued resource NAME, "" where there is none of that name.
ask() {
  inquire "${tpu[@]}" "$1" describe "$NAME" "--format=value($2)" "${place[@]}"
}

prepare_workers() {
  local try
  for try in 1 2 3; do # a VM that was just made may not listen yet
    run "${tpu[@]}" tpu-vm scp "${files[@]}" "$NAME:" --worker=all "${place[@]}" && break
    ((try < 3)) || return 1
    pause "$RETRY_SECONDS"
  done
  on_workers "$(unpack_line tpu)"
}

# A connection that dies silently is noticed within 2 minutes: else nothing would be printed, or made again, any more.
on_workers() {
  local code=0
  run_logged "${tpu[@]}" tpu-vm ssh "$NAME" --worker=all "${place[@]}" --ssh-flag=-oServerAliveInterval=30 \
    --ssh-flag=-oServerAliveCountMax=4 --command "$1" || code=$?
  ((code)) || ((dry_run)) || [[ -z "$(verdicts)" ]] || code=1
  return "$code"
}

# Whether a run ended because the VM, or the connection to it, was lost; else it failed, or somebody ended the VM. A VM
# may call itself READY for a moment after its workers were told to stop.
lost_vm() {
  local turn
  for turn in 1 2; do
    ask tpu-vm state
    case "$answer" in
      READY) ((turn == 2)) || pause "$SETTLE_SECONDS" ;;
      STOPPING | STOPPED | DELETING | "")
        say "error: somebody stopped or deleted $NAME (state: ${answer:-gone}); the same command takes the run up again"
        [[ -n "$answer" ]] || exists=0
        return 1
        ;;
      *) say "$NAME is $answer" && return ;;
    esac
  done
  ! grep -q '^\[' "$log" || begun=1
  ((begun)) && [[ -z "$(verdicts)" ]] || return 1 # none has said how it ended
  say "the connection to $NAME broke; the VM is still there"
  # shellcheck disable=SC2034
  unknown=1
}

left_behind() {
  ((exists || unknown)) || return 0
  ((!was_interrupted)) || unknown=0 # the user decides
  if ((${DELETE_AFTER:-0} && !unknown)); then
    say "deleting $NAME, as --delete-after asks"
    if delete_vm; then
      say "nothing is left running; $WORKDIR keeps what was trained"
      return
    fi
    say "error: deleting $NAME failed"
  fi
  local what="$NAME, $TPU_TYPE in $ZONE, project $PROJECT"
  local ssh=("${tpu[@]}" tpu-vm ssh "$NAME" --worker=all "${place[@]}")
  {
    if ((unknown)); then
      printf '%s\n' "perhaps left running, and then billed until it is deleted: $what" \
        "a run may go on there: nothing was deleted; to see how it stands:" "  $(quote "${look[@]}")" \
        "to look on again:" "  $(again)"
    else
      printf '%s\n' "left running, and billed until it is deleted: $what"
    fi
    if ((was_interrupted)); then
      printf '%s\n' "a run that had begun goes on there; to look on again, or to go on after it was stopped:" "  $(again)"
      printf '%s\n' "to have it save and stop:" "  $(quote "${ssh[@]}" --command 'bash uae_jax/launch/worker.sh stop')"
    fi
    printf '%s\n' "to delete it:" "  $(quote "${deletion[@]}")"
    printf '%s\n' "nothing else needs clearing up: files made here are removed, $WORKDIR stays as it is"
  } >&2
}
