import type { MemberForm } from "../grammar/schema-members.ts";
import type { ReasoningFormat, ToolFormat } from "./format.ts";
import { Gemma4Call, QUOTE } from "./gemma4-call.ts";
import { inSequence, type Mark, written } from "./written-turn.ts";

/** Of the members of a call. A token is a quote as no text is. */
function members(mark: Mark): MemberForm {
  const quote = mark(QUOTE);
  return {
    ...{ open: "", equals: ":", close: "", between: "," },
    quote: quote.kind === "token" ? quote.id : QUOTE,
  };
}

/** Gemma 4's calls: `<|tool_call>call:f{city:<|"|>Paris<|"|>,days:2}<tool_call|>`, one after another. */
export const GEMMA4: ToolFormat = {
  start: "content",
  written: (mark) => ({
    call: (tool) =>
      inSequence(
        ...[mark("<|tool_call>"), written(`call:${tool.name}{`)],
        { kind: "arguments", ...tool.arguments, members: members(mark) },
        ...[written("}"), mark("<tool_call|>")],
      ),
    markers: ["<|tool_call>"],
  }),
  states: {
    content: { text: "content", on: { "<|tool_call>": "call" } },
    call: { text: (sink) => new Gemma4Call(sink), tentative: true, done: "end" },
    // The end may be missing; a quote there closes nothing.
    end: {
      text: "blank",
      on: { "<tool_call|>": "content", "<|tool_call>": "call", [QUOTE]: "end" },
      otherwise: "content",
    },
  },
};

/** Its thoughts: `<|channel>thought\n…\n<channel|>`. */
export const GEMMA4_THINK: ReasoningFormat = { open: "<|channel>", header: "thought", close: "<channel|>" };

/** Tokens that end its turns: the last one stands where the answers of tools begin. */
export const GEMMA4_STOPS: readonly string[] = ["<turn|>", "<|tool_response>"];
