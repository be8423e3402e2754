import type { Settings } from "./parameters.ts";

/** A token of a reply with its log-probability and the likeliest at its place. */
export interface ScoredToken {
  readonly text: string;
  readonly logprob: number;
  readonly top: readonly { readonly text: string; readonly logprob: number }[];
}

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON, as far as it has come. */
  readonly arguments: string;
}

/** One reply of the model, complete or not. */
export interface Reply {
  readonly text: string;
  readonly reasoning: string;
  readonly calls: readonly ToolCall[];
  readonly tokens: readonly ScoredToken[];
  /** OpenAI's `finish_reason`; `aborted`: the user stopped it; null: it is being written. */
  readonly finish: string | null;
  readonly error?: string;
  /** Milliseconds from the request to the first token, and to the end. */
  readonly firstTokenMs?: number;
  readonly totalMs?: number;
  /** Tokens of the prompt, and of all replies that came with this one. */
  readonly usage?: { readonly prompt: number; readonly completion: number };
}

export const EMPTY_REPLY: Reply = { text: "", reasoning: "", calls: [], tokens: [], finish: null };

export interface UserTurn {
  readonly role: "user";
  readonly id: string;
  readonly text: string;
}

/** The model's turn: the replies that it gave to the same conversation, and the one that counts. */
export interface ModelTurn {
  readonly role: "assistant";
  readonly id: string;
  readonly replies: readonly Reply[];
  readonly chosen: number;
}

/** The result of a call. */
export interface ToolTurn {
  readonly role: "tool";
  readonly id: string;
  readonly callId: string;
  readonly name: string;
  readonly text: string;
}

export type Turn = UserTurn | ModelTurn | ToolTurn;

/** A conversation as the browser keeps it. It is never changed, but replaced. */
export interface Conversation {
  readonly id: string;
  readonly title: string;
  /** Unix time in milliseconds of the last change. */
  readonly updated: number;
  readonly settings: Settings;
  readonly turns: readonly Turn[];
}

export function newConversation(settings: Settings): Conversation {
  return { id: newId(), title: "", updated: Date.now(), settings, turns: [] };
}

/** Not `crypto.randomUUID`, which plain HTTP lacks. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(36)).join("");
}

export function replyOf(turn: ModelTurn): Reply {
  return turn.replies[turn.chosen] ?? EMPTY_REPLY;
}

/** The calls of the last turn that have no result yet. */
export function openCalls({ turns }: Conversation): readonly ToolCall[] {
  let last = turns.length - 1;
  while (turns[last]?.role === "tool") last--;
  const turn = turns[last];
  if (turn?.role !== "assistant") return [];
  const answered = turns.slice(last + 1).flatMap((later) => (later.role === "tool" ? [later.callId] : []));
  return replyOf(turn).calls.filter(({ id }) => !answered.includes(id));
}

/** The conversation in the API's form. */
export function messagesOf({ settings, turns }: Conversation): object[] {
  const system = settings.system.trim() === "" ? [] : [{ role: "system", content: settings.system }];
  return [...system, ...turns.map(messageOf)];
}

function messageOf(turn: Turn): object {
  if (turn.role === "user") return { role: "user", content: turn.text };
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.callId, content: turn.text };
  const { text, calls } = replyOf(turn);
  if (calls.length === 0) return { role: "assistant", content: text };
  const tool_calls = calls.map(({ id, name, arguments: text }) => {
    return { id, type: "function", function: { name, arguments: text } };
  });
  return { role: "assistant", content: text === "" ? null : text, tool_calls };
}

/** A title out of what the user said first. */
export function titleOf({ title, turns }: Conversation): string {
  if (title !== "") return title;
  const first = turns.find((turn) => turn.role === "user");
  if (!first) return "New conversation";
  const line = first.text.trim().replace(/\s+/g, " ");
  return line.length > 48 ? `${line.slice(0, 47)}…` : line;
}
