import type { JsonObject } from "../base/json-object.ts";
import type { GgufMetadata } from "../gguf/metadata.ts";
import { PATTERNS } from "./pattern/known-patterns.ts";

/** The steps of a kind of byte-level tokenizer before it merges, as tokenizer.json would say them. */
export interface PreTokenizerKind {
  readonly normalizer: JsonObject | null;
  readonly preTokenizer: JsonObject;
  /** A word that is a token is not merged. */
  readonly ignoresMerges: boolean;
  /** True if texts begin with the beginning-of-sequence token unless the file says otherwise. */
  readonly addsBos: boolean;
}

const BYTE_LEVEL = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true };

function splitting(patterns: readonly string[], rest: Partial<PreTokenizerKind> = {}): PreTokenizerKind {
  const splits = patterns.map((Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated" }));
  const pretokenizers = [...splits, { ...BYTE_LEVEL, use_regex: false }];
  const preTokenizer = { type: "Sequence", pretokenizers };
  return { normalizer: null, preTokenizer, ignoresMerges: false, addsBos: false, ...rest };
}

const plain = { normalizer: null, ignoresMerges: false, addsBos: false };
const GPT2: PreTokenizerKind = { ...plain, preTokenizer: { ...BYTE_LEVEL, use_regex: true } };
const SMOLLM: PreTokenizerKind = {
  ...plain,
  preTokenizer: {
    type: "Sequence",
    pretokenizers: [{ type: "Digits", individual_digits: true }, GPT2.preTokenizer],
  },
};
const LLAMA3 = splitting([PATTERNS.llama3], { ignoresMerges: true, addsBos: true });
const NFC = { normalizer: { type: "NFC" } };
const QWEN2 = splitting([PATTERNS.qwen2], NFC);
const DEEPSEEK3 = splitting([PATTERNS.deepseekNumbers, PATTERNS.deepseekKana, PATTERNS.deepseekWords]);

/** By `tokenizer.ggml.pre`. */
const KINDS: ReadonlyMap<string, PreTokenizerKind> = new Map([
  ["llama-bpe", LLAMA3],
  ["llama3", LLAMA3],
  ["llama-v3", LLAMA3],
  ["qwen2", QWEN2],
  ["deepseek-r1-qwen", QWEN2],
  ["qwen35", splitting([PATTERNS.qwen35], NFC)],
  ["tekken", splitting([PATTERNS.tekken], { ignoresMerges: true, addsBos: true })],
  ["gpt-4o", splitting([PATTERNS.o200k])],
  ["deepseek-v3", DEEPSEEK3],
  ["gpt-2", GPT2],
  ["phi-2", GPT2],
  ["smollm", SMOLLM],
]);

/** @throws UnsupportedModelError for a kind that is not known: a guess would give other tokens than the model knows */
export function preTokenizerKind(metadata: GgufMetadata): PreTokenizerKind {
  const key = "tokenizer.ggml.pre";
  const known = [...KINDS.keys()].join(", ");
  const name = metadata.string(key);
  if (name === undefined) throw metadata.invalid(key, `one of ${known}`);
  const kind = KINDS.get(name);
  if (kind === undefined) throw metadata.unsupported(key, `; supported are ${known}`);
  return kind;
}
