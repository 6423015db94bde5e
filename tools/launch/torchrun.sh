#!/usr/bin/env bash
# Run a tool on every GPU of one node, or of several; a run that fails is started again and resumes from its checkpoint.
#
#   one node:             tools/launch/torchrun.sh tools/train.py CONFIG [key=value ...]
#   on each of 2 nodes:   NODES=2 HEAD=node-a NODE=0 tools/launch/torchrun.sh tools/train.py CONFIG [key=value ...]
#                         NODES=2 HEAD=node-a NODE=1 tools/launch/torchrun.sh tools/train.py CONFIG [key=value ...]
#
# NODES     number of nodes, or least:most for a job that continues with fewer     (1)
# NODE      0 on the head node, any other number elsewhere                       (0)
# HEAD      name or address of the head node, as the others reach it             (localhost)
# PORT      a free port of the head node                                         (29400)
# ADDRESS   this node's address, where others do not know its host name          (its host name)
# JOB       a name that two jobs on one head node must not share                 (video_gn)
# RANKS     processes on this node                                               (its GPUs; 1 without)
# RESTARTS  times that a failed job is started again                             (3)
# JOIN      seconds to wait for all nodes                                        (600)
# PYTHON    the interpreter                                                      (python3)
#
# Exit codes: 0 done, 2 a mistake (not tried again), 75 stopped by SIGTERM or SIGUSR1 (run again to resume), 1 all else.
set -euo pipefail

python=${PYTHON:-python3}
nodes=${NODES:-1}
if [[ $nodes != 1 && -z ${HEAD:-} ]]; then
    echo "error: NODES=$nodes needs HEAD, the head node's name or address" >&2
    exit 2
fi
if [[ $# == 0 ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
options=(
    --nnodes="$nodes"
    --nproc-per-node="${RANKS:-$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
    --max-restarts="${RESTARTS:-3}"
    --rdzv-backend=c10d
    --rdzv-id="${JOB:-video_gn}"
    --rdzv-endpoint="${HEAD:-localhost}:${PORT:-29400}"
    --rdzv-conf="is_host=$([[ ${NODE:-0} == 0 ]] && echo 1 || echo 0),join_timeout=${JOIN:-600},last_call_timeout=15"
)
if [[ -n ${ADDRESS:-} ]]; then
    options+=(--local-addr="$ADDRESS")
fi
# A store for each start: torchrun's own would keep the keys of the ranks before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" "$(dirname "$0")/agent.py" "${options[@]}" "$@"
