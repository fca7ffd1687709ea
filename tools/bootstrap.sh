#!/usr/bin/env bash
# Create the virtual environment $1 with this project (editable) and its `test` extra; done in milliseconds when
# nothing changed since. The stamp is a hash of pyproject.toml and of the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}

say() { echo "bootstrap: $*" >&2; }
die() { say "$@"; exit 1; }

# The first interpreter that is new enough; sets $python.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        python=$(command -v "$candidate") || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    die "Python 3.11 or newer is needed and was not found (on Debian 12: apt-get install python3 python3-venv);" \
        "PYTHON=/path/to/python make … names one"
}

# Debian splits ensurepip from Python: without it no virtual environment has pip.
need_ensurepip() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    local package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    tools/system_packages.sh "$package"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python still has no ensurepip after installing $package"
}

stamp_of() {
    { cat pyproject.toml; "$1" -c 'import sys; print(sys.version)'; pwd; } | sha256sum | cut -d ' ' -f 1
}

up_to_date() {
    [ -x "$venv/bin/python" ] && [ -f "$venv/.stamp" ] && [ "$(cat "$venv/.stamp")" = "$(stamp_of "$venv/bin/python")" ]
}

install_all() {
    find_python
    need_ensurepip
    say "installing what the project needs into $venv (once, about a minute) ..."
    "$python" -m venv --clear "$venv"
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet)
    # The build's own tools first: with them the project needs no second, isolated download of mypy.
    "${pip[@]}" "setuptools>=77" || die "pip could not install from the package index; see its message above"
    "${pip[@]}" --no-build-isolation --editable ".[test]" || die "pip failed; see its message above"
    stamp_of "$venv/bin/python" > "$venv/.stamp"
}

up_to_date && exit 0
# Two makes at once in one checkout: the second waits, then finds the work done.
exec 9< pyproject.toml
flock 9
up_to_date || install_all
