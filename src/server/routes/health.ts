import { type Replica, STALL_SECONDS } from "../../async/replica-set.ts";
import type { ServerApp, ServerContext } from "../context.ts";
import { ApiError, errorResponse, overloaded } from "../errors.ts";
import { type Handler, mount } from "../router.ts";

/**
 * `/live`: this process answers. `/ready`: it takes requests. `/health` and `/ping`: and an engine gets on with them. Where there
 * are several engines, the body says how each of them is.
 */
export function healthRoutes(app: ServerApp, context: ServerContext): void {
  const live = answer(() => undefined);
  const ready = answer(() => unready(context));
  const health = answer(() => healthProblem(context), context.llm.replicas.length > 1 ? context : undefined);
  // HAProxy asks with OPTIONS unless it is told otherwise.
  mount(app, "/live", { GET: live, OPTIONS: live });
  mount(app, "/ready", { GET: ready, OPTIONS: ready });
  mount(app, "/health", { GET: health, OPTIONS: health });
  mount(app, "/ping", { GET: health, OPTIONS: health, POST: health });
}

/** The reason that `/health` gives for 503; undefined while the server is healthy. */
export function healthProblem(context: ServerContext): ApiError | undefined {
  return unready(context) ?? stuck(context);
}

/** @param detailed whose replicas the body lists while there is no problem. */
function answer(problem: () => ApiError | undefined, detailed?: ServerContext): Handler {
  return (c) => {
    const error = problem();
    if (error) return errorResponse(error);
    return detailed ? c.json({ replicas: detailed.llm.replicas.map(stateOf) }) : c.body(null, 200);
  };
}

function stateOf({ failure, secondsWithoutProgress }: Replica): "ok" | "stalled" | "dead" {
  if (failure) return "dead";
  return secondsWithoutProgress < STALL_SECONDS ? "ok" : "stalled";
}

function unready({ llm, admission }: ServerContext): ApiError | undefined {
  if (llm.failure) return new ApiError(503, "engine_dead", "the engine has stopped");
  if (admission.ending) return overloaded("shutting_down", "the server is shutting down");
  return undefined;
}

function stuck({ llm }: ServerContext): ApiError | undefined {
  if (llm.secondsWithoutProgress < STALL_SECONDS) return undefined;
  return new ApiError(503, "engine_stalled", `the engine finished no step for ${STALL_SECONDS} s`);
}
