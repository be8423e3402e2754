import type { Step, ToolFormat } from "./format.ts";
import { JsonArguments, JsonCall } from "./json-call.ts";
import { inSequence, jsonArguments, type Mark, type WrittenCalls, written } from "./written-turn.ts";

const OBJECT: Step = { to: "object", keepsMarker: true };
const MORE = { "[TOOL_CALLS]": "calls" } as const;

/** From tokenizer 11 on there is a token for what comes before arguments; until then calls are a list. */
function writtenCalls(mark: Mark): WrittenCalls {
  const [calls, args] = [mark("[TOOL_CALLS]"), mark("[ARGS]")];
  const markers = ["[TOOL_CALLS]"];
  if (args.kind === "token")
    return {
      call: (tool) => inSequence(calls, written(tool.name), args, jsonArguments(tool)),
      markers,
    };
  return {
    open: inSequence(calls, written("[")),
    call: (tool) =>
      inSequence(
        written(`{"name": ${JSON.stringify(tool.name)}, "arguments": `),
        jsonArguments(tool),
        written("}"),
      ),
    between: written(", "),
    close: written("]"),
    markers,
  };
}

/**
 * Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {…}}, …]` or one such object; from tokenizer 11 on
 * `[TOOL_CALLS]f[ARGS]{…}`, once for each call, in which `[CALL_ID]…` may come before and `[ARGS]` be missing.
 */
export const MISTRAL: ToolFormat = {
  start: "content",
  written: writtenCalls,
  ids: "short",
  states: {
    content: { text: "content", on: MORE },
    calls: { text: "blank", on: { "[": "list", "{": OBJECT }, otherwise: "name", tentative: true },
    list: { text: "blank", on: { "{": { to: "entry", keepsMarker: true } }, tentative: true },
    entry: { text: (sink) => new JsonCall(sink, false), tentative: true, done: "entries" },
    entries: {
      text: "blank",
      on: { ",": "entries", "{": { to: "entry", keepsMarker: true }, "]": "end" },
      otherwise: "content",
    },
    object: { text: (sink) => new JsonCall(sink, false), tentative: true, done: "end" },
    name: {
      text: "word",
      on: {
        "[ARGS]": { to: "arguments", call: "open" },
        "[CALL_ID]": "id",
        "{": { to: "arguments", call: "open", keepsMarker: true },
      },
      tentative: true,
    },
    id: { text: "ignored", on: { "[ARGS]": { to: "arguments", call: "open" } }, tentative: true },
    arguments: { text: (sink) => new JsonArguments(sink), otherwise: "other", done: "end" },
    // Arguments that are no object are the caller's to refuse.
    other: { text: "arguments", on: MORE },
    end: { text: "blank", on: MORE, otherwise: "content" },
  },
};
