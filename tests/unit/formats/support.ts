import type { ToolSpec, TurnDelta } from "../../../src/formats/format.ts";
import { formatsOf } from "../../../src/formats/registry.ts";
import { TurnParser } from "../../../src/formats/turn-parser.ts";

export const TOOLS: readonly ToolSpec[] = [
  {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: {
        ...{ city: { type: "string" }, days: { type: "integer" }, metric: { type: "boolean" } },
        ...{ limit: { type: ["number", "null"] }, tags: { type: "array" }, filter: { type: "object" } },
      },
    },
  },
  { name: "now", parameters: undefined },
];

/** A whole turn. */
export interface Turn {
  readonly content: string;
  readonly reasoning: string;
  /** Name and arguments, as JSON text, of each call. */
  readonly calls: readonly (readonly [name: string, json: string])[];
}

/** Puts deltas together as clients do, and checks their form. */
export class TurnBuilder {
  content = "";
  reasoning = "";
  readonly calls: [string, string][] = [];
  readonly ids = new Set<string>();

  add({ content, reasoning, calls }: TurnDelta): void {
    this.content += content;
    this.reasoning += reasoning;
    const indices = calls.map(({ index }) => index);
    if (new Set(indices).size < indices.length) throw new Error("a delta has two pieces of one call");
    for (const { index, id, name, arguments: text } of calls) {
      const isNew = index === this.calls.length;
      if (index > this.calls.length || isNew !== (name !== undefined) || isNew !== (id !== undefined))
        throw new Error(`piece of call ${index} out of order`);
      if (isNew) {
        this.calls.push([name!, ""]);
        this.ids.add(id!);
      }
      this.calls[index]![1] += text;
    }
  }

  get turn(): Turn {
    const { content, reasoning, calls } = this;
    return { content, reasoning, calls };
  }
}

export interface ReadOptions {
  readonly tools?: readonly ToolSpec[] | undefined;
  readonly prompt?: string;
  readonly continued?: string;
  readonly firstCallOnly?: boolean;
  /** Markers that are tokens; pieces that equal one are such. */
  readonly tokenMarkers?: ReadonlySet<string>;
  readonly isWhole?: boolean;
}

/** Reads a turn that comes in these pieces. */
export function readPieces(
  toolCallParser: string,
  reasoningParser: string,
  pieces: readonly string[],
  options: ReadOptions = {},
): Turn {
  const {
    tools = TOOLS,
    prompt = "",
    continued,
    tokenMarkers,
    firstCallOnly = false,
    isWhole = true,
  } = options;
  const formats = formatsOf({ toolCallParser, reasoningParser }, undefined);
  let ids = 0;
  const parser = new TurnParser(
    formats.withCalls ?? formats.withoutCalls,
    { tools, newId: () => `id${ids++}`, firstCallOnly, ...(tokenMarkers && { tokenMarkers }) },
    formats.begun(prompt, continued),
  );
  const builder = new TurnBuilder();
  for (const piece of pieces) {
    if (tokenMarkers?.has(piece)) parser.pushMarker(piece);
    else parser.push(piece);
    builder.add(parser.take());
  }
  parser.finish(isWhole);
  builder.add(parser.take());
  if (builder.ids.size !== builder.calls.length) throw new Error("two calls have one id");
  return builder.turn;
}

/** The same text at once. */
export function readTurn(tools: string, reasoning: string, text: string, options?: ReadOptions): Turn {
  return readPieces(tools, reasoning, [text], options);
}

/** A text as pieces of so many characters. */
export function piecesOf(text: string, length: number): string[] {
  const characters = [...text];
  return Array.from({ length: Math.ceil(characters.length / length) }, (_, i) =>
    characters.slice(i * length, (i + 1) * length).join(""),
  );
}
