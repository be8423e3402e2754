import { join } from "node:path";
import OpenAI from "openai";
import type { AsyncLLM } from "../../src/async/async-llm.ts";
import { createApp, type ServerOptions } from "../../src/server/serve.ts";
import { disturbed } from "./disturbed-llm.ts";
import { type Saying, saying } from "./saying.ts";
import { TestServer } from "./support.ts";

/** The path of another model's chat template. */
export const template = (name: string) =>
  join(import.meta.dir, `../unit/tokenizer/fixtures/templates/${name}.jinja`);

/** A server whose model has the chat template of another, and says what a test wants. */
export class Scripted implements AsyncDisposable {
  reply: string | Saying | (() => string) = "";
  /** The prompts that were asked for. */
  readonly prompts: string[] = [];
  /** The model that says what a test wants. */
  readonly llm: AsyncLLM;
  readonly client: OpenAI;
  readonly fetch: typeof globalThis.fetch;

  private constructor(
    readonly server: TestServer,
    options: ServerOptions,
  ) {
    const { llm } = server;
    this.llm = disturbed(
      llm,
      saying(llm, ({ prompt = "" }) => {
        this.prompts.push(prompt);
        return typeof this.reply === "function" ? this.reply() : this.reply;
      }),
    );
    const app = createApp({ llm: this.llm, options, log: () => {} });
    this.fetch = (async (url: string, init: RequestInit) =>
      app.request(url, init)) as typeof globalThis.fetch;
    this.client = new OpenAI({ baseURL: "http://test/v1", apiKey: "none", maxRetries: 0, fetch: this.fetch });
  }

  static async start(name: string, options: ServerOptions = {}): Promise<Scripted> {
    return new Scripted(await TestServer.start({}, { chatTemplate: template(name) }), options);
  }

  /** A client of the model as it is. */
  get real(): OpenAI {
    return new OpenAI({ baseURL: this.server.baseURL, apiKey: "none", maxRetries: 0 });
  }

  with(options: ServerOptions): Scripted {
    return new Scripted(this.server, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
  }
}
