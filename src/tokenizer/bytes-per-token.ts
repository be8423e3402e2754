import { isJsonObject } from "../base/json-object.ts";
import { ALPHABET } from "./byte-alphabet.ts";
import { createNormalizer, list, readStep, type Step } from "./steps.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/**
 * The factor that no Unicode normalisation form, nor lower case, shrinks the UTF-8 bytes of a text by more than: NFKC
 * makes the letter of four bytes U+1D400 an A, NFC three characters of seven bytes U+0390, of two.
 */
const UNICODE_SHRINKAGE = 4;
/** Pre-tokenizers that keep all of a text. */
const KEEPING = new Set(["ByteLevel", "Split", "Digits", "Punctuation", "FixedLength", "Metaspace"]);

/**
 * A bound on the UTF-8 bytes of a text that one token of its encoding stands for: a text of more bytes than that times n
 * has more than n tokens. Infinity for a tokenizer that may drop any length of text, or make one token of it: strip it,
 * remove matches, let a token take the white space beside it, or have no token for some byte.
 */
export function mostBytesPerToken(files: TokenizerFiles): number {
  const { definition, addedTokens, path } = files;
  const steps = flat(definition["pre_tokenizer"], "pretokenizers", path);
  const normalizers = flat(definition["normalizer"], "normalizers", path);
  const dropsText =
    steps.some((step) => !KEEPING.has(step.type) || step["behavior"] === "Removed") ||
    steps.some((step) => step["replacement"] === "") ||
    addedTokens.some(({ lstrip, rstrip }) => lstrip || rstrip);
  const isByteLevel = [...steps, ...normalizers].some((step) => step.type === "ByteLevel");
  if (dropsText || !spellsAllBytes(files, isByteLevel)) return Infinity;
  let most = 1;
  // A byte-level token has a character for each byte.
  for (const token of files.vocabulary.keys())
    most = Math.max(most, isByteLevel ? token.length : Buffer.byteLength(token));
  const normalizer = createNormalizer(definition["normalizer"], path);
  for (const { content } of addedTokens) {
    const normalized = normalizer?.normalize(content) ?? content;
    most = Math.max(most, Buffer.byteLength(content), Buffer.byteLength(normalized));
  }
  return normalizers.reduce((bytes, step) => bytes * shrinkage(step), most);
}

/** A step, or those of a `Sequence`, in order; none for null. */
function flat(config: unknown, name: string, file: string): Step[] {
  const step = readStep(config, file);
  if (step?.type !== "Sequence") return step ? [step] : [];
  return list(step, name, file).flatMap((each) => flat(each, name, file));
}

/** True if each byte of UTF-8 has a token, so that no character is dropped or unknown. */
function spellsAllBytes({ definition, vocabulary }: TokenizerFiles, isByteLevel: boolean): boolean {
  const model = definition["model"];
  if (!isByteLevel && !(isJsonObject(model) && model["byte_fallback"] === true)) return false;
  for (let byte = 0; byte < 256; byte++) {
    // 0xc0, 0xc1 and what is past 0xf4 never occur.
    if (byte === 0xc0 || byte === 0xc1 || byte > 0xf4) continue;
    const spelled = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    if (!vocabulary.has(isByteLevel ? ALPHABET[byte]! : spelled)) return false;
  }
  return true;
}

/** The factor that a normaliser shrinks a text by at most. */
function shrinkage(step: Step): number {
  switch (step.type) {
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
    case "Lowercase":
      return UNICODE_SHRINKAGE;
    case "Prepend":
    case "ByteLevel":
      return 1;
    case "Replace": {
      const { String: found } = step["pattern"] as { readonly String?: unknown };
      if (typeof found !== "string") return Infinity;
      const { content } = step as unknown as { readonly content: string };
      return Math.max(1, Buffer.byteLength(found) / Buffer.byteLength(content));
    }
    default:
      return Infinity;
  }
}
