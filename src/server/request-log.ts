/** Takes the lines of the log. */
export type LogSink = (line: string) => void;

/** Lines on standard error; when nobody reads them any more, they are lost and the server goes on. */
export function standardError(): LogSink {
  if (process.stderr.listenerCount("error") === 0) process.stderr.on("error", () => {});
  return (line) => void process.stderr.write(`${line}\n`);
}

/** One line of JSON for each thing that happened. Nothing a client sends can break a line or hide in it. */
export class ServerLog {
  constructor(private readonly sink: LogSink) {}

  write(event: string, fields: Readonly<Record<string, unknown>>): void {
    this.sink(escapeControls(JSON.stringify({ time: new Date().toISOString(), event, ...fields })));
  }
}

/** The fields of a request's log line. Undefined ones are left out. */
export interface RequestRecord {
  readonly requestId: string;
  /** The `X-Request-Id` that the request brought, at most 128 characters of it. */
  readonly clientRequestId?: string;
  readonly method: string;
  readonly path: string;
  /** `Caller.keyId`. */
  keyId?: string;
  model?: string;
  promptTokens?: number;
  completionTokens?: number;
  /** The error's code and what caused it, if the request failed. */
  error?: string;
  /** Only with `logPrompts`. */
  prompt?: unknown;
}

/** JSON leaves DEL, the C1 controls and the Unicode line separators as they are. */
function escapeControls(json: string): string {
  return json.replace(
    /[\x7f-\x9f\u2028\u2029]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
