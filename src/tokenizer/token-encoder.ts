import { ModelDataError, messageOf, OctavoError } from "../base/errors.ts";
import type { JsonObject } from "../base/json-object.ts";
import { AddedTokens } from "./added-tokens.ts";
import { BytePairEncoder } from "./byte-pair-encoder.ts";
import { compileNormalizer } from "./normalizer.ts";
import { readSurroundings, type Surroundings } from "./post-processor.ts";
import { compilePreTokenizer, type PreTokenizer } from "./pre-tokenizer.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/**
 * Text to token ids, as `tokenizers` does it: added tokens are taken out, what is between them is normalised, split into
 * words and merged, and the post-processor's tokens are put around it all.
 */
export class TokenEncoder {
  readonly #added: AddedTokens;
  readonly #split: PreTokenizer;
  readonly #encoder: BytePairEncoder;
  readonly #surroundings: Surroundings;

  /** @throws ModelDataError or UnsupportedModelError */
  constructor(files: TokenizerFiles, idOf: (token: string) => number | undefined) {
    const { definition, path } = files;
    const { unk_token: unknown, byte_fallback, fuse_unk, ignore_merges } = definition["model"] as JsonObject;
    const unknownId = typeof unknown === "string" ? files.vocabulary.get(unknown) : undefined;
    try {
      this.#added = new AddedTokens(files.addedTokens, compileNormalizer(definition["normalizer"], path));
      this.#split = compilePreTokenizer(definition["pre_tokenizer"], path);
      this.#surroundings = readSurroundings(files, idOf);
      this.#encoder = new BytePairEncoder(files.vocabulary, files.merges, {
        unknownId,
        fuseUnknown: fuse_unk === true,
        byteFallback: byte_fallback === true,
        ignoreMerges: ignore_merges === true,
      });
    } catch (cause) {
      if (cause instanceof OctavoError) throw cause;
      throw new ModelDataError(path, messageOf(cause), { cause });
    }
  }

  encode(text: string, addSpecialTokens: boolean): number[] {
    const ids: number[] = addSpecialTokens ? [...this.#surroundings.before] : [];
    for (const section of this.#added.split(text)) {
      if (typeof section === "number") ids.push(section);
      else for (const word of this.#split(section.text, section.isFirst)) this.#encoder.encode(word, ids);
    }
    if (addSpecialTokens) ids.push(...this.#surroundings.after);
    return ids;
  }
}
