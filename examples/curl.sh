#!/bin/sh
# A word and an image with curl: sh examples/curl.sh [http://localhost:8001]
set -eu
url=${1:-http://localhost:8001}

curl -sS --fail-with-body "$url/txt/embed" -H 'Content-Type: application/json' -d '{"input": "red"}'
echo

image=$(base64 < "$(dirname "$0")/red.png" | tr -d '\n')
printf '{"input": "%s"}' "$image" |
    curl -sS --fail-with-body "$url/img/embed" -H 'Content-Type: application/json' -d @-
echo
