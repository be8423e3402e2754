import {
  ByteLevelPreTokenizer,
  MetaspacePreTokenizer,
  NFCNormalizer,
  NFDNormalizer,
  NFKCNormalizer,
  NFKDNormalizer,
  Normalizer,
  PreTokenizer,
  SequenceNormalizer,
  SequencePreTokenizer,
  StripAccentsNormalizer,
} from "@huggingface/tokenizers";
import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";
import { toAlphabet } from "./byte-alphabet.ts";
import { compilePattern, nativeFinder, occurrences } from "./pattern/pattern.ts";
import { behaviorOf, split } from "./splitting.ts";
import { WordCache } from "./word-cache.ts";

/** A step of tokenizer.json: an object with a type. */
export type Step = JsonObject & { readonly type: string };
type Steps<T> = Readonly<Record<string, (step: Step, file: string) => T>>;

const LEADING = /^\p{White_Space}+/u;
const ALL_BUT_TRAILING = /^.*\P{White_Space}/su;
const GPT2 =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gv;
const PUNCTUATION = "\\p{P}!-\\/:-@\\[-`\\{-~";
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

/**
 * The normalizers of tokenizer.json, by type. Those with a comment stand in place of the library's, whose fault beside
 * the Rust library the comment names; docs/upstream.md has a case of each.
 */
const NORMALIZERS: Steps<Normalizer> = {
  NFC: (step) => new NFCNormalizer(step as never),
  NFD: (step) => new NFDNormalizer(step as never),
  NFKC: (step) => new NFKCNormalizer(step as never),
  NFKD: (step) => new NFKDNormalizer(step as never),
  StripAccents: (step) => new StripAccentsNormalizer(step as never),
  // A capital sigma that ends a word becomes a final one.
  Lowercase: () => new OwnNormalizer((text) => text.replaceAll("Σ", "σ").toLowerCase()),
  // Takes off what JavaScript's `trim` does.
  Strip: (step) =>
    new OwnNormalizer((text) => {
      const left = step["strip_left"] === true ? text.replace(LEADING, "") : text;
      return step["strip_right"] === true ? (ALL_BUT_TRAILING.exec(left)?.[0] ?? "") : left;
    }),
  // Makes something of an empty text.
  Prepend: (step, file) => {
    const prepended = string(step, "prepend", file);
    return new OwnNormalizer((text) => (text === "" ? text : prepended + text));
  },
  // Takes `$` in the content for a reference; its expressions may take time that is not linear in the text.
  Replace: (step, file) => {
    const find = compilePattern(step["pattern"], file);
    const content = string(step, "content", file);
    return new OwnNormalizer((text) => replaceAll(text, find(text), content));
  },
  // Is unknown as a normalizer.
  ByteLevel: () => new OwnNormalizer(toAlphabet),
};

/** The pre-tokenizers, as `NORMALIZERS`. */
const PRE_TOKENIZERS: Steps<PreTokenizer> = {
  // Its expression takes `\s` as JavaScript does; it spells the bytes of each word anew, and slowly.
  ByteLevel: (step) => new ByteLevel(step as never),
  // Ignores `split` and `add_prefix_space`, and takes every word of a first piece of text for the first.
  Metaspace: (step, file) => new Metaspace(step, file),
  // Knows two of five behaviours; its expressions may take time that is not linear in the text.
  Split: (step, file) => {
    const find = compilePattern(step["pattern"], file);
    const behavior = behaviorOf(step["behavior"], file);
    return new OwnPreTokenizer((text) => split(text, find(text), behavior, step["invert"] === true));
  },
  // Ignores `behavior`.
  Punctuation: (step, file) => {
    const find = nativeFinder(new RegExp(`[${PUNCTUATION}]`, "gv"));
    const behavior = behaviorOf(step["behavior"] ?? "Isolated", file);
    return new OwnPreTokenizer((text) => split(text, find(text), behavior));
  },
  // Knows ASCII digits only.
  Digits: (step) => matching(step["individual_digits"] === true ? "\\P{N}+|\\p{N}" : "\\P{N}+|\\p{N}+"),
  // These three take `\s` and `\w` as JavaScript does.
  Whitespace: () => matching(`[${WORD}]+|[^${WORD}\\p{White_Space}]+`),
  WhitespaceSplit: () => matching("\\P{White_Space}+"),
  BertPreTokenizer: () => matching(`[^${PUNCTUATION}\\p{White_Space}]+|[${PUNCTUATION}]`),
  // Is unknown.
  CharDelimiterSplit: (step, file) => {
    const delimiter = string(step, "delimiter", file);
    return new OwnPreTokenizer((text) => text.split(delimiter).filter((word) => word !== ""));
  },
  // Counts UTF-16 units.
  FixedLength: (step, file) => {
    const length = step["length"] ?? 5;
    if (!Number.isSafeInteger(length) || (length as number) < 1) {
      throw new ModelDataError(file, "FixedLength.length is not a positive integer");
    }
    return matching(`[^]{1,${length}}`);
  },
};

