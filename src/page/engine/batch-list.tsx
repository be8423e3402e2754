import type { RunningSequence } from "../../base/engine-view.ts";
import { sequenceColor } from "./colors.ts";
import type { EngineState } from "./engine-state.ts";

interface BatchListProps {
  readonly state: EngineState;
  readonly focus: number | undefined;
  readonly onFocus: (sequence: number | undefined) => void;
  /** Sequences that are listed at most. */
  readonly most: number;
}

/** The sequences that run, each with how far it has come: prompt from the cache, prompt computed, output, and what may come. */
export function BatchList({ state, focus, onFocus, most }: BatchListProps) {
  const { running } = state;
  if (running.length === 0) return <p class="muted empty">Nothing runs.</p>;
  return (
    <>
      <ol class="batch">
        {running.slice(0, most).map((sequence) => (
          <li
            key={sequence.sequence}
            class={focus === sequence.sequence ? "focus" : undefined}
            onPointerEnter={() => onFocus(sequence.sequence)}
            onPointerLeave={() => onFocus(undefined)}
          >
            <i class="swatch" style={{ background: sequenceColor(sequence.sequence) }} />
            <span class="name">#{sequence.sequence}</span>
            <Progress sequence={sequence} />
            <span class="figure">{stateOf(sequence)}</span>
          </li>
        ))}
      </ol>
      {running.length > most && <p class="muted">and {running.length - most} more</p>}
    </>
  );
}

function Progress({ sequence }: { readonly sequence: RunningSequence }) {
  const { promptTokens, cachedTokens, computedTokens, tokens, maxTokens } = sequence;
  const share = (count: number) => `${(100 * count) / Math.max(1, maxTokens)}%`;
  const inPrompt = Math.min(computedTokens, promptTokens);
  return (
    <span class="progress" title={described(sequence)}>
      <span class="part prompt" style={{ width: share(promptTokens) }} />
      <span class="part computed" style={{ width: share(inPrompt) }} />
      <span class="part cached" style={{ width: share(Math.min(cachedTokens, inPrompt)) }} />
      <span
        class="part output"
        style={{
          left: share(promptTokens),
          width: share(tokens - promptTokens),
          background: sequenceColor(sequence.sequence),
        }}
      />
    </span>
  );
}

function stateOf({ promptTokens, computedTokens, tokens, maxTokens }: RunningSequence): string {
  if (computedTokens < promptTokens) return `prompt ${computedTokens}/${promptTokens}`;
  return `${tokens - promptTokens}/${maxTokens - promptTokens}`;
}

function described({ promptTokens, cachedTokens, tokens, maxTokens, blocks }: RunningSequence): string {
  const output = `${tokens - promptTokens} of at most ${maxTokens - promptTokens} tokens generated`;
  return `${promptTokens} prompt tokens, ${cachedTokens} from the cache; ${output}; ${blocks} blocks`;
}
