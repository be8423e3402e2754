import { type Conversation, titleOf } from "./conversation.ts";

/** A conversation as the list of them shows it. */
export interface ConversationSummary {
  readonly id: string;
  readonly title: string;
  readonly updated: number;
}

const SUMMARIES = "summaries";
const CONVERSATIONS = "conversations";

/** The conversations that this browser keeps, in IndexedDB. They leave it only as requests to the server. */
export class ConversationStore {
  readonly #database: Promise<IDBDatabase>;

  constructor() {
    const opening = indexedDB.open("octavo", 1);
    opening.onupgradeneeded = () => {
      opening.result.createObjectStore(SUMMARIES, { keyPath: "id" });
      opening.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
    };
    this.#database = settled(opening);
    this.#database.catch(() => {});
  }

  /** Latest first. @throws DOMException where the browser keeps nothing; so do the others. */
  async list(): Promise<ConversationSummary[]> {
    const store = await this.#open([SUMMARIES], "readonly");
    const all = (await settled(store(SUMMARIES).getAll())) as ConversationSummary[];
    return all.sort((a, b) => b.updated - a.updated);
  }

  async get(id: string): Promise<Conversation | undefined> {
    const store = await this.#open([CONVERSATIONS], "readonly");
    return (await settled(store(CONVERSATIONS).get(id))) as Conversation | undefined;
  }

  async put(conversation: Conversation): Promise<void> {
    const store = await this.#open([SUMMARIES, CONVERSATIONS], "readwrite");
    store(SUMMARIES).put(summaryOf(conversation));
    await settled(store(CONVERSATIONS).put(conversation));
  }

  async remove(id: string): Promise<void> {
    const store = await this.#open([SUMMARIES, CONVERSATIONS], "readwrite");
    store(SUMMARIES).delete(id);
    await settled(store(CONVERSATIONS).delete(id));
  }

  async #open(names: string[], mode: IDBTransactionMode) {
    const transaction = (await this.#database).transaction(names, mode);
    return (name: string) => transaction.objectStore(name);
  }
}

export function summaryOf(conversation: Conversation): ConversationSummary {
  return { id: conversation.id, title: titleOf(conversation), updated: conversation.updated };
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
