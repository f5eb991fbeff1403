#!/usr/bin/env bash
# install.sh ENVIRONMENT [cuda|cpu]: the wheel of this checkout and the locked versions, in a new venv.
#
# What the image is made of, as a script, so that it can be run and tested without a container engine.
# The lock is a constraint: it holds the test tools too, which the image does not need.
set -euo pipefail

environment=${1:?usage: install.sh ENVIRONMENT [cuda|cpu]}
variant=${2:-cuda}
root=$(cd "$(dirname "$0")/.." && pwd)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

case $variant in
    # torch of the Python index brings the CUDA libraries as wheels; a node needs the driver only.
    cuda) index=() ;;
    cpu) index=(--extra-index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}") ;;
    *) echo "install.sh: variant $variant: expected cuda or cpu" >&2; exit 2 ;;
esac

python -m venv "$environment"
"$environment/bin/pip" wheel --quiet --no-deps --wheel-dir "$wheels" "$root"
if [ -n "${MSTAR_NO_DEPS:-}" ]; then # the tests: only what is ours
    "$environment/bin/pip" install --quiet --no-deps "$wheels"/mstar_platform-*.whl
    exit
fi
# No operator of DeepSpeed is built, now or later.
DS_BUILD_OPS=0 "$environment/bin/pip" install --no-cache-dir --constraint "$root/requirements.lock" \
    "${index[@]}" "$wheels"/mstar_platform-*.whl
# What an image most often lacks shows here, not on the cluster.
"$environment/bin/python" -c "import deepspeed, openslide, pyvips, ray, torch"
"$environment/bin/mstar" --version
