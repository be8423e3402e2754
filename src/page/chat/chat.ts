import type { ServerAccess } from "../server-access.ts";
import { keptStore, Store } from "../store.ts";
import {
  type Conversation,
  EMPTY_REPLY,
  type ModelTurn,
  messagesOf,
  newConversation,
  newId,
  openCalls,
  type Reply,
  type ToolCall,
  type Turn,
} from "./conversation.ts";
import { ConversationStore, type ConversationSummary, summaryOf } from "./conversation-store.ts";
import { DEFAULT_SETTINGS, requestJson, type Settings } from "./parameters.ts";
import { streamReplies } from "./reply-stream.ts";

/** The conversations, the one that is open, and the reply that is being written. */
export class Chat {
  readonly open: Store<Conversation>;
  readonly list = new Store<readonly ConversationSummary[]>([]);
  /** Id of the turn that is being written; undefined: none is. */
  readonly writing = new Store<string | undefined>(undefined);
  /** For screen readers. */
  readonly announcement = new Store("");
  /** The browser keeps no conversations. */
  readonly isForgetful = new Store(false);
  readonly #kept = new ConversationStore();
  /** Those of the conversation that was changed last. */
  readonly #settings = keptStore<Settings>("settings", DEFAULT_SETTINGS);
  /** Ends the reply that is being written, with an error if there is one. */
  #finish: ((error?: unknown) => void) | undefined;

  constructor(private readonly access: ServerAccess) {
    this.#settings.value = { ...DEFAULT_SETTINGS, ...this.#settings.value };
    this.open = new Store(newConversation(this.#settings.value));
    this.#kept.list().then(
      (list) => {
        // One may have been begun meanwhile.
        const here = this.list.value;
        this.list.value = [...here, ...list.filter(({ id }) => here.every((one) => one.id !== id))];
      },
      () => {
        this.isForgetful.value = true;
      },
    );
  }

  start(): void {
    this.stop();
    this.open.value = newConversation(this.#settings.value);
  }

  async show(id: string): Promise<void> {
    this.stop();
    const conversation = await this.#kept.get(id).catch(() => undefined);
    if (conversation) this.open.value = settled(conversation);
  }

  async remove(id: string): Promise<void> {
    if (this.open.value.id === id) this.start();
    this.list.value = this.list.value.filter((summary) => summary.id !== id);
    await this.#kept.remove(id).catch(() => {});
  }

  rename(title: string): void {
    this.#change({ title: title.trim() });
    this.#keep();
  }

  configure(settings: Partial<Settings>): void {
    this.#settings.value = { ...this.open.value.settings, ...settings };
    this.open.value = { ...this.open.value, settings: this.#settings.value };
    if (this.open.value.turns.length > 0) this.#keep();
  }

  /** Says something, and has the model answer. */
  async say(text: string): Promise<void> {
    await this.#continue([...this.open.value.turns, { role: "user", id: newId(), text }]);
  }

  /** Says something else instead; what came after it goes. */
  async edit(id: string, text: string): Promise<void> {
    const { turns } = this.open.value;
    const index = turns.findIndex((turn) => turn.id === id);
    await this.#continue([...turns.slice(0, index), { role: "user", id: newId(), text }]);
  }

  /** Has the model answer once more; the replies so far stay beside the new one, what came after them goes. */
  async regenerate(id: string): Promise<void> {
    const { turns } = this.open.value;
    const index = turns.findIndex((turn) => turn.id === id);
    await this.#continue(turns.slice(0, index), turns[index] as ModelTurn);
  }

  /** Gives a call its result. With the last one missing, the model goes on. */
  async answer({ id, name }: ToolCall, text: string): Promise<void> {
    const turn: Turn = { role: "tool", id: newId(), callId: id, name, text };
    const turns = [...this.open.value.turns, turn];
    this.#change({ turns });
    if (openCalls(this.open.value).length === 0) await this.#continue(turns);
    else this.#keep();
  }

  choose(id: string, chosen: number): void {
    if (this.#finish) return;
    this.#change({
      turns: this.open.value.turns.map((turn) =>
        turn.id === id && turn.role === "assistant" ? { ...turn, chosen } : turn,
      ),
    });
    this.#keep();
  }

  /** Ends the reply that is being written; what there is of it stays. */
  stop(): void {
    this.#finish?.(STOPPED);
  }

  /** @param before the turn of which the new replies are to be a part. Default a new one. */
  async #continue(turns: readonly Turn[], before?: ModelTurn): Promise<void> {
    this.stop();
    const abort = new AbortController();
    const id = before?.id ?? newId();
    const earlier = before?.replies ?? [];
    let replies: readonly Reply[] = [EMPTY_REPLY];
    // Drawn once a frame, however fast events come.
    let frame = 0;
    const draw = () => {
      frame = 0;
      const all = [...earlier, ...replies];
      this.#change({ turns: [...turns, { role: "assistant", id, replies: all, chosen: earlier.length }] });
    };
    // Until it has been called the conversation stays open, and its turns are those above.
    const finish = (error?: unknown) => {
      if (this.#finish !== finish) return;
      this.#finish = undefined;
      cancelAnimationFrame(frame);
      abort.abort();
      if (error !== undefined) replies = replies.map((reply) => ended(reply, error));
      draw();
      this.#keep();
      this.writing.value = undefined;
      const { text, error: message } = replies[0]!;
      this.announcement.value = message ?? (error === STOPPED ? "Stopped" : `The reply is complete: ${text}`);
    };
    this.#finish = finish;
    draw();
    this.#keep();
    this.writing.value = id;
    this.announcement.value = "The model is writing";
    try {
      const { settings } = this.open.value;
      const body = requestJson(settings, messagesOf({ ...this.open.value, turns }));
      for await (const next of streamReplies(this.access, body, abort.signal)) {
        if (this.#finish !== finish) return;
        replies = next;
        if (frame === 0) frame = requestAnimationFrame(draw);
      }
      finish(
        replies.some(({ finish }) => finish === null) ? new Error("The connection was lost") : undefined,
      );
    } catch (error) {
      finish(error);
    }
  }

  #change(change: Partial<Conversation>): void {
    this.open.value = { ...this.open.value, ...change, updated: Date.now() };
  }

  #keep(): void {
    const conversation = this.open.value;
    const others = this.list.value.filter(({ id }) => id !== conversation.id);
    this.list.value = [summaryOf(conversation), ...others];
    this.#kept.put(conversation).catch(() => {
      this.isForgetful.value = true;
    });
  }
}

/** A conversation without the reply that was being written when the page was left. */
function settled(conversation: Conversation): Conversation {
  const turns = conversation.turns.map((turn) =>
    turn.role === "assistant"
      ? { ...turn, replies: turn.replies.map((reply) => ended(reply, STOPPED)) }
      : turn,
  );
  return { ...conversation, turns };
}

/** The reason of a reply's end that is no error. */
const STOPPED = Symbol("stopped");

function ended(reply: Reply, error: unknown): Reply {
  if (reply.finish !== null) return reply;
  if (error === STOPPED) return { ...reply, finish: "aborted" };
  return { ...reply, finish: "error", error: error instanceof Error ? error.message : String(error) };
}
