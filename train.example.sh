#!/usr/bin/env bash
# Copy to train.sh, fill in the paths, and run it. Run again, it goes on from the last checkpoint.
# Hosts: copy hostfile.example to hostfile, one host a line (docs/cluster.md). Without it: this machine.
set -euo pipefail

PROJECT_NAME="my-model-zh"
PARENT_SAVE_DIR="runs"
PARENT_TENSORBOARD_DIR="tensorboard"
PARENT_CONFIG_FILE="configs"
PRETRAINED_MODEL_PATH="grown"

# Parts of prepare-data's output, or the whole directory.
declare -a dataset=(
    "data/arrow/part-00000"
    "data/arrow/part-00001"
)

PROCESSES="${PROCESSES:-8}"               # on each host, one per GPU
HOSTFILE="${HOSTFILE:-hostfile}"
LAUNCHER="${LAUNCHER:-colossalai}"        # or torchrun (this machine alone), or llmforge (checks the hosts first)
PLUGIN="${PLUGIN:-zero2}"                 # or gemini, gemini_auto, zero2_cpu, 3d; ddp, fsdp without ColossalAI
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-8}"
# On InfiniBand, what your cluster asks for: export NCCL_IB_HCA=... NCCL_SOCKET_IFNAME=...

SAVE_DIR="$PARENT_SAVE_DIR/$PROJECT_NAME"
TENSORBOARD_DIR="$PARENT_TENSORBOARD_DIR/$PROJECT_NAME"
CONFIG_FILE="$PARENT_CONFIG_FILE/$PROJECT_NAME.yaml"
mkdir -p "$PARENT_SAVE_DIR" "$TENSORBOARD_DIR" "$PARENT_CONFIG_FILE"

train=(
    train
    --pretrained "$PRETRAINED_MODEL_PATH"
    --dataset "${dataset[@]}"
    --plugin "$PLUGIN"
    --load_checkpoint latest
    --save_interval 400
    --save_dir "$SAVE_DIR"
    --tensorboard_dir "$TENSORBOARD_DIR"
    --config_file "$CONFIG_FILE"
    --num_epochs 1
    --accumulation_steps 1
    --micro_batch_size 8
    --lr 1e-4
    --mixed_precision bf16
    --grad_clip 1.0
    --weight_decay 0.01
    --warmup_steps 100
    --use_grad_checkpoint
    --use_flash_attn
    "$@"                                  # ./train.sh --max_steps 10 adds flags, or overrides those above
)

hosts=()
if [[ -f $HOSTFILE ]]; then
    hosts=(--hostfile "$HOSTFILE")
fi

case "$LAUNCHER" in
colossalai)
    # It sends its whole environment to every host, and prints it when a command fails: it gets this much.
    environment=()
    for name in HOME USER LANG PATH PYTHONPATH SSH_AUTH_SOCK OMP_NUM_THREADS ${!NCCL_@} ${!GLOO_@}; do
        if [[ -v $name ]]; then
            environment+=("$name=${!name}")
        fi
    done
    # It joins arguments with spaces for a shell: @Q quotes them.
    env -i "${environment[@]}" colossalai run --nproc_per_node "$PROCESSES" "${hosts[@]}" -m llmforge "${train[@]@Q}"
    ;;
torchrun)
    torchrun --standalone --nproc_per_node "$PROCESSES" -m llmforge "${train[@]}"
    ;;
llmforge)
    llmforge launch "${hosts[@]}" --nproc-per-node "$PROCESSES" -- "${train[@]}"
    ;;
*)
    echo "LAUNCHER is $LAUNCHER, but must be colossalai, torchrun or llmforge." >&2
    exit 2
    ;;
esac
