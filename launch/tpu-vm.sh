#!/usr/bin/env bash
# Trains on Cloud TPU VMs, on all hosts of a slice, and continues after preemption.
#
#   launch/tpu-vm.sh [--dry-run] create                 ask for the slice and wait for it
#   launch/tpu-vm.sh [--dry-run] install                this checkout's HEAD on all hosts
#   launch/tpu-vm.sh [--dry-run] train PRESET [...]     train; again after preemption
#   launch/tpu-vm.sh [--dry-run] fetch DIR              copy the run folder to DIR here
#   launch/tpu-vm.sh [--dry-run] delete                 give the slice back
#
# --dry-run prints the commands instead of running them. Environment variables:
#
#   NAME         of the slice and the run (needed)
#   ZONE         (needed)
#   BUCKET       Cloud Storage bucket that holds the run folders (needed, unless MOUNT is set)
#   PROJECT      gcloud's own where not set
#   ACCELERATOR  v5litepod-16
#   RUNTIME      v2-alpha-tpuv5-lite, the image of the hosts
#   SPOT         1: cheaper, may be taken away; 0: not
#   RESTARTS     how often training is started again (20)
#   PYTHON       python3.11, on the hosts; installed where it is missing
#   MOUNT        command that mounts shared storage as /mnt/shared on a host, instead of BUCKET
#   POLL         seconds between two looks at the state (30)
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2
  exit 2
}
fail() {
  echo "launch: $1" >&2
  exit "${2:-1}"
}
whole() { # NAME VALUE
  case $2 in '' | *[!0-9]*) fail "$1=$2: give a whole number" 2 ;; esac
}

dry=no
if [ "${1:-}" = --dry-run ]; then
  dry=yes
  shift
fi
[ $# -ge 1 ] || usage
action=$1
shift
case $action in
  create | install | delete) [ $# -eq 0 ] || usage ;;
  fetch) [ $# -eq 1 ] || usage ;;
  train) [ $# -ge 1 ] || usage ;;
  *) usage ;;
esac

[ -n "${NAME:-}" ] || fail "NAME: name the slice, as in NAME=fuse" 2
[ -n "${ZONE:-}" ] || fail "ZONE: name the zone, as in ZONE=us-west4-a" 2
accelerator=${ACCELERATOR:-v5litepod-16}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite}
spot=${SPOT:-1}
restarts=${RESTARTS:-20}
python=${PYTHON:-python3.11}
poll=${POLL:-30}
whole SPOT "$spot"
whole RESTARTS "$restarts"
whole POLL "$poll"
where=(--zone "$ZONE")
if [ -n "${PROJECT:-}" ]; then
  where+=(--project "$PROJECT")
fi
case $action in
  install | train)
    [ -n "${MOUNT:-}${BUCKET:-}" ] || fail "BUCKET: name the bucket for run folders, or set MOUNT" 2
    ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
shared=/mnt/shared
run=$shared/runs/$NAME

# What a remote shell reads: every word quoted for it.
quoted() {
  printf '%q ' "$@"
}
gcloud_tpus() {
  if [ "$dry" = yes ]; then
    quoted gcloud compute tpus "$@"
    echo
  else
    gcloud compute tpus "$@"
  fi
}
on_all() { # SCRIPT
  gcloud_tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1"
}
state() { # of the request for the slice; empty where there is none
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || true
}

create() {
  local now options=(--node-id "$NAME" --accelerator-type "$accelerator")
  options+=(--runtime-version "$runtime")
  if [ "$spot" != 0 ]; then
    options+=(--spot)
  fi
  gcloud_tpus queued-resources create "$NAME" "${where[@]}" "${options[@]}"
  if [ "$dry" = yes ]; then
    gcloud_tpus queued-resources describe "$NAME" "${where[@]}" '--format=value(state.state)'
    return
  fi
  while true; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "$NAME: the request for $accelerator in $ZONE is $now: delete it, try another ZONE" ;;
    esac
    echo "launch: $NAME is ${now:-unknown}; waiting" >&2
    sleep "$poll"
  done
}

