#!/usr/bin/env bash
# The job that slurm.sh submits: one `uae train` on each node. On SIGTERM, which Slurm sends before the time limit and at
# preemption, it has all of them save and stop, and queues again.
#
# UAE_VENV is the environment's folder, UAE_RESTARTS how often the job may queue again.
set -euo pipefail

tell() {
  printf 'slurm_job.sh: %s\n' "$*" >&2
}

told_to_stop=0
child=""
forward() {
  told_to_stop=1
  tell "told to stop; saving"
  [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true # srun passes it on to all tasks
}
trap forward TERM

# The first task to end is not the last to have saved: the others get time, and notice by themselves where one is dead.
# A node's only task may use all CPUs that the job has there.
srun --ntasks-per-node 1 --cpu-bind none --label --kill-on-bad-exit=0 --wait 150 \
  "${UAE_VENV:-.venv}/bin/uae" train "$@" &
child=$!
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # a signal ends `wait` early
  code=0
  wait "$child" || code=$?
done

if ((code == 0)); then
  tell "done"
elif ((told_to_stop || code == 143)); then # 143: the tasks were, and saved; Slurm may tell them alone
  restarts=${SLURM_RESTART_COUNT:-0}
  if ((restarts < ${UAE_RESTARTS:-20})); then
    tell "queueing job $SLURM_JOB_ID again (restart $((restarts + 1)) of at most ${UAE_RESTARTS:-20})"
    # Where Slurm preempts by requeueing, it was faster; that is no failure.
    scontrol requeue "$SLURM_JOB_ID" || tell "scontrol could not queue it again; submit it anew to go on"
  else
    tell "stopped, and not queued again after $restarts restarts; submit it anew to go on"
  fi
else
  tell "error: srun ended with exit code $code; its lines above say which task on which node"
fi
exit "$code"
