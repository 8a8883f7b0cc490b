# shellcheck shell=bash
# Sourced by the scripts beside it: names a Python that is new enough, PYTHON first.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [[ -n "$candidate" ]] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python 3.11 or newer found; install one or name it: PYTHON=/path/to/python3 $0" >&2
  return 1
}
