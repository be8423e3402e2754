import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../../../src/base/errors.ts";
import { KNOWN_PATTERNS } from "../../../src/tokenizer/pattern/known-patterns.ts";
import { nativeExpression } from "../../../src/tokenizer/pattern/native.ts";
import { nativeFinder } from "../../../src/tokenizer/pattern/pattern.ts";
import { parsePattern } from "../../../src/tokenizer/pattern/syntax.ts";
import { createPreTokenizer } from "../../../src/tokenizer/steps.ts";
import { cpuClock } from "../../support.ts";
import { loadFiles, sentencePiece, TEXTS, tokenizers } from "./models.ts";

setDefaultTimeout(300_000);

const { tinyStories, qwen3, llama32, spm } = tokenizers;
describe("known encodings", () => {
  test.each<[keyof typeof tokenizers, string, number[]]>([
    ["qwen3", "Hello, world!", [9707, 11, 1879, 0]],
    ["qwen3", "<|im_start|>", [151644]],
    ["llama32", "Hello, world!", [128000, 9906, 11, 1917, 0]],
    ["spm", "hello", [1, 268]],
    ["spm", "hello hello", [1, 268, 268]],
    ["spm", "é", [1, 259, 198, 172]],
  ])("%s: %p", (name, input, ids) => {
    const tokenizer = tokenizers[name];
    expect(tokenizer.encode(input)).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(tokenizer.isSpecial(ids[0]!) && ids.length === 1 ? "" : input);
  });

  test("special tokens are added and shown on request only", () => {
    expect(llama32.encode("Hello", { addSpecialTokens: false })).toEqual([9906]);
    expect(llama32.decode([128000, 9906], { skipSpecialTokens: false })).toBe("<|begin_of_text|>Hello");
    expect(spm.encode("hello", { addSpecialTokens: false })).toEqual([268]);
  });
});

describe.each(Object.keys(tokenizers) as (keyof typeof tokenizers)[])("%s", (name) => {
  const tokenizer = tokenizers[name];
  test.each(TEXTS)("round trip %p", (input) => {
    expect(tokenizer.decode(tokenizer.encode(input))).toBe(
      tokenizer === qwen3 ? input.normalize("NFC") : input,
    );
  });
});

describe("what is put around a text", () => {
  const piece = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
  const adding = (...single: object[]) => ({ type: "TemplateProcessing", single, special_tokens: {} });
  const text = { Sequence: { id: "A", type_id: 0 } };
  const bos = adding(piece("<s>"), text);

  test.each<[string, unknown, Record<string, unknown>, number[]]>([
    ["a post-processor without tokens, in a folder of transformers 5", adding(text), {}, [268]],
    ["one with a token", bos, {}, [1, 268]],
    ["one in a sequence", { type: "Sequence", processors: [{ type: "ByteLevel" }, bos] }, {}, [1, 268]],
    ["no post-processor, in a folder of transformers 4", null, {}, [1, 268]],
    ["flags of transformers 4", adding(text), { add_bos_token: true, add_eos_token: true }, [1, 268, 2]],
    ["a flag that says no", bos, { add_bos_token: false }, [268]],
    [
      "a class that knows no flags",
      bos,
      { tokenizer_class: "Qwen2Tokenizer", add_bos_token: false },
      [1, 268],
    ],
    ["another class without a post-processor", null, { tokenizer_class: "TokenizersBackend" }, [268]],
  ])("%s", async (_, post_processor, change, ids) => {
    const files = sentencePiece();
    const tokenizer = await loadFiles({
      "tokenizer.json": { ...files["tokenizer.json"], post_processor },
      "tokenizer_config.json": { ...files["tokenizer_config.json"], ...change },
    });
    expect(tokenizer.encode("hello")).toEqual(ids);
    expect(tokenizer.encode("hello", { addSpecialTokens: false })).toEqual([268]);
  });
});

