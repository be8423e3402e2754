/**
 * Opens many completion streams at once, aborts some and reads some slowly, and prints what came of each as JSON.
 * Run as a process of its own, so that the server's event loop is measured alone:
 * `bun tests/server/load-client.ts URL STREAMS MAX_TOKENS PROMPTS_JSON`
 */

/** What came of one stream. */
export interface StreamOutcome {
  readonly prompt: string;
  readonly text: string;
  /** `done`: it ended with [DONE]; `aborted`: this client left; else what went wrong. */
  readonly outcome: string;
}

if (import.meta.main) {
  const [url, streams, maxTokens, prompts] = process.argv.slice(2);
  const list = JSON.parse(prompts!) as string[];
  const outcomes = await Promise.all(
    Array.from({ length: Number(streams) }, (_, i) =>
      readStream(url!, list[i % list.length]!, Number(maxTokens), i),
    ),
  );
  console.log(JSON.stringify(outcomes));
}

async function readStream(url: string, prompt: string, maxTokens: number, i: number): Promise<StreamOutcome> {
  const abort = new AbortController();
  const leavesAfter = i % 10 < 3 ? (i * 7) % maxTokens : Infinity;
  const pause = i % 10 === 3 ? 15 : 0;
  let text = "";
  let events = 0;
  try {
    const body = { prompt, max_tokens: maxTokens, temperature: 0, ignore_eos: true, stream: true };
    const response = await fetch(`${url}/completions`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: abort.signal,
    });
    if (!response.ok) return { prompt, text, outcome: `status ${response.status}` };
    let rest = "";
    for await (const bytes of response.body!.pipeThrough(new TextDecoderStream())) {
      rest += bytes;
      const lines = rest.split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return { prompt, text, outcome: "done" };
        const event = JSON.parse(line.slice(6)) as {
          choices: { text: string }[];
          error?: { message: string };
        };
        if (event.error) return { prompt, text, outcome: event.error.message };
        text += event.choices[0]!.text;
        if (++events > leavesAfter) {
          abort.abort();
          return { prompt, text, outcome: "aborted" };
        }
        if (pause > 0) await Bun.sleep(pause);
      }
    }
    return { prompt, text, outcome: "cut off" };
  } catch (error) {
    return { prompt, text, outcome: String(error) };
  }
}
