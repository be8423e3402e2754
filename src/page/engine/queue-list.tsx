import type { EngineState } from "./engine-state.ts";

/** The sequences that wait, in the order in which they will be taken. */
export function QueueList({ state, most }: { readonly state: EngineState; readonly most: number }) {
  const { waiting, stats } = state;
  if (stats.waiting === 0) return <p class="muted empty">Nobody waits.</p>;
  return (
    <>
      <ol class="queue">
        {waiting.slice(0, most).map(({ sequence, tokens, preempted }) => (
          <li key={sequence} class={preempted === 1 ? "preempted" : undefined}>
            #{sequence} <span class="muted">{tokens} tokens</span>
            {preempted === 1 && <strong> preempted</strong>}
          </li>
        ))}
      </ol>
      {stats.waiting > most && <p class="muted">and {stats.waiting - most} more</p>}
    </>
  );
}