describe("where the library's steps do otherwise than the Rust library", () => {
  const definition = sentencePiece()["tokenizer.json"];
  const load = (model: object, steps: object) => {
    const changed = { ...definition.model, byte_fallback: false, ...model };
    return loadFiles({ "tokenizer.json": { ...definition, normalizer: null, ...steps, model: changed } });
  };
  const withoutBytes = Object.fromEntries(
    Object.entries(definition.model.vocab).filter(([token]) => !token.startsWith("<0x")),
  );
  const normalizers = (...steps: object[]) => ({
    normalizer: { type: "Sequence", normalizers: steps },
  });
  const words = (...steps: object[]) => ({ type: "Sequence", pretokenizers: steps });
  const at = (text: string, behavior: string) => ({ type: "Split", pattern: { String: text }, behavior });
  const first = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false };
  const strip = { type: "Strip", strip_left: true, strip_right: true };
  const prepend = { type: "Prepend", prepend: "h" };
  const replace = { type: "Replace", pattern: { String: "e" }, content: "$$" };

  test.each<[string, object, object, string, number[]]>([
    [
      "unknown characters of two words",
      { fuse_unk: true },
      { pre_tokenizer: at("z", "Removed") },
      "éézéé",
      [0, 0],
    ],
    ["unknown characters apart", {}, {}, "ééh", [0, 0, 260]],
    [
      "unknown characters without bytes",
      { fuse_unk: true, byte_fallback: true, vocab: withoutBytes },
      {},
      "ééh",
      [0, 260],
    ],
    ["dropped before merging", { unk_token: null }, {}, "éeélo", [265, 263]],
    ["an empty text, prepended", {}, normalizers(strip, prepend), "  ", []],
    ["a text, prepended", {}, normalizers(strip, prepend), " e ", [260, 261]],
    ["white space is not JavaScript's", {}, normalizers(strip), "\x85h\ufeff\x85", [260, 0]],
    ["a replacement is literal", {}, normalizers(replace), "heh", [260, 0, 0, 260]],
    [
      "the first of several words",
      {},
      { pre_tokenizer: words(at("h", "Isolated"), first) },
      "heh",
      [264, 261, 260],
    ],
    [
      "the same in a nested sequence",
      {},
      { pre_tokenizer: words(at("h", "Isolated"), words(first)) },
      "heh",
      [264, 261, 260],
    ],
  ])("%s", async (_, model, steps, text, ids) => {
    expect((await load(model, steps)).encode(text, { addSpecialTokens: false })).toEqual(ids);
  });
});

test("a long run of unknown characters is spelled in bytes", async () => {
  const files = sentencePiece();
  const model = { ...files["tokenizer.json"].model, fuse_unk: true };
  const tokenizer = await loadFiles({ "tokenizer.json": { ...files["tokenizer.json"], model } });
  const text = "é".repeat(200_000);
  expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
});

test("GPT-2's words are split at white space that is not JavaScript's", () => {
  const step = createPreTokenizer({ type: "ByteLevel" }, "tokenizer.json")!;
  expect(step.pre_tokenize("a \ufeff!b\x85\x85!")).toEqual(["a", "Ġï»¿!", "b", "Âħ", "Âħ", "!"]);
});

test("a thread that only decodes does not load the library", () => {
  const script = `
    const { Tokenizer } = await import("./src/tokenizer/tokenizer.ts");
    const isLoaded = () => Object.keys(require.cache).some((path) => path.includes("@huggingface/tokenizers"));
    const tokenizer = await Tokenizer.load("models/tiny-stories");
    tokenizer.decode([300]);
    const before = isLoaded();
    tokenizer.encode("a");
    console.log(before, isLoaded());
  `;
  const { stdout } = Bun.spawnSync(["bun", "-e", script], { cwd: join(import.meta.dir, "../../..") });
  expect(stdout.toString().trim()).toBe("false true");
});

