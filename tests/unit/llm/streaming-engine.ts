import type { ResolvedSamplingParams } from "../../../src/base/sampling-params.ts";
import { checkRequest } from "../../../src/engine/request.ts";
import { OpenRequests } from "../../../src/llm/open-requests.ts";
import type { StreamOptions } from "../../../src/llm/request-stream.ts";
import { StepLoop } from "../../../src/llm/step-loop.ts";
import { eventually } from "../../support.ts";
import { makeEngine, makeRequest } from "../engine/helpers.ts";

/** An engine, its loop and their streams in this thread. */
export class StreamingEngine {
  readonly engine = makeEngine().engine;
  readonly open = new OpenRequests();
  readonly loop = new StepLoop(this.engine, this.open);

  /** A stream of one request for each of these. */
  stream(samplings: readonly Partial<ResolvedSamplingParams>[], options: Partial<StreamOptions> = {}) {
    const prompts = samplings.map((sampling) => {
      const request = checkRequest(makeRequest([1, 2, 3], sampling), this.engine.limits);
      return { request, prompt: undefined };
    });
    this.loop.add(prompts.map(({ request }) => request));
    return this.open.open(prompts, { abort: (ids) => this.loop.abort(ids), ...options });
  }

  readonly idle = () => eventually(() => !this.engine.hasUnfinished && this.open.size === 0);
}
