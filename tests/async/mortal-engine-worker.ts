import type { EngineReply, LoadMessage } from "../../src/async/worker-protocol.ts";
import "../../src/async/engine-worker.ts";
import { DEATH_CHANNEL, SECOND_FAILS } from "./replicas.ts";

declare const self: Worker;

const engine = self.onmessage!;

/** An engine worker that can be killed. Replicas are told apart by their GPUs, which on the CPU mean nothing. */
self.onmessage = (event: MessageEvent<LoadMessage>) => {
  const { gpuIndex, revision } = event.data.config;
  if (revision === SECOND_FAILS) {
    if (gpuIndex === 1) throw new RangeError("no second one");
    const reply: EngineReply = { type: "folder", folder: "a folder" };
    self.postMessage(reply);
    return;
  }
  new BroadcastChannel(DEATH_CHANNEL).onmessage = ({ data }: { data: unknown }) => {
    if (data === gpuIndex) process.exit(7);
  };
  engine.call(self, event);
};
