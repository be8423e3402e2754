import type { ReasoningFormat, ToolFormat } from "./format.ts";
import { Gemma4Call, QUOTE } from "./gemma4-call.ts";

/** Gemma 4's calls: `<|tool_call>call:f{city:<|"|>Paris<|"|>,days:2}<tool_call|>`, one after another. */
export const GEMMA4: ToolFormat = {
  start: "content",
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
