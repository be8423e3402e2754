import { describe, expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { markersOf } from "../../../src/formats/format.ts";
import { ModelTurns } from "../../../src/formats/model-turns.ts";
import { formatsOf } from "../../../src/formats/registry.ts";
import { TokenTable } from "../../../src/tokenizer/token-table.ts";
import { piecesOf, type ReadOptions, readPieces, readTurn, TOOLS, TurnBuilder } from "./support.ts";

setDefaultTimeout(300_000);

/** A form of turns, and how a model that knows it writes a call. */
interface Form {
  readonly tools: string;
  readonly reasoning: string;
  readonly prompt?: string;
  readonly call: (name: string, args: Readonly<Record<string, unknown>>) => string;
  /** All calls of a turn, if they do not merely follow each other. */
  readonly join?: (calls: readonly string[]) => string;
  readonly think: (text: string) => string;
  readonly say: (text: string) => string;
  /** Text and calls exclude each other. */
  readonly isExclusive?: boolean;
}

const think = (text: string) => `<think>\n${text}\n</think>\n\n`;
const verbatim = (text: string) => text;
const python = (value: unknown): string => {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (value === null) return "None";
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([key, entry]) => `${python(key)}: ${python(entry)}`)
      .join(", ")}}`;
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
};
const gemma4 = (value: unknown): string => {
  if (typeof value === "string") return `<|"|>${value}<|"|>`;
  if (Array.isArray(value)) return `[${value.map(gemma4).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  return `{${Object.entries(value)
    .map(([key, entry]) => `${gemma4(key)}:${gemma4(entry)}`)
    .join(",")}}`;
};
const FORMS: readonly Form[] = [
  {
    ...{ tools: "hermes", reasoning: "qwen3", think, say: verbatim },
    call: (name, args) => `<tool_call>\n${JSON.stringify({ name, arguments: args })}\n</tool_call>\n`,
  },
  {
    ...{ tools: "qwen3_coder", reasoning: "qwen3", think, say: verbatim },
    call: (name, args) =>
      `<tool_call>\n<function=${name}>\n${Object.entries(args)
        .map(
          ([key, value]) =>
            `<parameter=${key}>\n${typeof value === "string" ? value : JSON.stringify(value)}\n</parameter>\n`,
        )
        .join("")}</function>\n</tool_call>\n`,
  },
  {
    ...{ tools: "llama3_json", reasoning: "none", think: () => "", say: verbatim, isExclusive: true },
    call: (name, parameters) => JSON.stringify({ name, parameters }),
    join: (calls) => calls.join("; "),
  },
  {
    ...{ tools: "pythonic", reasoning: "none", think: () => "", say: verbatim, isExclusive: true },
    call: (name, args) =>
      `${name}(${Object.entries(args)
        .map(([key, value]) => `${key}=${python(value)}`)
        .join(", ")})`,
    join: (calls) => `[${calls.join(", ")}]`,
  },
  {
    ...{ tools: "mistral", reasoning: "mistral", say: verbatim },
    think: (text) => `[THINK]${text}[/THINK]`,
    call: (name, args) => JSON.stringify({ name, arguments: args }),
    join: (calls) => `[TOOL_CALLS][${calls.join(", ")}]`,
  },
  {
    ...{ tools: "mistral", reasoning: "mistral", say: verbatim },
    think: (text) => `[THINK]${text}[/THINK]`,
    call: (name, args) => `[TOOL_CALLS]${name}[ARGS]${JSON.stringify(args)}`,
  },
  {
    ...{ tools: "deepseek_v3", reasoning: "deepseek_r1", say: verbatim },
    think: (text) => `${text}</think>`,
    call: (name, args) =>
      `<｜tool▁call▁begin｜>function<｜tool▁sep｜>${name}\n\`\`\`json\n${JSON.stringify(args)}\n\`\`\`<｜tool▁call▁end｜>`,
    join: (calls) => `<｜tool▁calls▁begin｜>${calls.join("\n")}<｜tool▁calls▁end｜>`,
  },
  {
    ...{ tools: "deepseek_v31", reasoning: "deepseek_v3", think, say: verbatim },
    call: (name, args) =>
      `<｜tool▁call▁begin｜>${name}<｜tool▁sep｜>${JSON.stringify(args)}<｜tool▁call▁end｜>`,
    join: (calls) => `<｜tool▁calls▁begin｜>${calls.join("")}<｜tool▁calls▁end｜>`,
  },
  {
    ...{ tools: "gemma4", reasoning: "gemma4", say: verbatim },
    think: (text) => `<|channel>thought\n${text}\n<channel|>`,
    call: (name, args) => `<|tool_call>call:${name}${gemma4(args)}<tool_call|>`,
  },
  {
    ...{ tools: "harmony", reasoning: "harmony", prompt: "<|start|>assistant" },
    think: (text) => `<|channel|>analysis<|message|>${text}<|end|><|start|>assistant`,
    say: (text) => `<|channel|>final<|message|>${text}<|end|><|start|>assistant`,
    call: (name, args) =>
      `<|channel|>commentary to=functions.${name} <|constrain|>json<|message|>${JSON.stringify(args)}<|call|><|start|>assistant`,
  },
];

const named = FORMS.map((form, i) => [`${i} ${form.tools}, ${form.reasoning}`, form] as const);
const formatsFor = ({ tools: toolCallParser, reasoning: reasoningParser }: Form) =>
  formatsOf({ toolCallParser, reasoningParser }, undefined);
const markersFor = (form: Form) => [...markersOf(formatsFor(form).withCalls!)];
const optionsOf = ({ prompt }: Form): ReadOptions => (prompt === undefined ? {} : { prompt });

/** Text of characters that mean something somewhere, and some that take several bytes. */
const text = fc.string({
  unit: fc.constantFrom(..."abc \n\"'\\{}[](),:;=<>|é▁😀"),
  maxLength: 12,
});
const word = fc
  .string({ unit: fc.constantFrom(..."ab é😀"), minLength: 1, maxLength: 8 })
  .map((words) => `x${words}x`);
const json = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    ...[
      fc.integer(),
      fc.double({ noNaN: true, noDefaultInfinity: true }),
      text,
      fc.boolean(),
      fc.constant(null),
    ],
    fc.array(tie("value"), { maxLength: 3 }),
    fc.dictionary(text, tie("value"), { maxKeys: 3 }),
  ),
})).value;
/** Values of the parameters that `get_weather` has, of the types that it gives them. */
const weather = fc.record(
  {
    city: text,
    days: fc.integer(),
    metric: fc.boolean(),
    limit: fc.option(fc.double({ noNaN: true, noDefaultInfinity: true })),
    tags: fc.array(json, { maxLength: 3 }),
    filter: fc.dictionary(text, json, { maxKeys: 3 }),
  },
  { requiredKeys: [] },
);
const calls = fc.array(
  fc.oneof(
    weather.map((args) => ["get_weather", args] as const),
    fc.constant(["now", {}] as const),
  ),
  { maxLength: 3 },
);

