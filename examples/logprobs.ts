/** How likely the model finds each word of a sentence. Run: `bun run examples/logprobs.ts` */
import { LLM } from "octavo";

await using llm = await LLM.create();
const [output] = await llm.generate("The cat sat on the mat.", { maxTokens: 1, promptLogprobs: 0 });
for (const position of output!.promptLogprobs!) {
  for (const { decodedToken, logprob, rank } of position?.values() ?? []) {
    console.log(
      `${logprob.toFixed(2).padStart(8)}  rank ${String(rank).padStart(4)}  ${JSON.stringify(decodedToken)}`,
    );
  }
}
