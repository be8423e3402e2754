import { EngineDeadError, messageOf } from "../base/errors.ts";
import type { Engine } from "../engine/engine.ts";
import type { EngineRequest } from "../engine/request.ts";
import type { StepOutput } from "../engine/step-output.ts";

/** The receiver of a `StepLoop`'s output: the streams of this thread, or the way to another thread's. */
export interface StepSink {
  /** Called after each step. */
  deliver(step: StepOutput): void;
  /** The engine has died or been stopped: nothing comes after this. */
  fail(reason: EngineDeadError): void;
}

/**
 * Steps an engine as long as it has work. Between steps the event loop runs, so requests can be added and aborted at any
 * time; with overlap the device has its next step by then.
 */
export class StepLoop {
  #isStepping = false;
  /** Resolved, and replaced, when requests are added or aborted. */
  #woken = Promise.withResolvers<void>();
  #failure: EngineDeadError | undefined;

  /** @param receive called before each step, to add and abort whatever waits for that. */
  constructor(
    private readonly engine: Engine,
    private readonly sink: StepSink,
    private readonly receive: () => void = () => {},
  ) {}

  /** The error that the engine died of, or the reason of its stop. */
  get failure(): EngineDeadError | undefined {
    return this.#failure;
  }

  /** The first step comes after a turn of the event loop. @throws EngineDeadError once the loop has ended. */
  add(requests: readonly EngineRequest[]): void {
    if (this.#failure) throw this.#failure;
    for (const request of requests) this.engine.add(request);
    void this.#run();
  }

  /** Ends what is unfinished of these requests; their last deltas come with the next step. Nothing once the loop has ended. */
  abort(ids: readonly string[]): void {
    if (this.#failure) return;
    for (const id of ids) this.engine.abort(id);
    void this.#run();
  }

  /** No step begins after this. */
  stop(reason: EngineDeadError): void {
    if (this.#failure) return;
    this.#failure = reason;
    this.#woken.resolve();
    this.sink.fail(reason);
  }

  async #run(): Promise<void> {
    if (this.#isStepping) {
      this.#woken.resolve();
      return;
    }
    this.#isStepping = true;
    try {
      for (;;) {
        await eventLoopTurn();
        this.receive();
        if (this.#failure || !this.engine.hasUnfinished) break;
        this.#woken = Promise.withResolvers();
        this.sink.deliver(this.engine.step());
        if (this.engine.isBlocked) await Promise.race([this.engine.unblocked(), this.#woken.promise]);
      }
    } catch (error) {
      this.stop(error instanceof EngineDeadError ? error : engineFailed(error));
    } finally {
      this.#isStepping = false;
    }
  }
}

function engineFailed(cause: unknown): EngineDeadError {
  return new EngineDeadError(`the engine failed: ${messageOf(cause)}`, { cause });
}

/** Lets timers and messages in: about two microseconds when there are none. */
function eventLoopTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