/** A turn as a model writes it that has the form by heart, and its parts. */
const wellFormed = (form: Form) =>
  fc
    .record({ thought: fc.option(word), content: fc.option(word), calls })
    .map(({ thought, content, calls }) => {
      const written = calls.map(([name, args]) => form.call(name, args));
      const thinks = thought !== null && form.think("") !== "";
      const says = content !== null && !(form.isExclusive && calls.length > 0);
      // Without a thought, R1's turn would begin with one.
      const thinking =
        form.reasoning === "deepseek_r1" && !thinks ? "</think>" : thinks ? form.think(thought) : "";
      const called = calls.length === 0 ? "" : (form.join?.(written) ?? written.join(""));
      return {
        text: `${thinking}${says ? form.say(content) : ""}${called}`,
        turn: { reasoning: thinks ? thought : "", content: says ? content : "", calls },
      };
    });

/** Anything made of the form's markers, beginnings of them, calls and other text. */
const anything = (form: Form) => {
  const markers = markersFor(form);
  const marker = fc.constantFrom(...markers);
  const part = fc.oneof(
    { weight: 3, arbitrary: marker },
    { weight: 1, arbitrary: fc.tuple(marker, fc.nat(20)).map(([all, length]) => all.slice(0, length)) },
    { weight: 2, arbitrary: text },
    {
      weight: 1,
      arbitrary: fc.constantFrom(
        "get_weather",
        "now",
        " functions.now",
        "{}",
        '{"name": "now"',
        '"arguments": ',
      ),
    },
    { weight: 1, arbitrary: wellFormed(form).map((turn) => turn.text) },
  );
  return fc.array(part, { maxLength: 10 }).map((parts) => parts.join(""));
};

/** The same text cut anywhere, by a list of lengths. */
function cut(whole: string, lengths: readonly number[]): string[] {
  const characters = [...whole];
  const pieces: string[] = [];
  for (let at = 0, i = 0; at < characters.length; i++) {
    const length = lengths[i % lengths.length]!;
    pieces.push(characters.slice(at, at + length).join(""));
    at += length;
  }
  return pieces;
}
const lengths = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 8 });

