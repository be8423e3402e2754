import { type ServerAccess, ServerError } from "../server-access.ts";
import { serverEvents } from "../server-events.ts";
import { EMPTY_REPLY, type Reply, type ScoredToken, type ToolCall } from "./conversation.ts";

/** The parts of OpenAI's `chat.completion.chunk` that are read. */
interface Chunk {
  readonly error?: { readonly message: string };
  readonly usage?: { readonly prompt_tokens: number; readonly completion_tokens: number } | null;
  readonly choices?: readonly {
    readonly index: number;
    readonly delta: {
      readonly content?: string | null;
      readonly reasoning?: string;
      readonly reasoning_content?: string;
      readonly tool_calls?: readonly CallDelta[];
    };
    readonly logprobs?: { readonly content: readonly TokenJson[] } | null;
    readonly finish_reason: string | null;
  }[];
}

interface CallDelta {
  readonly index: number;
  readonly id?: string;
  readonly function?: { readonly name?: string; readonly arguments?: string };
}

interface TokenJson {
  readonly token: string;
  readonly logprob: number;
  readonly top_logprobs: readonly { readonly token: string; readonly logprob: number }[];
}

/** The replies to a request, one for each choice, as they grow: after each event all of them. @throws ServerError */
export async function* streamReplies(
  access: ServerAccess,
  body: string,
  signal: AbortSignal,
): AsyncGenerator<readonly Reply[], void, undefined> {
  const started = performance.now();
  const elapsed = () => performance.now() - started;
  const headers = { "Content-Type": "application/json" };
  const response = await access.fetch("v1/chat/completions", { method: "POST", body, headers, signal });
  let replies: Reply[] = [];
  for await (const { data } of serverEvents(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error) throw new ServerError(chunk.error.message, 500);
    for (const choice of chunk.choices ?? []) {
      replies = [...replies];
      for (let i = replies.length; i <= choice.index; i++) replies.push(EMPTY_REPLY);
      replies[choice.index] = extended(replies[choice.index]!, choice, elapsed());
    }
    if (chunk.usage) {
      const usage = { prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens };
      replies = replies.map((reply) => ({ ...reply, usage }));
    }
    yield replies;
  }
}

function extended(
  reply: Reply,
  { delta, logprobs, finish_reason }: NonNullable<Chunk["choices"]>[number],
  elapsedMs: number,
): Reply {
  const reasoning = delta.reasoning ?? delta.reasoning_content ?? "";
  const hasMore = Boolean(delta.content) || reasoning !== "" || delta.tool_calls !== undefined;
  return {
    ...reply,
    text: reply.text + (delta.content ?? ""),
    reasoning: reply.reasoning + reasoning,
    calls: delta.tool_calls ? withCalls(reply.calls, delta.tool_calls) : reply.calls,
    tokens: logprobs ? [...reply.tokens, ...logprobs.content.map(scored)] : reply.tokens,
    finish: finish_reason ?? reply.finish,
    ...(reply.firstTokenMs === undefined && hasMore && { firstTokenMs: elapsedMs }),
    totalMs: elapsedMs,
  };
}

function scored({ token, logprob, top_logprobs }: TokenJson): ScoredToken {
  return { text: token, logprob, top: top_logprobs.map(({ token, logprob }) => ({ text: token, logprob })) };
}

function withCalls(calls: readonly ToolCall[], deltas: readonly CallDelta[]): readonly ToolCall[] {
  const all = [...calls];
  for (const { index, id, function: called } of deltas) {
    const before = all[index] ?? { id: "", name: "", arguments: "" };
    all[index] = {
      id: id ?? before.id,
      name: called?.name ?? before.name,
      arguments: before.arguments + (called?.arguments ?? ""),
    };
  }
  return all;
}
