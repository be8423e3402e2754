import type { ServerApp, ServerContext } from "../context.ts";
import { ApiError, errorResponse, overloaded } from "../errors.ts";
import { type Handler, mount } from "../router.ts";

/** An engine that has work and finishes no step for so long is taken for stuck. */
const STALL_SECONDS = 30;

/** `/live`: this process answers. `/ready`: it takes requests. `/health` and `/ping`: and the engine gets on with them. */
export function healthRoutes(app: ServerApp, context: ServerContext): void {
  mount(app, "/live", { GET: (c) => c.body(null, 200) });
  mount(app, "/ready", { GET: answer(() => unready(context)) });
  const health = answer(() => healthProblem(context));
  mount(app, "/health", { GET: health });
  mount(app, "/ping", { GET: health, POST: health });
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
  if (admission.closed) return overloaded("shutting_down", "the server is shutting down");
  return undefined;
}

function stuck({ llm }: ServerContext): ApiError | undefined {
  if (llm.secondsWithoutProgress < STALL_SECONDS) return undefined;
  return new ApiError(503, "engine_stalled", `the engine finished no step for ${STALL_SECONDS} s`);
}
