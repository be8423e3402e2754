import type { Chunk } from "./chunks.ts";
import type { Usage } from "./usage.ts";

/** The JSON form of an endpoint's replies. One instance serves one reply. */
export interface ReplyFormat {
  /** The events of a chunk of a streaming reply. */
  events(chunk: Chunk): readonly object[];
  /** The event that carries only the usage. */
  usageEvent(usage: Usage): object;
  /** The whole reply, its choices in order. */
  document(choices: readonly Chunk[], usage: Usage): object;
}

/** The fields that begin every document of a reply. */
export interface ReplyHead {
  readonly id: string;
  readonly object: string;
  /** Unix time in seconds. */
  readonly created: number;
  readonly model: string;
}

/** The head of a reply that begins now. */
export function replyHead(
  prefix: "chatcmpl" | "cmpl",
  object: string,
  { suffix, model }: ReplyNames,
): ReplyHead {
  return { id: `${prefix}-${suffix}`, object, created: Math.floor(Date.now() / 1000), model };
}

/** The name of a reply and of the model that gives it. */
export interface ReplyNames {
  /** The part of the reply's id after the prefix; unique to it. */
  readonly suffix: string;
  /** The served name that the request asked for. */
  readonly model: string;
}
