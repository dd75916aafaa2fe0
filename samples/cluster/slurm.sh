#!/bin/bash
# 16 tasks of one GPU each, at most 8 at a time. The shard comes from the array's own numbers.
#SBATCH --job-name=ditaccel
#SBATCH --array=0-15%8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
# TERM a minute before the end: what is being denoised is dropped, the rest is written.
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
set -euo pipefail

MODEL=${MODEL:-samples/models/shapes-wan}
JOBS=${JOBS:-samples/prompts/shapes-wan.txt}
OUT=${OUT:-out}

# exec: the signal must reach the command, not this shell.
exec ditaccel generate "$MODEL" --jobs "$JOBS" --out "$OUT" --config balanced ${EXTRA:-}
