import type { Backend, StepAreas } from "../backend/backend.ts";
import { Tensor } from "../backend/tensor.ts";
import { invariant } from "../base/errors.ts";

/** The sizes of a mailbox. */
export interface MailboxShape {
  /** Steps that can be under way at once: a power of two. */
  readonly depth: number;
  /** Words that a step is told, and words of its answer, at most. */
  readonly inboxWords: number;
  readonly outboxWords: number;
}

/**
 * What host and device tell each other in each step, in memory of both, so that no copy lies between two steps. Both count the
 * steps, and a step's number names its area: the host writes to the area of the next step, and reads that of the oldest,
 * while the device has the others. An area is free again when its step's answer has been taken.
 */
export class Mailbox {
  /** For `prepareBatch`, which begins a step. */
  readonly inbox: StepAreas;
  /** For `post`, which answers. */
  readonly outbox: StepAreas;
  readonly #told: Int32Array;
  readonly #answers: Int32Array;
  /** Steps sent, and answers taken, since the start. */
  #sent = 0;
  #taken = 0;

  constructor(
    private readonly backend: Backend,
    private readonly shape: MailboxShape,
  ) {
    const { depth, inboxWords, outboxWords } = shape;
    const steps = backend.empty("uint32", [1]);
    backend.fill(steps, 0);
    const areas = (words: number) => {
      const buffer = backend.allocateShared(4 * depth * words);
      invariant(buffer.host !== undefined, "shared memory that the host cannot reach");
      return { tensor: new Tensor(buffer, "int32", [depth, words]), words: new Int32Array(buffer.host) };
    };
    const [inbox, outbox] = [areas(inboxWords), areas(outboxWords)];
    this.inbox = { steps, areas: inbox.tensor };
    this.outbox = { steps, areas: outbox.tensor };
    [this.#told, this.#answers] = [inbox.words, outbox.words];
  }

  /** The area that the next step will read, for the host to write to. */
  draft(): Int32Array {
    const { depth, inboxWords } = this.shape;
    invariant(this.#sent - this.#taken < depth, "a step is written over one that is under way");
    const start = (this.#sent % depth) * inboxWords;
    return this.#told.subarray(start, start + inboxWords);
  }

  /** The next step is enqueued, all of it. */
  send(): void {
    this.#sent++;
  }

  /** The first `count` words that the oldest step answered. It is done: nothing of it is under way. */
  take(count: number): Int32Array {
    const { depth, outboxWords } = this.shape;
    invariant(this.#taken < this.#sent, "no step to take an answer from");
    const start = (this.#taken++ % depth) * outboxWords;
    return this.#answers.slice(start, start + count);
  }

  /** A step was not sent, but the device may have begun it: makes it as if it had not. Waits for all that is enqueued. */
  recall(): void {
    this.backend.synchronize();
    this.backend.upload(this.inbox.steps, Uint32Array.of(this.#sent % 2 ** 32));
  }

  dispose(): void {
    for (const { buffer } of [this.inbox.steps, this.inbox.areas, this.outbox.areas]) buffer.dispose();
  }
}
