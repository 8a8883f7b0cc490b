#!/usr/bin/env bash
# Trains on a GKE cluster that xpk made: creates a workload, shows what its pods print and waits for its end. Pods that
# are preempted start again, and the same command goes on from the last checkpoint.
#
#   launch/xpk.sh --name WORKLOAD --cluster CLUSTER --zone ZONE --project PROJECT --tpu-type v5p-64 \
#       --image REGION-docker.pkg.dev/PROJECT/REPOSITORY/uae:TAG [--build] \
#       --config FILE[:ARG] --workdir gs://BUCKET/FOLDER [--config.KEY=VALUE ...]
#
#   --name, --cluster, --zone, --project, --tpu-type, --image    or NAME, CLUSTER, ... in the environment
#   --build                builds the image from launch/docker/tpu.Dockerfile and pushes it first
#   --num-slices N         default: 1
#   --priority LEVEL       very-low, low, medium, high, very-high (default: medium)
#   --delete-after         deletes the workload when this script ends: done, failed or interrupted
#   --cache DIR            compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N           how often pods may start again (default: 20)
#   --dry-run              prints every command and runs none
#
# Ctrl-C leaves the workload as it is, without --delete-after. The cluster itself is never touched. HF_TOKEN, where set,
# becomes a variable of the pods, which those can read who may read the workload. Not run against a real cloud yet.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034  # read by common.sh
settings=(NAME CLUSTER ZONE PROJECT TPU_TYPE IMAGE NUM_SLICES PRIORITY) switches=(BUILD DELETE_AFTER)
parse_arguments "$@"
require NAME CLUSTER ZONE PROJECT TPU_TYPE IMAGE
need xpk "pip install xpk"
need kubectl "gcloud components install kubectl"
((${BUILD:-0} == 0)) || need docker "https://docs.docker.com/engine/install"
[[ "$NAME" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#NAME} -le 39 ]] ||
  fail 2 "--name is '$NAME', wanted at most 39 lower-case letters, digits and hyphens"
check_config copied
check_workdir "pods lose theirs"
[[ "${training[*]}" != *$'\n'* ]] || fail 2 "an argument holds a line break, which xpk cannot hand on"
check_weights

place=(--cluster "$CLUSTER" --zone "$ZONE" --project "$PROJECT")
selector=jobset.sigs.k8s.io/jobset-name=$NAME
deletion=(xpk workload delete --workload "$NAME" --force "${place[@]}")
exists=0

build() {
  run docker build --file launch/docker/tpu.Dockerfile --tag "$IMAGE" . || fail 1 "building $IMAGE failed"
  run docker push "$IMAGE" || fail 1 "pushing $IMAGE failed"
}

# Variables by name alone where they are secret: xpk takes their values from here.
write_environment() {
  local name lines=("JAX_COMPILATION_CACHE_DIR=$CACHE")
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
    --command "cd /uae_jax && $(quote .venv/bin/uae train "${training[@]}")" ||
    fail 1 "xpk did not create the workload, see above"
}

# Shows what pods print, again when they were started again, until the workload has ended; sets `end`.
follow() {
  local state=(kubectl get jobset "$NAME" --output "jsonpath={.status.terminalState}")
  local from=-1
  end=""
  while true; do
    run kubectl logs --follow --prefix --all-containers --ignore-errors --max-log-requests 1024 --tail "$from" \
      --selector "$selector" || true # there may be no pod yet, or no more
    from=20
    shown "${state[@]}"
    ((dry_run)) && return
    end=$("${state[@]}") || fail 1 "kubectl cannot say how the workload stands, see above"
    [[ -z "$end" ]] || return 0
    pause "$RETRY_SECONDS"
  done
}

# Names the pods that failed, with exit codes; sets `code` to the first.
name_failed() {
  local pod exit_code
  code=1
  while read -r pod exit_code; do
    [[ -n "${exit_code:-}" && "$exit_code" != 0 ]] || continue
    say "error: pod $pod ended with exit code $exit_code"
    ((code != 1)) || code=$exit_code
  done < <(kubectl get pods --selector "$selector" --output "jsonpath={range .items[*]}{.metadata.name} \
{.status.containerStatuses[0].state.terminated.exitCode}{'\\n'}{end}")
}

left_behind() {
  ((exists)) || return 0
  if ((${DELETE_AFTER:-0})); then
    say "deleting workload $NAME, as --delete-after asks"
    if run "${deletion[@]}"; then
      say "the workload is gone, the cluster stays; $WORKDIR keeps what was trained"
      return
    fi
    say "error: deleting workload $NAME failed"
  fi
  ((was_interrupted)) || return 0 # ended, its pods hold no TPUs
  {
    printf '%s\n' "workload $NAME goes on on cluster $CLUSTER, which is billed as long as it has nodes"
    printf '%s\n' "to look on:" "  $(quote kubectl logs --follow --prefix --selector "$selector")"
    printf '%s\n' "to delete it:" "  $(quote "${deletion[@]}")"
    printf '%s\n' "nothing else needs clearing up: files made here are removed, $WORKDIR stays as it is"
  } >&2
}

((${BUILD:-0} == 0)) || build
write_environment
create
follow
if ((dry_run)) || [[ "$end" == Completed ]]; then
  finished
  exit 0
fi
name_failed
say "error: workload $NAME ended as $end"
exit "$code"
