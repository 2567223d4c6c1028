#!/usr/bin/env bash
# Train in several processes: dist_train.sh CONFIG GPUS [flags of train.py].
# Machines and ports: dist_launch.sh.
set -euo pipefail

if (( $# < 2 )); then
    echo "usage: dist_train.sh CONFIG GPUS [flags of train.py]" >&2
    exit 2
fi
config=$1
processes=$2

exec "$(dirname "${BASH_SOURCE[0]}")/dist_launch.sh" "$processes" train.py "$config" "${@:3}"
