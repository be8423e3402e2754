/** Clients of other services against `octavo serve`: openai's Responses, the AI SDK over HTTP, Anthropic's Messages. Run: `bun run examples/clients.ts` */

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { streamText } from "ai";
import OpenAI from "openai";

const url = process.argv[2] ?? "http://127.0.0.1:8000";
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const model = (await openai.models.list()).data[0]!.id;

const first = await openai.responses.create({ model, input: "Name a river.", max_output_tokens: 300 });
const second = await openai.responses.create({
  ...{ model, input: "Where is it?", previous_response_id: first.id, max_output_tokens: 300 },
});
console.log(`openai: ${first.output_text} ${second.output_text}`);

const { data } = await openai.embeddings.create({ model, input: ["A river.", "A mountain."] });
console.log(`openai: ${data.length} vectors of ${data[0]!.embedding.length} numbers`);

const octavo = createOpenAICompatible({ name: "octavo", baseURL: `${url}/v1` });
const { textStream } = streamText({ model: octavo(model), prompt: "Name a mountain.", maxOutputTokens: 300 });
process.stdout.write("AI SDK: ");
for await (const piece of textStream) process.stdout.write(piece);

const anthropic = new Anthropic({ baseURL: url, apiKey: "none" });
const stream = anthropic.messages.stream({
  ...{ model, max_tokens: 300, messages: [{ role: "user", content: "Name a lake." }] },
});
process.stdout.write("\nAnthropic: ");
stream.on("text", (piece) => process.stdout.write(piece));
const { stop_reason } = await stream.finalMessage();
console.log(` (${stop_reason})`);
