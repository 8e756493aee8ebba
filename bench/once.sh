#!/usr/bin/env bash
# All that time on an accelerator is for, in one call: measure, train by the published
# schedule, score; results and weights end up in OUT, flat.
#
#   bash bench/once.sh DATA OUT [measure] [train] [score]
#
# DATA holds roadscene, msrs, tno and splits. Without names all three are done, in this order. What
# has been trained is continued when called again with the same WORK (default: runs/once).
# PYTHON names the interpreter (default .venv/bin/python, else python3); WHEELS a folder of wheels that it lacks, for machines
# without a network; TINY=--tiny only checks that measuring runs; PICTURES a folder that bench.rivals wrote, else published networks keep
# the scores they have.
set -euo pipefail

fail() { echo "once.sh: $1" >&2; exit 1; }
[ $# -ge 2 ] || fail "give DATA and OUT: bash bench/once.sh DATA OUT [measure] [train] [score]"
[ -d "$1/splits" ] || fail "$1: has no folder splits: name the folder that holds roadscene, msrs and splits"
data=$(realpath "$1") out=$(realpath -m "$2")
shift 2
root=$(realpath "$(dirname "$0")/..")
cd "$root"
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
work=${WORK:-runs/once}
export PYTHONPATH=$root PYTHONUNBUFFERED=1

if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install -q --no-index --no-deps "$WHEELS"/*.whl
fi

if ! "$python" -c 'import jax, numpy' 2>/dev/null; then
  fail "$python lacks what jaxfuse needs: set PYTHON to one that has it (make install makes .venv/bin/python)"
fi
mkdir -p "$out" && out=$(realpath "$out")

measure() {
  # shellcheck disable=SC2086  # TINY is an option or nothing.
  "$python" -m bench accelerator ${TINY:-} --out "$out"
}
train() {
  local began=$SECONDS
  "$python" -m bench.pretrain crossfuse_published --data "$data" --work "$work"
  echo "crossfuse, the published schedule: $((SECONDS - began)) s" | tee "$out/seconds.txt"
  "$python" -m bench.pretrain lite --data "$data" --work "$work"
  cp jaxfuse/pretrained/*.safetensors jaxfuse/pretrained/SHA256SUMS "$out"
}
score() {
  "$python" -m bench.pretrain score --data "$data" --work "$work" ${PICTURES:+--pictures "$PICTURES"}
  cp bench/results/weights/scores.json "$out"
}

[ $# -gt 0 ] || set -- measure train score
for phase in "$@"; do
  case $phase in
    measure | train | score) "$phase" ;;
    *) fail "$phase: choose among measure, train and score" ;;
  esac
done
