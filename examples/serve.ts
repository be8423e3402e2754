/** The OpenAI-compatible API beside a route of your own. Run: `bun run examples/serve.ts`, and end it with Ctrl-C */
import { AsyncLLM } from "octavo";
import { createApp } from "octavo/server";

const llm = await AsyncLLM.create();
const app = createApp({ llm, options: { servedModelNames: ["stories"] } });
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.env["PORT"] ?? 8000),
  routes: {
    "/story": async () => {
      const { outputs } = await llm.generate("Once upon a time", { temperature: 0.8, maxTokens: 80 });
      return new Response(`Once upon a time${outputs[0]!.text}\n`);
    },
  },
  // With `server`, long replies are safe from Bun's idle timeout.
  fetch: (request, server) => app.fetch(request, { server }),
});
console.log(`${server.url}story, ${server.url}v1`);

process.once("SIGINT", async () => {
  await server.stop();
  await llm.dispose();
});
