#!/usr/bin/env bash
# Caches against fewer steps with the same scheduler, on shapes-wan with three schedulers and on the
# sample with two experts: `eval/bench/tables/schedulers.sh OUT [TABLE ...]`, TABLE one of unipc, dpm, euler
# and experts (default: all), on LIMIT clips (4). Each takes about half an hour on one core; a killed
# one goes on where it stopped when the same command is run again.
set -euo pipefail
cd "$(dirname "$0")/../../.."
out=${1:?usage: eval/bench/tables/schedulers.sh OUT [TABLE ...]}
shift
tables=("$@")
[ ${#tables[@]} -gt 0 ] || tables=(unipc dpm euler experts)
python=.venv/bin/python
[ -x "$python" ] || python=python
forecast=granularity=last_block,target=output,guidance=difference,correction=auto,final=1

table() { # NAME MODEL SCHEDULER
  HF_HUB_OFFLINE=1 "$python" -P -m ditaccel eval "samples/models/$2" --scheduler "$3" \
    --out "$out/$1" --steps 40 --fewer 26,20,15,13,11,10 --limit "${LIMIT:-4}" --pairs 1 --threads 1 \
    --config safe --config balanced --config fast \
    --config "interval=taylorseer:$forecast,coordinate=auto,warmup=6,interval=4|5" \
    --config "steps:26+adaptive_taylor:tolerance=0.006|0.012|0.02,warmup=0.12" \
    --config "steps:20+adaptive_taylor:tolerance=0.012|0.03,warmup=0.12" \
    --config "peer/cache_dit:fn=1,warmup=4" --config peer/taylorseer --config peer/magcache \
    --config "SeaCache=peer/seacache:max_skip=4,threshold=0.25|0.4|0.5" \
    --config "steps:26+peer/seacache:max_skip=4,threshold=0.25"
}

for name in "${tables[@]}"; do
  case $name in
    unipc) table unipc shapes-wan unipc ;;
    dpm) table dpm shapes-wan dpm++2m ;;
    euler) table euler shapes-wan euler ;;
    experts) table experts shapes-wan22 unipc ;;
    *)
      echo "schedulers.sh: no table $name; there are: unipc dpm euler experts" >&2
      exit 2
      ;;
  esac
done
