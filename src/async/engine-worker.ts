import { buffersOf } from "../base/engine-view.ts";
import { EngineDeadError } from "../base/errors.ts";
import { type LoadedModel, loadModel } from "../llm/load-model.ts";
import { StepLoop } from "../llm/step-loop.ts";
import { encodeError } from "../threads/error-codec.ts";
import { Inbox } from "./inbox.ts";
import { StepPoster } from "./step-poster.ts";
import type { EngineInfo, EngineMessage, EngineReply, LoadMessage } from "./worker-protocol.ts";

declare const self: Worker;

self.onmessage = async ({ data: { model, config, inbox } }: MessageEvent<LoadMessage>) => {
  try {
    const loaded = await loadModel(model, config, {
      onFolder: (folder) => post({ type: "folder", folder }),
      onProgress: (progress) => post({ type: "progress", progress }),
    });
    serve(loaded, inbox);
    post({ type: "ready", info: infoOf(loaded), stats: loaded.engine.stats() });
  } catch (error) {
    post({ type: "failed", error: encodeError(error) });
  }
};

function post(reply: EngineReply, transfer: ArrayBuffer[] = []): void {
  self.postMessage(reply, transfer);
}

function serve(loaded: LoadedModel, port: MessagePort): void {
  const poster = new StepPoster(loaded.engine, post);
  const loop: StepLoop = new StepLoop(loaded.engine, poster, () => inbox.drain());
  loaded.onFailure((reason) => loop.stop(reason));
  const inbox = new Inbox<EngineMessage>(port, (message) => {
    if (message.type === "add") {
      // Of an engine that has died the main thread knows.
      if (loop.failure) return;
      loop.add(message.requests);
      if (message.isAborted) loop.abort(message.requests.map(({ id }) => id));
    } else if (message.type === "abort") loop.abort(message.ids);
    else if (message.type === "resetPrefixCache") {
      const done = loaded.engine.resetPrefixCache();
      post({ type: "prefixCacheReset", done, stats: loaded.engine.stats() });
    } else if (message.type === "view") {
      const view = loaded.engine.view();
      post({ type: "view", view }, buffersOf(view));
    } else {
      loop.stop(new EngineDeadError("the engine was shut down"));
      loaded.dispose();
      post({ type: "closed" });
    }
  });
}

function infoOf({ engine, ...loaded }: LoadedModel): EngineInfo {
  const { name, modelConfig, device, dtype, weights, defaultSampling } = loaded;
  const { limits, cacheConfig } = engine;
  const { timeOrigin } = performance;
  return { name, modelConfig, device, dtype, weights, defaultSampling, limits, cacheConfig, timeOrigin };
}
