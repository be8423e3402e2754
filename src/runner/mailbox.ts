import type { Backend, StepAreas } from "../backend/backend.ts";
import { Tensor } from "../backend/tensor.ts";
import { invariant } from "../base/errors.ts";

/** Words of an area of each part, and the number of areas. */
export interface MailboxShape {
  /** Steps that can be under way at once: a power of two. */
  readonly depth: number;
  readonly inbox: number;
  readonly tokens: number;
  readonly logprobs: number;
}

/** A step's answer: views that the next draft invalidates. */
export interface Answer {
  readonly tokens: Int32Array;
  readonly logprobs: Int32Array;
}

/**
 * The words that host and device exchange in each step, in memory of both, so that no copy lies between two steps. Both
 * count the steps, and a step's number names its area: the host writes to the area of the next step, and reads that of the
 * oldest, while the device has the others. An area is free again when its step's answer has been taken.
 */
export class Mailbox {
  /** For `prepareBatch`, which begins a step. */
  readonly inbox: StepAreas;
  /** For `post`: the tokens drawn, and log-probabilities where rows ask for them. */
  readonly tokens: StepAreas;
  readonly logprobs: StepAreas;
  readonly #steps: Tensor;
  readonly #depth: number;
  /** Steps sent, and answers taken, since the start. */
  #sent = 0;
  #taken = 0;

  constructor(
    private readonly backend: Backend,
    { depth, inbox, tokens, logprobs }: MailboxShape,
  ) {
    this.#depth = depth;
    this.#steps = backend.empty("uint32", [1]);
    backend.fill(this.#steps, 0);
    const areas = (words: number): StepAreas => {
      const buffer = backend.allocateShared(4 * depth * words);
      return { steps: this.#steps, areas: new Tensor(buffer, "int32", [depth, words]) };
    };
    [this.inbox, this.tokens, this.logprobs] = [areas(inbox), areas(tokens), areas(logprobs)];
  }

  /** The area that the next step will read, for the host to write to. */
  draft(): Int32Array {
    invariant(this.#sent - this.#taken < this.#depth, "a step is written over one that is under way");
    return areaOf(this.inbox, this.#sent);
  }

  /** int32 [count], from word `start` of the draft on: for ops of the next step, if it is not a captured one. */
  draftTensor(start: number, count: number): Tensor {
    const { areas } = this.inbox;
    const area = this.#sent % this.#depth;
    return areas.reshape(areas.size).rows(area * areas.dim(1) + start, area * areas.dim(1) + start + count);
  }

  /** The next step is enqueued, all of it. */
  send(): void {
    this.#sent++;
  }

  /** Takes the answer of the oldest step. It is done: nothing of it is under way. */
  take(): Answer {
    invariant(this.#taken < this.#sent, "no step to take an answer from");
    const step = this.#taken++;
    return { tokens: areaOf(this.tokens, step), logprobs: areaOf(this.logprobs, step) };
  }

  /** A step was not sent, but the device may have begun it: makes it as if it had not. Waits for all that is enqueued. */
  recall(): void {
    this.backend.synchronize();
    this.backend.upload(this.#steps, Uint32Array.of(this.#sent % 2 ** 32));
  }

  dispose(): void {
    this.#steps.buffer.dispose();
    for (const { areas } of [this.inbox, this.tokens, this.logprobs]) areas.buffer.dispose();
  }
}

function areaOf({ areas }: StepAreas, step: number): Int32Array {
  const [depth, words] = [areas.dim(0), areas.dim(1)];
  const { host } = areas.buffer;
  invariant(host !== undefined, "shared memory that the host cannot reach");
  return new Int32Array(host, 4 * (step % depth) * words, words);
}
