#!/usr/bin/env bash
# Trains on a Slurm cluster: installs this code where it lies, on a file system that the nodes share, and submits a job
# that runs `uae train` once on each node, with all its GPUs. A job that is preempted, or comes to its time limit, saves,
# queues again and goes on from the last checkpoint.
#
#   launch/slurm.sh --nodes 4 --gpus-per-node 8 --config FILE[:ARG] --workdir FOLDER [--config.KEY=VALUE ...]
#
#   --nodes N, --gpus-per-node N     default: 1 and 8
#   --partition, --account, --time   as sbatch has them; for the rest set SBATCH_... variables, see `man sbatch`.
#                          The job has its nodes to itself, all CPUs and memory (--exclusive --mem 0). To leave the rest
#                          of a node to others, say what it is to have: SBATCH_CPUS_PER_GPU=12 SBATCH_MEM_PER_GPU=120G;
#                          SBATCH_EXCLUSIVE, SBATCH_MEM_PER_NODE and SBATCH_MEM_PER_CPU are left as they are, too
#   --name NAME            of the job (default: uae)
#   --logs FOLDER          of what it prints, NAME-JOB.log (default: runs/slurm)
#   --grace SECONDS        before the time limit, in which it is to save (default: 180)
#   --cache DIR            compiled programs (default: JAX_COMPILATION_CACHE_DIR, else WORKDIR/compile_cache)
#   --restarts N           how often it queues again (default: 20)
#   --dry-run              prints every command and runs none
#
# Needs no GPU where it is called: it installs for the nodes, unless .venv is for them already. UAE_VENV names another
# folder, UAE_HARDWARE other hardware than cuda. Ctrl-C after the submission leaves the job alone. Run against stand-ins
# of sbatch, srun and scontrol only so far.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# shellcheck disable=SC2034  # read by common.sh
settings=(NODES GPUS_PER_NODE PARTITION ACCOUNT TIME NAME LOGS GRACE)
NODES="" GPUS_PER_NODE="" NAME="" TIME="" LOGS="" GRACE="" # too common as names to be taken from the environment
parse_arguments "$@"
NODES=${NODES:-1} GPUS_PER_NODE=${GPUS_PER_NODE:-8} NAME=${NAME:-uae} LOGS=${LOGS:-runs/slurm} GRACE=${GRACE:-180}
for number in NODES GPUS_PER_NODE GRACE; do
  [[ "${!number}" =~ ^[0-9]+$ ]] || fail 2 "$number is '${!number}', wanted a number"
done
need sbatch "run this where Slurm jobs are submitted"
check_config

venv=${UAE_VENV:-.venv}
# A node that submits jobs seldom has GPUs itself: an environment that was made for what it has would train on CPUs.
install=(env UAE_HARDWARE="${UAE_HARDWARE:-cuda}" UAE_EXTRAS="$(extras)" launch/local.sh)
"${install[@]}" --is-installed || run "${install[@]}" --only-install ||
  fail 1 "the installation failed; nothing was submitted"
check_weights

job=(sbatch --parsable --job-name "$NAME" --nodes "$NODES" --ntasks-per-node 1 --requeue --open-mode append)
((GPUS_PER_NODE == 0)) || job+=(--gpus-per-node "$GPUS_PER_NODE")
# Slurm's own default is one CPU for a task, whatever GPUs it has, and on many clusters as little memory.
if [[ -z "${SBATCH_CPUS_PER_GPU:-}" ]]; then
  [[ -n "${SBATCH_EXCLUSIVE+set}" ]] || job+=(--exclusive)
  [[ -n "${SBATCH_MEM_PER_NODE:-}${SBATCH_MEM_PER_CPU:-}${SBATCH_MEM_PER_GPU:-}" ]] || job+=(--mem 0)
fi
[[ -z "${PARTITION:-}" ]] || job+=(--partition "$PARTITION")
[[ -z "${ACCOUNT:-}" ]] || job+=(--account "$ACCOUNT")
[[ -z "${TIME:-}" ]] || job+=(--time "$TIME")
job+=(--signal "B:TERM@$GRACE" --chdir "$root" --output "$LOGS/%x-%j.log" launch/slurm_job.sh "${training[@]}")
variables=("JAX_COMPILATION_CACHE_DIR=$CACHE" "UAE_VENV=$venv" "UAE_RESTARTS=$RESTARTS")
if ((GPUS_PER_NODE)); then # else JAX takes the first GPU alone under Slurm, expecting a process for each
  variables+=("JAX_LOCAL_DEVICE_IDS=$(seq -s , 0 $((GPUS_PER_NODE - 1)))")
  # Without GPUs, or the drivers of them, an error, and not days on CPUs.
  [[ -n "${JAX_PLATFORMS:-}" || "${UAE_HARDWARE:-cuda}" != cuda ]] || variables+=("JAX_PLATFORMS=cuda,cpu")
fi

run mkdir -p "$LOGS"
shown env "${variables[@]}" "${job[@]}"
((dry_run)) && exit
# The token goes with the environment, which sbatch hands on.
id=$(env "${variables[@]}" "${job[@]}") || fail 1 "sbatch refused the job, see above"
id=${id%%;*}
printf '%s\n' "$id"
say "submitted job $id; it goes on without this script"
printf '%s\n' "to look on:  tail -F $(quote "$LOGS/$NAME-$id.log")" "its place:   squeue --job $id" \
  "to end it:   scancel $id" "the same command with the same --workdir goes on where it stopped" >&2
