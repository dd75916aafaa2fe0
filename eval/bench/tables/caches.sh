#!/usr/bin/env bash
# Every caching method in one run, ours and the published ones in this project's frame, beside their
# originals (peers) and fewer steps: `eval/bench/tables/caches.sh OUT [MODEL ...]`, MODEL shapes-flux (28
# steps, LIMIT pictures, 8) or shapes-wan (UniPC, 40 steps, CLIPS clips, 2); default both. MagCache's
# ratios and TeaCache's polynomial are fitted to the model first, on other prompts. Takes about 15
# and 40 minutes on one core; a killed run goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:?usage: eval/bench/tables/caches.sh OUT [MODEL ...]}
shift
models=("$@")
[ ${#models[@]} -gt 0 ] || models=(shapes-flux shapes-wan)
python=.venv/bin/python
[ -x "$python" ] || python=python
run() { HF_HUB_OFFLINE=1 "$python" -P -m ditaccel "$@"; }

fitted() { # MODEL STEPS METHOD THRESHOLD...: one config file per threshold
  local model=$1 steps=$2 method=$3 file
  shift 3
  mkdir -p "$out/$model-configs"
  file=$out/$model-configs/$method.yaml
  [ -s "$file" ] || run tune "samples/models/$model" --fit "$method" --steps "$steps" --limit 2 --out "$file" >&2
  for threshold in "$@"; do
    sed -E "s/^( *threshold:) .*/\1 $threshold/; s/^label:.*/label: $method $threshold/" \
      "$file" > "$out/$model-configs/$method-$threshold.yaml"
    configs+=(--config "$method $threshold=$out/$model-configs/$method-$threshold.yaml")
  done
}

meancache() { # STEPS INTERVAL: computed at even distance after six steps
  local list=0
  for ((step = 1; step < $1; step++)); do
    if ((step < 6 || (step - 5) % $2 == 0 || step == $1 - 1)); then list+=,$step; fi
  done
  configs+=(--config "meancache $2=meancache:steps=[$list]")
}

forecast=granularity=last_block,target=output,guidance=difference,correction=auto,final=1
interval=interval=taylorseer:$forecast,coordinate=auto,warmup=6
both=(
  --config balanced --config fast --config "racer:window=2|4" --config "tafc:threshold=0.04|0.2"
  --config "dbcache:first_blocks=1,warmup=4,threshold=0.08|0.2"
  --config "peer/cache_dit:fn=1,warmup=4,threshold=0.08|0.2"
)

for model in "${models[@]}"; do
  configs=()
  case $model in
    shapes-flux)
      fitted "$model" 28 magcache 0.03 0.06 0.12
      fitted "$model" 28 teacache 0.05 0.1 0.2
      meancache 28 2 && meancache 28 3 && meancache 28 4
      run eval "samples/models/$model" --out "$out/$model" --steps 28 --fewer 20,16,14,12,10,8 \
        --limit "${LIMIT:-8}" --pairs 2 --threads 1 "${both[@]}" "${configs[@]}" \
        --config safe --config "$interval,interval=3|4|5" \
        --config "adaptive_taylor:warmup=5,tolerance=0.01|0.02|0.04" \
        --config "confidence_gated_taylor:threshold=0.05|0.13|0.3" \
        --config "dicache:threshold=0.1|0.2|0.4" --config "easycache:threshold=0.02|0.05|0.1" \
        --config "first_block_residual:warmup=4,threshold=0.05|0.1|0.2" \
        --config "fora:interval=2|3|5" --config "pab:spatial=2|4" \
        --config "seacache:max_consecutive=4,threshold=0.1|0.25|0.4" \
        --config "taylorseer:interval=2|3|5" \
        --config "peer/taylorseer:interval=3|5" --config "peer/magcache:threshold=0.06|0.12" \
        --config "peer/first_block_cache:threshold=0.05|0.1" --config "peer/pab:spatial=2|4"
      ;;
    shapes-wan)
      fitted "$model" 40 magcache 0.06 0.12
      fitted "$model" 40 teacache 0.1
      meancache 40 3 && meancache 40 4
      run eval "samples/models/$model" --out "$out/$model" --steps 40 --fewer 26,20,15,13,11 \
        --limit "${CLIPS:-2}" --pairs 1 --threads 1 "${both[@]}" "${configs[@]}" \
        --config "$interval,interval=4" \
        --config "steps:26+adaptive_taylor:tolerance=0.006|0.012,warmup=0.12" \
        --config "confidence_gated_taylor:threshold=0.13|0.36" \
        --config "dicache:threshold=0.2|0.4" --config "easycache:threshold=0.05|0.1" \
        --config "first_block_residual:warmup=4,threshold=0.1" \
        --config "fora:interval=2|3" --config "pab:spatial=2" \
        --config "seacache:max_consecutive=4,threshold=0.25|0.4" \
        --config "taylorseer:interval=2|3" \
        --config peer/taylorseer \
        --config peer/magcache --config "peer/first_block_cache:threshold=0.1" \
        --config peer/pab --config "peer/seacache:max_skip=4,threshold=0.25|0.4"
      ;;
    *)
      echo "caches.sh: no model $model; there are: shapes-flux shapes-wan" >&2
      exit 2
      ;;
  esac
done
