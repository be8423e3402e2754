import type { TextShape } from "../grammar/text-shape.ts";
import type { ReasoningFormat, State, ToolFormat } from "./format.ts";
import { BREAK, freeText, inSequence, type Mark, oneOfThese, written } from "./written-turn.ts";

/** Qwen 3, and other models that write `<think>` themselves, or whose prompt ends with it. */
export const THINK: ReasoningFormat = { open: "<think>", close: "</think>" };

/** DeepSeek R1 thinks whether or not it writes `<think>`. */
export const DEEPSEEK_R1: ReasoningFormat = { ...THINK, startsInside: true };

/** Mistral's, from tokenizer 13 on. */
export const MISTRAL_THINK: ReasoningFormat = { open: "[THINK]", close: "[/THINK]" };

/** A reply without calls. */
export const PLAIN: ToolFormat = { start: "content", states: { content: { text: "content" } } };

/** The form of turns in which a model thinks before it speaks and calls. A call ends the thinking, as models forget to. */
export function thinkingBefore(
  format: ToolFormat,
  { open, header, close, startsInside }: ReasoningFormat,
): ToolFormat {
  const start = format.states[format.start]!;
  // What has no marker of its own could be anything in the middle of a thought.
  const calls = start.text === "content" ? start.on : {};
  const opened = header === undefined ? "reasoning" : "header";
  const states: Record<string, State> = {
    beginning: {
      text: "blank",
      on: { ...calls, [open]: opened, [close]: "reasoned" },
      otherwise: format.start,
      tentative: true,
    },
    ...(header !== undefined && {
      header: { text: "word", on: { ...calls, "\n": "reasoning", [close]: "reasoned" } },
    }),
    reasoning: { text: "reasoning", on: { ...calls, [close]: "reasoned", [open]: opened } },
    reasoned: { text: "blank", on: { ...calls, [close]: "reasoned" }, otherwise: format.start },
  };
  return {
    ...format,
    start: startsInside ? "reasoning" : "beginning",
    states: { ...format.states, ...states },
  };
}

/**
 * The part of a turn that its prompt has, as far as it decides if the model is thinking.
 * @param continued the text of the message that the model continues; undefined: it begins one.
 */
export function thinkingBegun(
  prompt: string,
  continued: string | undefined,
  { open, header, close }: ReasoningFormat,
): string {
  if (continued !== undefined) return continued;
  const end = prompt.trimEnd();
  if (end.endsWith(close)) return `${open}${close}`;
  if (header !== undefined && end.endsWith(open + header)) return `${open}${header}\n`;
  return end.endsWith(open) ? open : "";
}

/** Whether a turn that has begun is thought, may come to be, or is not any more. */
export type ThinkingState = "inside" | "before" | "past";

/** A turn in which a model thinks, if it does, before its body. */
export function thinkingShape(
  body: TextShape,
  { open, header, close }: ReasoningFormat,
  state: ThinkingState,
  mark: Mark,
  callMarkers: readonly string[],
): TextShape {
  if (state === "past") return body;
  const thought = inSequence(freeText(mark, [open, close, ...callMarkers]), mark(close), BREAK);
  if (state === "inside") return inSequence(thought, body);
  const line = written(header === undefined ? "" : `${header}\n`);
  return inSequence(oneOfThese(inSequence(BREAK, mark(open), line, thought), written("")), body);
}
