/** The AI SDK with a model of this process: a loop of tools, an object that keeps to a schema, vectors. Run: `bun run examples/ai-sdk.ts` */
import { embed, generateText, Output, stepCountIs, tool } from "ai";
import { AsyncLLM } from "octavo";
import { octavo, octavoEmbedding } from "octavo/ai";
import { z } from "zod";

await using llm = await AsyncLLM.create(process.argv[2] ?? "Qwen/Qwen3-0.6B");
const model = octavo(llm);

const { text, steps } = await generateText({
  model,
  prompt: "What is the weather in Paris?",
  tools: {
    weather: tool({
      description: "The weather of a city",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => ({ city, sky: "clear", celsius: 21 }),
    }),
  },
  stopWhen: stepCountIs(4),
});
console.log(`${text} (${steps.length} steps)`);

const schema = z.object({ name: z.string().max(40), river: z.enum(["Seine", "Thames", "Tiber"]) });
const { output } = await generateText({
  ...{ model, prompt: "A capital and its river." },
  output: Output.object({ schema }),
});
console.log(output);

const { embedding } = await embed({
  model: octavoEmbedding(llm, { pooling: "mean" }),
  value: "A quiet river.",
});
console.log(`${embedding.length} numbers`);
