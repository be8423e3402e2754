import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { flattenSteps, type Step } from "./normalizer.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/** Ids that are put around those of a text. */
export interface Surroundings {
  readonly before: readonly number[];
  readonly after: readonly number[];
}

/**
 * What the post-processor adds to a single text. It alone decides, as in transformers 5, but for the classes of Llama
 * and Gemma where tokenizer_config.json says `add_bos_token` or `add_eos_token`, or where there is no post-processor:
 * such files are of transformers 4, which went by these flags, and by default began with that token.
 * @throws ModelDataError or UnsupportedModelError
 */
export function readSurroundings(
  files: TokenizerFiles,
  idOf: (token: string) => number | undefined,
): Surroundings {
  const { definition, config, specialTokens, path } = files;
  const { add_bos_token: bos, add_eos_token: eos } = config;
  const steps = flattenSteps(definition["post_processor"], "processors", path);
  const goesByFlags = /^(Code)?(Llama|Gemma)Tokenizer(Fast)?$/.test(String(config["tokenizer_class"]));
  const hasFlags = typeof bos === "boolean" || typeof eos === "boolean";
  if (!goesByFlags || (steps.length > 0 && !hasFlags)) {
    return steps.reduce((inner, step) => around(inner, step, path, idOf), NOTHING);
  }
  const named = (name: string, wanted: unknown) => {
    const id = wanted === true ? idOf(specialTokens[name] ?? "") : undefined;
    return id === undefined ? [] : [id];
  };
  return { before: named("bos_token", bos ?? true), after: named("eos_token", eos) };
}

const NOTHING: Surroundings = { before: [], after: [] };

function around(
  inner: Surroundings,
  step: Step,
  file: string,
  idOf: (token: string) => number | undefined,
): Surroundings {
  switch (step["type"]) {
    case "ByteLevel":
      return inner;
    case "TemplateProcessing":
      return template(inner, step, file, idOf);
    case "BertProcessing":
    case "RobertaProcessing":
      return {
        before: [pairId(step, "cls", file), ...inner.before],
        after: [...inner.after, pairId(step, "sep", file)],
      };
  }
  throw new UnsupportedModelError(file, `the post-processor ${step["type"]} is not supported`);
}

/** `single` names the text once, and special tokens before and after it; `special_tokens` has their ids. */
function template(
  inner: Surroundings,
  step: Step,
  file: string,
  idOf: (token: string) => number | undefined,
): Surroundings {
  const invalid = (what: string) => new ModelDataError(file, `the post_processor ${what}`);
  if (!Array.isArray(step["single"])) throw invalid("has no template");
  const table = (step["special_tokens"] ?? {}) as Record<string, { ids?: unknown } | undefined>;
  const sides: [number[], number[]] = [[], []];
  let texts = 0;
  for (const piece of step["single"] as (Record<string, { id?: unknown } | undefined> | null)[]) {
    if (piece?.["Sequence"] !== undefined) {
      texts++;
      continue;
    }
    const token = piece?.["SpecialToken"]?.id;
    if (typeof token !== "string") throw invalid("has a template of unknown pieces");
    const ids = Object.hasOwn(table, token) ? table[token]?.ids : undefined;
    const known = Array.isArray(ids) ? ids : [idOf(token)];
    if (!known.every((id) => Number.isSafeInteger(id) && id >= 0)) {
      throw invalid(`adds a token that does not exist: ${JSON.stringify(token)}`);
    }
    sides[texts === 0 ? 0 : 1].push(...(known as number[]));
  }
  if (texts !== 1) throw invalid("does not place the text once");
  return { before: [...sides[0], ...inner.before], after: [...inner.after, ...sides[1]] };
}

function pairId(step: Step, name: string, file: string): number {
  const pair = step[name];
  const id: unknown = Array.isArray(pair) ? pair[1] : undefined;
  if (!Number.isSafeInteger(id) || (id as number) < 0) {
    throw new ModelDataError(file, `the post_processor's ${name} is not a token with an id`);
  }
  return id as number;
}
