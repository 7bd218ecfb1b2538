#!/usr/bin/env bash
# Arms of experiments/arms/gpu on SmolLM2-135M, on one GPU, in one call of at most nine minutes:
#     experiments/gpu.sh --prepare                            # before, where there is a network: fills experiments/inputs/
#     experiments/gpu.sh [--tiny] [--seconds 530] [DIRECTORY]   # on the machine
# One learning rate of each arm first, in order of worth. DIRECTORY/results.jsonl has the points of an arm as soon as it ends; one
# that fails or runs out of time does not cost the others theirs. DIRECTORY is experiment-results by default; results.jsonl has the
# lines of experiments/results.jsonl and can be added to it. PYTHON names another interpreter. --tiny rehearses on a CPU, with a
# random model, texts of this repository and eight steps.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$work"' EXIT
[ -d "$root/experiments/inputs" ] && export LLMFORGE_INPUTS="$root/experiments/inputs"
export LLMFORGE_EXPERIMENTS="$work" PYTHONPATH="$root/src:$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"${PYTHON:-python3}" -m experiments.gpu "$@"
