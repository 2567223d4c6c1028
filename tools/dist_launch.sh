#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: dist_launch.sh PROCESSES SCRIPT [its arguments].
# On several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT. Without a GPU the processes
# run on the CPU and talk over gloo.
set -euo pipefail

processes=$1
script=$2

# mmengine imports yapf, whose grammar the first import writes to the user's cache; of processes that
# start together in an empty one, some would read half a file.
"${PYTHON:-python}" -c "import yapf" 2>/dev/null || true

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$processes" \
    "$(dirname "${BASH_SOURCE[0]}")/$script" --launcher pytorch "${@:3}"
