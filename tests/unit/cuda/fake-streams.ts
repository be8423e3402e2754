type Work = () => void;

/** What is enqueued in streams: run at once, as late as it may be, or kept for a graph. Streams and events are handles. */
export class FakeStreams {
  /** Work waits until something waits for it: what it reads must stay as it is until then. */
  lazy = false;
  /** Nodes of the graphs that streams capture. */
  readonly #captures = new Map<number, Work[]>();
  /** Work enqueued and not run yet. */
  readonly #queues = new Map<number, Work[]>();
  /** The streams of events that were recorded and have not been come to. */
  readonly #marks = new Map<number, number>();

  /** Whether any stream captures. */
  get capturing(): boolean {
    return this.#captures.size > 0;
  }

  captures(stream: number): boolean {
    return this.#captures.has(stream);
  }

  beginCapture(stream: number): void {
    this.#captures.set(stream, []);
  }

  /** What was captured, or undefined if nothing was to be. */
  endCapture(stream: number): Work[] | undefined {
    const nodes = this.#captures.get(stream);
    this.#captures.delete(stream);
    return nodes;
  }

  enqueue(stream: number, work: Work): void {
    const capture = this.#captures.get(stream);
    if (capture !== undefined) capture.push(work);
    else if (this.lazy) this.#queue(stream).push(work);
    else work();
  }

  /** Records an event behind what the stream has to do. */
  mark(event: number, stream: number): void {
    if (!this.lazy) return;
    this.#marks.set(event, stream);
    this.#queue(stream).push(() => this.#marks.delete(event));
  }

  /** Whether an event has been recorded and not been come to. */
  awaits(event: number): boolean {
    return this.#marks.has(event);
  }

  /** Runs a stream's work up to an event. */
  runTo(event: number): 0 {
    const queue = this.#queue(this.#marks.get(event) ?? 0);
    while (this.#marks.has(event)) queue.shift()!();
    return 0;
  }

  run(stream: number): 0 {
    for (const work of this.#queue(stream).splice(0)) work();
    return 0;
  }

  runAll(): 0 {
    for (const stream of this.#queues.keys()) this.run(stream);
    return 0;
  }

  #queue(stream: number): Work[] {
    const queue = this.#queues.get(stream) ?? [];
    this.#queues.set(stream, queue);
    return queue;
  }
}
