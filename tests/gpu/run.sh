#!/usr/bin/env bash
# All that a GPU has to show, in one command, from the root of the tree; under 8 minutes. docs/GPU.md tells what.
#   bash tests/gpu/run.sh                with a GPU, Python 3.12, torch and the kit of make gpu-kit; no network
#   DEVICE=cpu bash tests/gpu/run.sh     in host memory, in the environment of make test
# Logs and figures go to $OUT.
set -uo pipefail
DEVICE=${DEVICE:-cuda} OUT=${OUT:-.gpu-out} failed=0
mkdir -p "$OUT"
lap() { printf '\n=== %s s: %s\n' "$SECONDS" "$*"; }
run() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2; shift 2; lap "$name"
  timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; local rc=$?
  [ $rc = 0 ] || { failed=1; echo "FAILED with $rc"; }
  tail -n "${TAIL:-14}" "$OUT/$name.log" | cut -c1-220
}

if [ "$DEVICE" = cpu ]; then
  PYTHON=${PYTHON:-.venv/bin/python} BACKENDS=${BACKENDS:-nixl mooncake_tcp} WORKERS=${WORKERS:-2} CHECKS=540 MOMENT=120
else
  PYTHON=${PYTHON:-python3} BACKENDS=${BACKENDS:-nixl mooncake_tcp mooncake_intra_nvlink nixl_tcp} WORKERS=${WORKERS:-4} CHECKS=200 MOMENT=30
  KIT=$(mktemp -d)
  tar -C "$KIT" -xJf .gpu-kit/site.tar.xz || { echo 'no kit: make gpu-kit, and bring .gpu-kit along'; exit 2; }
  PYTHONPATH=$("$PYTHON" tests/gpu/entry_points.py "$KIT/site") || exit 2
  cuda=$("$PYTHON" -c 'import nvidia.cu13; print(list(nvidia.cu13.__path__)[0] + "/lib")' 2>/dev/null)
  export PYTHONPATH LD_LIBRARY_PATH="$cuda:$KIT/lib:${LD_LIBRARY_PATH:-}"
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
fi
"$PYTHON" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__)'
TAIL=20 run backends "$MOMENT" "$PYTHON" -m pdcore backends
export PDCORE_TEST_DEVICE=$DEVICE PDCORE_TEST_BACKENDS=$BACKENDS PYTHONUNBUFFERED=1
TAIL=40 run checks "$CHECKS" "$PYTHON" -m pytest -o timeout=200 -n "$WORKERS" --dist load -rA tests/gpu
run figures "$MOMENT" "$PYTHON" tests/gpu/figures.py "$DEVICE"
if [ "$DEVICE" != cpu ]; then
  for backend in $BACKENDS; do
    run "bench-$backend" 50 "$PYTHON" -m pdcore bench --backend "$backend" --device "$DEVICE" --quick \
      --page-size 64 --page-size 16
  done
fi
lap "done, $([ $failed = 0 ] && echo 'all passed' || echo 'something FAILED')"
exit $failed
