import type { Step, ToolFormat } from "./format.ts";
import { JsonCall } from "./json-call.ts";
import { inSequence, jsonArguments, written } from "./written-turn.ts";

const CALL: Step = { to: "call", keepsMarker: true };

/**
 * Llama 3.1 to 3.3: a reply that is `{"name": "f", "parameters": {…}}`, or several of these with semicolons between them,
 * after `<|python_tag|>` or not.
 */
export const LLAMA3_JSON: ToolFormat = {
  start: "start",
  written: () => ({
    call: (tool) =>
      inSequence(
        written(`{"name": ${JSON.stringify(tool.name)}, "parameters": `),
        jsonArguments(tool),
        written("}"),
      ),
    between: written("; "),
    markers: ["<|python_tag|>"],
    first: "{",
  }),
  onlyKnown: true,
  states: {
    start: {
      text: "blank",
      on: { "<|python_tag|>": "start", "{": CALL },
      otherwise: "content",
      tentative: true,
    },
    call: { text: (sink) => new JsonCall(sink, true), otherwise: "content", tentative: true, done: "next" },
    next: { text: "blank", on: { ";": "next", "<|python_tag|>": "next", "{": CALL }, otherwise: "content" },
    content: { text: "content" },
  },
};
