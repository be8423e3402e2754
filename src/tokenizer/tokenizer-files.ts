import { join } from "node:path";
import { ModelDataError, ModelNotFoundError, UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";
import { readModelJson, readModelText } from "../base/model-file.ts";

/** Ids lie below this bound, so that a hostile one cannot size an array. */
const MAX_TOKEN_ID = 2 ** 24;
const MAX_FILE_BYTES = 256 * 2 ** 20;
export const MAX_TEMPLATE_BYTES = 2 ** 20;
const NAMED_TOKENS = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
];

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  /** Looked for in normalised text. Default: unless it is special. */
  readonly normalized?: boolean;
  /** True if it takes the white space before it, and after it. */
  readonly lstrip?: boolean;
  readonly rstrip?: boolean;
  /** Not within a word. */
  readonly single_word?: boolean;
}

export interface ChatTemplateSource {
  /** In Jinja. */
  readonly source: string;
  /** The file that it is in, for messages. */
  readonly file: string;
}

/** A model folder's or a GGUF file's description of its tokenizer, validated: ids are unique integers in [0, 2^24). */
export interface TokenizerFiles {
  /** tokenizer.json as it stands, or what stands for it; `model` is a BPE model, whose vocabulary and merges are below. */
  readonly definition: JsonObject;
  readonly config: JsonObject;
  /** Every token by its id, added ones included; ids may be missing. */
  readonly tokens: readonly (string | undefined)[];
  /** The model's vocabulary, without tokens that are only added. */
  readonly vocabulary: ReadonlyMap<string, number>;
  /** Read anew each time, as only an encoder needs them. @throws ModelDataError if they are malformed. */
  readonly merges: readonly (readonly [string, string])[];
  /** Those of tokenizer.json, completed with tokenizer_config.json. */
  readonly addedTokens: readonly AddedToken[];
  /** `bos_token`, `eos_token` and their kin, by name; those that are set. */
  readonly specialTokens: Readonly<Record<string, string>>;
  readonly chatTemplate: ChatTemplateSource | undefined;
  /** The path of tokenizer.json or of the GGUF file, for messages. */
  readonly path: string;
}

/**
 * @throws ModelNotFoundError if tokenizer.json is missing
 * @throws ModelDataError if a file is malformed; UnsupportedModelError if it is not byte-pair encoding
 */
export function readTokenizerFiles(folder: string): TokenizerFiles {
  const path = join(folder, "tokenizer.json");
  const definition = readModelJson(folder, "tokenizer.json", MAX_FILE_BYTES);
  if (definition === undefined) throw new ModelNotFoundError(path, `${path} does not exist`);
  const configPath = join(folder, "tokenizer_config.json");
  const config = readModelJson(folder, "tokenizer_config.json", MAX_FILE_BYTES) ?? {};

  const model = object(definition["model"], path, "model");
  const { continuing_subword_prefix: prefix, end_of_word_suffix: suffix } = model;
  if ((model["type"] ?? "BPE") !== "BPE" || !model["merges"] || prefix || suffix) {
    throw new UnsupportedModelError(path, "only byte-pair encoding without subword affixes is supported");
  }
  const tokens: (string | undefined)[] = [];
  const vocabulary = readVocabulary(object(model["vocab"], path, "model.vocab"), tokens, path);
  const specialTokens = readSpecialTokens(config, configPath);
  return {
    definition,
    config,
    tokens,
    vocabulary,
    get merges() {
      return readMerges(model["merges"], path);
    },
    addedTokens: readAddedTokens(definition, config, vocabulary, tokens, Object.values(specialTokens), path),
    specialTokens,
    chatTemplate: readChatTemplate(folder, config),
    path,
  };
}

/** Fills `tokens`. */
function readVocabulary(
  vocab: JsonObject,
  tokens: (string | undefined)[],
  path: string,
): Map<string, number> {
  const ids = new Map<string, number>();
  // A list of entries would take 20 ms more for a vocabulary of 150,000.
  for (const token in vocab) {
    const id = tokenId(vocab[token], path, token);
    if (tokens[id] !== undefined) throw new ModelDataError(path, `id ${id} belongs to two tokens`);
    tokens[id] = token;
    ids.set(token, id);
  }
  return ids;
}

