#!/bin/sh
# Measures goodput under overload: how many operations a second succeed within their time limit when
# more arrive than the cluster can serve.
#
#   benches/goodput.sh PROGRAM [WORKLOAD] [SECONDS] [TIMEOUT_MS]
#
# The servers of three nodes share a fifth of a core (CORE_PERCENT), so that the load generator can
# send five times what they can serve. Needs root, for a control group. Prints a line for each rate.
set -eu
program=$1 workload=${2:-put} seconds=${3:-8} timeout_ms=${4:-1000}
core_percent=${CORE_PERCENT:-20}
dir=$(mktemp -d)
if [ -w /sys/fs/cgroup/cpu ]; then
    group=/sys/fs/cgroup/cpu/palisade-goodput
    mkdir -p "$group"
    echo 10000 > "$group/cpu.cfs_period_us"
    echo $((core_percent * 100)) > "$group/cpu.cfs_quota_us"
else
    group=/sys/fs/cgroup/palisade-goodput
    echo +cpu > /sys/fs/cgroup/cgroup.subtree_control
    mkdir -p "$group"
    echo "$((core_percent * 100)) 10000" > "$group/cpu.max"
fi
pids=
cleanup() {
    trap - EXIT INT TERM
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    sleep 0.2
    rmdir "$group" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT INT TERM

nodes=
for node in 0 1 2; do
    nodes="$nodes
[[nodes]]
node = $node
host = \"127.0.0.1\"
client_port = $((17000 + 10 * node))
peer_port = $((17005 + 10 * node))"
done
for node in 0 1 2; do
    cat > "$dir/$node.toml" <<TOML
cluster_id = 17
node = $node
data_dir = "$dir/data-$node"
shards = 1
ranges_per_mode = 6
mode = "raft"
[clock]
source = "fixed"
bound_us = 10
$nodes
TOML
    sh -c "echo \$\$ > $group/cgroup.procs; exec $program start --config $dir/$node.toml" \
        > "$dir/$node.log" 2>&1 &
    pids="$pids $!"
done
addresses=127.0.0.1:17000,127.0.0.1:17010,127.0.0.1:17020

bench() {
    "$program" bench --connect "$addresses" --workload "$workload" --seconds "$seconds" \
        --json "$dir/run.json" "$@" > "$dir/run.txt"
    sed -n 's/^ *"ops_per_s": \([0-9]*\).*/\1/p' "$dir/run.json" | head -n 1
}
figure() {
    sed -n "s/^ *\"$1\": \([0-9]*\).*/\1/p" "$dir/run.json" | head -n 1
}

# The capacity is what a closed loop of many clients reaches.
bench --clients 2048 > /dev/null
capacity=$(bench --clients 2048)
echo "capacity: $capacity operations/s ($workload, time limit $timeout_ms ms)"
echo "offered  operations/s  goodput/s  of capacity  p50 ms  p99 ms  generator CPU"
for tenths in 5 8 10 12 15 20 30 50 5; do
    rate=$((capacity * tenths / 10))
    goodput=$(bench --rate "$rate" --timeout-ms "$timeout_ms")
    awk -v x="$tenths" -v rate="$rate" -v good="$goodput" -v peak="$capacity" \
        -v p50="$(figure p50)" -v p99="$(figure p99)" -v cpu="$(figure client_cpu_us_per_op)" \
        'BEGIN { printf "%6.1fx  %12d  %9d  %10d%%  %6.1f  %6.1f  %12d%%\n", x / 10, rate, good,
            100 * good / peak, p50 / 1000, p99 / 1000, good * cpu / 10000 }'
done
