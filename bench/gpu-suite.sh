#!/usr/bin/env bash
# Everything that needs a GPU, one step after another, with a table at the end; fails when a step does.
#
#   bench/gpu-suite.sh                          all steps
#   bench/gpu-suite.sh tests bench              these steps alone, of: tests memcheck racecheck bench kernels served
#                                               startup cold-start; and table, which takes minutes, and
#                                               collectives, which takes several GPUs
#
# Logs and records go to $OUT (default bench/out). $WORK (default the system's temporary folder) gets a 1.2 GB checkpoint
# that the start-up steps read. $MODEL is the config that the benchmarks run with random weights (default
# bench/models/qwen3-0.6b); with tokenizer files beside it, served text is detokenized. Where there is no git,
# OCTAVO_COMMIT names the revision for the records.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-bench/out}
WORK=${WORK:-$(mktemp -d)}
CONFIG=${MODEL:-bench/models/qwen3-0.6b}
mkdir -p "$OUT"

sanitize() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  [ -n "$sanitizer" ] || { echo "compute-sanitizer is not on PATH: it comes with the CUDA toolkit"; return 1; }
  "$sanitizer" --error-exitcode 99 --print-limit 20 "$@"
}

checkpoint() {
  [ -f "$WORK/octavo-random-0.6b/model.safetensors" ] || bun run bench/make-model.ts "$CONFIG" "$WORK/octavo-random-0.6b"
}

step_tests() { OCTAVO_REQUIRE_GPU=1 OCTAVO_REQUIRE_NVRTC=1 bun run test:gpu; }
step_memcheck() { sanitize --tool memcheck bun run generate.ts --device cuda --max-tokens 16 --max-num-seqs 8; }
# Small steps: cuBLASLt's large tiles hand shared memory over by barriers that racecheck does not follow, and it reports them.
step_racecheck() {
  sanitize --tool racecheck bun run generate.ts --device cuda --max-tokens 12 --gpu-memory-utilization 0.1 \
    --max-num-seqs 8 --max-num-batched-tokens 512
}
step_bench() {
  bun run bench --workload bench/workloads/nano-vllm.json --model "$CONFIG" --load-format dummy \
    --json "$OUT/throughput.json"
}
step_kernels() { bun run bench:kernels --json "$OUT/kernels.json"; }
step_table() { bun run bench:table --json "$OUT/table.json"; }
step_served() {
  bun run bench:served --workload bench/workloads/nano-vllm.json --model "$CONFIG" --load-format dummy \
    --json "$OUT/served.json"
}
step_collectives() { bun run bench:collectives --stuck --json "$OUT/collectives.json"; }
step_startup() { checkpoint && bun run bench:startup --model "$WORK/octavo-random-0.6b" --json "$OUT/startup.json"; }
step_cold_start() {
  checkpoint && bun run bench:startup --model "$WORK/octavo-random-0.6b" --cold --runs 1 --json "$OUT/cold-start.json"
}

# Seconds that each step may take.
declare -A LIMIT=([tests]=300 [memcheck]=300 [racecheck]=300 [bench]=240 [kernels]=120 [table]=480 [served]=180 [collectives]=180 [startup]=180 [cold-start]=180)
STEPS=("$@")
[ ${#STEPS[@]} -gt 0 ] || STEPS=(tests memcheck racecheck bench kernels served startup cold-start)

# `timeout` takes a program, so each step runs in a shell of its own that has these functions.
export OUT WORK CONFIG
export -f sanitize checkpoint step_tests step_memcheck step_racecheck step_bench step_kernels step_table step_served step_collectives step_startup step_cold_start

table=""
failures=0
for step in "${STEPS[@]}"; do
  limit=${LIMIT[$step]:-}
  [ -n "$limit" ] || { echo "there is no step $step" >&2; exit 64; }
  echo "── $step (at most $limit s)"
  start=$SECONDS
  timeout --kill-after=10 "$limit" bash -c "step_${step//-/_}" 2>&1 | tee "$OUT/$step.log" | tail -n 60
  code=${PIPESTATUS[0]}
  case $code in
    0) verdict=ok ;;
    124 | 137) verdict="timed out" ;;
    *) verdict="failed ($code)" ;;
  esac
  [ "$code" -eq 0 ] || failures=$((failures + 1))
  table+=$(printf '%-12s %-12s %5d s' "$step" "$verdict" $((SECONDS - start)))$'\n'
done

rm -rf "$WORK/octavo-random-0.6b"
printf '\n%s' "$table"
exit $((failures > 0))
