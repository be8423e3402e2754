import type { StepAreas } from "../../src/backend/backend.ts";
import type { Fixture } from "./fixture.ts";

/** Areas of poisoned shared memory, as step `step`, the next to begin, finds them. */
export function stepAreas(
  fixture: Fixture,
  { step, depth, words }: { step: number; depth: number; words: number },
): StepAreas & { readonly area: (index: number) => Int32Array } {
  const memory = fixture.shared([depth, words]);
  return {
    steps: fixture.stateOf("uint32", Uint32Array.of(step), [1]),
    areas: memory.tensor,
    area: (index) => memory.words.subarray(index * words, (index + 1) * words),
  };
}
