import { version } from "../../../package.json";
import { encodeRuns } from "../../base/word-runs.ts";
import { type RequestContext, type ServerApp, type ServerContext, servedModel } from "../context.ts";
import { refuseForeign } from "../cross-site.ts";
import type { Snapshot } from "../engine-view/engine-watch.ts";
import { type ApiError, invalidValue, overloaded } from "../errors.ts";
import { event, eventStream, SSE_HEADERS } from "../replies/sse.ts";
import { mount } from "../router.ts";

/** Connections at once that watch engines. */
const MAX_WATCHERS = 16;

/**
 * `/engine`: an engine's blocks and queues as they change, ten times a second at most, for the page. The query's `replica` says
 * which engine, default 0. The first event, `engine`, has what stays; `view` events follow.
 */
export function engineRoute(app: ServerApp, context: ServerContext): void {
  let watchers = 0;
  mount(app, "/engine", {
    GET: (c) => {
      refuseForeign(c.req.raw.headers, context.config.corsOrigins);
      const replica = replicaOf(c, context);
      if (c.req.method === "HEAD") return c.body(null, 200, SSE_HEADERS);
      if (watchers >= MAX_WATCHERS) throw overloaded("overloaded", `${MAX_WATCHERS} others watch already`);
      watchers++;
      // A proxy or Bun itself would take a connection for dead that an idle engine says little on.
      c.env?.server?.timeout(c.req.raw, 0);
      const tracked = c.get("tracked");
      tracked.streaming = true;
      const ending = new AbortController();
      const events = eventsOf(context, replica, ending.signal);
      return c.body(
        eventStream(events, {
          writeStallSeconds: context.config.writeStallSeconds,
          abort: (reason: ApiError) => ending.abort(reason),
          onEnd: (told, error) => {
            watchers--;
            if (told) tracked.failed(error, told);
            tracked.finish(told?.status ?? 200);
          },
        }),
        200,
        SSE_HEADERS,
      );
    },
  });
}

/** @throws ApiError 400 for no number of a replica. */
function replicaOf(c: RequestContext, { llm }: ServerContext): number {
  const { length } = llm.replicas;
  const replica = Number(c.req.query("replica") ?? 0);
  if (Number.isInteger(replica) && replica >= 0 && replica < length) return replica;
  throw invalidValue("replica", `replica must be an integer from 0 to ${length - 1}`);
}

async function* eventsOf(
  context: ServerContext,
  replica: number,
  signal: AbortSignal,
): AsyncGenerator<string, void, undefined> {
  yield [...event([JSON.stringify(constants(context, replica))], "engine")].join("");
  let previous: Uint32Array | undefined;
  for await (const snapshot of context.watches[replica]!.snapshots(signal)) {
    yield [...event([viewJson(snapshot, previous)], "view")].join("");
    previous = snapshot.view.blocks;
  }
}

function constants(context: ServerContext, replica: number): object {
  const { llm } = context;
  const { maxNumSeqs, maxNumBatchedTokens, enablePrefixCaching } = llm.config;
  return {
    ...{ replica, replicas: llm.replicas.length, ...llm.replicas[replica]!.cacheConfig },
    ...{ maxNumSeqs, maxNumBatchedTokens, enablePrefixCaching, maxModelLen: llm.maxModelLen },
    ...{ model: servedModel(context, undefined), device: llm.device, dtype: llm.dtype, version },
  };
}

/** A snapshot as JSON; its lists are those of `EngineView`, and `blocks` has what changed since `previous`, in base64. */
function viewJson(
  { time, view, firstToken, interToken }: Snapshot,
  previous: Uint32Array | undefined,
): string {
  const { stats, blocks, running, waiting, shared } = view;
  const rest = JSON.stringify({
    ...{ time, stats, firstToken, interToken },
    blocks: encodeRuns(blocks, previous).toBase64(),
  });
  return `${rest.slice(0, -1)},"running":[${running.join()}],"waiting":[${waiting.join()}],"shared":[${shared.join()}]}`;
}
