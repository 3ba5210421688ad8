#!/bin/sh
# Install a pack of wheels, run the tests that require a CUDA device, and then the benchmark, within 9 minutes in all:
#
#     sh benchmarks/gpu/run.sh PACK [ARGUMENTS OF python -m benchmarks.gpu]
#
# PACK is a folder that `python -m benchmarks.pack` made. Nothing is installed into the machine's own Python: the packages
# go into a folder of their own, which PYTHONPATH names. A virtual environment would not see the packages of a python3 that
# is itself one. PYTHON names another interpreter; MINUTES is the time for all (default: 8, plus one for the last row).
set -eu
pack=${1:?usage: sh benchmarks/gpu/run.sh PACK [ARGUMENTS]}
shift
python=${PYTHON:-python3}
start=$(date +%s)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip --disable-pip-version-check install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$pack"/*.whl
PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
echo "installed in $(($(date +%s) - start)) s" >&2

tests=$(grep -l '^@pytest.mark.gpu' tests/test_*.py)
# shellcheck disable=SC2086
timeout 150 "$python" -m pytest -q -m gpu -p no:cacheprovider $tests >&2 || echo "the tests ended with exit code $?" >&2

left=$((${MINUTES:-8} * 60 - $(date +%s) + start))
"$python" -m benchmarks.gpu --minutes "$(awk "BEGIN { print $left / 60 }")" "$@"
