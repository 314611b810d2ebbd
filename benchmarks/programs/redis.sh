#!/bin/sh
# Loads a redis server on port $1: sets, a background save (fork), a flush; then ends it.
for _ in $(seq 100); do
	redis-cli -p "$1" ping >/dev/null 2>&1 && break
	sleep 0.2
done
load() { timeout 60 redis-benchmark -p "$1" -c 20 -d 3000 -r 40000 -t set -q -n "$2" >/dev/null 2>&1; }
load "$1" 40000
redis-cli -p "$1" bgsave >/dev/null
load "$1" 20000
redis-cli -p "$1" flushall >/dev/null
load "$1" 20000
redis-cli -p "$1" shutdown nosave >/dev/null 2>&1