/** A merge is `["a", "b"]`, or `"a b"` in older files. */
function readMerges(merges: unknown, path: string): [string, string][] {
  return array(merges, path, "model.merges").map((merge, rank) => {
    const pair = typeof merge === "string" ? merge.split(" ") : merge;
    if (!Array.isArray(pair) || pair.length !== 2 || pair.some((part) => typeof part !== "string")) {
      throw new ModelDataError(path, `merge ${rank} is not a pair of tokens`);
    }
    return pair as [string, string];
  });
}

/**
 * As transformers does, tokenizer_config.json's `added_tokens_decoder` adds tokens and overrides flags, and a
 * named special token (`eos_token`, …) of the vocabulary is added as special. Completes `tokens`.
 */
function readAddedTokens(
  definition: JsonObject,
  config: JsonObject,
  vocabulary: ReadonlyMap<string, number>,
  tokens: (string | undefined)[],
  named: readonly string[],
  path: string,
): AddedToken[] {
  const entries = array(definition["added_tokens"] ?? [], path, "added_tokens").map((entry) =>
    object(entry, path, "added_tokens"),
  );
  for (const [id, entry] of Object.entries(
    object(config["added_tokens_decoder"] ?? {}, path, "added_tokens_decoder"),
  )) {
    entries.push({ ...object(entry, path, "added_tokens_decoder"), id: Number(id) });
  }
  const byContent = new Map<string, AddedToken>();
  for (const entry of entries) {
    const { content, special } = entry;
    if (typeof content !== "string" || content === "") {
      throw new ModelDataError(path, "an added token has no content");
    }
    const id = tokenId(entry["id"], path, content);
    const known = vocabulary.get(content) ?? byContent.get(content)?.id ?? id;
    if (known !== id || (tokens[id] ?? content) !== content) {
      throw new ModelDataError(
        path,
        `added token ${JSON.stringify(content)} has an id that is not its own: ${id}`,
      );
    }
    tokens[id] = content;
    byContent.set(content, { ...entry, id, content, special: special === true });
  }
  for (const content of named) {
    const id = vocabulary.get(content);
    if (id !== undefined && !byContent.has(content)) byContent.set(content, { id, content, special: true });
  }
  return [...byContent.values()];
}

function readSpecialTokens(config: JsonObject, path: string): Record<string, string> {
  const tokens: Record<string, string> = {};
  for (const name of NAMED_TOKENS) {
    const value = config[name] ?? undefined;
    const content = typeof value === "object" ? (value as JsonObject)["content"] : value;
    if (content === undefined) continue;
    if (typeof content !== "string") throw new ModelDataError(path, `${name} is not a token`);
    tokens[name] = content;
  }
  return tokens;
}

/** chat_template.jinja wins over tokenizer_config.json's `chat_template`, which wins over chat_template.json. */
function readChatTemplate(folder: string, config: JsonObject): ChatTemplateSource | undefined {
  const jinja = readModelText(folder, "chat_template.jinja", MAX_TEMPLATE_BYTES);
  if (jinja !== undefined) return { source: jinja, file: join(folder, "chat_template.jinja") };
  const inConfig = config["chat_template"] ?? undefined;
  const file = join(folder, inConfig === undefined ? "chat_template.json" : "tokenizer_config.json");
  const template =
    inConfig ??
    readModelJson(folder, "chat_template.json", MAX_TEMPLATE_BYTES)?.["chat_template"] ??
    undefined;
  if (template === undefined) return undefined;
  if (typeof template === "string") return { source: template, file };
  const named = array(template, file, "chat_template") as ({ name?: unknown; template?: unknown } | null)[];
  const chosen = named.find((entry) => entry?.name === "default")?.template;
  if (chosen === undefined) return undefined;
  if (typeof chosen !== "string") throw new ModelDataError(file, "chat_template is not a string");
  return { source: chosen, file };
}

function object(value: unknown, path: string, name: string): JsonObject {
  if (isJsonObject(value)) return value;
  throw new ModelDataError(path, `${name} is not an object`);
}

function array(value: unknown, path: string, name: string): unknown[] {
  if (Array.isArray(value)) return value;
  throw new ModelDataError(path, `${name} is not a list`);
}

function tokenId(value: unknown, path: string, token: string): number {
  if (Number.isInteger(value) && (value as number) >= 0 && (value as number) < MAX_TOKEN_ID)
    return value as number;
  throw new ModelDataError(
    path,
    `token ${JSON.stringify(token)} has the invalid id ${JSON.stringify(value)}`,
  );
}
