#!/usr/bin/env bash
# Trains on Cloud TPU VMs, on all hosts of a slice, and continues after preemption.
#
#   launch/tpu-vm.sh [--dry-run] create                 ask for the slice and wait for it
#   launch/tpu-vm.sh [--dry-run] install                this checkout's HEAD on all hosts
#   launch/tpu-vm.sh [--dry-run] train PRESET [...]     train; again after preemption
#   launch/tpu-vm.sh [--dry-run] stop                   have the hosts save and end, and `train` too
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
#   POLL         seconds between two looks at the state (30); ten that fail in a row end the script
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
  create | install | stop | delete) [ $# -eq 0 ] || usage ;;
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
on_all() { # SCRIPT; leaves what the hosts said in messages
  gcloud_tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command="$1" 2>&1 |
    tee "$scratch/messages"
}
# Never the exit code: gcloud gives the first that is not 0, in the order of the hosts, and ends
# with 1 where it could not reach them, too.
hosts_said() { # PATTERN
  grep -Eqs "launch: [^ ]+ $1\$" "$scratch/messages"
}
look() { # sets now: the state of the request for the slice, or GONE
  local failed=0
  until now=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" \
    --format='value(state.state)' 2>"$scratch/error") && [ -n "$now" ]; do
    if grep -q NOT_FOUND "$scratch/error"; then
      now=GONE
      return
    fi
    failed=$((failed + 1))
    if [ "$failed" -ge 10 ]; then
      fail "$NAME: its state cannot be read: $(cat "$scratch/error")"
    fi
    sleep "$poll"
  done
}

create() {
  local options=(--node-id "$NAME" --accelerator-type "$accelerator")
  options+=(--runtime-version "$runtime")
  if [ "$spot" != 0 ]; then
    options+=(--spot)
  fi
  gcloud_tpus queued-resources create "$NAME" "${where[@]}" "${options[@]}" || return
  if [ "$dry" = yes ]; then
    gcloud_tpus queued-resources describe "$NAME" "${where[@]}" '--format=value(state.state)'
    return
  fi
  arrived
}

arrived() { # waits for the slice that was asked for
  while true; do
    look
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "$NAME: the request for $accelerator in $ZONE is $now: delete it, try another ZONE" ;;
      GONE) fail "$NAME: the request for $accelerator in $ZONE was deleted: ask again" ;;
    esac
    echo "launch: $NAME is $now; waiting" >&2
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
    command="need_gcsfuse && gcsfuse --implicit-dirs --rename-dir-limit=100000"
    command+=" $(quoted "$BUCKET" "$shared")"
  fi
  cat <<MOUNTING
need_gcsfuse() {
  command -v gcsfuse >/dev/null || {
    echo "launch: \$(hostname): gcsfuse is not installed: install it on the hosts, or set MOUNT"
    return 1
  }
}
if ! mountpoint -q $shared; then
  sudo mkdir -p $shared && sudo chown "\$(id -u)" $shared
  $command || {
    echo "launch: \$(hostname): $shared cannot be mounted: see BUCKET and MOUNT"
    echo "launch: \$(hostname) ended with 2"
    exit 2
  }
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
    git -C "$root" archive --format=tar.gz --output="$archive" HEAD ||
      fail "$root: cannot be packed: start this script from a git checkout"
    echo "launch: installing $(git -C "$root" describe --always --dirty)" >&2
  fi
  gcloud_tpus tpu-vm scp "$archive" "$NAME:jaxfuse.tar.gz" "${where[@]}" --worker=all || return
  on_all "$setup"
}

# gcloud runs a command again whose connection broke: each host holds a lock, so that no second
# training joins the first, and keeps the number of the process that holds it.
once() { # STARTED ARGUMENTS OF JAXFUSE
  local started=$1 script
  shift
  script="$(mounting)
if [ $started = 0 ]; then flock --nonblock jaxfuse.lock rm -f jaxfuse.stop; fi
export JAX_COMPILATION_CACHE_DIR=$shared/cache
flock --wait 600 --conflict-exit-code 75 jaxfuse.lock \
  sh -c 'echo \$\$ >jaxfuse.pid; [ ! -e jaxfuse.stop ] || exit 75; exec \"\$@\"' sh \
  venv/bin/jaxfuse train $(quoted "$@") --run $(quoted "$run")
code=\$?
echo \"launch: \$(hostname) ended with \$code\"
if [ -e jaxfuse.stop ]; then echo \"launch: \$(hostname) was asked to stop\"; fi
exit \$code"
  on_all "$script"
}

stop() {
  # The lock comes free when the process has saved and ended.
  on_all "touch jaxfuse.stop
if flock --nonblock jaxfuse.lock true; then
  echo \"launch: \$(hostname): nothing runs\"
  exit
fi
kill -TERM \$(cat jaxfuse.pid)
flock --wait 600 jaxfuse.lock true || {
  echo \"launch: \$(hostname): still saving after 600 seconds\"
  exit 1
}
echo \"launch: \$(hostname): stopped\""
}

interrupted() {
  trap - INT # a second one ends the script
  echo "launch: the hosts go on by themselves: asking them to save and stop" >&2
  stop || fail "$NAME: not all hosts are known to have stopped: try $0 stop"
  fail "$NAME: stopped; train continues" 75
}

renew() { # a slice with this checkout, whatever is there
  # Whoever asks for the outcome of a function turns -e off in it, so that each step says `return`.
  settle
  case $now in
    ACTIVE) ;;
    GONE) create || return ;;
    FAILED | SUSPENDED) { delete && create; } || return ;;
    *) arrived ;;
  esac
  install
}

settle() { # as look, when the slice is no more on its way
  look
  while [ "$now" = SUSPENDING ] || [ "$now" = DELETING ]; do
    sleep "$poll"
    look
  done
}

train() {
  local started=0 installed=yes code
  if [ "$dry" = no ]; then
    settle
    case $now in
      ACTIVE) ;;
      GONE) fail "$NAME: no such slice in $ZONE: create and install it first" 2 ;;
      *) installed=no ;;
    esac
  fi
  while true; do
    code=0
    if [ "$installed" = no ]; then
      renew || code=$?
    fi
    if [ "$code" -eq 0 ]; then
      installed=yes
      trap interrupted INT
      once "$started" "$@" || code=$?
      trap - INT
    fi
    if [ "$code" -eq 0 ]; then
      return
    elif hosts_said 'ended with [12]'; then
      fail "$NAME: failed, which another start does not mend: see the messages above"
    elif hosts_said 'was asked to stop'; then
      fail "$NAME: stopped; train continues" 75
    elif [ "$started" -ge "$restarts" ]; then
      fail "$NAME: ended with $code; RESTARTS=$restarts is used up; train continues" "$code"
    fi
    started=$((started + 1))
    # A slice that was taken away is ACTIVE for a moment still, then SUSPENDING.
    sleep "$poll"
    settle
    echo "launch: ended with $code, the slice is $now; start $started of $restarts" >&2
    if [ "$now" != ACTIVE ]; then
      installed=no
    fi
  done
}

case $action in
  create | install | stop | delete) "$action" ;;
  train) train "$@" ;;
  fetch)
    gcloud_tpus tpu-vm scp "$NAME:$run" "$1" "${where[@]}" --worker=0 --recurse
    ;;
esac
