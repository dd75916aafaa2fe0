#!/usr/bin/env bash
# Attention methods end to end on clips of 6272 tokens (shapes-wan at 112 x 112 under UniPC), alone
# and with a cache, beside caches alone and fewer steps: `eval/bench/tables/attention.sh OUT`, on CLIPS
# clips (2) at STEPS steps (20). Takes about an hour on one core; a killed run goes on where it
# stopped when the same command is run again. `ditaccel bench maps` says which maps are worth it.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:?usage: eval/bench/tables/attention.sh OUT}
steps=${STEPS:-20}
python=.venv/bin/python
[ -x "$python" ] || python=python
sparse=(sla:critical=0.05 sla:critical=0.2 ditfastattn rainfusion:rest=moments lite_attention)
configs=()
for spec in "${sparse[@]}"; do configs+=(--config "$spec"); done
HF_HUB_OFFLINE=1 "$python" -P -m ditaccel eval samples/models/shapes-wan --out "$out" \
  --steps "$steps" --fewer "$((steps * 2 / 3)),$((steps / 2)),$((steps / 3))" \
  --call height=112 --call width=112 --limit "${CLIPS:-2}" --pairs 1 --threads 1 \
  "${configs[@]}" --config "sla:mode=sparse,critical=0.2" \
  --config balanced --config "balanced & sla:critical=0.05" \
  --config "fast & sla:critical=0.05"
