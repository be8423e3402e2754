import type { Step, ToolFormat } from "./format.ts";
import { PythonCalls } from "./python-calls.ts";
import { inSequence, written } from "./written-turn.ts";

const CALLS: Step = { to: "calls", keepsMarker: true };

const MEMBERS = { open: "", equals: "=", close: "", between: ", ", python: true };

/** Llama 3.2 and 4: a reply that is `[f(a=1, b="x"), g()]`, between `<|python_start|>` and `<|python_end|>` or not. */
export const PYTHONIC: ToolFormat = {
  start: "start",
  written: () => ({
    open: written("["),
    call: (tool) =>
      inSequence(
        written(`${tool.name}(`),
        { kind: "arguments", ...tool.arguments, members: MEMBERS },
        written(")"),
      ),
    between: written(", "),
    close: written("]"),
    markers: ["<|python_start|>"],
    first: "[",
  }),
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
