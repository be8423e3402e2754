/** Three stories at once, the model in a Worker; all end after two seconds. Run: `bun run examples/async.ts` */
import { AsyncLLM } from "octavo";

await using llm = await AsyncLLM.create();
const signal = AbortSignal.timeout(2000);
const prompts = ["Once upon a time", "The little dog", "One day, Lily and Tom"];
await Promise.all(
  prompts.map(async (prompt) => {
    const params = { temperature: 0.8, maxTokens: 900, ignoreEos: true };
    const { outputs } = await llm.generate(prompt, params, { signal });
    const { text, tokenIds, finishReason } = outputs[0]!;
    console.log(`${prompt}${text.slice(0, 80)}… (${tokenIds.length} tokens, then "${finishReason}")\n`);
  }),
);
