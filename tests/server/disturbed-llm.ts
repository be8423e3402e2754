import type { AsyncLLM } from "../../src/async/async-llm.ts";
import type { CompletionDelta, GenerationStream } from "../../src/base/outputs.ts";

/** An object with some of its members replaced. */
function override<T extends object>(target: T, members: Partial<T>): T {
  return new Proxy(target, {
    get: (_, name) => {
      const value = Reflect.get(name in members ? members : target, name) as unknown;
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** The model with some of its members replaced. */
export function disturbed(llm: AsyncLLM, members: Partial<AsyncLLM>): AsyncLLM {
  return override(llm, members);
}

/** A `submit` whose streams give these deltas instead of the engine's. */
export function replying(
  llm: AsyncLLM,
  deltas: (stream: GenerationStream) => AsyncGenerator<CompletionDelta, void>,
): Partial<AsyncLLM> {
  return {
    submit: async (...request) => {
      const stream = await llm.submit(...request);
      stream.abort();
      return override(stream, { [Symbol.asyncIterator]: () => deltas(stream) });
    },
  };
}