describe.each(named)("%s", (_, form) => {
  const { tools, reasoning } = form;
  const options = optionsOf(form);

  test("a turn is what the model meant, and arguments are its JSON", () => {
    fc.assert(
      fc.property(wellFormed(form), ({ text, turn }) => {
        const read = readTurn(tools, reasoning, text, options);
        const parsed = read.calls.map(([name, json]) => [name, JSON.parse(json)]);
        expect({ ...read, calls: parsed }).toEqual(JSON.parse(JSON.stringify(turn)));
      }),
      { numRuns: 150 },
    );
  });

  test("however the text is cut, the deltas come to the same turn", () => {
    fc.assert(
      fc.property(anything(form), lengths, (whole, lengths) => {
        const turn = readTurn(tools, reasoning, whole, options);
        for (const pieces of [piecesOf(whole, 1), piecesOf(whole, 2), cut(whole, lengths)])
          expect(readPieces(tools, reasoning, pieces, options)).toEqual(turn);
      }),
      { numRuns: 200 },
    );
  });

  test("text without any marker is said as it is", () => {
    const begins = (form.reasoning === "deepseek_r1" ? "<think></think>" : "") as string;
    const harmless = fc.string({ unit: fc.constantFrom(..."abc \n.é😀"), maxLength: 30 });
    fc.assert(
      fc.property(harmless, lengths, (said, lengths) => {
        const { content } = readPieces(tools, reasoning, [begins, ...cut(said, lengths)], options);
        expect(content).toBe(begins === "" ? said : said.trim());
      }),
    );
  });

  test("every state leads to one that exists", () => {
    const { states, start } = formatsFor(form).withCalls!;
    const targets = Object.values(states).flatMap(({ on = {}, done, otherwise, endsValue }) => [
      ...Object.values(on).flatMap((to) =>
        typeof to === "function" ? [] : typeof to === "string" ? [to] : [to.to],
      ),
      ...[done, otherwise, endsValue].filter((name) => name !== undefined),
    ]);
    expect([start, ...targets, "content"].filter((name) => !Object.hasOwn(states, name))).toEqual([]);
  });

  test("no marker begins another of the same state", () => {
    for (const [name, { on }] of Object.entries(formatsFor(form).withCalls!.states))
      for (const a of Object.keys(on ?? {}))
        for (const b of Object.keys(on ?? {}))
          if (a !== b) expect([name, a, b, b.startsWith(a)]).toEqual([name, a, b, false]);
  });
});

describe.each(named)("tokens: %s", (_, form) => {
  // Every byte is a token, and so is every marker of more than a few characters.
  const added = markersFor(form).filter((marker) => marker.length > 4);
  const spellings = [
    ...Array.from({ length: 256 }, (_, byte) => Buffer.of(byte)),
    ...added.map((text) => Buffer.from(text)),
  ];
  const starts = new Int32Array(spellings.length + 1);
  for (const [i, { length }] of spellings.entries()) starts[i + 1] = starts[i]! + length;
  const kinds = new Uint8Array(spellings.length).fill(2, 256);
  const turns = new ModelTurns(
    formatsFor(form),
    new TokenTable({ bytes: new Uint8Array(Buffer.concat(spellings)), starts, kinds }),
  );
  const pattern = new RegExp(
    `(${added.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|") || "(?!)"})`,
  );
  const tokenize = (text: string) =>
    text
      .split(pattern)
      .flatMap((part) => (added.includes(part) ? [256 + added.indexOf(part)] : [...Buffer.from(part)]));

  /** Reads tokens that come a few at a time, while their text lags behind. */
  function read(ids: readonly number[], lengths: readonly number[], lag: number) {
    const reader = turns.open(
      { prompt: form.prompt ?? "", continued: undefined },
      { tools: TOOLS, firstCallOnly: false, skipsSpecial: false },
    );
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const builder = new TurnBuilder();
    let waiting = "";
    for (let at = 0, i = 0; at < ids.length; i++) {
      const some = ids.slice(at, at + lengths[i % lengths.length]!);
      at += some.length;
      for (const id of some) waiting += decoder.decode(spellings[id]!, { stream: true });
      const ready = Math.max(0, waiting.length - lag);
      // Whole characters only.
      const end = /[\uD800-\uDBFF]$/.test(waiting.slice(0, ready)) ? ready - 1 : ready;
      builder.add(reader.push(waiting.slice(0, end), some));
      waiting = waiting.slice(end);
    }
    builder.add(reader.push(waiting + decoder.decode(), []));
    builder.add(reader.finish(true));
    return { ...builder.turn, reasoningTokens: reader.reasoningTokens };
  }

  test("characters over several tokens, and text that lags behind, come to the same turn", () => {
    fc.assert(
      fc.property(anything(form), lengths, fc.nat(6), (whole, lengths, lag) => {
        const ids = tokenize(whole);
        const turn = read(ids, [ids.length || 1], 0);
        expect(read(ids, [1], 0)).toEqual(turn);
        expect(read(ids, lengths, lag)).toEqual(turn);
      }),
      { numRuns: 150 },
    );
  });

  test("a marker that is spelled out is text", () => {
    const ending = markersFor(form).find((marker) =>
      ["</think>", "[/THINK]", "<|channel|>"].includes(marker),
    );
    const spelled = added[0]!;
    if (form.isExclusive || ending === undefined) return;
    const said = form.say(`x${spelled}x`);
    const [before, after] = said.split(spelled) as [string, string];
    const begin = form.reasoning === "deepseek_r1" ? tokenize("</think>") : [];
    const ids = [...begin, ...tokenize(before), ...Buffer.from(spelled), ...tokenize(after)];
    expect(read(ids, [1], 0)).toMatchObject({ content: `x${spelled}x`, calls: [] });
  });
});
