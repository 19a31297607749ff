#!/usr/bin/env bash
# Every table over seeds that the README and docs/ have, each printed by a sweep, on MNIST in data/ or LORA_MNIST_DATA.
# It takes hours; what is finished is not done again. Each training has one thread, and there are as many
# fine-tunings at once as there are cores.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
RESULTS=benchmarks/results
export OMP_NUM_THREADS=1

made_by() { # commit, processor and versions, below a table
  local commit cpu
  commit=$(git rev-parse --short=10 HEAD)
  git diff --quiet HEAD -- . ":!$RESULTS" || commit+=-dirty
  cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)
  printf '\nMade at commit %s on %s, %s cores; Python %s, torch %s.\n' "$commit" "$cpu" "$(nproc --all)" \
    "$(python -c 'import platform; print(platform.python_version())')" "$(python -c 'import torch; print(torch.__version__)')"
}

sweep() { # name of the table, folder of the sweep, options
  local name=$1 out=sweeps/$2
  shift 2
  lora-mnist sweep --engine local --rank config --out "$out" "$@"
  { cat "$out/report/tables.md"; made_by; } >"$RESULTS/$name.md"
}

ten=(--dataset mnist --seed 0-9)
five=(--dataset mnist --seed 0-4)

# bases that saw a share of the nines, and those of the same seeds that saw all of them
for share in 0.02 0.1; do
  rare=("${ten[@]}" --digit 9 --set pretrain.rare_digit=9 --set "pretrain.rare_share=$share")
  sweep "rare-$share-default" "rare-$share" "${rare[@]}" --full --control
  sweep "rare-$share-thorough" "rare-$share" "${rare[@]}" --config thorough
  sweep "rare-$share-rank1" "rare-$share" "${rare[@]}" --config rare --control
done
sweep rare-ranks rare-0.02 "${ten[@]}" --digit 9 --config rare --rank 1,2,4,8,16,32
sweep rare-none rare-none "${ten[@]}" --digit 9 --config rare --rank 1,2,4,8,16,32 --set 'pretrain.rare_digit="none"'
for share in 0.005 0.01 0.05 0.2 0.5; do
  sweep "rare-$share-rank1" rare-shares "${five[@]}" --digit 9 --config rare --set "pretrain.rare_share=$share"
done
{
  python benchmarks/rare.py sweeps/rare-0.02 sweeps/rare-0.1 sweeps/rare-none sweeps/rare-shares
  made_by
} >"$RESULTS/rare.md"

# balanced bases, of one and of three epochs
for epochs in 1 3; do
  weakest=("${ten[@]}" --digit weakest --set "pretrain.epochs=$epochs")
  sweep "default-$epochs" "balanced-$epochs" "${weakest[@]}" --full --control
  sweep "thorough-$epochs" "balanced-$epochs" "${weakest[@]}" --config thorough
  sweep "rank1-$epochs" "balanced-$epochs" "${weakest[@]}" --rank 1
done
sweep rounds balanced-1 --dataset mnist --digit weakest --seed 0-9 --rounds 5
sweep map balanced-1 --dataset mnist --digit 0-9 --rank 1,2,4,8,16 --seed 0-2 --engine stacked
sweep classic classic --dataset mnist --config classic --digit 9 --seed 0-4

# mnist-5k
for config in default rare; do
  sweep "mnist-5k-$config" "mnist-5k-$config" --dataset mnist-5k --config "$config" --digit weakest --seed 0-4 --control
done
sweep mnist-5k-rare-r32 mnist-5k-rare-r32 --dataset mnist-5k --config rare --rank 32 --digit weakest --seed 0-4

# the searches, which look at held-out training images only: the recipe, then one ingredient changed at a time
tried() { # folder of the sweep, options of every job, then after -- the sets of options to try, one a word
  local out=sweeps/$1 common=() options
  shift
  while [ "$1" != -- ]; do common+=("$1"); shift; done
  shift
  for options; do # shellcheck disable=SC2086
    lora-mnist sweep --engine local --rank config --hold-out --out "$out" "${common[@]}" $options
  done
}
set_to() { # every NAME=VALUE as an option of `sweep`
  printf -- '--set finetune.%s ' "$@"
}

tried search --dataset mnist --digit weakest --seed 10-15 --set data.val_share=0.1667 -- \
  '' "$(set_to shift=0 rotate=0 zoom=0)" "$(set_to hard_examples=0)" "$(set_to focus=0.1)" "$(set_to label_smoothing=0)" \
  "$(set_to 'guard="none"')" '--rank 16' '--rank 1' "$(set_to steps=600)" "$(set_to steps=1500 batch_size=64)" \
  "$(set_to 'optimizer="adamw"' weight_decay=0.01)" '--config thorough'
tried search-rare --dataset mnist --digit 9 --seed 10-14 --config rare -- \
  "$(set_to steps=300,600,1200,1500)" "$(set_to focus=0.1,0.15)" "$(set_to hard_examples=0)" \
  "$(set_to shift=0.5 rotate=5 zoom=0.05)"
tried search-mnist-5k --dataset mnist-5k --digit 9 --seed 10-19 --config rare \
  --set pretrain.rare_share=0.03,0.05,0.1 -- "$(set_to steps=300,600)"
for search in search:default search-rare:rare search-mnist-5k:rare; do
  { python benchmarks/search.py "${search#*:}" "sweeps/${search%:*}"; made_by; } >"$RESULTS/${search%:*}.md"
done
