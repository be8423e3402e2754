import type { Tokenizer as Pipeline } from "@huggingface/tokenizers";
import { isGgufModel } from "../gguf/gguf-file.ts";
import { readGgufTokenizer } from "./gguf-tokenizer.ts";
import { type TokenBytes, tokenBytes } from "./token-bytes.ts";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer-files.ts";

/** How text becomes tokens. */
export interface EncodeOptions {
  /** Add what the model's post-processor adds, such as a beginning-of-sequence token. Default true. */
  addSpecialTokens?: boolean;
}

/** How tokens become text. */
export interface DecodeOptions {
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean;
}

const NO_BYTES = new Uint8Array(0);

/**
 * A model's byte-pair tokenizer, read from its Hugging Face files or its GGUF file. Normalisation, pre-tokenisation, added tokens and
 * post-processing follow `tokenizers`; text that spells a special token is encoded as that token, as transformers
 * does. Splitting takes time linear in the text and merging O(n log n), so that no input is pathological. A tokenizer that
 * only decodes does without the encoder's tables.
 */
export class Tokenizer {
  /** The path of tokenizer.json or of the GGUF file, for messages. */
  readonly file: string;
  /** The highest token id plus one. The model's logits may be wider. */
  readonly vocabSize: number;
  readonly eosTokenId: number | undefined;
  readonly bosTokenId: number | undefined;
  /** The source of the model's default chat template, and the file that it is in. */
  readonly chatTemplate: string | undefined;
  readonly chatTemplateFile: string | undefined;
  /** `bos_token`, `eos_token` and their kin by name, as chat templates see them. */
  readonly specialTokens: Readonly<Record<string, string>>;
  /** Spaces that a decoded text loses at its very start: 1 for SentencePiece models that prefix a space. */
  readonly leadingSpaces: number;

  /** Until the encoder has been built. */
  #files: TokenizerFiles | undefined;
  #encoder: Pipeline | undefined;
  /** Known once the encoder has been built. */
  #mostBytesPerToken = Number.POSITIVE_INFINITY;
  readonly #tokens: readonly (string | undefined)[];
  readonly #ids: Map<string, number>;
  readonly #added: ReadonlySet<number>;
  readonly #special: ReadonlySet<number>;
  readonly #spelling: TokenBytes;
  readonly #bytes: (Uint8Array<ArrayBuffer> | undefined)[] = [];

  /**
   * @param model a folder or a GGUF file
   * @throws ModelNotFoundError if a folder has no tokenizer.json
   * @throws ModelDataError if a file is malformed, UnsupportedModelError if it is not a byte-pair tokenizer
   */
  static async load(model: string): Promise<Tokenizer> {
    return new Tokenizer(isGgufModel(model) ? readGgufTokenizer(model) : readTokenizerFiles(model));
  }

  private constructor(files: TokenizerFiles) {
    const { addedTokens, specialTokens } = files;
    const ids = new Map(files.vocabulary);
    for (const { content, id } of addedTokens) ids.set(content, id);
    this.#ids = ids;
    this.#tokens = files.tokens;
    this.#added = new Set(addedTokens.map((token) => token.id));
    this.#special = new Set(addedTokens.filter((token) => token.special).map((token) => token.id));
    this.#spelling = tokenBytes(files.definition["decoder"], files.path);
    this.#files = files;
    this.file = files.path;
    this.vocabSize = files.tokens.length;
    this.eosTokenId = this.tokenToId(specialTokens["eos_token"] ?? "");
    this.bosTokenId = this.tokenToId(specialTokens["bos_token"] ?? "");
    this.chatTemplate = files.chatTemplate?.source;
    this.chatTemplateFile = files.chatTemplate?.file;
    this.specialTokens = specialTokens;
    this.leadingSpaces = this.#spelling.leadingSpaces;
  }

  /** True if this tokenizer holds the tables that encoding needs, merges above all. */
  get hasEncoder(): boolean {
    return this.#encoder !== undefined;
  }

  /**
   * A text of more UTF-8 bytes than this times n has more than n tokens. Infinity where that cannot be told. Builds the
   * tables that encoding needs.
   */
  get mostBytesPerToken(): number {
    this.#withEncoder();
    return this.#mostBytesPerToken;
  }

  /** Builds the tables that encoding needs, unless they exist. @throws ModelDataError if the model's are inconsistent. */
  prepareEncoder(): void {
    this.#withEncoder();
  }

  /** @throws as `prepareEncoder`. */
  encode(text: string, { addSpecialTokens = true }: EncodeOptions = {}): number[] {
    return this.#withEncoder().encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  /**
   * The text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids without a token stand for nothing. Spaces before
   * punctuation are kept, whatever `clean_up_tokenization_spaces` says, so that streamed text is the same.
   */
  decode(ids: readonly number[], { skipSpecialTokens = true }: DecodeOptions = {}): string {
    const parts = ids.map((id) => (skipSpecialTokens && this.isSpecial(id) ? NO_BYTES : this.tokenBytes(id)));
    const bytes = Buffer.concat(parts);
    let start = 0;
    while (start < this.leadingSpaces && bytes[start] === 0x20) start++;
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(start));
  }

  /** The id of a token as the vocabulary spells it. */
  tokenToId(token: string): number | undefined {
    return this.#ids.get(token);
  }

  /** The token as the vocabulary spells it, e.g. `Ġhello`. */
  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  /** True for a token that is not the model's own but was added to its vocabulary; special ones are. */
  isAdded(id: number): boolean {
    return this.#added.has(id);
  }

  /** True for a token that is no text, such as the end of a sequence. */
  isSpecial(id: number): boolean {
    return this.#special.has(id);
  }

  /** The bytes that a token stands for, possibly part of a character; none if `id` has no token. Do not modify. */
  tokenBytes(id: number): Uint8Array<ArrayBuffer> {
    const token = this.#tokens[id];
    if (token === undefined) return NO_BYTES;
    this.#bytes[id] ??= this.#spelling.of(token, this.#added.has(id));
    return this.#bytes[id];
  }

  #withEncoder(): Pipeline {
    if (!this.#encoder) {
      // The library takes 10 to 20 ms to load, which threads that only decode do without.
      const { createPipeline } = require("./pipeline.ts") as typeof import("./pipeline.ts");
      const { mostBytesPerToken } = require("./bytes-per-token.ts") as typeof import("./bytes-per-token.ts");
      this.#encoder = createPipeline(this.#files!, this.#ids);
      this.#mostBytesPerToken = mostBytesPerToken(this.#files!);
      this.#files = undefined;
    }
    return this.#encoder;
  }
}
