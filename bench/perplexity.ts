/**
 * What quantised weights cost the embedded model: the perplexity of stories that it was not trained on, for each form that
 * weights can have. Prints a table, that of docs/quantisation.md.
 *
 *   bun run bench:perplexity [--device cuda] [other models of its tokens, instead]
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { type EngineOptions, LLM } from "../src/index.ts";
import { embeddedModel } from "../src/llm/embedded-model.ts";
import { type RoundingForm, roundModel } from "./round-to-nearest.ts";

const STORIES = join(import.meta.dir, "texts/stories.txt");

interface Scheme {
  readonly name: string;
  /** Default: the embedded model. */
  readonly model?: string;
  readonly quantization?: EngineOptions["quantization"];
  /** Default false. It makes a difference on a GPU that can. */
  readonly quantizeActivations?: boolean;
  readonly rounding?: RoundingForm;
}

const SCHEMES: readonly Scheme[] = [
  { name: "as it is" },
  { name: "`fp8`, by channels", quantization: "fp8" },
  {
    name: "`fp8`, by channels, of activations in eight bits",
    quantization: "fp8",
    quantizeActivations: true,
  },
  { name: "`fp8_per_block`", quantization: "fp8_per_block" },
  { name: "8 bits, by channels", rounding: { bits: 8, symmetric: true } },
  { name: "8 bits, groups of 128", rounding: { bits: 8, groupSize: 128, symmetric: true } },
  { name: "4 bits, groups of 128", rounding: { bits: 4, groupSize: 128, symmetric: true } },
  { name: "4 bits, groups of 128, zero points", rounding: { bits: 4, groupSize: 128, symmetric: false } },
  { name: "4 bits, groups of 64", rounding: { bits: 4, groupSize: 64, symmetric: true } },
  { name: "4 bits, groups of 32, zero points", rounding: { bits: 4, groupSize: 32, symmetric: false } },
];

export interface Perplexity {
  readonly perplexity: number;
  /** Tokens that were predicted. */
  readonly tokens: number;
}

/** exp of the mean of −log p over all tokens of the stories but each one's first. */
export async function perplexityOf(llm: LLM, stories: readonly string[]): Promise<Perplexity> {
  const outputs = await llm.generate([...stories], { temperature: 0, maxTokens: 1, promptLogprobs: 0 });
  const logprobs = outputs.flatMap(({ promptLogprobs, promptTokenIds }) =>
    promptTokenIds.slice(1).map((id, i) => promptLogprobs![i + 1]!.get(id)!.logprob),
  );
  const mean = logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length;
  return { perplexity: Math.exp(-mean), tokens: logprobs.length };
}

/** Perplexity of the embedded model in a form. */
export async function measure(
  { model: given = embeddedModel(), quantization, quantizeActivations = false, rounding }: Scheme,
  options: EngineOptions,
  stories: readonly string[],
) {
  const folder = mkdtempSync(join(tmpdir(), "octavo-perplexity-"));
  try {
    if (rounding !== undefined) roundModel(embeddedModel(), folder, rounding);
    const model = rounding === undefined ? given : folder;
    const quantised = { quantizeActivations, ...(quantization && { quantization }) };
    await using llm = await LLM.create(model, { ...options, ...quantised });
    return { ...(await perplexityOf(llm, stories)), weights: llm.weights };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export function readStories(): string[] {
  return readFileSync(STORIES, "utf8").trim().split("\n");
}

if (import.meta.main) {
  const { values, positionals } = parseArgs({
    options: { device: { type: "string", default: "cpu" } },
    allowPositionals: true,
  });
  const models = positionals.map((model) => ({ name: basename(model), model }));
  const options = { device: values.device as "cpu" | "cuda", enablePrefixCaching: false };
  const stories = readStories();
  const schemes = SCHEMES.filter((scheme) => options.device === "cuda" || !scheme.quantizeActivations);
  let base: number | undefined;
  for (const scheme of models.length > 0 ? [SCHEMES[0]!, ...models] : schemes) {
    const { perplexity, tokens, weights } = await measure(scheme, options, stories);
    if (base === undefined) {
      console.log(`${tokens} tokens of ${stories.length} stories, ${values.device}\n`);
      console.log("| weights | perplexity | more than as it is | MiB |\n| --- | ---: | ---: | ---: |");
    }
    base ??= perplexity;
    const more = `${(100 * (perplexity / base - 1)).toFixed(2)}%`;
    const size = (weights.bytes / 2 ** 20).toFixed(1);
    console.log(`| ${scheme.name} | ${perplexity.toFixed(3)} | ${more} | ${size} |`);
  }
}
