import { type EmbedOptions, shapedEmbedding } from "../../base/embedding.ts";
import type { SubmittedRequest } from "../../base/outputs.ts";
import type { Chunk } from "./chunks.ts";
import type { Parts, ReplyFormat } from "./reply-format.ts";
import type { Usage } from "./usage.ts";

export interface EmbeddingsFormatOptions extends EmbedOptions {
  readonly model: string;
  /** Little-endian float32 in base64, instead of lists of numbers. */
  readonly base64: boolean;
}

/** The replies of `/v1/embeddings`, which are never streamed. */
export class EmbeddingsFormat implements ReplyFormat<true> {
  /** By the place of their prompts. */
  readonly #requests: SubmittedRequest[] = [];

  constructor(private readonly options: EmbeddingsFormatOptions) {}

  async prompt(): Promise<true> {
    return true;
  }

  events(): readonly Parts[] {
    return [];
  }

  closing(): readonly Parts[] {
    return [];
  }

  add({ choice, request }: Chunk<true>): void {
    this.#requests[choice] = request;
  }

  *document({ prompt_tokens }: Usage): Generator<string, void, undefined> {
    yield '{"object":"list","data":[';
    for (const [index, { embedding }] of this.#requests.entries()) {
      const vector = shapedEmbedding(embedding!, this.options);
      const written = this.options.base64
        ? Buffer.from(vector.buffer, vector.byteOffset, vector.byteLength).toString("base64")
        : Array.from(vector);
      yield `${index > 0 ? "," : ""}${JSON.stringify({ object: "embedding", index, embedding: written })}`;
    }
    const usage = { prompt_tokens, total_tokens: prompt_tokens };
    yield `],${JSON.stringify({ model: this.options.model, usage }).slice(1)}`;
  }
}
