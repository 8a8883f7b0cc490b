#!/usr/bin/env bash
# Does reinforcement help, and not just further training? Both reinforcement stages from the embedded model, over three
# seeds, each beside a control of as many supervised updates (configs/control.py); then the differences on held-out
# scenes with their intervals.
#
#   launch/three_seeds.sh runs/seeds            the same command goes on where it stopped
#   JOBS=2 launch/three_seeds.sh runs/seeds     runs two at a time, on a CPU core each, which gets more done than one
#                                               run on two cores
#   STAGES=gen_for_understanding GUIDANCE=1 launch/three_seeds.sh runs/unguided --config.settings.paint.guidance=1.0
#                                               with other settings than the stage's own; its controls have none of them
#
# STEPS (120), SEEDS ("0 1 2"), SCENES (512) and STAGES ("gen_for_understanding understanding_for_gen") shorten it;
# GUIDANCE is what all are painted with at the end (default: what each model says, and 1 for the decoder's stage, which
# trains without); UAE_VENV names the environment (default: .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -eq 0 || "$1" == -* ]]; then
  sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
runs=$1
settings=("${@:2}")
bin=${UAE_VENV:-.venv}/bin
seeds=${SEEDS:-0 1 2}
stages=${STAGES:-gen_for_understanding understanding_for_gen}
jobs=${JOBS:-1}

list_runs() {  # a line each, quoted as xargs reads it; a blank at its end would join the next one to it
  for seed in $seeds; do
    for stage in $stages; do
      echo "configs/$stage.py:steps=${STEPS:-120},seed=$seed $runs/$stage/$seed${settings[*]:+ ${settings[*]@Q}}"
      echo "configs/control.py:of=$stage,steps=${STEPS:-120},seed=$seed $runs/control_$stage/$seed"
    done
  done
}

# shellcheck disable=SC2016  # expanded by the bash that xargs starts
train='pin=(); if [[ '"$jobs"' -gt 1 ]] && command -v taskset >/dev/null; then pin=(taskset -c "$SLOT"); fi
mkdir -p "$2"; exec "${pin[@]}" '"$bin"'/uae train --config "$1" --workdir "$2" "${@:3}"'
list_runs | xargs -P "$jobs" -L 1 --process-slot-var=SLOT bash -c "$train" three_seeds

for stage in $stages; do
  treated=() control=()
  for seed in $seeds; do
    treated+=("$runs/$stage/$seed")
    control+=("$runs/control_$stage/$seed")
  done
  how=()
  if [[ -n "${GUIDANCE:-}" ]]; then
    how=(--guidance "$GUIDANCE")
  elif [[ "$stage" == understanding_for_gen ]]; then
    how=(--guidance 1)
  fi
  echo "== $stage, beside its control and beside the embedded model =="
  "$bin/python" -m uae_jax.tiny.compare --treated "${treated[@]}" --control "${control[@]}" --control tiny \
    --scenes "${SCENES:-512}" ${how[@]+"${how[@]}"} --output "$runs/$stage.json"
done
