#!/bin/sh
# Makes a CA, a server certificate for shop.example and a client certificate in examples/certs/, for the examples with TLS.
set -eu
cd "$(dirname "$0")"
mkdir -p certs
cd certs
new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"; }
sign() { # name, common name, subject alternative names
    new_key "$1"
    openssl req -new -key "$1.key" -subj "/CN=$2" -out "$1.csr"
    printf 'subjectAltName=%s\n' "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}
new_key ca
openssl req -x509 -new -key ca.key -subj "/CN=Example CA" -days 365 -out ca.pem
sign server shop.example "DNS:shop.example,DNS:*.shop.example"
sign client ann "URI:spiffe://shop.example/ann"
echo "made $(pwd)/{ca,server,client}.pem"
