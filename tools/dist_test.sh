#!/usr/bin/env bash
# Test in several processes: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py].
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT. Without a GPU the processes
# run on the CPU and talk over gloo.
set -euo pipefail

if (( $# < 3 )); then
    echo "usage: dist_test.sh CONFIG CHECKPOINT GPUS [flags of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
processes=$3

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$processes" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
