import { type BPE, Tokenizer as Pipeline } from "@huggingface/tokenizers";
import { ModelDataError, messageOf, OctavoError } from "../base/errors.ts";
import type { JsonObject } from "../base/json-object.ts";
import { AddedTokens } from "./added-tokens.ts";
import { BytePairEncoder } from "./byte-pair-encoder.ts";
import { readPostProcessor } from "./post-processor.ts";
import { createNormalizer, createPreTokenizer } from "./steps.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/**
 * The pipeline of @huggingface/tokenizers that makes tokens of text: added tokens are taken out, what is between them is
 * normalised, split into words and merged, and the post-processor's tokens are put around it all. Where the library
 * does otherwise than the Rust library, or takes time that is not linear in the text, a step of ours stands in place of
 * its own: each is put there in this function or in the tables of steps.ts, with the fault that it corrects.
 * docs/upstream.md lists the faults.
 * @param ids every token's id, added ones included
 * @throws ModelDataError or UnsupportedModelError
 */
export function createPipeline(files: TokenizerFiles, ids: Map<string, number>): Pipeline {
  try {
    return assemble(files, ids);
  } catch (cause) {
    if (cause instanceof OctavoError) throw cause;
    throw new ModelDataError(files.path, messageOf(cause), { cause });
  }
}

function assemble(files: TokenizerFiles, ids: Map<string, number>): Pipeline {
  const { definition, vocabulary, addedTokens, path } = files;
  const { unk_token: unknown, fuse_unk, byte_fallback, ignore_merges } = definition["model"] as JsonObject;
  const unk_token = vocabulary.has(unknown as string) ? unknown : null;
  /** Files say so of vocabularies without bytes, too. */
  const spellsBytes = byte_fallback === true && vocabulary.has("<0x00>");
  const model = { type: "BPE", vocab: {}, merges: [], unk_token, byte_fallback: spellsBytes, ignore_merges };
  const post_processor = readPostProcessor(files);
  const steps = { normalizer: null, pre_tokenizer: null, post_processor, decoder: null };
  const pipeline = new Pipeline({ model, ...steps, added_tokens: [] }, {});
  pipeline.normalizer = createNormalizer(definition["normalizer"], path);
  pipeline.pre_tokenizer = createPreTokenizer(definition["pre_tokenizer"], path);

  // The library merges slower, fuses unknown characters across words, and drops them only when all is merged.
  const bpe = pipeline.model as BPE;
  const withoutBytes = unk_token === null ? "dropped" : fuse_unk === true ? "fused" : "apart";
  const encoder = new BytePairEncoder(vocabulary, files.merges, spellsBytes ? "apart" : withoutBytes);
  bpe.tokens_to_ids = ids;
  bpe.bpe = (word) => encoder.split(word);

  // The library ignores `single_word`, strips what JavaScript's `trim` does, and takes all that stands before the first
  // token that is not normalised for the beginning of the text.
  const added = new AddedTokens(addedTokens, (text) => pipeline.normalizer?.normalize(text) ?? text);
  const encodeText = (text: string | null): string[] | null =>
    text === null
      ? null
      : added.split(text).flatMap((section) => {
          if (section.isAdded) return section.text;
          const options = { section_index: section.isFirst ? 0 : 1 };
          return bpe(pipeline.pre_tokenizer?.(section.text, options) ?? [section.text]);
        });
  return Object.assign(pipeline, { encode_text: encodeText });
}
