import type { ChatMessage } from "../tokenizer/chat-template.ts";

/** A response as `/v1/responses` gives it. */
export interface ResponseDocument {
  readonly id: string;
  readonly [field: string]: unknown;
}

/** A response that others can go on from. */
export interface StoredResponse {
  readonly document: ResponseDocument;
  /** The conversation up to its end, without instructions, which are not handed on. */
  readonly messages: readonly ChatMessage[];
  /** Characters of it as JSON, those of what it goes on from included. */
  readonly size: number;
}

/**
 * The responses of this process that were asked to be stored. What was used longest ago makes room for others. Each caller sees
 * its own only.
 */
export class ResponseStore {
  /** By caller and id, what was used last at the end. */
  readonly #responses = new Map<string, StoredResponse>();
  #size = 0;

  /** @param maxSize characters of JSON that it holds at most. */
  constructor(private readonly maxSize: number) {}

  /** @param caller the digest of the key that asks; undefined: there are no keys. */
  get(caller: string | undefined, id: string): StoredResponse | undefined {
    const key = keyOf(caller, id);
    const found = this.#responses.get(key);
    if (!found) return undefined;
    this.#responses.delete(key);
    this.#responses.set(key, found);
    return found;
  }

  add(caller: string | undefined, response: StoredResponse): void {
    const { id } = response.document;
    this.delete(caller, id);
    this.#responses.set(keyOf(caller, id), response);
    this.#size += response.size;
    for (const [key, { size }] of this.#responses) {
      if (this.#size <= this.maxSize) return;
      this.#responses.delete(key);
      this.#size -= size;
    }
  }

  /** True if it was there. */
  delete(caller: string | undefined, id: string): boolean {
    const key = keyOf(caller, id);
    this.#size -= this.#responses.get(key)?.size ?? 0;
    return this.#responses.delete(key);
  }
}

function keyOf(caller: string | undefined, id: string): string {
  return `${caller ?? ""}:${id}`;
}
