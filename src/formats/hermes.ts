import type { ToolFormat } from "./format.ts";
import { JsonCall } from "./json-call.ts";
import { inSequence, jsonArguments, written } from "./written-turn.ts";

/** Qwen 2.5 and 3, Hermes: `<tool_call>\n{"name": "f", "arguments": {…}}\n</tool_call>`, once for each call. */
export const HERMES: ToolFormat = {
  start: "content",
  written: (mark) => ({
    call: (tool) =>
      inSequence(
        mark("<tool_call>"),
        written(`\n{"name": ${JSON.stringify(tool.name)}, "arguments": `),
        jsonArguments(tool),
        written("}\n"),
        mark("</tool_call>"),
      ),
    between: written("\n"),
    markers: ["<tool_call>"],
  }),
  states: {
    content: { text: "content", on: { "<tool_call>": "call" } },
    call: { text: (sink) => new JsonCall(sink, false), tentative: true, done: "end" },
    // The end may be missing.
    end: { text: "blank", on: { "</tool_call>": "content", "<tool_call>": "call" }, otherwise: "content" },
  },
};
