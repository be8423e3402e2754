import type { TokenTable } from "../../tokenizer/token-table.ts";

/** Pieces of JSON for a token. */
interface Spelling {
  /** The name, a JSON string. */
  readonly name: string;
  /** The bytes, a JSON list. */
  readonly bytes: string;
}

/**
 * The spelling of tokens in a reply: their text; `bytes:\xf0\x9f` where that is no text of its own, as for a part of a
 * character; or `token_id:<id>`.
 */
export class TokenSpelling {
  readonly #spellings = new Map<number, Spelling>();

  constructor(
    private readonly tokens: TokenTable,
    private readonly byId: boolean,
  ) {}

  of(id: number): Spelling {
    let spelling = this.#spellings.get(id);
    if (!spelling) {
      const bytes = this.tokens.bytes(id);
      const name = JSON.stringify(this.byId ? `token_id:${id}` : nameOf(bytes));
      spelling = { name, bytes: `[${bytes.join()}]` };
      this.#spellings.set(id, spelling);
    }
    return spelling;
  }
}

function nameOf(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return `bytes:${Array.from(bytes, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
  }
}
