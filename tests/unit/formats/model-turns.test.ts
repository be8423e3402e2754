import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { ModelTurns } from "../../../src/formats/model-turns.ts";
import { formatsOf } from "../../../src/formats/registry.ts";
import { TokenPieces } from "../../../src/formats/token-pieces.ts";
import { TokenTable } from "../../../src/tokenizer/token-table.ts";

setDefaultTimeout(300_000);

type Kind = "ordinary" | "added" | "special";

function tableOf(tokens: readonly (readonly [text: string | readonly number[], kind: Kind])[]): TokenTable {
  const bytes = tokens.map(([text]) => Buffer.from(text as string));
  const starts = new Int32Array(tokens.length + 1);
  for (const [i, { length }] of bytes.entries()) starts[i + 1] = starts[i]! + length;
  const kinds = Uint8Array.from(tokens, ([, kind]) => ["ordinary", "added", "special"].indexOf(kind));
  return new TokenTable({ bytes: new Uint8Array(Buffer.concat(bytes)), starts, kinds });
}

const EURO = Buffer.from("€");
const TABLE = tableOf([
  ["a", "ordinary"],
  [" b", "ordinary"],
  [[...EURO.subarray(0, 1)], "ordinary"],
  [[...EURO.subarray(1)], "ordinary"],
  ["<|end|>", "special"],
]);
const [A, B, FIRST, SECOND, END] = [0, 1, 2, 3, 4] as const;

describe("tokens in a text", () => {
  test("have the characters that they complete", () => {
    const pieces = new TokenPieces(TABLE, false);
    expect(pieces.push("a", [A, FIRST])).toEqual([
      { id: A, text: "a" },
      { id: FIRST, text: "" },
    ]);
    expect(pieces.push("€ b", [SECOND, B])).toEqual([
      { id: SECOND, text: "€" },
      { id: B, text: " b" },
    ]);
    expect(pieces.rest).toBe("");
  });

  test("wait for text that lags behind, and may be cut", () => {
    const pieces = new TokenPieces(TABLE, false);
    expect(pieces.push("a", [A, B, A])).toEqual([{ id: A, text: "a" }]);
    expect(pieces.push(" ", [])).toEqual([]);
    expect(pieces.rest).toBe(" ");
    expect(pieces.push("ba", [])).toHaveLength(2);
  });

  test("have the line break that a text begins with", () => {
    const table = tableOf([
      ["\n", "ordinary"],
      ["a", "ordinary"],
    ]);
    expect(new TokenPieces(table, false).push("\na", [0, 1])).toEqual([
      { id: 0, text: "\n" },
      { id: 1, text: "a" },
    ]);
  });

  test("are empty where the text leaves them out", () => {
    expect(new TokenPieces(TABLE, true).push("aa", [A, END, A])).toEqual([
      { id: A, text: "a" },
      { id: END, text: "" },
      { id: A, text: "a" },
    ]);
  });

  test("lack the space before the first word where the text does", () => {
    expect(new TokenPieces(TABLE, false).push("b b", [B, B])).toEqual([
      { id: B, text: "b" },
      { id: B, text: " b" },
    ]);
    expect(new TokenPieces(TABLE, false).push(" b b", [B, B])[0]).toEqual({ id: B, text: " b" });
  });

  test("of a character that is not complete leave the rest", () => {
    const pieces = new TokenPieces(TABLE, false);
    pieces.push("\uFFFD", [FIRST]);
    expect(pieces.rest).toBe("\uFFFD");
  });
});

describe("a model's turns", () => {
  const hermes = formatsOf({ toolCallParser: "hermes", reasoningParser: "qwen3" }, undefined);
  const options = { tools: [], firstCallOnly: false, skipsSpecial: true };
  const beginning = { prompt: "", continued: undefined };

  test("markers that are special tokens must be in the text, others are", () => {
    const special = new ModelTurns(hermes, tableOf([["<think>", "special"]]));
    expect(special.sampling({ temperature: 0 })).toEqual({ temperature: 0, skipSpecialTokens: false });
    const added = new ModelTurns(hermes, tableOf([["<think>", "added"]]));
    expect(added.sampling({ temperature: 0 })).toEqual({ temperature: 0 });
  });

  test("a token of the model's own vocabulary that spells a marker is text like any other", () => {
    const turns = new ModelTurns(hermes, tableOf([["<think>", "ordinary"], ...ASCII]));
    const reader = turns.open(beginning, options);
    const ids = [...Buffer.from("<think>x")].map((byte) => byte + 1);
    reader.push("<think>x", ids);
    expect(reader.finish(true)).toMatchObject({ content: "" });
    expect(reader.reasoningTokens).toBe(1);
  });

  test("gpt-oss ends its turn with a call", () => {
    const formats = formatsOf({ toolCallParser: "harmony", reasoningParser: "harmony" }, undefined);
    const turns = new ModelTurns(
      formats,
      tableOf([
        ["<|call|>", "special"],
        ["<|return|>", "special"],
        ["x", "ordinary"],
      ]),
    );
    expect(turns.sampling({ stopTokenIds: [2] }).stopTokenIds).toEqual([2, 1, 0]);
    expect(turns.sampling({ ignoreEos: true })).toEqual({ ignoreEos: true, skipSpecialTokens: false });
    const refused = turns.sampling({ stopTokenIds: "x" as unknown as number[] });
    expect<unknown>(refused.stopTokenIds).toBe("x");
  });

  test("special tokens that are no markers are left out unless they are asked for", () => {
    const turns = new ModelTurns(
      hermes,
      tableOf([
        ["<think>", "special"],
        ["a", "ordinary"],
        ["<pad>", "special"],
      ]),
    );
    for (const [skipsSpecial, content] of [
      [true, "aa"],
      [false, "a<pad>a"],
    ] as const) {
      const reader = turns.open(beginning, { ...options, skipsSpecial });
      const said = reader.push("a<pad>a", [1, 2, 1]).content + reader.finish(true).content;
      expect(said).toBe(content);
    }
  });

  test("the tokens between the markers of a thought are counted", () => {
    const turns = new ModelTurns(
      hermes,
      tableOf([
        ["<think>", "added"],
        ["a", "ordinary"],
        ["</think>", "added"],
      ]),
    );
    const reader = turns.open(beginning, options);
    reader.push("<think>aaa</think>aa", [0, 1, 1, 1, 2, 1, 1]);
    expect(reader.reasoningTokens).toBe(3);
  });

  test("text that may begin a marker comes before a token that is one", () => {
    const coder = formatsOf({ toolCallParser: "qwen3_coder", reasoningParser: "none" }, undefined);
    const turns = new ModelTurns(
      coder,
      tableOf([
        ["<tool_call>", "added"],
        ["a<func", "ordinary"],
        ["<function=f></function>", "ordinary"],
      ]),
    );
    const reader = turns.open(beginning, options);
    const { content, calls } = reader.push("a<func<tool_call><function=f></function>", [1, 0, 2]);
    expect([content, calls.map((call) => call.name)]).toEqual(["a<func", ["f"]]);
  });

  test("a stop string in the middle of a marker leaves what came before it", () => {
    const turns = new ModelTurns(
      hermes,
      tableOf([
        ["<tool_call>", "added"],
        ["a", "ordinary"],
      ]),
    );
    const reader = turns.open(beginning, options);
    expect(reader.push("a<to", [1, 0]).content).toBe("a");
    expect(reader.finish(false)).toEqual({ content: "<to", reasoning: "", calls: [] });
  });
});

/** A token for every byte. */
const ASCII = Array.from({ length: 128 }, (_, byte) => [[byte], "ordinary"] as const);
