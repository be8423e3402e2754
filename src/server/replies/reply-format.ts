import type { SubmittedRequest } from "../../base/outputs.ts";
import type { ApiError } from "../errors.ts";
import type { GenerationBody } from "../schemas/request-body.ts";
import type { Chunk } from "./chunks.ts";
import { DONE, event } from "./sse.ts";
import type { Usage } from "./usage.ts";

/** Parts of a text, one after the other. */
export type Parts = Iterable<string>;

/**
 * The JSON form of an endpoint's replies, in parts. One instance serves one reply, streamed or whole. `Prompt` is what it
 * repeats of a prompt in each of its choices.
 */
export interface ReplyFormat<Prompt> {
  /** Made once for each prompt when its first tokens have come. */
  prompt(request: SubmittedRequest): Promise<Prompt>;
  /** Tokens of thoughts so far; undefined: there are none to be told apart. */
  readonly reasoningTokens?: number | undefined;
  /** The events that a streaming reply begins with. Default none. */
  opening?(usage: () => Usage): readonly Parts[];
  /** The events of a chunk of a streaming reply, possibly none. @param usage gives the usage so far. */
  events(chunk: Chunk<Prompt>, usage: () => Usage): readonly Parts[];
  /** The events that a streaming reply ends with. */
  closing(usage: () => Usage): readonly Parts[];
  /** The event of an error that ends a streaming reply instead. Default OpenAI's error document. */
  failure?(told: ApiError): Parts;
  /** Takes a chunk of a reply that is not streamed. */
  add(chunk: Chunk<Prompt>): void;
  /** The whole reply, once all its chunks have been added. */
  document(usage: Usage): Parts;
}

/** The usage so far, if the body of a completion asks for it in every event. */
export function continuousUsage<T>(
  { stream_options: options }: GenerationBody,
  usage: () => T,
): (() => T) | undefined {
  return options?.continuous_usage_stats ? usage : undefined;
}

/** The end of a completion's stream. @param usage the document of the event that carries only the usage. */
export function closingEvents(
  { stream_options: options }: GenerationBody,
  usage: () => Parts,
): readonly Parts[] {
  return [...(options?.include_usage ? [event(usage())] : []), [DONE]];
}

/** The beginning of every document of a reply that begins now, as JSON. */
export function replyHead(
  prefix: "chatcmpl" | "cmpl",
  object: string,
  { suffix, model }: ReplyNames,
): string {
  const created = Math.floor(Date.now() / 1000);
  return JSON.stringify({ id: `${prefix}-${suffix}`, object, created, model }).slice(0, -1);
}

/** The name of a reply and of the model that gives it. */
export interface ReplyNames {
  /** The part of the reply's id after the prefix; unique to it. */
  readonly suffix: string;
  /** The served name that the request asked for. */
  readonly model: string;
}

/** A document: the head, the choices, each in parts, and further fields. */
export function* documentOf(
  head: string,
  choices: Iterable<Parts>,
  fields: Readonly<Record<string, unknown>>,
  more: Parts = [],
): Generator<string, void, undefined> {
  yield `${head},"choices":[`;
  let isFirst = true;
  for (const choice of choices) {
    if (!isFirst) yield ",";
    isFirst = false;
    yield* choice;
  }
  yield "]";
  yield fieldsOf(fields);
  yield* more;
  yield "}";
}

/** The JSON of further fields of an object, each after a comma; undefined ones are left out. */
export function fieldsOf(fields: Readonly<Record<string, unknown>>): string {
  const text = JSON.stringify(fields).slice(1, -1);
  return text === "" ? "" : `,${text}`;
}
