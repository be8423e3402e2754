import { messageOf, OctavoError } from "../../base/errors.ts";

/** The course of one request. Times are in milliseconds of `performance.now()`. */
export interface Trace {
  readonly startTime: number;
  /** Arrival of each event that brought tokens. */
  readonly tokenTimes: readonly number[];
  /** As the server's usage says, else as counted. */
  readonly outputTokens: number;
  readonly promptTokens: number;
  /** The reason of its failure; undefined when it succeeded. */
  readonly failure?: string;
}

/** The endpoint cannot be reached or refuses to be measured. */
export class EndpointError extends OctavoError {
  readonly code = "endpoint_unavailable";
  readonly exitCode = 69;
}

interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
}

/** The part of a completion chunk that is read here. */
interface Chunk {
  readonly choices?: readonly { readonly text?: string; readonly token_ids?: readonly number[] | null }[];
  readonly usage?: Usage | null;
  readonly error?: { readonly message?: string };
}

/** Streams completions from an OpenAI-compatible server and notes when each token comes. */
export class CompletionClient {
  readonly #base: string;
  readonly #headers: Readonly<Record<string, string>>;

  /** @param baseUrl with or without `/v1`. */
  constructor(baseUrl: string, apiKey: string | undefined) {
    this.#base = baseUrl.replace(/\/+$/, "").replace(/\/v1$/, "");
    this.#headers = {
      "Content-Type": "application/json",
      ...(apiKey !== undefined && { Authorization: `Bearer ${apiKey}` }),
    };
  }

  /** The first model that the server lists. Throws `EndpointError`. */
  async firstModel(): Promise<string> {
    const url = `${this.#base}/v1/models`;
    try {
      const response = await fetch(url, { headers: this.#headers });
      if (!response.ok) throw new Error(await refusal(response));
      const { data } = (await response.json()) as { data?: readonly { id: string }[] };
      if (!data?.[0]) throw new Error("no model is listed");
      return data[0].id;
    } catch (cause) {
      throw new EndpointError(`${url}: ${messageOf(cause)}`, { cause });
    }
  }

  /**
   * Never throws.
   * @param body the request as JSON, with `stream` set.
   * @param promptTokens tokens of its prompt, for servers that report no usage.
   */
  async complete(body: string, promptTokens: number): Promise<Trace> {
    const startTime = performance.now();
    const tokenTimes: number[] = [];
    let usage: Usage | undefined;
    let tokens = 0;
    let failure: string | undefined;
    try {
      const response = await fetch(`${this.#base}/v1/completions`, {
        ...{ method: "POST", headers: this.#headers, body },
        // A long run is no reason to give up.
        timeout: false,
      });
      if (!response.ok || !response.body) throw new Error(await refusal(response));
      const events = new EventReader();
      for await (const bytes of response.body) {
        const time = performance.now();
        for (const data of events.push(bytes)) {
          const chunk = JSON.parse(data) as Chunk;
          if (chunk.error) throw new Error(chunk.error.message ?? data);
          const count = tokensIn(chunk);
          if (count > 0) tokenTimes.push(time);
          tokens += count;
          usage = chunk.usage ?? usage;
        }
      }
      if (!events.done) throw new Error("the stream broke off");
      if (tokens === 0) throw new Error("the completion is empty");
    } catch (error) {
      failure = messageOf(error);
    }
    return {
      ...{ startTime, tokenTimes },
      outputTokens: usage?.completion_tokens ?? tokens,
      promptTokens: usage?.prompt_tokens ?? promptTokens,
      ...(failure !== undefined && { failure }),
    };
  }
}

/** Cuts server-sent events of one `data:` line each out of bytes that arrive in any pieces. */
export class EventReader {
  readonly #decoder = new TextDecoder();
  #rest = "";
  #done = false;

  /** True once `[DONE]` has come. */
  get done(): boolean {
    return this.#done;
  }

  /** The data of the events that `bytes` completes, without `[DONE]`. */
  push(bytes: Uint8Array): readonly string[] {
    const lines = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n");
    this.#rest = lines.pop()!;
    const events: string[] = [];
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice("data:".length).trim();
      if (data === "[DONE]") this.#done = true;
      else events.push(data);
    }
    return events;
  }
}

/** Servers that do not return token ids are taken to send a token an event. */
function tokensIn({ choices }: Chunk): number {
  const [choice] = choices ?? [];
  return choice?.token_ids?.length ?? (choice?.text ? 1 : 0);
}

async function refusal(response: Response): Promise<string> {
  const text = await response.text();
  const message = text.match(/"message"\s*:\s*("(?:[^"\\]|\\.)*")/)?.[1];
  return `HTTP ${response.status}: ${message ? JSON.parse(message) : text.slice(0, 200)}`;
}
