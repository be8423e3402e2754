/** Renders a conversation with the model's chat template and answers it. Run: `bun run examples/chat.ts` */
import { LLM } from "octavo";

await using llm = await LLM.create();
const messages = [{ role: "user", content: "Tell me a story about a cat." }];
const [reply] = await llm.chat(messages, { maxTokens: 80, temperature: 0.7, seed: 1 });
console.log(reply!.outputs[0]!.text);
