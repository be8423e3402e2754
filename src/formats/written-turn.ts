import type { ArgumentsShape, TextShape } from "../grammar/text-shape.ts";

/** A tool as far as its calls must be written. */
export interface WrittenTool {
  readonly name: string;
  readonly arguments: Omit<ArgumentsShape, "kind" | "members">;
}

/** A marker as it is written: the token that it is, or its text if the vocabulary has none. */
export type Mark = (marker: string) => TextShape;

/** The way in which calls are written. */
export interface WrittenCalls {
  call(tool: WrittenTool): TextShape;
  /** Before the first call, between calls, and after the last one. Default nothing. */
  readonly open?: TextShape;
  readonly between?: TextShape;
  readonly close?: TextShape;
  /** Markers that begin calls: what is said has none of them. */
  readonly markers: readonly string[];
  /** Characters that calls begin with, where nothing is said before: what is said begins with none of them. */
  readonly first?: string;
}

/** What a turn may come to. */
export interface TurnDemands {
  /** The tools that may be called. */
  readonly tools: readonly WrittenTool[];
  /** The turn is one call or more. Default: there may be none. */
  readonly mustCall: boolean;
  readonly oneCallOnly: boolean;
  /** What is said if nothing is called. Undefined: any text. */
  readonly answer: TextShape | undefined;
}

export function written(text: string): TextShape {
  return { kind: "text", text };
}

export function inSequence(...parts: readonly TextShape[]): TextShape {
  return { kind: "sequence", parts };
}

export function oneOfThese(...options: readonly TextShape[]): TextShape {
  return { kind: "choice", options };
}

/** A tool's arguments as a JSON object. */
export function jsonArguments(tool: WrittenTool): TextShape {
  return { kind: "arguments", ...tool.arguments };
}

/** Line breaks between the parts of a turn, as far as models write them. */
export const BREAK = oneOfThese(written(""), written("\n"), written("\n\n"));
const NOTHING = written("");

/** Any text that has none of the markers, as far as they are no tokens, which no text has. */
export function freeText(mark: Mark, markers: readonly string[], notFirst = ""): TextShape {
  const without = markers.filter((marker) => mark(marker).kind === "text");
  return { kind: "free", without, notFirst };
}

/** What is said and called, in this order, after what is thought. */
export function bodyShape(calls: WrittenCalls | undefined, demands: TurnDemands, mark: Mark): TextShape {
  const { tools, mustCall, answer } = demands;
  const { markers = [], first = "" } = calls ?? {};
  const said = answer ?? freeText(mark, markers, first);
  if (!calls || tools.length === 0) return said;
  const called = callsShape(calls, demands);
  if (mustCall) return inSequence(BREAK, called);
  if (answer || first !== "") return oneOfThese(called, said);
  return inSequence(said, oneOfThese(called, NOTHING));
}

function callsShape(calls: WrittenCalls, { tools, oneCallOnly }: TurnDemands): TextShape {
  const { open = NOTHING, between = NOTHING, close = NOTHING } = calls;
  const call = oneOfThese(...tools.map((tool) => calls.call(tool)));
  const all: TextShape = oneCallOnly ? call : { kind: "repeat", part: call, separator: between };
  return inSequence(open, all, close);
}
