# shellcheck shell=bash
# Sourced by the scripts beside it: what all of them share. Works in bash 3.2, which macOS has.
#
# A script names the options that it takes, `settings` (each also a variable: --tpu-type is TPU_TYPE) and `switches`,
# and calls `parse_arguments "$@"`. It may define `left_behind CODE`, which runs when the script ends, however it ends.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
script=launch/$(basename "$0")
cd "$root" || exit 1

CONFIG="" WORKDIR="" RETRIES="" # never from the environment, where such names may mean anything
arguments=()         # of `uae train`, beyond --config and --workdir
given=("$@")         # as the script was called
dry_run=0
children=""  # processes under way
staging=""   # folder of files on their way to the workers
files=()     # those
training=()  # all arguments of `uae train`
worker_name=()
log=""       # what the workers last printed
restarts=0   # of the run, because its machines were taken away
retries=0    # to have machines again, in a row
# shellcheck disable=SC2034  # the scripts read it
was_interrupted=0
known=0      # whether a query about what is rented was answered once
# shellcheck disable=SC2034
unknown=0    # whether it was not in the end, so that nobody can say how a run stands
token=""     # of the Hugging Face hub: as a shell expands it; nothing where there is none
token_name=""
# shellcheck disable=SC2034
LOST=75 # exit code that means so: sysexits' "temporary failure"
STOPPED=143 # of `uae`: told to stop, and saved; see uae_jax/errors.py
ASK_TRIES=${ASK_TRIES:-8}
ASK_SECONDS=${ASK_SECONDS:-600} # the longest wait between two of them
UAE_CODE_MB=${UAE_CODE_MB:-200} # the most that is copied to workers
settings=() switches=()

# What a run may want to know, handed on to the workers where it is set here.
HANDED_ON=(HF_HOME HF_HUB_OFFLINE HF_ENDPOINT LIBTPU_INIT_ARGS XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION
  UAE_START_TIMEOUT)

say() {
  printf '%s: %s\n' "$script" "$*" >&2
}

# fail CODE MESSAGE: 1 for what failed, 2 for wrong usage, as `uae` has it.
fail() {
  say "error: ${*:2}"
  exit "$1"
}

usage() {
  awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$root/$script"
}

