import type { Step, ToolFormat } from "./format.ts";
import { PythonCalls } from "./python-calls.ts";

const CALLS: Step = { to: "calls", keepsMarker: true };

/** Llama 3.2 and 4: a reply that is `[f(a=1, b="x"), g()]`, between `<|python_start|>` and `<|python_end|>` or not. */
export const PYTHONIC: ToolFormat = {
  start: "start",
  onlyKnown: true,
  states: {
    start: {
      text: "blank",
      on: { "<|python_start|>": "start", "[": CALLS },
      otherwise: "content",
      tentative: true,
    },
    calls: { text: (sink) => new PythonCalls(sink), otherwise: "content", tentative: true, done: "end" },
    end: { text: "blank", on: { "<|python_end|>": "end" }, otherwise: "content" },
    content: { text: "content" },
  },
};
