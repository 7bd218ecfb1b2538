#!/usr/bin/env bash
# Everything that llmforge has to show on one GPU, in one call of at most nine minutes:
#     benchmarks/gpu/all.sh [--tiny] [--minutes 9] [DIRECTORY]
# Tests, training speed, commands, ColossalAI and the learning experiment, in order of worth, each with a time of its own. A
# part that fails or takes too long does not cost the others their results: DIRECTORY/results.jsonl has each as soon as it is
# there, DIRECTORY/PART.log what the parts print, DIRECTORY/table.md the table. DIRECTORY is gpu-results by default. Nothing is
# fetched: what the machine lacks is in wheels/ (wheels.sh). PYTHON names another interpreter. --tiny rehearses it on a CPU.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-python3}
began=$(date +%s)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
install=("$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check)
for set in main colossalai; do
    folder="$here/wheels"
    [ $set = main ] || folder="$here/wheels/$set"
    mkdir "$site/$set"
    "${install[@]}" --target "$site/$set" "$folder"/*.whl || echo "$folder: not installed; see wheels.sh" >&2
done
export PYTHONPATH="$root/src:$here:$site/main" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true
export GPU_COLOSSALAI="$root/src:$here:$site/colossalai:$site/main" GPU_BEGAN="$began"
cd "$root" && "$python" "$here/all.py" "$@"
