import type { TextShape } from "../grammar/text-shape.ts";
import type { State, Step, ToolFormat } from "./format.ts";
import { JsonArguments } from "./json-call.ts";
import { inSequence, jsonArguments, type Mark, type WrittenTool, written } from "./written-turn.ts";

const CALLS_BEGIN = "<｜tool▁calls▁begin｜>";
const CALLS_END = "<｜tool▁calls▁end｜>";
const CALL_BEGIN = "<｜tool▁call▁begin｜>";
const CALL_END = "<｜tool▁call▁end｜>";
const SEPARATOR = "<｜tool▁sep｜>";

const OPEN: Step = { to: "arguments", call: "open" };

/**
 * The block of calls, whose parts differ.
 * @param head the states between the beginning of a call and its arguments.
 * @param call what a call is between its markers.
 */
function deepseek(
  head: Readonly<Record<string, State>>,
  call: (tool: WrittenTool, mark: Mark) => TextShape,
): ToolFormat {
  return {
    start: "content",
    written: (mark) => ({
      open: mark(CALLS_BEGIN),
      call: (tool) => inSequence(mark(CALL_BEGIN), call(tool, mark), mark(CALL_END)),
      between: written("\n"),
      close: mark(CALLS_END),
      markers: [CALLS_BEGIN],
    }),
    states: {
      content: { text: "content", on: { [CALLS_BEGIN]: "calls" } },
      calls: { text: "blank", on: { [CALL_BEGIN]: "call", [CALLS_END]: "content" }, tentative: true },
      ...head,
      arguments: { text: (sink) => new JsonArguments(sink), otherwise: "other", done: "end" },
      // Arguments that are no object are the caller's to refuse.
      other: { text: "arguments", on: { [CALL_END]: "more", [CALLS_END]: "content" } },
      end: { text: "ignored", on: { [CALL_END]: "more", [CALLS_END]: "content" } },
      more: { text: "blank", on: { [CALL_BEGIN]: "call", [CALLS_END]: "content" }, otherwise: "content" },
    },
  };
}

/**
 * DeepSeek V3 and R1: calls between `<｜tool▁calls▁begin｜>` and `<｜tool▁calls▁end｜>`, each as
 * ``<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{…}\n```<｜tool▁call▁end｜>``.
 */
export const DEEPSEEK_V3: ToolFormat = deepseek(
  {
    call: { text: "ignored", on: { [SEPARATOR]: "name" }, tentative: true },
    name: { text: "word", on: { "```json": OPEN, "{": { ...OPEN, keepsMarker: true } }, tentative: true },
  },
  (tool, mark) =>
    inSequence(
      written("function"),
      mark(SEPARATOR),
      written(`${tool.name}\n\`\`\`json\n`),
      jsonArguments(tool),
      written("\n```"),
    ),
);

/** DeepSeek V3.1: the same block, with calls as `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`. */
export const DEEPSEEK_V31: ToolFormat = deepseek(
  { call: { text: "word", on: { [SEPARATOR]: OPEN }, tentative: true } },
  (tool, mark) => inSequence(written(tool.name), mark(SEPARATOR), jsonArguments(tool)),
);
