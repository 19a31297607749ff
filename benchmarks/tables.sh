#!/usr/bin/env bash
# Every table over seeds that the README and docs/ have, each printed by a sweep, on MNIST in data/ or LORA_MNIST_DATA.
# It takes hours; what is finished is not done again. One thread, where it is set, makes the same bits on any number of
# cores; the classic recipe and mnist-5k take torch's choice, as their runs do.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

sweep() { # name of the table, folder of the sweep, options
  local name=$1 out=sweeps/$2
  shift 2
  lora-mnist sweep --engine local --rank config --out "$out" "$@"
  cp "$out/report/tables.md" "benchmarks/results/$name.md"
}

for epochs in 1 3; do
  weakest=(--dataset mnist --digit weakest --seed 0-9 --threads 1 --set "pretrain.epochs=$epochs")
  sweep "default-$epochs" "epochs$epochs" "${weakest[@]}" --full --control
  sweep "thorough-$epochs" "epochs$epochs" "${weakest[@]}" --config thorough
  sweep "rank1-$epochs" "epochs$epochs" "${weakest[@]}" --rank 1 --set finetune.focus=0.3 --set finetune.steps=3000
done
sweep rounds epochs1 --dataset mnist --digit weakest --seed 0-9 --threads 1 --rounds 5
sweep map epochs1 --dataset mnist --digit 0-9 --rank 1,2,4,8,16 --seed 0-2 --engine stacked
sweep classic classic --dataset mnist --config classic --digit 9 --seed 0-4
for config in default rare; do
  sweep "mnist-5k-$config" "mnist-5k-$config" --dataset mnist-5k --config "$config" --digit weakest --seed 0-4 --control
done
for rank in 1 32; do
  sweep "rare-r$rank" rare --dataset mnist --config rare --digit 9 --rank "$rank" --seed 0-9 --threads 1 --full --control
done
sweep search search --dataset mnist --digit weakest --seed 10-15 --threads 1 --hold-out --set data.val_share=0.1667 \
  --set finetune.hard_examples=0.35,0.0 --by hard_examples
