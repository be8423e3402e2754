import type { ServerApp, ServerContext } from "../context.ts";
import { ApiError, errorResponse, overloaded } from "../errors.ts";
import { type Handler, mount } from "../router.ts";

/** An engine that has work and finishes no step for so long is taken for stuck. */
const STALL_SECONDS = 30;

/** `/live`: this process answers. `/ready`: it takes requests. `/health` and `/ping`: and the engine gets on with them. */
export function healthRoutes(app: ServerApp, context: ServerContext): void {
  const live = answer(() => undefined);
  const ready = answer(() => unready(context));
  const health = answer(() => healthProblem(context));
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

function answer(problem: () => ApiError | undefined): Handler {
  return (c) => {
    const error = problem();
    return error ? errorResponse(error) : c.body(null, 200);
  };
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