describe("tokens", () => {
  test("vocabulary size and named tokens", () => {
    expect([qwen3, llama32, tinyStories].map((t) => [t.vocabSize, t.eosTokenId, t.bosTokenId])).toEqual([
      [151669, 151645, undefined],
      [128256, 128009, 128000],
      [4096, 4091, undefined],
    ]);
    expect(qwen3.isSpecial(151645)).toBe(true);
    expect(qwen3.isSpecial(0)).toBe(false);
    expect(spm.specialTokens).toEqual({ bos_token: "<s>", eos_token: "</s>" });
  });

  test.each<[keyof typeof tokenizers, string, string | Uint8Array<ArrayBuffer>]>([
    ["qwen3", "Ġworld", " world"],
    ["qwen3", "<|im_end|>", "<|im_end|>"],
    ["spm", "▁hello", " hello"],
    ["spm", "<0xC3>", Uint8Array.of(0xc3)],
  ])("%s: bytes of %p", (name, token, bytes) => {
    const tokenizer = tokenizers[name];
    const id = tokenizer.tokenToId(token)!;
    expect(tokenizer.idToToken(id)).toBe(token);
    expect(tokenizer.tokenBytes(id)).toEqual(
      typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes,
    );
  });

  test("ids without a token stand for nothing", () => {
    for (const id of [-1, 1.5, qwen3.vocabSize, 2 ** 53]) {
      expect([qwen3.idToToken(id), qwen3.decode([id, 9707])]).toEqual([undefined, "Hello"]);
    }
  });

  test("tokenizer_config.json adds tokens", async () => {
    const files = sentencePiece();
    const decoder = { 500: { content: "<new>", special: true } };
    const config = { ...files["tokenizer_config.json"], added_tokens_decoder: decoder, eos_token: "▁hello" };
    const tokenizer = await loadFiles({ ...files, "tokenizer_config.json": config });
    expect([tokenizer.vocabSize, tokenizer.encode("<new>"), tokenizer.isSpecial(268)]).toEqual([
      501,
      [1, 500],
      true,
    ]);
  });
});

test.each(["x".repeat(2 ** 19), " ".repeat(200_000), "-".repeat(2 ** 20), "\u0301".repeat(100_000)])(
  "a long run is encoded in time (%#)",
  (input) => {
    const spent = cpuClock();
    const ids = qwen3.encode(input);
    expect(spent()).toBeLessThan(4);
    expect(qwen3.decode(ids)).toBe(input);
  },
);

describe("patterns of a model folder", () => {
  const withPattern = async (Regex: string) => {
    const files = sentencePiece();
    const pre_tokenizer = { type: "Split", pattern: { Regex }, behavior: "Isolated" };
    return await loadFiles({ ...files, "tokenizer.json": { ...files["tokenizer.json"], pre_tokenizer } });
  };

  test.each(["(h+)+$", "(h|hh)+o", "(?:(?:h*)*)*o", "h*h*h*h*o", "h+(?=.*x)|\\s+$", "(?=(h+)+x)h"])(
    "%s takes no longer than the text is long",
    async (pattern) => {
      const tokenizer = await withPattern(pattern);
      const spent = cpuClock();
      tokenizer.encode(`${"h".repeat(20_000)} ${" ".repeat(20_000)}o`);
      expect(spent()).toBeLessThan(4);
    },
  );

  test.each([...KNOWN_PATTERNS])("a known one takes no longer in JavaScript's engine: %s", (source) => {
    const find = nativeFinder(nativeExpression(parsePattern(source)));
    const units = [" ", "\n", "a", "A", "1", "-", "é", "\u0301", "漢", " a", "Aa", "'", " \n", "ǅ", "'s"];
    const spent = cpuClock();
    for (const unit of units) find(unit.repeat(100_000));
    expect(spent()).toBeLessThan(8);
  });

  test.each(["(a)\\1", "(?>ab|a)c", "(?<=ab)c", "\\X", "[[:nope:]]", "\\p{Nope}", "a{2,1}", "(", "[a", "*"])(
    "%s cannot be run, which is said",
    async (pattern) => {
      const failure = withPattern(pattern);
      await expect(failure).rejects.toBeInstanceOf(UnsupportedModelError);
      await expect(failure).rejects.toThrow("tokenizer.json: a pre-tokenizer's pattern cannot be run: ");
    },
  );
});

