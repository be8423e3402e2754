/**
 * The module's exports. A task is a kernel, its arguments and a number of units; whichever thread comes claims the next unit until
 * none is left. What a unit computes does not depend on who computes it, nor on the number of threads.
 *
 * The thread that has a task closes the claim, writes the task down, opens it, takes part, and waits for the units that others have
 * claimed. A thread that comes late claims nothing: the number of the task is part of the word that it would have to exchange.
 */
import { attend } from "./attend";
import { capLogits } from "./cap";
import { draw, findThreshold } from "./draw";
import * as layout from "./layout";
import { layerNorm, rmsNorm } from "./norm";
import { prepareFloats, prepareIntegers } from "./prepare";
import { multiply } from "./product";
import { read } from "./read";
import { rotateAndStore } from "./rotate";

/** How often a thread looks before it sleeps, some 150 µs: the time between two large tasks of a layer. */
const SPINS: i32 = 30000;
/** Longest sleep, in nanoseconds: who sleeps looks again after it, woken or not. */
const NAP: i64 = 20_000_000;

function compute(kernel: i32, unit: i32, scratch: usize): void {
  if (kernel === layout.READ) read(unit);
  else if (kernel === layout.PREPARE_FLOATS) prepareFloats(unit, scratch);
  else if (kernel === layout.PREPARE_INTEGERS) prepareIntegers(unit, scratch);
  else if (kernel === layout.MULTIPLY) multiply(unit, scratch);
  else if (kernel === layout.ROTATE_AND_STORE) rotateAndStore(unit);
  else if (kernel === layout.ATTEND) attend(unit, scratch);
  else if (kernel === layout.FIND_THRESHOLD) findThreshold(unit, scratch);
  else if (kernel === layout.DRAW) draw(unit);
  else if (kernel === layout.RMS_NORM) rmsNorm(unit, scratch);
  else if (kernel === layout.LAYER_NORM) layerNorm(unit);
  else if (kernel === layout.CAP_LOGITS) capLogits(unit, scratch);
  else unreachable();
}

/** Nobody claims units from here on: the task may be written down. All units of the one before are done. */
export function close(): void {
  const number = atomic.load<i64>(layout.CLAIM) >>> 32;
  atomic.store<i64>(layout.CLAIM, ((number + 1) << 32) | <i64>layout.CLOSED);
}

/** Units may be claimed. */
export function open(): void {
  atomic.store<i32>(layout.DONE, 0);
  atomic.store<i64>(layout.CLAIM, (atomic.load<i64>(layout.CLAIM) >>> 32) << 32);
}

/** Computes units until none is left to claim. */
export function run(thread: i32): void {
  let claim = atomic.load<i64>(layout.CLAIM);
  const number = claim >>> 32;
  const total = load<i32>(layout.TOTAL);
  const kernel = load<i32>(layout.KERNEL);
  const scratch = load<usize>(layout.SCRATCH) + <usize>thread * layout.SCRATCH_BYTES;
  while (claim >>> 32 === number) {
    const unit = <i32>claim;
    // Closed is negative.
    if (unit < 0 || unit >= total) return;
    const found = atomic.cmpxchg<i64>(layout.CLAIM, claim, claim + 1);
    if (found === claim) {
      compute(kernel, unit, scratch);
      if (atomic.add<i32>(layout.DONE, 1) + 1 === total) atomic.notify(layout.DONE, 1);
      claim = atomic.load<i64>(layout.CLAIM);
    } else claim = found;
  }
}

/** Waits some time for the units that other threads have claimed. @returns whether all are done */
export function finish(): bool {
  const total = load<i32>(layout.TOTAL);
  for (let spin = 0; spin < SPINS; spin++) if (atomic.load<i32>(layout.DONE) === total) return true;
  const done = atomic.load<i32>(layout.DONE);
  if (done !== total) atomic.wait<i32>(layout.DONE, done, NAP);
  return atomic.load<i32>(layout.DONE) === total;
}

/**
 * Waits some time for the bell to ring another time than the one that is known. @returns how often it has rung
 * @param isAwake it has rung since the thread last slept: more is likely to come, so it looks for some time before it sleeps
 */
export function listen(known: i32, isAwake: bool): i32 {
  if (isAwake)
    for (let spin = 0; spin < SPINS; spin++) {
      const rung = atomic.load<i32>(layout.BELL);
      if (rung !== known) return rung;
    }
  atomic.add<i32>(layout.SLEEPERS, 1);
  atomic.wait<i32>(layout.BELL, known, NAP);
  atomic.sub<i32>(layout.SLEEPERS, 1);
  return atomic.load<i32>(layout.BELL);
}
