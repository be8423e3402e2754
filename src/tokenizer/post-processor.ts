import { ModelDataError, UnsupportedModelError } from "../base/errors.ts";
import { isJsonObject } from "../base/json-object.ts";
import { list, readStep, type Step } from "./steps.ts";
import type { TokenizerFiles } from "./tokenizer-files.ts";

/**
 * The step that adds tokens around a single text, for the library. The post-processor of tokenizer.json alone decides, as in
 * transformers 5, but for the classes of Llama and Gemma where tokenizer_config.json says `add_bos_token` or
 * `add_eos_token`, or where there is no post-processor: such files are of transformers 4, which went by these flags,
 * and by default began with that token.
 * @throws ModelDataError or UnsupportedModelError
 */
export function readPostProcessor(files: TokenizerFiles): Step | null {
  const { definition, config, specialTokens, tokens, path } = files;
  const { add_bos_token: bos, add_eos_token: eos } = config;
  const step = readStep(definition["post_processor"], path);
  const goesByFlags = /^(Code)?(Llama|Gemma)Tokenizer(Fast)?$/.test(String(config["tokenizer_class"]));
  const hasFlags = typeof bos === "boolean" || typeof eos === "boolean";
  if (!goesByFlags || (step && !hasFlags)) return step && namedByIds(step, files);
  const added = (name: string, wanted: unknown) => {
    const token = wanted === true ? specialTokens[name] : undefined;
    return token !== undefined && tokens.includes(token) ? [special(token)] : [];
  };
  return template([...added("bos_token", bos ?? true), TEXT, ...added("eos_token", eos)]);
}

const TEXT = { Sequence: { id: "A", type_id: 0 } };
const special = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
const template = (single: object[]): Step => ({ type: "TemplateProcessing", single, pair: [] });

/** The step with each token called by the name that its id has: the library goes by names, the Rust library by ids. */
function namedByIds(step: Step, files: TokenizerFiles): Step {
  const { tokens, path } = files;
  const nameOf = (id: unknown, called: unknown): string => {
    const name = tokens[id as number];
    if (name !== undefined) return name;
    const message = `the post_processor adds a token that does not exist: ${JSON.stringify(called)}`;
    throw new ModelDataError(path, message);
  };
  switch (step.type) {
    case "ByteLevel":
      return step;
    case "Sequence": {
      const inner = list(step, "processors", path).flatMap((each) => readStep(each, path) ?? []);
      return { ...step, processors: inner.map((each) => namedByIds(each, files)) };
    }
    case "BertProcessing":
    case "RobertaProcessing": {
      const [cls, sep] = [list(step, "cls", path), list(step, "sep", path)];
      return { ...step, cls: [nameOf(cls[1], cls)], sep: [nameOf(sep[1], sep)] };
    }
    case "TemplateProcessing": {
      const table = isJsonObject(step["special_tokens"]) ? step["special_tokens"] : {};
      const single = list(step, "single", path) as ({ [kind: string]: { id?: unknown } } | null)[];
      const pieces = single.flatMap((piece): object | object[] => {
        if (piece?.["Sequence"] !== undefined) return TEXT;
        const name = piece?.["SpecialToken"]?.id;
        if (typeof name !== "string") throw new ModelDataError(path, "the post_processor has unknown pieces");
        const ids = (table[name] as { ids?: unknown } | undefined)?.ids;
        return (Array.isArray(ids) ? ids : [tokens.indexOf(name)]).map((id) => special(nameOf(id, name)));
      });
      if (pieces.filter((piece) => piece === TEXT).length === 1) return template(pieces);
      throw new ModelDataError(path, "the post_processor does not place the text once");
    }
  }
  throw new UnsupportedModelError(path, `the post-processor ${step.type} is not supported`);
}