/**
 * The changes to a text before it is split.
 * @throws ModelDataError or UnsupportedModelError naming `file`
 */
export function createNormalizer(config: unknown, file: string): Normalizer | null {
  const step = readStep(config, file);
  if (step?.type !== "Sequence") return step && create(NORMALIZERS, "normalizer", step, file);
  const sequence = new SequenceNormalizer({ type: "Sequence", normalizers: [] });
  sequence.normalizers = list(step, "normalizers", file).map((each) => createNormalizer(each, file));
  return sequence;
}

/**
 * The split of a text into the words that byte-pair encoding merges within.
 * @throws ModelDataError or UnsupportedModelError naming `file`
 */
export function createPreTokenizer(config: unknown, file: string): PreTokenizer | null {
  const step = readStep(config, file);
  if (step?.type !== "Sequence") return step && create(PRE_TOKENIZERS, "pre-tokenizer", step, file);
  const sequence = new SequencePreTokenizer({ type: "Sequence", pretokenizers: [] });
  sequence.tokenizers = list(step, "pretokenizers", file).flatMap((each) => {
    const inner = createPreTokenizer(each, file);
    return inner instanceof SequencePreTokenizer ? inner.tokenizers : inner;
  });
  return sequence;
}

/** Null for none. @throws ModelDataError */
export function readStep(config: unknown, file: string): Step | null {
  if (config === undefined || config === null) return null;
  if (isJsonObject(config) && typeof config["type"] === "string") return config as Step;
  throw new ModelDataError(file, `${JSON.stringify(config).slice(0, 100)} is not a step with a type`);
}

/** The steps of a `Sequence`. @throws ModelDataError */
export function list(step: Step, name: string, file: string): unknown[] {
  const steps = step[name];
  if (Array.isArray(steps)) return steps;
  throw new ModelDataError(file, `a ${step.type} has no ${name}`);
}

function create<T>(steps: Steps<T>, kind: string, step: Step, file: string): T {
  if (!Object.hasOwn(steps, step.type))
    throw new UnsupportedModelError(file, `the ${kind} ${step.type} is not supported`);
  return steps[step.type]!(step, file);
}

class OwnNormalizer extends Normalizer {
  constructor(readonly normalize: (text: string) => string) {
    super({} as never);
  }
}

class OwnPreTokenizer extends PreTokenizer {
  constructor(readonly pre_tokenize_text: (text: string) => string[]) {
    super();
  }
}

/** The words are what the expression matches. */
function matching(source: string): PreTokenizer {
  const expression = new RegExp(source, "gv");
  return new OwnPreTokenizer((text) => text.match(expression) ?? []);
}

/** Words of GPT-2, unless `use_regex` is false, in its alphabet of bytes. */
class ByteLevel extends ByteLevelPreTokenizer {
  readonly #spelled = new WordCache(toAlphabet);

  override pre_tokenize_text(text: string): string[] {
    const whole = this.add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text;
    const words = this.use_regex ? (whole.match(GPT2) ?? []) : [whole];
    return words.map((word) => this.#spelled.of(word));
  }
}

/** Spaces become "▁", one is put in front, and each begins a word. */
class Metaspace extends MetaspacePreTokenizer {
  readonly #splits: boolean;

  constructor(step: Step, file: string) {
    const scheme = step["add_prefix_space"] === false ? "never" : (step["prepend_scheme"] ?? "always");
    if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
      throw new ModelDataError(file, `Metaspace.prepend_scheme is ${JSON.stringify(scheme)}`);
    }
    const replacement = step["replacement"] === undefined ? "▁" : string(step, "replacement", file);
    super({ type: "Metaspace", replacement, prepend_scheme: scheme } as never);
    this.#splits = step["split"] !== false;
  }

  override pre_tokenize(text: string | string[], options?: { section_index?: number }): string[] {
    if (!Array.isArray(text)) return super.pre_tokenize(text, options);
    return text.flatMap((word, i) => this.pre_tokenize_text(word, i === 0 ? options : {}));
  }

  override pre_tokenize_text(text: string, options?: { section_index?: number }): string[] {
    const words = super.pre_tokenize_text(text, options);
    if (!this.#splits) return words;
    const mark = this.replacement;
    return words.flatMap((word) => split(word, occurrences(word, mark), "MergedWithNext"));
  }
}

function replaceAll(text: string, found: readonly number[], content: string): string {
  let result = "";
  let at = 0;
  for (let i = 0; i < found.length; i += 2) {
    result += text.slice(at, found[i]) + content;
    at = found[i + 1]!;
  }
  return result + text.slice(at);
}

/** A field that must be a text. */
function string(step: Step, name: string, file: string): string {
  const value = step[name];
  if (typeof value === "string") return value;
  throw new ModelDataError(file, `${step["type"]}.${name} is not a text`);
}
