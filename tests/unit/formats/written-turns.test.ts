import { describe, expect, setDefaultTimeout, test } from "bun:test";
import Ajv2020 from "ajv/dist/2020";
import { SchemaError } from "../../../src/base/errors.ts";
import { markersOf, type ToolSpec } from "../../../src/formats/format.ts";
import { ModelTurns, type TurnLimits } from "../../../src/formats/model-turns.ts";
import { formatsOf, type ModelFormats } from "../../../src/formats/registry.ts";
import type { WrittenTool } from "../../../src/formats/written-turn.ts";
import { MaskEngine } from "../../../src/grammar/mask-engine.ts";
import { shapeGrammar } from "../../../src/grammar/text-shape.ts";
import { TokenTable } from "../../../src/tokenizer/token-table.ts";
import { Dice } from "../grammar/walker.ts";
import { type Turn, TurnBuilder } from "./support.ts";

setDefaultTimeout(300_000);

const TOOLS: readonly ToolSpec[] = [
  {
    name: "get_weather",
    parameters: {
      type: "object",
      $defs: {
        Unit: { enum: ["C", "F"] },
        Place: {
          type: "object",
          properties: { lat: { type: "number" }, tags: { type: "array", items: { type: "string" } } },
          required: ["lat"],
          additionalProperties: false,
        },
      },
      properties: {
        city: { type: "string" },
        days: { type: "integer", minimum: 1, maximum: 14 },
        unit: { $ref: "#/$defs/Unit" },
        note: { type: ["string", "null"] },
        exact: { type: "boolean" },
        place: { $ref: "#/$defs/Place" },
      },
      required: ["city", "note"],
      additionalProperties: false,
    },
  },
  { name: "now", parameters: undefined },
];
const ajv = new Ajv2020({ strict: false });
const validators = TOOLS.map(({ parameters }) => ajv.compile(parameters ?? { type: "object" }));

const tools: readonly WrittenTool[] = TOOLS.map(({ name, parameters }, i) => ({
  name,
  arguments: {
    schema: JSON.stringify(parameters ?? { type: "object" }),
    param: `tools[${i}].function.parameters`,
    strict: true,
  },
}));
const DEMANDS: TurnLimits = { tools, mustCall: false, oneCallOnly: false, sampling: {} };

/** Markers that are tokens in the vocabularies of models. */
const TOKENS = /^(?:<\|.*\|>|<\|\w+>|<\w+\|>|<｜.*｜>|\[[A-Z_/]+\]|<\/?(?:tool_call|think)>)$/;

/** A byte each, then markers, and a token that ends the turn. */
class Vocabulary {
  readonly table: TokenTable;
  readonly stop: number;
  readonly size: number;
  readonly turns: ModelTurns;
  readonly #packed;
  readonly #grammars = new Map<string, string>();
  #engine: Promise<MaskEngine> | undefined;

