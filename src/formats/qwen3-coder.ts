import type { Step, ToolFormat } from "./format.ts";
import { inSequence, written } from "./written-turn.ts";

const NAME: Step = { to: "name" };
const VALUE_ENDS: Readonly<Record<string, Step>> = {
  "<parameter=": { to: "parameter" },
  "</function>": { to: "end", call: "close" },
};

const MEMBERS = {
  ...{ open: "<parameter=", equals: ">\n", close: "\n</parameter>\n", between: "" },
  rawWithout: ["</parameter>", ...Object.keys(VALUE_ENDS)],
};

/**
 * Qwen3-Coder, Qwen 3.5: `<tool_call>\n<function=f>\n<parameter=a>\nvalue\n</parameter>\n</function>\n</tool_call>`, with
 * values as bare text. `<tool_call>` and the ends of values may be missing.
 */
export const QWEN3_CODER: ToolFormat = {
  start: "content",
  written: (mark) => ({
    call: (tool) =>
      inSequence(
        mark("<tool_call>"),
        written(`\n<function=${tool.name}>\n`),
        { kind: "arguments", ...tool.arguments, members: MEMBERS },
        written("</function>\n"),
        mark("</tool_call>"),
      ),
    between: written("\n"),
    markers: ["<tool_call>", "<function="],
  }),
  states: {
    content: { text: "content", on: { "<tool_call>": "call", "<function=": NAME } },
    call: { text: "blank", on: { "<function=": NAME }, tentative: true },
    name: { text: "word", on: { ">": { to: "parameters", call: "open" } }, tentative: true },
    parameters: {
      text: "ignored",
      on: { ...VALUE_ENDS, "</tool_call>": { to: "content", call: "close" } },
    },
    parameter: { text: "word", on: { ">": { to: "value" } } },
    value: { text: "value", on: { ...VALUE_ENDS, "</parameter>": { to: "ended" } } },
    // A value may have the text of the marker, such as in a page of XML.
    ended: {
      text: "blank",
      on: { ...VALUE_ENDS, "</tool_call>": { to: "content", call: "close" } },
      endsValue: "value",
    },
    end: {
      text: "blank",
      on: { "</tool_call>": "content", "<tool_call>": "call", "<function=": NAME },
      otherwise: "content",
    },
  },
};
