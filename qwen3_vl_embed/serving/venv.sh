#!/bin/sh
# Makes .venv, for the Makefile: with PYTHON where it is set, else with the first Python of this machine that can serve,
# else with one that uv gets from where it gets all of its own (python-build-standalone). Nothing lands outside of here.
set -eu
cd "$(dirname "$0")/../.."

case $PWD in
*:*)
    echo "$PWD: a virtual environment cannot be where a path holds a colon: move this folder" >&2 && exit 1 ;;
esac

if [ -z "${PYTHON:=}" ]; then
    for each in python3.11 python3.12 python3; do
        if "$each" qwen3_vl_embed/serving/interpreter.py 2>/dev/null; then
            PYTHON=$each
            break
        fi
    done
fi
if [ -z "$PYTHON" ]; then
    echo "no Python 3.11 or 3.12 with venv and libpython here: getting one into .cache/python (35 MB) …"
    make --no-print-directory .cache/uv/bin/uv
    export UV_PYTHON_INSTALL_DIR=.cache/python UV_CACHE_DIR=.cache/uv/cache
    .cache/uv/bin/uv python install --quiet --no-bin '>=3.11,<3.13' &&
        found=$(.cache/uv/bin/uv python find --managed-python --no-project --system '>=3.11,<3.13') || {
        echo "no Python could be got: name one with make PYTHON=/path/to/python3.12, or a mirror with UV_PYTHON_INSTALL_MIRROR" >&2
        exit 1
    }
    PYTHON=$(realpath "$found")
fi
"$PYTHON" qwen3_vl_embed/serving/interpreter.py
"$PYTHON" -m venv .venv || { rm -rf .venv && exit 1; }
