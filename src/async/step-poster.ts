import type { EngineDeadError } from "../base/errors.ts";
import type { Engine } from "../engine/engine.ts";
import type { StepOutput } from "../engine/step-output.ts";
import type { StepSink } from "../llm/step-loop.ts";
import { encodeError } from "../threads/error-codec.ts";
import { LogprobPacker } from "./logprob-codec.ts";
import { packStep, transfersOf } from "./step-codec.ts";
import type { EngineReply } from "./worker-protocol.ts";

/** The engine worker's sink: posts each step as one message. */
export class StepPoster implements StepSink {
  readonly #logprobs = new LogprobPacker();

  constructor(
    private readonly engine: Engine,
    private readonly post: (reply: EngineReply, transfer?: ArrayBuffer[]) => void,
  ) {}

  deliver(output: StepOutput): void {
    const step = packStep(output, this.#logprobs);
    this.post({ type: "step", step, stats: this.engine.stats() }, transfersOf(step));
  }

  fail(reason: EngineDeadError): void {
    this.post({ type: "dead", error: encodeError(reason) });
  }
}
