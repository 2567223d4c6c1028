#!/usr/bin/env bash
# Test in several processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py].
# Machines and ports: dist_launch.sh.
set -euo pipefail

if (( $# < 3 )); then
    echo "usage: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3

exec "$(dirname "${BASH_SOURCE[0]}")/dist_launch.sh" "$processes" test.py "$config" "$checkpoint" "${@:4}"
