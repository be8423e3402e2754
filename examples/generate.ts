/** Continues a few prompts in one batch. Run: `bun run examples/generate.ts` */
import { LLM } from "octavo";

await using llm = await LLM.create();
const prompts = ["Once upon a time", "The little dog", "One day, Lily and Tom"];
const outputs = await llm.generate(prompts, { temperature: 0.7, topP: 0.9, maxTokens: 60, seed: 7 });
for (const { prompt, outputs: completions } of outputs) console.log(`${prompt}${completions[0]!.text}\n`);
