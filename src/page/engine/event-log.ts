import type { RunningSequence } from "../../base/engine-view.ts";
import type { EngineState } from "./engine-state.ts";

export interface EngineEvent {
  readonly number: number;
  readonly time: number;
  readonly kind: "preempted" | "began" | "ended";
  readonly text: string;
}

const KEPT = 60;

/** Events between snapshots, as far as these tell: sequences that began, ended, or were preempted. */
export class EventLog {
  /** Latest first. */
  list: readonly EngineEvent[] = [];
  #count = 0;
  #before: EngineState | undefined;

  add(state: EngineState): void {
    const before = this.#before;
    this.#before = state;
    if (!before) return;
    const events: Omit<EngineEvent, "number">[] = [];
    const add = (kind: EngineEvent["kind"], text: string) => events.push({ time: state.time, kind, text });
    const ran = new Map(before.running.map((sequence) => [sequence.sequence, sequence]));
    const put = new Map(state.waiting.map((sequence) => [sequence.sequence, sequence]));
    let seen = 0;
    for (const sequence of state.running) {
      if (!ran.delete(sequence.sequence)) add("began", begun(sequence));
    }
    for (const [sequence, { tokens }] of ran) {
      const waiting = put.get(sequence);
      if (waiting) {
        seen++;
        add("preempted", `#${sequence} gave its blocks back: ${waiting.tokens} tokens to compute again`);
      } else add("ended", `#${sequence} ended after ${tokens} tokens`);
    }
    // Those that were admitted again since.
    const missed = state.stats.preemptions - before.stats.preemptions - seen;
    if (missed > 0) add("preempted", `${missed} more, running again by now`);
    if (events.length === 0) return;
    const numbered = events.map((event) => ({ ...event, number: this.#count++ }));
    this.list = [...numbered.reverse(), ...this.list].slice(0, KEPT);
  }
}

function begun({ sequence, promptTokens, cachedTokens }: RunningSequence): string {
  const cached = cachedTokens > 0 ? `, ${cachedTokens} of them from the cache` : "";
  return `#${sequence} began with ${promptTokens} prompt tokens${cached}`;
}
