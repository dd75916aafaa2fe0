#!/usr/bin/env bash
# Everything that only a GPU can show, in one go: gpu-marked tests, kernels, overheads, end to end.
#   eval/bench/gpu.sh OUT        (from the top of a checkout, with the package installed)
# Writes logs and CSVs below OUT; a part that fails does not stop the others.
set -uo pipefail
out=${1:?usage: eval/bench/gpu.sh OUT}
mkdir -p "$out"

part() { # NAME COMMAND...: run one part, keep its output, say how it ended
  local name=$1 start=$SECONDS
  shift
  "$@" >"$out/$name.txt" 2>&1
  echo "$name: exit $? after $((SECONDS - start)) s"
}

{
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  python -c "import torch, triton; print('torch', torch.__version__, 'triton', triton.__version__)"
  git rev-parse HEAD
} >"$out/machine.txt" 2>&1
cat "$out/machine.txt"

part tests pytest -q -m gpu tests
part attention ditaccel bench attention --lengths 16384 32768 65536 --dtype bf16 --heads 12 \
  --head-dim 128 --density 1 0.5 0.25 0.1 0.05 --repeats 10 --out "$out/attention.csv"
part attention-int8 ditaccel bench attention --lengths 16384 32768 65536 --dtype bf16 --heads 12 \
  --head-dim 128 --density 1 0.5 0.25 0.1 0.05 --precision int8 --repeats 10 --out "$out/attention.csv"
part attention-short ditaccel bench attention --lengths 4096 8192 --dtype bf16 fp16 --heads 24 \
  --head-dim 64 --density 1 0.5 0.25 0.1 --repeats 20 --out "$out/attention.csv"
# As published: 95 % of the tiles not critical, 10 % of them negligible; then none negligible, as in
# the public code and in training-free mode, which `training_free_speedup` is of. The aim is 15x
# forward.
for negligible in 0.1 0; do
  part "sparse-linear-target-$negligible" ditaccel bench sparse_linear --lengths 32768 --dtype bf16 \
    --heads 12 --head-dim 128 --critical 0.05 --negligible "$negligible" --repeats 20 \
    --at-least 13.7 6.8 --out "$out/sparse-linear.csv"
done
part sparse-linear ditaccel bench sparse_linear --lengths 8192 16384 65536 --dtype bf16 fp16 \
  --heads 12 --head-dim 128 --critical 0.05 --negligible 0.1 --repeats 10 --out "$out/sparse-linear.csv"
part sparse-linear-64 ditaccel bench sparse_linear --lengths 16384 32768 --dtype bf16 --heads 24 \
  --head-dim 64 --features norm_aware --repeats 10 --out "$out/sparse-linear.csv"
part training-free ditaccel bench sparse_linear --lengths 8192 16384 65536 --dtype bf16 fp16 \
  --heads 12 --head-dim 128 --critical 0.05 --negligible 0 --repeats 10 --out "$out/sparse-linear.csv"
for model in shapes-wan shapes-flux shapes-dit; do
  part "overhead-$model" ditaccel bench overhead "samples/models/$model" --out "$out/overhead.csv"
  part "eval-$model" ditaccel eval "samples/models/$model" --device cuda --limit 8 --seeds 100 \
    --config "presets=safe|balanced|fast" --no-html --out "$out/eval-$model"
  rm -rf "$out/eval-$model"/*/ # pictures and clips: the tables suffice
done
