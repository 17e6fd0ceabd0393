#!/bin/bash
# What ten minutes on a GPU settle: a JSON line for each check, the most valuable first.
#
#   bash tools/gpu_check.sh [--tiny] [NAME ...] | tee gpu_check.jsonl
#   python tools/gpu_check.py table gpu_check.jsonl      writes docs/performance.md's table
#
# --tiny tries all of it with tiny sizes on a CPU. With names, only these checks run. Each check ends
# at its own limit, all of them after GPU_CHECK_SECONDS (560); logs are in $OUT (gpu_check).
# {"check", "rc", "sec", "data"}: data is the last JSON line that the check printed.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TINY=; [ "${1:-}" = --tiny ] && { TINY=--tiny; shift; }
ONLY=" $* "; STARTED=$(date +%s); LIMIT=${GPU_CHECK_SECONDS:-560}
OUT=${OUT:-$PWD/gpu_check}; mkdir -p "$OUT"
PY=${PYTHON:-python3}; [ -x .venv/bin/python ] && PY=${PYTHON:-$PWD/.venv/bin/python}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

asked() { [ "$ONLY" = "  " ] || [[ "$ONLY" == *" $1 "* ]]; }
check() { # name, seconds at most, command
  local name=$1 most=$2 left=$((LIMIT - $(date +%s) + STARTED)) since=$SECONDS rc
  shift 2
  asked "$name" || return
  [ $most -gt $left ] && most=$left
  if [ $most -lt 10 ]; then echo "no time left" >"$OUT/$name.log"; rc=124
  else timeout -k 5 $most "$@" >"$OUT/$name.log" 2>&1; rc=$?; fi
  $PY tools/gpu_check.py line "$name" $rc $((SECONDS - since)) "$OUT/$name.log"
}
ours() { check "$1" "$2" $PY tools/gpu_check.py "$1" $TINY --out "$OUT"; }

if [ $TINY ]; then
  export CUDA_VISIBLE_DEVICES= MOCO_TRANSFER_PROGRESS=0
  SPLIT="--batch 16 --size 8 --repeats 1"
  FED="--threads 1 --arch resnet18 --size 32 --batch 16 --queue-size 64 --our-workers 1 --iterations 2 --repeats 1"
  FOUND="--models r18_fpn_small --engines ours ours-bf16 --size 96 128 --batch 1 --repeats 1"
else
  export BENCH_DEVICE=cuda
  SPLIT="--device cuda --batch 256 --size 224 --dtype bf16"
  CORES=$(nproc); WORKERS=$((CORES > 16 ? 16 : CORES))
  FED="--threads 4 --arch resnet50 --size 224 --batch 256 --queue-size 65536 --device cuda"
  FED="$FED --our-workers $WORKERS --iterations 60 --repeats 2"
  $PY -c 'import detectron2' 2>/dev/null && ENGINES= || ENGINES="--engines ours ours-bf16"
  FOUND="--size 800 1216 --repeats 5 $ENGINES"
fi

ours environment 40
check tests 100 $PY -m pytest -q -m gpu -p no:cacheprovider \
  $(grep -rl 'mark\.gpu' tests --include='test_*.py' --exclude-dir=tools)
ours equal 60      # the CPU's losses?
ours step 80       # images/s and memory, ours and as published
ours profile 80    # where its time goes
check split_norm 30 $PY tools/bench_split_norm.py $SPLIT
ours images 30
asked fed && [ ! -d "$OUT/images" ] && # asked for alone
  $PY tools/gpu_check.py images $TINY --out "$OUT" >"$OUT/images.log" 2>&1
check fed 70 $PY tools/bench_pretrain.py --data "$OUT/images" --what ours $FED
check detectors 90 $PY tools/bench_detection.py $FOUND
ours resume 60
ours ranks 60      # two on one GPU
ours sanitizer 60
ours compiled 120
