#!/bin/sh
# Install torch and torchvision into an environment that has none.
#   install_torch.sh PYTHON [INDEX] [REQUIREMENT...]
# Where there is no NVIDIA driver, builds for the CPU (a tenth of the size) are taken, if the index
# that pip uses has a torchvision of that kind; it brings the torch that it was built for.
set -eu
python=$1
index=${2:-}
test $# -lt 2 || shift
shift
pip="$python -m pip --disable-pip-version-check"

if $python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torchvision"))'; then
    exit 0
fi
echo "Installing PyTorch, the largest part of all; this takes a few minutes"
if [ -n "$index" ]; then
    exec $pip install --index-url "$index" "${@:-torch}" torchvision
fi
if [ $# = 0 ] && [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ]; then
    cpu=$($pip index versions torchvision 2>/dev/null | grep -o '[0-9.]*+cpu' | head -n 1 || true)
    if [ -n "$cpu" ]; then
        exec $pip install "torchvision==$cpu"
    fi
    echo "(no NVIDIA driver, but this index has no torchvision for the CPU alone: set TORCH_INDEX)"
fi
exec $pip install "${@:-torch}" torchvision
