import type {
  LanguageModelV4,
  LanguageModelV4CallOptions,
  LanguageModelV4Content,
  LanguageModelV4FinishReason,
  LanguageModelV4GenerateResult,
  LanguageModelV4StreamPart,
  LanguageModelV4StreamResult,
  LanguageModelV4Usage,
  SharedV4Warning,
} from "@ai-sdk/provider";
import type { AsyncLLM } from "../async/async-llm.ts";
import type { GenerationStream } from "../base/outputs.ts";
import { type PartStep, type TurnPart, TurnParts } from "../chat/turn-parts.ts";
import { checkEffort, planTurns } from "../chat/turn-plan.ts";
import { Turns } from "../chat/turns.ts";
import type { FormatOptions } from "../formats/registry.ts";
import { callRequest } from "./call-request.ts";

const PROVIDER = "octavo";

/** A call under way. */
interface Call {
  readonly stream: GenerationStream;
  readonly parts: TurnParts;
  readonly warnings: SharedV4Warning[];
  readonly signal: AbortSignal | undefined;
}

/** A model of this process as the AI SDK knows models. */
export class OctavoLanguageModel implements LanguageModelV4 {
  readonly specificationVersion = "v4";
  readonly provider = PROVIDER;
  readonly modelId: string;
  /** None: the model takes only text. */
  readonly supportedUrls = {};
  readonly #turns: Turns;

  /** @throws ConfigError for parsers that do not go together. */
  constructor(
    private readonly llm: AsyncLLM,
    formats: FormatOptions,
  ) {
    this.modelId = llm.model;
    this.#turns = new Turns(llm, formats);
  }

  /** @throws what `AsyncLLM.submit` does; the error of the completion; the signal's reason. */
  async doGenerate(options: LanguageModelV4CallOptions): Promise<LanguageModelV4GenerateResult> {
    const call = await this.#open(options);
    for await (const _ of stepsOf(call)) {
      // The parts are complete when the steps end.
    }
    return {
      content: call.parts.parts.map(contentOf),
      ...{ finishReason: finishReasonOf(call), usage: usageOf(call), warnings: call.warnings },
      response: { modelId: this.modelId, timestamp: new Date() },
    };
  }

  /** @throws as `doGenerate`, before anything is generated; later errors are parts of the stream. */
  async doStream(options: LanguageModelV4CallOptions): Promise<LanguageModelV4StreamResult> {
    const call = await this.#open(options);
    const parts = partsOf(call, this.modelId);
    return {
      stream: new ReadableStream<LanguageModelV4StreamPart>(
        {
          async pull(controller) {
            const { done, value } = await parts.next();
            if (done) controller.close();
            else controller.enqueue(value);
          },
          async cancel() {
            call.stream.abort();
            await parts.return(undefined);
          },
        },
        { highWaterMark: 0 },
      ),
    };
  }

  async #open(options: LanguageModelV4CallOptions): Promise<Call> {
    const { turn, effort, warnings } = callRequest(options);
    const { abortSignal: signal } = options;
    signal?.throwIfAborted();
    checkEffort(this.#turns, effort);
    const plan = await planTurns(this.#turns, turn);
    const stream = await this.llm.submit(turn.prompt, plan?.sampling ?? turn.sampling, {
      ...(signal && { signal }),
      limitTurn: plan?.limit ?? (() => ({})),
    });
    return { stream, parts: new TurnParts(plan?.open(stream.requests[0]!)), warnings, signal };
  }
}

/** The steps of a call's parts. @throws the completion's error, or the signal's reason. */
async function* stepsOf({ stream, parts, signal }: Call): AsyncGenerator<PartStep, void, undefined> {
  for await (const delta of stream) {
    if (delta.error) throw delta.error;
    if (delta.finishReason === "abort") throw signal?.reason ?? new DOMException("aborted", "AbortError");
    yield* parts.push(delta);
  }
}

async function* partsOf(
  call: Call,
  modelId: string,
): AsyncGenerator<LanguageModelV4StreamPart, void, undefined> {
  yield { type: "stream-start", warnings: call.warnings };
  yield { type: "response-metadata", modelId, timestamp: new Date() };
  try {
    for await (const step of stepsOf(call)) yield* streamParts(step);
  } catch (error) {
    yield { type: "error", error };
    return;
  }
  yield { type: "finish", finishReason: finishReasonOf(call), usage: usageOf(call) };
}

function* streamParts({ step, part, text }: PartStep): Generator<LanguageModelV4StreamPart, void, undefined> {
  if (part.kind === "call") {
    const { callId: id, name: toolName } = part;
    if (step === "begin") yield { type: "tool-input-start", id, toolName };
    else if (step === "text") yield { type: "tool-input-delta", id, delta: text };
    else {
      yield { type: "tool-input-end", id };
      yield contentOf(part) as Extract<LanguageModelV4Content, { type: "tool-call" }>;
    }
    return;
  }
  const kind = part.kind === "thoughts" ? "reasoning" : "text";
  const id = String(part.index);
  if (step === "begin") yield { type: `${kind}-start`, id };
  else if (step === "text") yield { type: `${kind}-delta`, id, delta: text };
  else yield { type: `${kind}-end`, id };
}

function contentOf({ kind, text, callId, name }: TurnPart): LanguageModelV4Content {
  if (kind === "text") return { type: "text", text };
  if (kind === "thoughts") return { type: "reasoning", text };
  return { type: "tool-call", toolCallId: callId, toolName: name, input: text };
}

function finishReasonOf({ parts: { finishReason } }: Call): LanguageModelV4FinishReason {
  const raw = finishReason ?? undefined;
  if (raw === "tool_calls") return { unified: "tool-calls", raw };
  return { unified: raw === "stop" || raw === "length" ? raw : "other", raw };
}

function usageOf({ stream, parts }: Call): LanguageModelV4Usage {
  const { numPromptTokens: total, numCachedTokens: cacheRead } = stream.requests[0]!;
  const { reasoningTokens: reasoning, outputTokens: output } = parts;
  return {
    inputTokens: { total, cacheRead, noCache: total - cacheRead, cacheWrite: undefined },
    outputTokens: { total: output, reasoning, text: output - (reasoning ?? 0) },
  };
}