test.each<[string, Record<string, unknown>, string | undefined]>([
  ["none", {}, undefined],
  ["in the configuration", { "tokenizer_config.json": { chat_template: "C" } }, "C"],
  ["a list", { "tokenizer_config.json": { chat_template: [{ name: "default", template: "L" }] } }, "L"],
  ["json", { "chat_template.json": { chat_template: "J" } }, "J"],
  ["jinja wins", { "chat_template.jinja": "F", "tokenizer_config.json": { chat_template: "C" } }, "F"],
])("chat template: %s", async (_, files, expected) => {
  const tokenizer = await loadFiles({ "tokenizer.json": sentencePiece()["tokenizer.json"], ...files });
  expect(tokenizer.chatTemplate).toBe(expected as string);
});

describe("malformed files", () => {
  const definition = () => sentencePiece()["tokenizer.json"];
  const model = (change: Record<string, unknown>) => ({
    ...definition(),
    model: { ...definition().model, ...change },
  });

  test("no tokenizer.json", async () => {
    await expect(loadFiles({})).rejects.toBeInstanceOf(ModelNotFoundError);
  });

  test.each<[string, unknown]>([
    ["not JSON", "{"],
    ["not an object", []],
    ["no model", { decoder: null }],
    ["duplicate ids", model({ vocab: { a: 0, b: 0 }, merges: [] })],
    ["a negative id", model({ vocab: { a: -1 }, merges: [] })],
    ["a fractional id", model({ vocab: { a: 0.5 }, merges: [] })],
    ["a huge id", model({ vocab: { a: 2 ** 40 }, merges: [] })],
    ["an id that is a string", model({ vocab: { a: "1" }, merges: [] })],
    ["a merge outside the vocabulary", model({ merges: ["h x"] })],
    ["a merge of three", model({ merges: ["a b c"] })],
    ["merges that are a number", model({ merges: 5 })],
    [
      "an added token that takes another's id",
      { ...definition(), added_tokens: [{ id: 5, content: "<a>" }] },
    ],
    ["an added token without content", { ...definition(), added_tokens: [{ id: 900 }] }],
    ["an unknown pre-tokenizer", { ...definition(), pre_tokenizer: { type: "Nope" } }],
    ["a broken pattern", { ...definition(), pre_tokenizer: { type: "Split", pattern: { Regex: "(" } } }],
  ])("%s", async (_, content) => {
    await expect(loadFiles({ "tokenizer.json": content })).rejects.toBeInstanceOf(ModelDataError);
  });

  test("a post-processor with an unknown token", async () => {
    const post_processor = {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<nope>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    };
    await expect(loadFiles({ "tokenizer.json": { ...definition(), post_processor } })).rejects.toThrow(
      "post_processor",
    );
  });

  test.each<[string, unknown]>([
    ["a Unigram model", model({ type: "Unigram" })],
    ["a WordPiece decoder", { ...definition(), decoder: { type: "WordPiece" } }],
    ["an unknown normalizer", { ...definition(), normalizer: { type: "Nmt" } }],
    [
      "a pattern with a backreference",
      { ...definition(), pre_tokenizer: { type: "Split", pattern: { Regex: "(a)\\1" } } },
    ],
  ])("unsupported: %s", async (_, content) => {
    await expect(loadFiles({ "tokenizer.json": content })).rejects.toBeInstanceOf(UnsupportedModelError);
  });
});
