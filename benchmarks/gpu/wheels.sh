#!/usr/bin/env bash
# Fetches what a machine with Python 3.12, torch 2.11 and transformers 5.17 lacks of llmforge's needs, for all.sh:
#     benchmarks/gpu/wheels.sh [PYTHON]
# wheels/ is for llmforge and Liger's loop, wheels/colossalai/ for ColossalAI with its own transformers. Together 29 MB.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
for_machine=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp)
for version in 2_28 2_27 2_24 2_17; do for_machine+=(--platform "manylinux_${version}_x86_64"); done
for_machine+=(--platform manylinux2014_x86_64)
"$python" -m pip download -q "${for_machine[@]}" -d wheels \
    datasets dill multiprocess gigatoken msgspec zstandard liger-kernel
"$python" -m pip download -q "${for_machine[@]}" -d wheels/colossalai \
    transformers==4.51.3 "huggingface_hub<1" "tokenizers<0.22" peft==0.14.0
"$python" -m pip wheel -q --no-deps -w wheels/colossalai colossalai==0.5.0
ls -l wheels wheels/colossalai