  constructor(formats: ModelFormats, hasMarkers: boolean) {
    const markers = new Set(
      [formats.withCalls!, formats.withoutCalls].flatMap((format) => [...markersOf(format)]),
    );
    const added = [...markers].filter((marker) => hasMarkers && TOKENS.test(marker));
    const bytes = [...Array(256).keys()].map((byte) => Buffer.of(byte));
    const tokens = [...bytes, ...added.map((text) => Buffer.from(text)), Buffer.from("<stop>")];
    const starts = new Int32Array(tokens.length + 1);
    for (const [i, { length }] of tokens.entries()) starts[i + 1] = starts[i]! + length;
    const kinds = Uint8Array.from(tokens, (_, i) => (i < 256 ? 0 : i === tokens.length - 1 ? 2 : 1));
    this.#packed = { bytes: new Uint8Array(Buffer.concat(tokens)), starts, kinds };
    this.table = new TokenTable(this.#packed);
    this.stop = tokens.length - 1;
    this.size = tokens.length;
    this.turns = new ModelTurns(formats, this.table);
  }

  /** A random turn of the shape, read as it came; undefined: it did not come to its end. */
  async turn(prompt: string, limits: TurnLimits, dice: Dice): Promise<Turn | undefined> {
    const key = JSON.stringify({ prompt, limits });
    const shape = () => this.turns.shape({ prompt, continued: undefined }, limits);
    const grammar = this.#grammars.get(key) ?? shapeGrammar(shape(), "tools");
    this.#grammars.set(key, grammar);
    this.#engine ??= MaskEngine.create(this.#packed, this.size, new Set(this.turns.markers));
    const matcher = await (await this.#engine).matcher(grammar, [this.stop]);
    const reader = this.turns.open(
      { prompt, continued: undefined },
      { tools: TOOLS, firstCallOnly: false, skipsSpecial: false },
    );
    const builder = new TurnBuilder();
    const decoder = new TextDecoder();
    let tail = "";
    for (let length = 0; length < 1500; length++) {
      const token = draw(await matcher.getNextTokenBitmask(), this.size, tail, dice, this.stop, length);
      if (token === undefined) throw new Error(`a dead end after ${JSON.stringify(tail)}`);
      expect(matcher.acceptToken(token)).toBe(true);
      if (token === this.stop) {
        matcher.dispose();
        builder.add(reader.finish(true));
        return builder.turn;
      }
      const text = decoder.decode(this.table.bytes(token), { stream: true });
      tail = (tail + text).slice(-30);
      builder.add(reader.push(text, [token]));
    }
    matcher.dispose();
    return undefined;
  }
}

const CLOSERS = ["\n</parameter>\n", "</think>", "\n```", "\n</tool_call>", "</function>\n", "[/THINK]"];
const ENDINGS = Array.from('"]})', (char) => char.charCodeAt(0));

/** An allowed token. Markers, ends of values, and what goes on with the end of a text are preferred. */
function draw(mask: Int32Array, size: number, tail: string, dice: Dice, stop: number, length: number) {
  const allowed = Array.from({ length: size }, (_, id) => id).filter(
    (id) => (mask[id >> 5]! >> (id & 31)) & 1,
  );
  if (allowed.length < 2) return allowed[0];
  const isLong = length > 400;
  if (allowed.includes(stop) && dice.chance(isLong ? 0.9 : 0.15)) return stop;
  const markers = allowed.filter((id) => id > 255 && id !== stop);
  if (markers.length > 0 && dice.chance(isLong ? 0.5 : 0.15)) return dice.of(markers);
  for (const closer of CLOSERS) {
    for (let cut = closer.length - 1; cut > 0; cut--) {
      const next = closer.charCodeAt(cut);
      if (tail.endsWith(closer.slice(0, cut)) && allowed.includes(next) && dice.chance(0.9)) return next;
    }
  }
  const endings = allowed.filter((id) => ENDINGS.includes(id));
  if (endings.length > 0 && dice.chance(isLong ? 0.9 : 0.3)) return dice.of(endings);
  const beginnings = allowed.filter((id) => id === 10 || id === 60);
  if (beginnings.length > 0 && dice.chance(isLong ? 0.5 : 0.1)) return dice.of(beginnings);
  const plain = allowed.filter((id) => id > 31 && id < 127);
  return dice.of(plain.length > 0 && dice.chance(0.85) ? plain : allowed);
}

const FORMATS: readonly (readonly [tools: string, reasoning: string, prompt: string])[] = [
  ["hermes", "qwen3", "<|im_start|>assistant\n"],
  ["hermes", "qwen3", "<|im_start|>assistant\n<think>\n"],
  ["qwen3_coder", "none", ""],
  ["qwen3_coder", "deepseek_r1", ""],
  ["llama3_json", "none", ""],
  ["pythonic", "none", ""],
  ["mistral", "mistral", ""],
  ["deepseek_v3", "deepseek_r1", ""],
  ["deepseek_v31", "none", ""],
  ["gemma4", "gemma4", "<|turn>model\n"],
  ["harmony", "harmony", "<|start|>assistant"],
];

describe.each(FORMATS)("%s with thoughts as of %s after %j", (toolCallParser, reasoningParser, prompt) => {
  const formats = formatsOf({ toolCallParser, reasoningParser }, undefined);
  const kinds = [true, false].filter((hasMarkers) => hasMarkers || toolCallParser !== "harmony");

  test.each(kinds)(
    "turns that must call do, with arguments that are valid; markers are tokens: %p",
    async (hasMarkers) => {
      const vocabulary = new Vocabulary(formats, hasMarkers);
      let numEnded = 0;
      for (let seed = 0; seed < 6; seed++) {
        const demands = { ...DEMANDS, mustCall: true, oneCallOnly: seed % 2 === 1 };
        const turn = await vocabulary.turn(prompt, demands, new Dice(seed));
        if (!turn) continue;
        numEnded++;
        expect(turn.content).toBe("");
        expect(turn.calls.length).toBeGreaterThan(0);
        if (demands.oneCallOnly) expect(turn.calls).toHaveLength(1);
        expectValid(turn);
      }
      expect(numEnded).toBeGreaterThan(1);
    },
  );

  test("turns that may call say something or do, and an answer may have a form of its own", async () => {
    const vocabulary = new Vocabulary(formats, true);
    const texts = new Set<string>();
    for (let seed = 0; seed < 4; seed++) {
      const free = await vocabulary.turn(prompt, DEMANDS, new Dice(seed));
      if (free) expectValid(free);
      const sampling = { structuredOutputs: { choice: ["yes", "no"] } };
      const formed = await vocabulary.turn(prompt, { ...DEMANDS, tools: [], sampling }, new Dice(seed));
      if (formed) texts.add(formed.content);
    }
    expect([...texts].filter((text) => text !== "yes" && text !== "no")).toEqual([]);
    expect(texts.size).toBeGreaterThan(0);
  });
});

function expectValid({ calls }: Turn): void {
  for (const [name, json] of calls) {
    const index = TOOLS.findIndex((tool) => tool.name === name);
    const isValid = validators[index]!(JSON.parse(json));
    if (!isValid) throw new Error(`${name}(${json}): ${JSON.stringify(validators[index]!.errors)}`);
  }
}

describe("schemas that cannot be enforced", () => {
  const formats = formatsOf({ toolCallParser: "hermes", reasoningParser: "none" }, undefined);
  const shapeOf = (strict: boolean) => {
    const schema = JSON.stringify({ type: "object", properties: { a: { not: {} } }, if: {} });
    const tool = { name: "f", arguments: { schema, param: "tools[0].function.parameters", strict } };
    const turns = new Vocabulary(formats, true).turns;
    return turns.shape({ prompt: "", continued: undefined }, { ...DEMANDS, tools: [tool], mustCall: true });
  };

  test("are refused by name where a tool is strict", () => {
    let error: unknown;
    try {
      shapeGrammar(shapeOf(true), "tools");
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(SchemaError);
    expect(error).toMatchObject({ param: "tools[0].function.parameters" });
  });

  test("are any object elsewhere", () => {
    expect(shapeGrammar(shapeOf(false), "tools")).toContain("root");
  });
});