# Words as a POSIX shell reads them back. (printf %q writes $'...', which not every login shell knows.)
quote() {
  local word rest line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      rest=$word word=""
      while [[ "$rest" == *\'* ]]; do
        word+="${rest%%\'*}'\\''"
        rest=${rest#*\'}
      done
      word="'$word$rest'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

parse_arguments() {
  local flag value name joined
  while (($#)); do
    flag=$1 value="" name="" joined=0
    shift
    case "$flag" in
      --help | -h) usage && exit 0 ;;
      --dry-run) dry_run=1 && continue ;;
      --quiet | --config.*=*) arguments+=("$flag") && continue ;;
      --config.*) fail 2 "$flag has no value; wanted $flag=VALUE" ;;
      --) arguments+=("$@") && break ;;
      --*=*) value=${flag#*=} flag=${flag%%=*} joined=1 ;;
      --*) ;;
      *) fail 2 "'$flag' is not expected here; see $script --help" ;;
    esac
    name=$(printf '%s' "${flag#--}" | tr 'a-z-' 'A-Z_')
    if contains "$name" ${switches[@]+"${switches[@]}"}; then
      ((!joined)) || fail 2 "$flag takes no value, got '$value'; leave it out where it is not meant"
      printf -v "$name" 1
      continue
    fi
    contains "$name" CONFIG WORKDIR CACHE RESTARTS ${settings[@]+"${settings[@]}"} ||
      fail 2 "no option $flag; see $script --help"
    if ((!joined && $#)); then
      value=$1
      shift
    fi
    [[ -n "$value" ]] || fail 2 "$flag has no value"
    [[ "$value" != --* ]] || fail 2 "$flag has no value: '$value', which follows it, is an option itself"
    printf -v "$name" '%s' "$value"
  done
  require CONFIG WORKDIR
  RESTARTS=${RESTARTS:-20}
  RETRIES=${RETRIES:-100} # 16 hours, with the waits between them
  RETRY_SECONDS=${RETRY_SECONDS:-30} # between two tries, and between two looks at a state
  WORKDIR=${WORKDIR%/}
  CACHE=${CACHE:-${JAX_COMPILATION_CACHE_DIR:-$WORKDIR/compile_cache}}
  [[ "$RESTARTS" =~ ^[0-9]+$ ]] || fail 2 "--restarts is '$RESTARTS', wanted a number"
  [[ "$RETRIES" =~ ^[0-9]+$ ]] || fail 2 "--retries is '$RETRIES', wanted a number"
  find_token
}

contains() {
  local each
  for each in "${@:2}"; do
    [[ "$each" == "$1" ]] && return 0
  done
  return 1
}

# require NAME...: variables that must have a value.
require() {
  local name flag
  for name in "$@"; do
    flag=--$(printf '%s' "$name" | tr 'A-Z_' 'a-z-')
    [[ -n "${!name:-}" ]] && continue
    contains "$name" CONFIG WORKDIR && fail 2 "$flag is missing; see $script --help"
    fail 2 "$name is not set; give it as $flag VALUE or in the environment; see $script --help"
  done
}

# need TOOL WHERE: a program that must be there, and where to get it.
need() {
  ((dry_run)) || command -v "$1" >/dev/null || fail 1 "needs $1, which is not on PATH: $2"
}

# --- running ---------------------------------------------------------------------------------------------------------

shown() {
  show "$(quote "$@")"
}

# What is about to run, or would: ready to be pasted.
show() {
  if ((dry_run)); then printf '%s\n' "$1"; else printf '+ %s\n' "$1" >&2; fi
}

# Runs a command unless this is a dry run.
run() {
  shown "$@"
  ((dry_run)) || foreground "$@"
}

# The same for a line of shell, where redirections or variables are not to be expanded before they are shown.
run_line() {
  show "$1"
  ((dry_run)) || foreground bash -c "set -o pipefail; $1"
}

# The same, and keeps what it prints in $log.
run_logged() {
  shown "$@"
  ((dry_run)) || foreground piped "$@"
}

piped() {
  set -o pipefail
  "$@" 2>&1 | tee "$log"
}

# In the background and waited for, because bash answers signals during `wait` alone.
foreground() {
  local code=0
  "$@" &
  children=$!
  wait "$children" || code=$?
  children=""
  return "$code"
}

pause() {
  ((dry_run)) || foreground sleep "$1"
}

kill_tree() {
  local each
  for each in $(pgrep -P "$1"); do
    kill_tree "$each"
  done
  kill -TERM "$1" 2>/dev/null || true
}

interrupted() {
  local child
  trap '' INT TERM HUP
  # shellcheck disable=SC2034
  was_interrupted=1
  for child in $children; do
    kill_tree "$child"
  done
  printf '\n' >&2
  say "interrupted"
  exit "$1"
}

finished() {
  ((dry_run)) || say "done; $WORKDIR holds the result"
}

ended() {
  trap '' INT TERM HUP
  [[ "$(type -t left_behind)" != function ]] || ((dry_run)) || left_behind "$1"
  [[ -z "$staging" ]] || ! ((dry_run)) || shown rm -r "$staging"
  [[ -z "$staging" ]] || rm -rf "$staging"
}

trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap 'interrupted 129' HUP
trap 'ended $?' EXIT

# inquire COMMAND...: sets `answer` to what a query about $NAME prints, "" where it fails as there is no such thing, and
# `found` to which it was. Other failures pass, as those of a network do: it is asked again, after ever longer waits.
# Where there is no answer in the end, the script ends, and `left_behind` must delete nothing.
inquire() {
  local try tries=$ASK_TRIES seconds=$RETRY_SECONDS
  ((known)) || tries=3 # nothing is at stake yet, and the user may have to log in
  answer="" found=1
  shown "$@"
  ((dry_run)) && return
  for ((try = 2; ; try++)); do
    answer=$("$@" 2>"$staging/error") && known=1 && return
    answer=""
    if grep -qiE 'not_found|\(notfound\)|resource.* was not found' "$staging/error"; then
      # shellcheck disable=SC2034
      known=1 found=0
      return
    fi
    cat "$staging/error" >&2
    ((try <= tries)) || break
    say "no answer about $NAME from $1; asking again in $seconds s (try $try of $tries)"
    pause "$seconds"
    seconds=$((2 * seconds < ASK_SECONDS ? 2 * seconds : ASK_SECONDS))
  done
  ((known)) || fail 1 "$1 does not say whether $NAME is there, see above; nothing was made"
  # shellcheck disable=SC2034
  unknown=1
  fail 1 "$1 does not say how $NAME stands, asked $tries times, see above"
}

# Runs the script's `attempt` again, with the same command, as long as its `taken_away CODE` says that not the run
# failed but its machines were lost. `uae train` goes on from its last checkpoint. Only where workers had begun to speak
# was it a restart: capacity may take hours to come back, which is waited for with a limit of its own.
keep_running() {
  local code seconds=$RETRY_SECONDS
  while true; do
    code=0
    # shellcheck disable=SC2034
    unknown=0
    ((dry_run)) || : >"$log"
    attempt || code=$?
    ((code)) || return 0
    if ! taken_away "$code"; then
      report_failure "$code"
      return
    fi
    if grep -qE '^(\[|== )' "$log"; then
      ((restarts < RESTARTS)) || fail 1 "taken away once more after $restarts restarts; --restarts N allows more"
      restarts=$((restarts + 1)) retries=0 seconds=$RETRY_SECONDS
      say "the same command again in $seconds s (restart $restarts of at most $RESTARTS)"
      pause "$seconds"
    else
      ((retries < RETRIES)) ||
        fail 1 "no worker could be had or reached in $((retries + 1)) tries, see above; --retries N allows more"
      retries=$((retries + 1))
      say "no worker could be had or reached; trying again in $seconds s (retry $retries of at most $RETRIES)"
      pause "$seconds"
      seconds=$((2 * seconds < ASK_SECONDS ? 2 * seconds : ASK_SECONDS))
    fi
  done
}

# --- what is checked before anything costs ---------------------------------------------------------------------------

config_file() {
  local file=${CONFIG%%.py:*}
  [[ "$file" == "$CONFIG" ]] || file=$file.py
  printf '%s\n' "$file"
}

# The config's file and what it imports of its neighbours and of configs/, as far as lines of import tell.
config_files() {
  local read number line word file package
  read=("$(config_file)")
  for ((number = 0; number < ${#read[@]}; number++)); do
    while read -r _ package line; do # "from configs.tiny import common, words", "import sizes"
      for word in "" ${line//,/ }; do
        file=${package//.//}${word:+/$word}
        for file in "$file.py" "configs/$file.py" "$(dirname "${read[number]}")/$file.py"; do
          [[ ! -f "$file" ]] || contains "$file" "${read[@]}" || read+=("$file")
        done
      done
    done < <(grep -E '^ *(from|import) ' "${read[number]}")
  done
  printf '%s\n' "${read[@]}"
}

# The config must be there; where code is copied to workers, it must be among what is copied.
check_config() {
  local file
  CONFIG=${CONFIG#"$root/"}
  file=$(config_file)
  [[ -f "$file" ]] || fail 2 "$file: no such config file; paths are relative to $root"
  if [[ "${1:-}" == copied ]]; then
    [[ "$file" != /* && "$file" != ..* ]] || fail 2 "$file: is not in $root, which is what the workers get; copy it there"
    list_code | grep -Fx -- "${file#./}" >/dev/null || fail 2 "$file: is ignored by git and not copied; move it"
    check_size
  fi
  training=(--config "$CONFIG" --workdir "$WORKDIR" ${arguments[@]+"${arguments[@]}"})
}

# Weights or data that lie about in the checkout are not code: every attempt would copy them to every worker.
check_size() {
  local sizes
  # du, as a folder that is a repository of its own is one line of the list.
  sizes=$({ list_code | tr '\n' '\0' | xargs -0 du -sk 2>/dev/null || true; } | awk -v most="$UAE_CODE_MB" '
    { size = $1 * 1024; sub(/^[0-9]+[ \t]+/, ""); sub(/\/.*/, ""); entry[$0] += size; sum += size }
    END {
      if (sum <= most * 1e6) exit
      printf "%d MB", sum / 1e6
      for (n = 0; n < 3; n++) {
        top = ""
        for (name in entry) if (top == "" || entry[name] > entry[top]) top = name
        if (top == "" || entry[top] < 1e5) break
        printf "%s %s %.1f MB", n ? "," : ":", top, entry[top] / 1e6
        delete entry[top]
      }
    }')
  [[ -z "$sizes" ]] || fail 2 "the code in $root, which every worker gets, has $sizes; wanted at most $UAE_CODE_MB MB" \
    "(UAE_CODE_MB): move such things out of it, or name them in .gitignore; weights are read from gs://BUCKET/FOLDER" \
    "or by their name on the hub, data from a bucket or a shared folder"
}

# Is WORKDIR where all workers reach it, also after their machines are gone? Says so, or fails where it must be.
check_workdir() {
  [[ "$WORKDIR" =~ ^[a-z0-9]+:// ]] && return
  [[ -z "${1:-}" ]] || fail 2 "--workdir $WORKDIR is on the machines' own disks, but $1; wanted gs://BUCKET/FOLDER"
  say "warning: --workdir $WORKDIR is on the machine's own disk: it goes with the machine, and workers do not share it"
}

# Reads the whole configuration where an environment is at hand, which finds every mistake in it and, with "elsewhere",
# what workers do not have that share no folder with this machine; then asks the Hugging Face hub about each gated
# repository that it names. Sets nothing up and rents nothing.
check_weights() {
  local python=${UAE_VENV:-.venv}/bin/python text repository gated='(stabilityai/stable-diffusion-3|facebook/dinov3)'
  local after="${gated}[A-Za-z0-9._-]*" file unread=""
  if [[ -x "$python" ]]; then
    text=$(JAX_PLATFORMS=cpu "$python" -m uae_jax.cli train --config "$CONFIG" --workdir "$WORKDIR" --print-config \
      ${arguments[@]+"${arguments[@]}"}) || fail 1 "this configuration will not do, see above; nothing was started"
    [[ "${1:-}" != elsewhere ]] || check_paths "$python" "$text"
  else
    say "no environment here to read the configuration with: it is searched for the names of gated weights only, and" \
      "paths that workers lack go unnoticed (launch/local.sh --only-install makes one, for the hardware of this machine;" \
      "where nodes that have GPUs are to use it, UAE_HARDWARE=cuda launch/local.sh --only-install)"
    text="$CONFIG ${arguments[*]+"${arguments[*]}"}"
    while IFS= read -r file; do
      text+=" $(grep -oE "[\"']${after}[\"']" "$file" || true)"
    done < <(config_files)
    unread="; or, if this run reads none of them, have an environment say so: launch/local.sh --only-install"
  fi
  for repository in $(printf '%s\n' "$text" | grep -oE "$after" | sort -u); do
    check_licence "$repository" "$unread"
  done
}

# check_paths PYTHON CONFIGURATION: fails where weights or data are named that only this machine has.
check_paths() {
  local key path lacking=""
  while IFS=$'\t' read -r key path; do
    case "$path" in
      "$root"/* | "${HOME:-$root}"/* | "~"*) ;;
      /*)
        say "warning: $key is $path, which must be on the workers' own disks"
        continue
        ;;
      *) ! is_copied "$path" || continue ;;
    esac
    lacking+="${lacking:+, }$key=$path"
  done < <(printf '%s\n' "$2" | "$1" launch/local_paths.py)
  [[ -z "$lacking" ]] || fail 2 "workers do not have what only this machine has: $lacking; wanted" \
    "gs://BUCKET/FOLDER, or of weights a name on the Hugging Face hub, each as --config.KEY=...;" \
    "docs/guides/scaling.md has a whole command"
}

# is_copied PATH: whether a file, a folder or a pattern of files, all relative, is among what workers get.
is_copied() {
  local path=${1#./} start=${1%%[*?{]*}
  [[ "$start" == "$1" ]] || path=${start%/*}
  list_code | awk -v path="${path%/}/" 'index($0 "/", path) == 1 { found = 1 } END { exit !found }'
}

# What huggingface_hub takes: HF_TOKEN, else what `hf auth login` left.
find_token() {
  local file=${HF_TOKEN_PATH:-${HF_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/huggingface}/token}
  if [[ -n "${HF_TOKEN:-}" ]]; then
    export HF_TOKEN
    # shellcheck disable=SC2016  # expanded by the shell that the line is for
    token='"$HF_TOKEN"' token_name=HF_TOKEN
  elif [[ -s "$file" ]]; then
    token="\"\$(cat $(quote "$file"))\"" token_name="the token in $file"
  fi
}

# check_licence REPOSITORY UNREAD: UNREAD is what else may help, where there is no token.
check_licence() {
  local hub=${HF_ENDPOINT:-https://huggingface.co} answer ask
  [[ "${HF_HUB_OFFLINE:-0}" =~ ^(1|true|yes|on|TRUE|YES|ON)$ ]] && return
  [[ -n "$token" ]] || fail 1 "$CONFIG names $1, whose weights are gated: accept the licence at" \
    "https://huggingface.co/$1, make a token at https://huggingface.co/settings/tokens and set HF_TOKEN to it, or give" \
    "it to 'hf auth login'$2"
  # The token goes by stdin: arguments can be read by everybody on this machine.
  ask="printf 'header = \"Authorization: Bearer %s\"\\n' $token | curl --silent --max-time 20 --output /dev/null"
  ask+=" --write-out '%{http_code}' --config - $(quote "$hub/api/models/$1/auth-check")"
  show "$ask"
  ((dry_run)) && return
  answer=$(bash -c "$ask") || true
  case "$answer" in
    200) ;;
    401) fail 1 "$token_name is not valid (asked about $1); make one at https://huggingface.co/settings/tokens" ;;
    403)
      fail 1 "$token_name may not read $1: accept the licence at https://huggingface.co/$1 with the token's account$2"
      ;;
    404) fail 1 "$1: no such repository on the Hugging Face hub" ;;
    *) say "warning: $hub did not say whether $token_name may read $1 (answer: ${answer:-none})" ;;
  esac
}

# --- what goes to the workers ----------------------------------------------------------------------------------------

CODE=uae_jax.tar.gz
# Files of git that are there, new ones included, ignored ones not; where there is no git, all but what it would ignore.
LIST_CODE="git ls-files -z -co --exclude-standard | xargs -0 sh -c 'for f; do [ -e \"\$f\" ] && echo \"\$f\"; done' sh"
git rev-parse --git-dir >/dev/null 2>&1 ||
  LIST_CODE="find . -type f ! -path './.venv*' $(printf "! -path './%s/*' " runs data models out bench again build dist)\
| sed 's|^[.]/||'"

list_code() {
  bash -c "$LIST_CODE"
}

# Puts code, and the token if there is one, into a folder that is removed in the end.
pack() {
  staging=${TMPDIR:-/tmp}/uae_launch.$$
  log=$staging/log
  run mkdir -m 700 "$staging" || return
  run_line "$LIST_CODE | COPYFILE_DISABLE=1 tar -czf $(quote "$staging/$CODE") -T -" || return
  files=("$staging/$CODE")
  if [[ -n "$token" ]]; then
    run_line "umask 077; printf %s $token > $(quote "$staging/hf_token")" || return
    files+=("$staging/hf_token")
  fi
}

# Extras of setup.py that the run needs: what the user wants, and buckets' where weights, data or folders are in one.
extras() {
  local wanted=${UAE_EXTRAS:-}
  if [[ "${training[*]} $CACHE" == *gs://* ]] || grep -q gs:// "$(config_file)"; then
    [[ ",$wanted," == *,gcs,* ]] || wanted=${wanted:+$wanted,}gcs
  fi
  printf '%s\n' "$wanted"
}

# Line of shell for a worker's home folder: unpacks and installs what `pack` made, except under a run that goes on.
# Locked, because nodes may share the folder. Of what an older archive brought, as .unpacked has it (without: of the
# package's modules), what this one does not is removed; all else stays: environment, runs, and what users put there.
unpack_line() {
  local worker=uae_jax/launch/worker.sh install
  install=$(quote env ${worker_name[@]+"${worker_name[@]}"} UAE_HARDWARE="${UAE_HARDWARE:-$1}" \
    UAE_EXTRAS="$(extras)" bash $worker install)
  # shellcheck disable=SC2016  # for the worker's shell
  printf '%s ' "mkdir -p uae_jax .uae_jax && ( flock 9; if [ -f $worker ] && bash $worker busy;" \
    "then echo 'a run is under way here: its code stays'; else tar --quoting-style=literal -tzf $CODE > .uae_jax/new &&" \
    'if [ -f uae_jax/.unpacked ]; then cat uae_jax/.unpacked; else' \
    "( cd uae_jax && [ ! -d uae_jax ] || find uae_jax -name '*.py' ); fi |" \
    'grep -vxFf .uae_jax/new | while IFS= read -r old; do [ -d "uae_jax/$old" ] || rm -f "uae_jax/$old"; done &&' \
    "tar -xzf $CODE -C uae_jax && mv -f .uae_jax/new uae_jax/.unpacked &&" \
    "if [ -f hf_token ]; then mv -f hf_token .uae_jax/; fi && $install; fi ) 9> .uae_jax/lock"
}

# Line of shell for a worker's home folder: starts the run, or looks on where it is under way. Takes NAME=VALUE...
train_line() {
  local name variables=("$@" "JAX_COMPILATION_CACHE_DIR=$CACHE")
  for name in "${HANDED_ON[@]}"; do
    [[ -z "${!name:-}" ]] || variables+=("$name=${!name}")
  done
  quote env "${variables[@]}" bash uae_jax/launch/worker.sh run "${training[@]}"
}

# What the workers said of themselves in $log: "worker 3 ended with exit code 7".
verdicts() {
  sed -n 's/^== \(.* exit code [0-9][0-9]*\) ==$/\1/p' "$log" | grep -v ' exit code 0$'
}

# Says which workers failed; returns an exit code of theirs, see `blame`, or the one given where none said anything.
report_failure() {
  local line blamed=""
  while IFS= read -r line; do
    blame "${line##* }"
    if ((${line##* } == STOPPED)); then
      say "${line% ended with*} was told to stop, and saved; the same command goes on from there"
    else
      say "error: $line"
    fi
  done < <(verdicts)
  return "${blamed:-$1}"
}

# blame CODE: sets `blamed` to the first exit code that tells of an error. From 128 on they tell of an end from outside:
# a signal, a stop (143), other processes that are gone (203); of these the first counts where there are no others.
blame() {
  if [[ -z "$blamed" ]] || ((blamed >= 128 && $1 < 128)); then blamed=$1; fi
}

# What the script was called with, ready to be pasted.
again() {
  quote "$script" ${given[@]+"${given[@]}"}
}
