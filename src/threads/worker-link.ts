/** Longest wait for a terminated Worker, which may be inside a native call. */
const TERMINATION_MS = 1000;

/** A Worker with typed messages in both directions and word of its end. */
export class WorkerLink<Send, Receive> {
  onMessage: (message: Receive) => void = () => {};
  /** Called once if the Worker ends by itself, with the reason in words. */
  onEnd: (reason: string) => void = () => {};
  readonly #worker: Worker;
  readonly #closed = Promise.withResolvers<void>();
  #error: string | undefined;
  #terminated = false;

  /** @param keepsAlive whether the process waits for the Worker to end. Default true. */
  constructor(url: URL, { keepsAlive = true }: { readonly keepsAlive?: boolean } = {}) {
    this.#worker = new Worker(url, { ref: keepsAlive });
    this.#worker.onmessage = ({ data }: MessageEvent<Receive>) => {
      if (!this.#terminated) this.onMessage(data);
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#error ??= summary(event.message);
    };
    this.#worker.addEventListener("close", (event) => {
      this.#closed.resolve();
      const code = (event as unknown as { code: number }).code;
      if (!this.#terminated) this.onEnd(this.#error ?? `it exited with code ${code}`);
    });
  }

  /** @param transfer what of the message is moved, not copied */
  post(message: Send, transfer: Bun.Transferable[] = []): void {
    this.#worker.postMessage(message, transfer);
  }

  /** From here on the process does not wait for the Worker to end. */
  unref(): void {
    (this.#worker as unknown as { unref(): void }).unref();
  }

  /** Nothing is reported from here on. Safe to call twice. */
  async terminate(): Promise<void> {
    this.#terminated = true;
    this.#worker.terminate();
    await atMost(this.#closed.promise, TERMINATION_MS);
  }
}

/** The line that names the error, without the excerpt of the source and the stack. */
function summary(message: string): string {
  const lines = Bun.stripANSI(message).split("\n");
  return lines.find((line) => !/^\s*(\d+ \||\^|at |$)/.test(line)) ?? message;
}

/** Waits for `promise`, but no longer than this. */
export async function atMost(promise: Promise<void>, milliseconds: number): Promise<void> {
  const { promise: elapsed, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, milliseconds);
  await Promise.race([promise, elapsed]).finally(() => clearTimeout(timer));
}