delete() {
  # --force: with the hosts. Nothing of value is on them: runs lie on shared storage.
  gcloud_tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# What a host runs so that shared storage is there, also after it was started anew.
mounting() {
  local command=${MOUNT:-}
  if [ -z "$command" ]; then
    # Checkpoints are written beside their place and renamed, a folder at a time.
    command="gcsfuse --implicit-dirs --rename-dir-limit=100000 $(quoted "$BUCKET" "$shared")"
  fi
  cat <<MOUNTING
if ! mountpoint -q $shared; then
  sudo mkdir -p $shared && sudo chown "\$(id -u)" $shared
  $command || { echo 'launch: $shared cannot be mounted: see BUCKET and MOUNT'; exit 2; }
fi
mkdir -p $shared/runs $shared/cache
MOUNTING
}

install() {
  local root archive setup mounted
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  mounted=$(mounting)
  setup=$(
    cat <<SETUP
set -e
command -v $(quoted "$python") >/dev/null || {
  sudo apt-get update -qq
  sudo apt-get install -y -qq $(quoted "$python" "$python-venv")
}
rm -rf jaxfuse && mkdir jaxfuse && tar -xzf jaxfuse.tar.gz -C jaxfuse
$(quoted "$python") -m venv venv
cd jaxfuse && ../venv/bin/python -m pip install -q -c constraints.txt '.[tpu]' && cd ..
$mounted
SETUP
  )
  archive=jaxfuse.tar.gz
  if [ "$dry" = yes ]; then
    quoted git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    echo
  else
    archive=$scratch/jaxfuse.tar.gz
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD
    echo "launch: installing $(git -C "$root" describe --always --dirty)" >&2
  fi
  gcloud_tpus tpu-vm scp "$archive" "$NAME:jaxfuse.tar.gz" "${where[@]}" --worker=all
  on_all "$setup"
}

# gcloud gives the code of the first host only, and runs a command again whose connection broke:
# each host says for itself how it ended, and holds a lock, so that no second one joins the first.
once() { # ARGUMENTS OF JAXFUSE; sets code
  local script
  script="$(mounting)
export JAX_COMPILATION_CACHE_DIR=$shared/cache
flock --wait 600 --conflict-exit-code 75 jaxfuse.lock \
  venv/bin/jaxfuse train $(quoted "$@") --run $(quoted "$run")
code=\$?
echo \"launch: \$(hostname) ended with \$code\"
exit \$code"
  code=0
  if [ "$dry" = yes ]; then
    on_all "$script"
    return
  fi
  on_all "$script" 2>&1 | tee "$scratch/messages" || code=${PIPESTATUS[0]}
  if grep -Eq 'launch: [^ ]+ ended with [12]$' "$scratch/messages"; then
    code=1
  fi
}

train() {
  local started=0 now
  while true; do
    once "$@"
    case $code in
      0) return ;;
      1 | 2) fail "$NAME: failed, which another start does not mend: see the messages above" ;;
    esac
    if [ "$started" -ge "$restarts" ]; then
      fail "$NAME: ended with $code; RESTARTS=$restarts is used up; train continues" "$code"
    fi
    started=$((started + 1))
    # A slice that was taken away is ACTIVE for a moment still, then SUSPENDING.
    sleep "$poll"
    now=$(state)
    while [ "$now" = SUSPENDING ]; do
      sleep "$poll"
      now=$(state)
    done
    echo "launch: ended with $code, the slice is ${now:-gone}; start $started of $restarts" >&2
    if [ "$now" != ACTIVE ]; then
      if [ -n "$now" ]; then
        delete
      fi
      create
      install
    fi
  done
}

case $action in
  create | install | delete) "$action" ;;
  train) train "$@" ;;
  fetch)
    gcloud_tpus tpu-vm scp "$NAME:$run" "$1" "${where[@]}" --worker=0 --recurse
    ;;
esac
