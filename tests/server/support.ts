import { expect } from "bun:test";
import { type AsyncCreateOptions, AsyncLLM } from "../../src/async/async-llm.ts";
import { type RunningServer, type ServerOptions, startServer } from "../../src/server/serve.ts";
import { eventually } from "../support.ts";

export const MODEL = "tiny-stories";
export const PROMPT = "Once upon a time";
/** Sampling of short replies that are the same each time. */
export const GREEDY = { temperature: 0, max_tokens: 8 } as const;
export const HI = [{ role: "user" as const, content: "Hi" }];
/** Runs until it is stopped, for seconds. */
export const ENDLESS = { prompt: PROMPT, max_tokens: 1000, ignore_eos: true, seed: 1 } as const;

export function createAsyncLLM(options: AsyncCreateOptions = {}): Promise<AsyncLLM> {
  return AsyncLLM.create(undefined, { device: "cpu", kvCacheMemoryBytes: 64 * 2 ** 20, ...options });
}

/** A server on a free port of this machine, its model, and the lines that it logged. */
export class TestServer implements AsyncDisposable {
  readonly lines: string[] = [];
  readonly running: RunningServer;

  private constructor(
    readonly llm: AsyncLLM,
    options: ServerOptions,
    private readonly ownsModel = true,
  ) {
    const log = (line: string) => void this.lines.push(line);
    this.running = startServer({ llm, options: { port: 0, ...options }, log });
  }

  static async start(options: ServerOptions = {}, engine: AsyncCreateOptions = {}): Promise<TestServer> {
    return new TestServer(await createAsyncLLM(engine), options);
  }

  /** Another server over a model that is running already, which stays the caller's. */
  static over(llm: AsyncLLM, options: ServerOptions): TestServer {
    return new TestServer(llm, options, false);
  }

  get baseURL(): string {
    return new URL("v1", this.running.url).href;
  }

  fetch(path: string, init?: RequestInit): Promise<Response> {
    return fetch(new URL(path, this.running.url), init);
  }

  post(path: string, body: unknown, init: RequestInit = {}): Promise<Response> {
    return this.fetch(path, {
      method: "POST",
      body: typeof body === "string" ? body : JSON.stringify(body),
      ...init,
      headers: { "Content-Type": "application/json", ...(init.headers as Record<string, string>) },
    });
  }

  /** The value of a metric, its labels left out of the name; undefined if it is not there. */
  async metric(name: string, label = ""): Promise<number | undefined> {
    const text = await (await this.fetch("/metrics")).text();
    const line = text
      .split("\n")
      .find((entry) => entry.replace(/[{ ].*/, "") === name && entry.includes(label));
    return line === undefined ? undefined : Number(line.split(" ").at(-1));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.running.stop();
    if (this.ownsModel) await this.llm.dispose();
  }
}

/** Bytes sent as they are, and what comes back: a reply as long as it says, or all until the server closes. */
export async function raw(port: number, text: string): Promise<string> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let received = "";
  const socket = await Bun.connect({
    hostname: "127.0.0.1",
    port,
    socket: {
      data: (_, data) => {
        received += data.toString("latin1");
        if (isWhole(received)) resolve();
      },
      close: () => resolve(),
    },
  });
  socket.write(text);
  await promise;
  socket.end();
  return received;
}

function isWhole(reply: string): boolean {
  const end = reply.indexOf("\r\n\r\n");
  const length = reply.match(/^content-length: (\d+)/im)?.[1] ?? 0;
  return end >= 0 && reply.length >= end + 4 + Number(length);
}

export interface ErrorReply {
  readonly status: number;
  readonly type: string;
  readonly code: string;
  readonly param: string | null;
  readonly message: string;
}

/** A reply that must hold an error document, and nothing else. */
export async function errorOf(reply: Promise<Response> | Response): Promise<ErrorReply> {
  const response = await reply;
  const document = (await response.json()) as { error: Omit<ErrorReply, "status"> };
  const keys = Object.keys(document.error ?? {})
    .sort()
    .join();
  if (Object.keys(document).join() !== "error" || keys !== "code,message,param,type")
    throw new Error(`${response.status}: ${JSON.stringify(document)} is no error document`);
  return { status: response.status, ...document.error };
}

/** The text of a short greedy reply, which nothing that others send may change. */
export async function canary(server: TestServer): Promise<string> {
  const reply = await server.post("/v1/completions", { prompt: PROMPT, ...GREEDY });
  if (reply.status !== 200) throw new Error(`the canary got ${reply.status}`);
  const { choices } = (await reply.json()) as { choices: { text: string }[] };
  return choices[0]!.text;
}

/** Nothing is left under way, the server is healthy and answers as before. */
export async function expectUnharmed(server: TestServer, before: string): Promise<void> {
  const { llm } = server;
  await eventually(() => llm.numUnfinished === 0 && llm.stats.running === 0 && llm.stats.waiting === 0);
  const load = await (await server.fetch("/load")).json();
  const { status } = await server.fetch("/health");
  expect({ load, status, canary: await canary(server) }).toEqual({
    ...{ load: { server_load: 0 }, status: 200, canary: before },
  });
}
