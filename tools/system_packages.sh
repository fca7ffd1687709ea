#!/usr/bin/env bash
# Make sure that system packages are there: `system_packages.sh nginx wrk compiler python3.11-venv`. Installs what is
# missing with apt-get when this user may, else says what to install. `compiler` is a C compiler with Python's headers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python

headers() { "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; }

there() { command -v "$1" > /dev/null || [ -x "/usr/sbin/$1" ]; }

# Prints the packages that would bring what $1 names; nothing when it is there.
missing() {
    case $1 in
    compiler)
        command -v "${CC:-cc}" > /dev/null || echo gcc libc6-dev
        headers || "$python" -c 'import sys; print("python%d.%d-dev" % sys.version_info[:2])'
        ;;
    etcd) there etcd || echo etcd-server ;;
    etcdctl) there etcdctl || echo etcd-client ;;
    ip) there ip || echo iproute2 ;;
    h2load) there h2load || echo nghttp2-client ;;
    nghttpd) there nghttpd || echo nghttp2-server ;;
    nghttpx) there nghttpx || echo nghttp2-proxy ;;
    python*) echo "$1" ;;
    *) there "$1" || echo "$1" ;;
    esac
}

wanted=()
for name in "$@"; do
    read -r -a packages <<< "$(missing "$name" | tr '\n' ' ')"
    wanted+=("${packages[@]}")
done
[ "${#wanted[@]}" -gt 0 ] || exit 0

hint="system packages are missing: ${wanted[*]}"
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null; then
    echo "$hint; install them (on Debian: sudo apt-get install ${wanted[*]}) and run this again" >&2
    exit 1
fi
echo "$hint; installing them with apt-get ..." >&2
export DEBIAN_FRONTEND=noninteractive
{ apt-get -qq update && apt-get -qq install -y --no-install-recommends "${wanted[@]}"; } > /dev/null || {
    echo "apt-get could not install ${wanted[*]}: install them by hand and run this again" >&2
    exit 1
}
