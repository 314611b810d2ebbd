#!/bin/bash
# Make the shipped recording: a pool of node worker threads that minify JavaScript with terser.
# (V8 gets two helper threads, as many as the machine has CPUs, to keep the file near 3 MB.)
#
#   benchmarks/record_demo.sh OUTPUT.perf.data
#
# Needs perf, node, npm (for terser), root or perf_event_paranoid <= -1, and tracefs.
# The event set is built from this machine's tracefs, because perf refuses the whole
# recording over one unknown event.  The result is scrubbed of host data.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
output=$(realpath "${1:?usage: record_demo.sh OUTPUT.perf.data}")
tracefs=/sys/kernel/tracing/events
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp "$here/demo/minify.mjs" "$work/"
cd "$work"
npm install --silent --no-audit --no-fund --prefix "$work" terser@5 >/dev/null

events=(-e exceptions:page_fault_user -e exceptions:page_fault_kernel -e minor-faults -e major-faults)
for call in mmap munmap mprotect pkey_mprotect madvise process_madvise brk mremap mlock mlock2 \
            munlock shmat shmdt mbind clone clone3 fork vfork execve; do
  for side in enter exit; do
    if [ -d "$tracefs/syscalls/sys_${side}_$call" ]; then
      events+=(-e "syscalls:sys_${side}_$call")
    fi
  done
done
for event in contention_begin contention_end; do
  if [ -d "$tracefs/lock/$event" ]; then events+=(-e "lock:$event"); fi
done

WORKERS=${WORKERS:-2} FILES=${FILES:-size,sourcemap} \
  perf record -d -k CLOCK_MONOTONIC --switch-events -c 1 -m 4096 "${events[@]}" \
  -o raw.perf.data -- node --v8-pool-size=2 minify.mjs
python3 "$here/scrub_perf_data.py" raw.perf.data "$output"
