import { receiveMessageOnPort } from "node:worker_threads";

/**
 * The receiving end of a channel. Messages are handled when they arrive while the event loop runs, at most 1,024 of them
 * in one of its turns, and all that wait when it is drained.
 */
export class Inbox<T> {
  constructor(
    private readonly port: MessagePort,
    private readonly handle: (message: T) => void,
  ) {
    port.onmessage = ({ data }: MessageEvent<T>) => handle(data);
  }

  /** Handles all messages that have arrived, in their order. */
  drain(): void {
    for (;;) {
      const received = receiveMessageOnPort(this.port as never) as { readonly message: T } | undefined;
      if (!received) return;
      this.handle(received.message);
    }
  }
}
