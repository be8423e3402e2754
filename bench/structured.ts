/**
 * Decode throughput of a batch without grammars, with half of its rows under one, and with all of them; and how long xgrammar
 * takes for a mask of the model's vocabulary.
 *
 *   bun run bench:structured                               the embedded model
 *   bun run bench:structured --model DIR --rows 64 ...     another one, which has a tokenizer
 */
import { createCommand, runCommand } from "../src/cli/command.ts";
import { addEngineFlags, engineOptions } from "../src/cli/engine-flags.ts";
import { countValue } from "../src/cli/flag-values.ts";
import { MaskEngine } from "../src/grammar/mask-engine.ts";
import { schemaGrammar } from "../src/grammar/schema-grammar.ts";
import { LLM, type SamplingParams } from "../src/index.ts";
import { packTokens } from "../src/tokenizer/token-table.ts";
import { median } from "./stats.ts";

interface Flags {
  readonly model?: string;
  readonly rows: number;
  readonly tokens: number;
  readonly repeat: number;
}

/** What requests ask for, but with so many items that no row ends early. */
const SCHEMA = {
  type: "object",
  properties: {
    items: {
      type: "array",
      minItems: 128,
      items: {
        type: "object",
        properties: {
          name: { type: "string" },
          value: { type: "number" },
          tags: { type: "array", items: { enum: ["a", "b", "c"] } },
        },
        required: ["name", "value", "tags"],
      },
    },
  },
  required: ["items"],
};

const command = createCommand("bench:structured")
  .description("Measures what grammars cost.")
  .option("-m, --model <model>", "model folder or Hugging Face id (default: the embedded model)")
  .option("--rows <count>", "completions at once", countValue, 16)
  .option("--tokens <count>", "tokens of each", countValue, 256)
  .option("--repeat <count>", "runs of each measurement; the median is printed", countValue, 3);
addEngineFlags(command);
command.action(async (flags: Flags) => {
  const llm = await LLM.create(flags.model, engineOptions(command));
  try {
    await printMasks(llm);
    // Everything is compiled and captured that the measurements need.
    for (const share of [0, 0.5, 1]) await measure(llm, { ...flags, tokens: 16, repeat: 1 }, share);
    const none = await measure(llm, flags, 0);
    console.log(`${flags.rows} rows on ${llm.device}, none under a grammar: ${none.toFixed(0)} tokens/s`);
    for (const share of [0.5, 1]) {
      const rate = await measure(llm, flags, share);
      console.log(
        `${100 * share}% under a grammar: ${rate.toFixed(0)} tokens/s, ${((100 * rate) / none).toFixed(1)}%`,
      );
    }
  } finally {
    llm.dispose();
  }
});

/** Tokens per second with this share of the rows under the grammar. */
async function measure(llm: LLM, { rows, tokens, repeat }: Flags, share: number): Promise<number> {
  const params = Array.from({ length: rows }, (_, i): SamplingParams => {
    const isStructured = Math.floor((i + 1) * share) > Math.floor(i * share);
    const structuredOutputs = isStructured ? { json: SCHEMA } : null;
    return { temperature: 1, seed: i, maxTokens: tokens, ignoreEos: true, structuredOutputs };
  });
  const rates: number[] = [];
  for (let run = 0; run < repeat; run++) {
    const start = performance.now();
    const outputs = await llm.generate(
      params.map(() => "Once upon a time"),
      params,
    );
    const drawn = outputs.reduce((count, { outputs: [only] }) => count + only!.tokenIds.length, 0);
    rates.push((1000 * drawn) / (performance.now() - start));
  }
  return median(rates);
}

/** Times of masks along a text of the model's own. */
async function printMasks(llm: LLM): Promise<void> {
  const { tokenizer, modelConfig } = llm;
  if (!tokenizer) throw new Error("the model has no tokenizer");
  const start = performance.now();
  const engine = await MaskEngine.create(packTokens(tokenizer), modelConfig.vocabSize);
  const ready = performance.now();
  const matcher = await engine.matcher(schemaGrammar(SCHEMA, { param: "json" }), []);
  const compiled = performance.now();
  const times: number[] = [];
  const [output] = await llm.generate("Once upon a time", {
    ...{ temperature: 1, seed: 1, maxTokens: 256, ignoreEos: true, structuredOutputs: { json: SCHEMA } },
  });
  for (const token of output!.outputs[0]!.tokenIds) {
    const before = performance.now();
    await matcher.getNextTokenBitmask();
    times.push(1000 * (performance.now() - before));
    matcher.acceptToken(token);
  }
  matcher.dispose();
  const sorted = times.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]!.toFixed(0);
  console.log(
    `vocabulary of ${modelConfig.vocabSize}: ${(ready - start).toFixed(0)} ms; grammar: ${(compiled - ready).toFixed(0)} ms; ` +
      `mask: median ${at(0.5)} µs, 99% ${at(0.99)} µs, most ${at(1)} µs`,
  );
}

await runCommand(command, process.argv.slice(2));
