import type { EngineDeadError } from "../base/errors.ts";
import type { StepOutput } from "../engine/step-output.ts";
import {
  RequestStream,
  type StreamedPrompt,
  type StreamedRequest,
  type StreamOptions,
} from "./request-stream.ts";
import type { StepSink } from "./step-loop.ts";

interface OpenRequest {
  readonly stream: RequestStream;
  readonly request: StreamedRequest;
}

/** The unfinished requests of an engine by id: hands each stream what the steps bring for it. */
export class OpenRequests implements StepSink {
  readonly #open = new Map<string, OpenRequest>();

  get size(): number {
    return this.#open.size;
  }

  /** A stream of requests that the engine has been given and has not begun. */
  open(prompts: readonly StreamedPrompt[], options: StreamOptions): RequestStream {
    const stream = new RequestStream(prompts, options);
    for (const request of stream.requests) this.watch(stream, request);
    return stream;
  }

  /** The engine has been given this request of the stream. */
  watch(stream: RequestStream, request: StreamedRequest): void {
    this.#open.set(request.id, { stream, request });
  }

  deliver({ prompts, deltas, finished }: StepOutput): void {
    for (const progress of prompts) {
      const open = this.#open.get(progress.id);
      open?.stream.progress(open.request, progress);
    }
    for (const delta of deltas) {
      const open = this.#open.get(delta.requestId);
      open?.stream.push(open.request, delta);
    }
    for (const summary of finished) {
      const open = this.#open.get(summary.id);
      this.#open.delete(summary.id);
      open?.stream.finish(open.request, summary);
    }
  }

  fail(reason: EngineDeadError): void {
    const streams = new Set(Array.from(this.#open.values(), ({ stream }) => stream));
    this.#open.clear();
    for (const stream of streams) stream.fail(reason);
  }
}
