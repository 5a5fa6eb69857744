#!/usr/bin/env bash
# The wheel as a stranger gets it: built, installed without the checkout, and used, for each Python that is named.
#   scripts/try_wheel.sh python3.10 python3.12 python3.13
# Packages are the newest that fit; only torch is pinned where there is no GPU, as in the Makefile.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip() { "$1" -m pip -qq --disable-pip-version-check --no-input "${@:2}"; }

mkdir "$work/source"
git -C "$here" archive HEAD | tar -x -C "$work/source" # a build folder of before would end up in the wheel
python3 -m venv "$work/build"
pip "$work/build/bin/python" wheel --no-deps --wheel-dir "$work" "$work/source"
wheel=$(echo "$work"/*.whl)
cd "$work"
for python in "$@"; do
    begun=$SECONDS venv=$work/venv-$python
    "$python" -m venv "$venv"
    nvidia-smi > /dev/null 2>&1 || pip "$venv/bin/python" install "$(grep '^torch==' "$here/constraints.txt")"
    pip "$venv/bin/python" install "$wheel"
    "$venv/bin/la-reconvla" --help > /dev/null
    "$venv/bin/la-reconvla" check plan > /dev/null
    "$venv/bin/la-reconvla" study run known-answer --steps 20 --seeds 0 --episodes 4 --demos 16 --out "$work/study-$python" > log.txt 2>&1 \
        || { tail -20 log.txt; exit 1; }
    test -s "$work/study-$python/report.html"
    "$venv/bin/python" -c 'import sys, torch, transformers, numpy
print(f"Python {sys.version.split()[0]}: torch {torch.__version__}, transformers {transformers.__version__}, numpy {numpy.__version__}", end="")'
    echo ": installed, help, plan, a toy trained, rolled out and reported, in $((SECONDS - begun)) s"
    rm -rf "$venv"
done
