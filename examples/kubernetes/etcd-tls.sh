#!/bin/sh
# Makes the certificates of etcd and of the pilot as its client, of an authority of their own: whoever has one of these
# can read and destroy the state of the mesh's authority. They last for a year; afterwards, and then again, run it anew.
#
#   etcd-tls.sh DIRECTORY       it gets ca.crt, and tls.crt and tls.key in etcd/ and pilot/; the authority's key is not kept
set -eu
umask 077

directory=${1:?usage: etcd-tls.sh DIRECTORY}
mkdir -p "$directory/etcd" "$directory/pilot"
cd "$directory"
trap 'rm -f ca.key request' EXIT

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

key ca.key
openssl req -x509 -new -key ca.key -days 366 -subj "/CN=etcd of meshproxy" -out ca.crt
for name in etcd pilot; do
    key "$name/tls.key"
    openssl req -new -key "$name/tls.key" -subj "/CN=$name" -out request
    printf '%s\n' "subjectAltName = DNS:$name.meshproxy-system.svc, IP:127.0.0.1" "basicConstraints = critical, CA:FALSE" \
        "extendedKeyUsage = serverAuth, clientAuth" |
        openssl x509 -req -in request -CA ca.crt -CAkey ca.key -days 365 -extfile /dev/stdin -out "$name/tls.crt" 2> /dev/null
    cp ca.crt "$name/ca.crt"
done
