import { ModelDataError, messageOf } from "../base/errors.ts";
import type { JsonObject } from "../base/json-object.ts";
import { quoted } from "../base/quoted.ts";
import { GgufFile } from "../gguf/gguf-file.ts";
import type { GgufList, GgufMetadata } from "../gguf/metadata.ts";
import { preTokenizerKind } from "./gguf-pre-tokenizers.ts";
import { mergesOf } from "./sentencepiece-merges.ts";
import { type AddedToken, MAX_TEMPLATE_BYTES, type TokenizerFiles } from "./tokenizer-files.ts";

const PREFIX = "tokenizer.ggml.";
/** Bounds on memory; real vocabularies have up to 262,144 tokens and 600,000 merges. */
const MAX_TOKENS = 2 ** 21;
const MAX_MERGES = 2 ** 22;
/** Kinds of tokens by their number in `token_type`. */
const KIND = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;
/** A place of the embedding that no token has, as an empty text is one. */
const PADDING = /^\[PAD-?\d+\]$/;
/** Named special tokens, and the entries that hold their ids. */
const NAMED: Readonly<Record<string, string>> = {
  bos_token: "bos_token_id",
  eos_token: "eos_token_id",
  unk_token: "unknown_token_id",
  sep_token: "seperator_token_id",
  pad_token: "padding_token_id",
  mask_token: "mask_token_id",
};

/** The tokens of a vocabulary, by id. */
interface Vocabulary {
  readonly tokens: readonly (string | undefined)[];
  readonly ids: ReadonlyMap<string, number>;
  readonly kinds: readonly number[];
}

/** The way from text to tokens of a vocabulary, as tokenizer.json says it. */
interface Definition {
  readonly model: JsonObject;
  readonly normalizer: JsonObject | null;
  readonly pre_tokenizer: JsonObject | null;
  readonly decoder: JsonObject;
  /** Unless the file says otherwise. */
  readonly addsBos: boolean;
  readonly merges: () => readonly (readonly [string, string])[];
}

/**
 * A GGUF file's description of its tokenizer, as if it came from the files of a Hugging Face folder: byte-level
 * vocabularies of a known kind, and SentencePiece BPE ones.
 * @throws ModelNotFoundError or ModelDataError as `GgufFile.open`, and for entries that are missing or contradict each
 * other; UnsupportedModelError for other tokenizers
 */
export function readGgufTokenizer(path: string): TokenizerFiles {
  const { metadata } = GgufFile.header(path);
  const key = `${PREFIX}model`;
  const model = metadata.string(key);
  if (model === undefined) throw metadata.invalid(key, "gpt2 or llama");
  if (model !== "gpt2" && model !== "llama")
    throw metadata.unsupported(key, "; supported are gpt2 and llama");
  const vocabulary = readVocabulary(metadata);
  const { addsBos, merges, ...definition } =
    model === "gpt2" ? byteLevel(metadata) : sentencePiece(metadata, vocabulary);
  const specialTokens = readSpecialTokens(metadata, vocabulary);
  const template = readTemplate(metadata);
  return {
    definition: { ...definition, post_processor: postProcessor(metadata, vocabulary, addsBos) },
    config: {},
    tokens: vocabulary.tokens,
    vocabulary: vocabulary.ids,
    get merges() {
      return merges();
    },
    addedTokens: addedTokens(vocabulary),
    specialTokens,
    chatTemplate: template === undefined ? undefined : { source: template, file: path },
    path,
  };
}

function readVocabulary(metadata: GgufMetadata): Vocabulary {
  const key = `${PREFIX}tokens`;
  const tokens: (string | undefined)[] = listOf(metadata, "tokens", MAX_TOKENS).strings();
  const kinds = perToken(metadata, "token_type", tokens.length) ?? new Array(tokens.length).fill(KIND.normal);
  const ids = new Map<string, number>();
  for (const [id, token] of tokens.entries()) {
    if (token === "" || (kinds[id] === KIND.unused && PADDING.test(token!))) {
      tokens[id] = undefined;
      continue;
    }
    const other = ids.get(token!);
    if (other !== undefined)
      throw new ModelDataError(metadata.path, `${key} has ${quoted(token!)} twice: ${other} and ${id}`);
    ids.set(token!, id);
  }
  // What follows the last token is there to fill the embedding.
  while (tokens.length > 0 && tokens.at(-1) === undefined) tokens.pop();
  return { tokens, ids, kinds };
}

/** A list that must be there, of at least one item. */
function listOf(metadata: GgufMetadata, name: "tokens" | "merges", most: number): GgufList {
  const list = metadata.list(PREFIX + name);
  if (list !== undefined && list.length > 0 && list.length <= most) return list;
  throw metadata.invalid(PREFIX + name, `a list of 1 to ${most} ${name}`);
}

/** A list with a number for each token. */
function perToken(metadata: GgufMetadata, name: string, count: number): number[] | undefined {
  const list = metadata.list(PREFIX + name);
  if (list !== undefined && list.length !== count)
    throw metadata.invalid(PREFIX + name, `a list of ${count} numbers, as there are tokens`);
  return list?.numbers();
}

