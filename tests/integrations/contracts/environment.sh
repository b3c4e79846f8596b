#!/bin/sh
# Unpacks the wheels of SGLang and LMCache, and what their modules import, into a folder: environment.sh FOLDER PYTHON
# PYTHON is the interpreter of an environment with torch and transformers, such as vLLM's. Nothing is installed there.
# Then record.py reads the wheels, and PBKV_ENGINES_FOLDER=FOLDER PBKV_VLLM_PYTHON=PYTHON runs the tests in the engines' code.
set -eu
folder=$1 python=$2
mkdir -p "$folder"
for package in sglang==0.5.23 lmcache==0.5.6 orjson==3.13.0 sortedcontainers==2.4.0; do
    "$python" -m pip --disable-pip-version-check install --quiet --no-deps --target "$folder/${package%%==*}" "$package"
done
