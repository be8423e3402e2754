import { spyOn } from "bun:test";
import type { EngineMessage } from "../../src/async/worker-protocol.ts";

/** Messages to engines that end requests early, from now on until it is disposed. */
export class AbortedRequests implements Disposable {
  /** The requests of each message. */
  readonly ids: string[][] = [];
  readonly #spies = [Worker.prototype, MessagePort.prototype].map((prototype) => {
    const post = prototype.postMessage;
    const record = (message: Partial<EngineMessage>) => {
      if (message.type === "abort") this.ids.push([...message.ids!]);
    };
    return spyOn(prototype, "postMessage").mockImplementation(function (this: never, ...args: never[]) {
      record(args[0]!);
      return post.apply(this, args as never);
    });
  });

  [Symbol.dispose](): void {
    for (const spy of this.#spies) spy.mockRestore();
  }
}
