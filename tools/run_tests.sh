#!/usr/bin/env bash
# `run_tests.sh WORKERS ARGUMENTS…`: pytest, on so many processes. A few tests that fail are run once more, one by one,
# when all others have ended: most tests start real servers, and a busy machine may hold one of those up for longer than
# anybody waits. What passes then is named at the end: it leans on time, and is to be mended. Many failures are no chance.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly MOST_REPEATED=5
workers=$1
shift
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
failed_tests() { sed -n 's/^ *"\(.*\)": true,\{0,1\}$/\1/p' "$cache/v/cache/lastfailed" 2>/dev/null; }

# One file's tests stay in one process, so that they share the servers they start.
.venv/bin/python -m pytest -o cache_dir="$cache" -n "$workers" --dist loadfile "$@"
code=$?
failed=$(failed_tests)
if [ "$code" -ne 1 ] || [ -z "$failed" ] || [ "$(wc -l <<< "$failed")" -gt "$MOST_REPEATED" ]; then
    exit "$code"
fi
echo "run_tests: once more, one by one:" >&2
.venv/bin/python -m pytest -o cache_dir="$cache" -p no:xdist --last-failed --last-failed-no-failures none "$@"
code=$?
if [ "$code" -eq 0 ]; then
    printf 'run_tests: failed first, and then passed alone; to be mended:\n%s\n' "$failed" >&2
fi
exit "$code"
