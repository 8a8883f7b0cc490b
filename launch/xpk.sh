#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made: creates a workload, shows what its pods print and waits for its end. Pods that
# are preempted start again, with all others, and the same command goes on from the last checkpoint: `uae` ends with 143
# where it was told to stop and saved, with 203 where it lost the others, and xpk takes 127 to 255 for no failure. A pod
# that ends with 1, an error of its own, ends the workload.
#
#   launch/xpk.sh --name WORKLOAD --cluster CLUSTER --zone ZONE --project PROJECT --tpu-type v5p-64 \
#       --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/uae:TAG [--build] \
#       --config FILE[:ARG] --workdir gs://BUCKET/FOLDER [--config.KEY=VALUE ...]
#
#   --name, --cluster, --zone, --project, --tpu-type, --image    or NAME, CLUSTER, ... in the environment
#   --build                builds the image from launch/docker/tpu.Dockerfile, for linux/amd64, and pushes it first
#   --num-slices N         default: 1; of several, the mesh's data axis is to be a multiple
#   --priority LEVEL       very-low, low, medium, high, very-high (default: medium)
#   --delete-after         deletes the workload when this script ends: done, failed or interrupted
#   --cache DIR            compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N           how often pods may start again (default: 20)
#   --dry-run              prints every command and runs none
#
# Ctrl-C leaves the workload as it is, without --delete-after; the same command looks on again, as it does at any workload
# of this name and --workdir. The cluster itself is never touched, nor a workload deleted of which it cannot be found out
# how it stands. HF_TOKEN, or the token of `hf auth login`, becomes a variable of the pods, which those can read who may
# read the workload. Not run against a real cloud yet.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034  # read by common.sh
settings=(NAME CLUSTER ZONE PROJECT TPU_TYPE IMAGE NUM_SLICES PRIORITY) switches=(BUILD DELETE_AFTER)
parse_arguments "$@"
require NAME CLUSTER ZONE PROJECT TPU_TYPE IMAGE
need xpk "pip install xpk"
need kubectl "gcloud components install kubectl"
((${BUILD:-0} == 0)) || need docker "https://docs.docker.com/engine/install"
[[ "${NUM_SLICES:-1}" =~ ^[1-9][0-9]*$ ]] || fail 2 "--num-slices is '$NUM_SLICES', wanted a number"
[[ "$NAME" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#NAME} -le 39 ]] ||
  fail 2 "--name is '$NAME', wanted at most 39 lower-case letters, digits and hyphens"
check_config copied
check_workdir "pods lose theirs"
[[ "${training[*]}" != *$'\n'* ]] || fail 2 "an argument holds a line break, which xpk cannot hand on"
check_weights elsewhere

place=(--cluster "$CLUSTER" --zone "$ZONE" --project "$PROJECT")
selector=jobset.sigs.k8s.io/jobset-name=$NAME
deletion=(xpk workload delete --workload "$NAME" --force "${place[@]}")
look=(kubectl get jobset "$NAME" --namespace default)
exists=0 # whether there is a workload that this call made, or looks on at

build() {
  # The platform of the nodes; this machine may be another.
  run docker build --platform linux/amd64 --file launch/docker/tpu.Dockerfile --tag "$IMAGE" . || fail 1 "building $IMAGE failed"
  run docker push "$IMAGE" || fail 1 "pushing $IMAGE failed"
}

# Points kubectl to the cluster, which xpk does with every command.
reach_cluster() {
  run xpk workload list --filter-by-job "$NAME" "${place[@]}" ||
    fail 1 "xpk cannot reach the cluster $CLUSTER, see above; nothing was made"
}

# Sets `found` to whether there is a workload of this name.
find_workload() {
  inquire "${look[@]}" --ignore-not-found --output name
  found=0
  [[ -z "$answer" ]] || found=1
}

# A workload of this name that trains something else is neither to be looked on at nor deleted.
check_same() {
  inquire "${look[@]}" --output "jsonpath={.spec.replicatedJobs[*].template.spec.template.spec.containers[*].command}"
  # Where its folder has odd characters, they are not there as we wrote them.
  [[ -z "$answer" || ! "$WORKDIR" =~ ^[A-Za-z0-9_./:-]+$ || "$answer" =~ [[:space:]]"$WORKDIR"([^A-Za-z0-9_./-]|$) ]] ||
    fail 1 "there is a workload $NAME with another --workdir than $WORKDIR; take another --name, or delete that one:" \
      "$(quote "${deletion[@]}")"
  say "workload $NAME is there; looking on (for a new run take another --name, or delete it first)"
}

# Variables by name alone where they are secret: xpk takes their values from here.
write_environment() {
  local name lines=("JAX_COMPILATION_CACHE_DIR=$CACHE")
  local UAE_START_TIMEOUT=${UAE_START_TIMEOUT:-600} # pods start as their nodes come and have pulled the image
  for name in "${HANDED_ON[@]}"; do
    [[ -z "${!name:-}" ]] || lines+=("$name=${!name}")
  done
  [[ -z "$token" ]] || lines+=(HF_TOKEN)
  run_line "printf '%s\\n' $(quote "${lines[@]}") > $(quote "$staging/environment")"
}

create() {
  if [[ -n "$token" && "$token_name" != HF_TOKEN ]]; then
    show "export HF_TOKEN=$token"
    ((dry_run)) || eval "export HF_TOKEN=$token"
  fi
  exists=1 # from now on: an interrupt does not tell how far it came
  run xpk workload create --workload "$NAME" "${place[@]}" --tpu-type "$TPU_TYPE" --num-slices "${NUM_SLICES:-1}" \
    --docker-image "$IMAGE" --priority "${PRIORITY:-medium}" --max-restarts "$RESTARTS" \
    --termination-grace-period-seconds 120 --env-file "$staging/environment" \
    --command "cd /uae_jax && $(quote .venv/bin/uae train "${training[@]}")" && return
  exists=0 # what is there now may be somebody else's, made a moment ago: it is not deleted
  find_workload
  ((found == 0)) || left_alone
  fail 1 "xpk did not create the workload, see above"
}

# Shows what pods print, again when they were started again, until the workload has ended; sets `end`.
follow() {
  local state=("${look[@]}" --output "jsonpath={.status.terminalState}")
  local from=-1
  end=""
  while true; do
    run kubectl logs --follow --prefix --all-containers --ignore-errors --max-log-requests 1024 --tail "$from" \
      --selector "$selector" || true # there may be no pod yet, or no more
    from=20
    inquire "${state[@]}"
    ((dry_run)) && return
    end=$answer
    [[ -z "$end" ]] || return 0
    if ((!found)); then
      exists=0
      fail 1 "workload $NAME is gone: somebody deleted it, or kubectl was pointed elsewhere; the same command goes on"
    fi
    pause "$RETRY_SECONDS"
  done
}

# Names the pods that failed, with exit codes; sets `blamed`.
name_failed() {
  local pod exit_code
  blamed=""
  while read -r pod exit_code; do
    [[ -n "${exit_code:-}" && "$exit_code" != 0 ]] || continue
    say "error: pod $pod ended with exit code $exit_code"
    blame "$exit_code"
  done < <(kubectl get pods --selector "$selector" --output "jsonpath={range .items[*]}{.metadata.name} \
{.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}{end}")
}

left_behind() {
  ((exists || unknown)) || return 0
  ((!was_interrupted)) || unknown=0 # the user decides
  if ((${DELETE_AFTER:-0} && !unknown)); then
    say "deleting workload $NAME, as --delete-after asks"
    if run "${deletion[@]}"; then
      say "the workload is gone, the cluster stays; $WORKDIR keeps what was trained"
      return
    fi
    say "error: deleting workload $NAME failed"
    left_alone
  elif ((was_interrupted || unknown)); then # else it has ended: its pods hold no TPUs
    left_alone
  fi
}

left_alone() {
  local goes="goes on"
  ((was_interrupted)) || goes="may go on: nothing was deleted"
  {
    printf '%s\n' "workload $NAME on cluster $CLUSTER $goes; the cluster is billed as long as it has nodes"
    printf '%s\n' "to look on:" "  $(again)" "to see how it stands:" "  $(quote "${look[@]}")"
    printf '%s\n' "to delete it:" "  $(quote "${deletion[@]}")"
    printf '%s\n' "nothing else needs clearing up: files made here are removed, $WORKDIR stays as it is"
  } >&2
}

staging=${TMPDIR:-/tmp}/uae_launch.$$
run mkdir -m 700 "$staging"
reach_cluster
find_workload
if ((found)) && ((!dry_run)); then
  check_same
  exists=1
else
  ((${BUILD:-0} == 0)) || build
  write_environment
  create
fi
follow
if ((dry_run)) || [[ "$end" == Completed ]]; then
  finished
  exit 0
fi
name_failed
say "error: workload $NAME ended as $end"
exit "${blamed:-1}"