function byteLevel(metadata: GgufMetadata): Definition {
  const { normalizer, preTokenizer, ignoresMerges, addsBos } = preTokenizerKind(metadata);
  const key = `${PREFIX}merges`;
  const list = listOf(metadata, "merges", MAX_MERGES);
  return {
    model: { type: "BPE", unk_token: null, byte_fallback: false, ignore_merges: ignoresMerges },
    normalizer,
    pre_tokenizer: preTokenizer,
    decoder: { type: "ByteLevel" },
    addsBos,
    merges: () =>
      list.strings().map((merge, rank) => {
        const at = merge.indexOf(" ");
        if (at > 0 && at === merge.lastIndexOf(" "))
          return [merge.slice(0, at), merge.slice(at + 1)] as const;
        throw new ModelDataError(
          metadata.path,
          `${key}: merge ${rank} is no pair of tokens: ${quoted(merge)}`,
        );
      }),
  };
}

function sentencePiece(metadata: GgufMetadata, vocabulary: Vocabulary): Definition {
  const { tokens, ids, kinds } = vocabulary;
  const key = `${PREFIX}scores`;
  const scores = perToken(metadata, "scores", kinds.length);
  if (scores === undefined || !scores.every(Number.isFinite))
    throw metadata.invalid(key, "a list of finite numbers");
  if (metadata.boolean(`${PREFIX}remove_extra_whitespaces`) === true)
    throw metadata.unsupported(`${PREFIX}remove_extra_whitespaces`);
  const prefixed = metadata.boolean(`${PREFIX}add_space_prefix`) ?? true;
  const unknown = metadata.tokenId(`${PREFIX}unknown_token_id`) ?? kinds.indexOf(KIND.unknown);
  const prepend = { type: "Prepend", prepend: "▁" };
  const decoders = [
    { type: "Replace", pattern: { String: "▁" }, content: " " },
    ...[{ type: "ByteFallback" }, { type: "Fuse" }],
    ...(prefixed ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
  ];
  /** Pieces that text is made of; others are no result of a merge. */
  const pieces = function* () {
    for (const [id, piece] of tokens.entries())
      if (kinds[id] === KIND.normal) yield [piece!, scores[id]!] as const;
  };
  return {
    model: {
      ...{ type: "BPE", unk_token: tokens[unknown] ?? null, fuse_unk: true },
      ...{ byte_fallback: kinds.includes(KIND.byte), ignore_merges: false },
    },
    normalizer: {
      type: "Sequence",
      normalizers: [
        ...(prefixed ? [prepend] : []),
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    decoder: { type: "Sequence", decoders },
    addsBos: true,
    merges: () => {
      try {
        return mergesOf(ids, pieces());
      } catch (cause) {
        throw new ModelDataError(metadata.path, `${PREFIX}tokens: ${messageOf(cause)}`, { cause });
      }
    },
  };
}

/** Control tokens are special; user-defined ones are found in text, and printed. */
function addedTokens({ tokens, kinds }: Vocabulary): AddedToken[] {
  const isAdded = (kind: number) =>
    kind === KIND.control || kind === KIND.userDefined || kind === KIND.unknown;
  return tokens.flatMap((content, id): AddedToken[] => {
    const kind = kinds[id]!;
    if (!content || !isAdded(kind)) return [];
    return [{ id, content, special: kind !== KIND.userDefined, normalized: false }];
  });
}

function readSpecialTokens(metadata: GgufMetadata, { tokens }: Vocabulary): Record<string, string> {
  const named: Record<string, string> = {};
  for (const [name, entry] of Object.entries(NAMED)) {
    const id = metadata.tokenId(PREFIX + entry);
    if (id === undefined) continue;
    const token = tokens[id];
    if (token !== undefined) named[name] = token;
    // Nothing is made of the others: files whose padding token does not exist are common.
    else if (name === "bos_token" || name === "eos_token")
      throw metadata.invalid(PREFIX + entry, "the id of a token");
  }
  return named;
}

/** The tokens around a text. */
function postProcessor(metadata: GgufMetadata, { tokens }: Vocabulary, addsBos: boolean): JsonObject | null {
  const wanted = {
    bos: metadata.boolean(`${PREFIX}add_bos_token`) ?? addsBos,
    eos: metadata.boolean(`${PREFIX}add_eos_token`) ?? false,
  };
  const special = (name: "bos" | "eos") => {
    const token = wanted[name] ? tokens[metadata.tokenId(`${PREFIX}${name}_token_id`) ?? -1] : undefined;
    return token === undefined ? [] : [{ SpecialToken: { id: token, type_id: 0 } }];
  };
  const [before, after] = [special("bos"), special("eos")];
  if (before.length + after.length === 0) return null;
  const single = [...before, { Sequence: { id: "A", type_id: 0 } }, ...after];
  return { type: "TemplateProcessing", single, special_tokens: {} };
}

function readTemplate(metadata: GgufMetadata): string | undefined {
  const key = "tokenizer.chat_template";
  const template = metadata.string(key);
  if (template !== undefined && Buffer.byteLength(template) > MAX_TEMPLATE_BYTES)
    throw new ModelDataError(metadata.path, `${key} is larger than ${MAX_TEMPLATE_BYTES} bytes`);
  return template;
}
