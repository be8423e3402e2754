/** Prints a story as it is written, and stops at the first full stop after "happy". Run: `bun run examples/stream.ts` */
import { LLM } from "octavo";

await using llm = await LLM.create();
for await (const delta of llm.stream("Once upon a time", { maxTokens: 200, seed: 3, stop: "happy." })) {
  process.stdout.write(delta.text);
}
console.log();
