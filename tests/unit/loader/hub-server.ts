import type { Socket } from "bun";

const COMMIT = "c0ffee".padEnd(40, "0");

export interface HubRequest {
  readonly path: string;
  readonly range: string | null;
  readonly authorization: string | null;
}

/**
 * A model hub and its content network on 127.0.0.1: model info, file listing, and `resolve` addresses, which redirect
 * to the content network for large (LFS) files, as on Hugging Face.
 */
export class HubServer implements Disposable {
  readonly commit = COMMIT;
  /** Requests to the hub, and to the content network. */
  readonly requests: HubRequest[] = [];
  readonly contentRequests: HubRequest[] = [];
  /** Answers every request to the hub with this status. */
  refuseWith: number | undefined;
  /** Bytes after which the next content responses are cut off. */
  readonly cuts: number[] = [];
  /** Resolves when the client has so many bytes of the file: only then is the connection cut. */
  arrived: (bytes: number) => Promise<void> = () => Promise.resolve();
  /** Serves other bytes than the listing promises. */
  corrupt = false;
  /** Answers with the whole file, whatever Range says. */
  ignoreRange = false;
  /** Content requests being answered at this moment, and their greatest number. */
  active = 0;
  mostActive = 0;
  /** The first content response waits until so many have been asked for. */
  atOnce = 1;
  readonly #met = Promise.withResolvers<void>();
  readonly #hub = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: (request) => this.#answer(request) });
  readonly #content = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: (request) => this.#serve(request) });
  readonly #cutter = Bun.listen({
    hostname: "127.0.0.1",
    port: 0,
    socket: { data: (socket, data) => this.#serveCut(socket, data.toString()) },
  });

  /** @param files contents by name; those above 1 kB count as LFS files. */
  constructor(
    readonly model: string,
    readonly files: Readonly<Record<string, Uint8Array>>,
  ) {}

  get endpoint(): string {
    return `http://127.0.0.1:${this.#hub.port}`;
  }

  [Symbol.dispose](): void {
    void this.#hub.stop(true);
    void this.#content.stop(true);
    this.#cutter.stop(true);
  }

  #answer(request: Request): Response {
    const { pathname } = new URL(request.url);
    this.requests.push(logged(request));
    if (this.refuseWith !== undefined) {
      const init = { status: this.refuseWith, headers: { "X-Error-Code": "GatedRepo" } };
      return Response.json({ error: "Access to this model\nis restricted" }, init);
    }
    if (pathname === `/api/models/${this.model}/revision/main`)
      return Response.json({ _id: "1", id: this.model, sha: COMMIT, lastModified: "2026-01-01T00:00:00Z" });
    if (pathname === `/api/models/${this.model}/tree/${COMMIT}`)
      return Response.json(Object.entries(this.files).map(([path, bytes]) => listed(path, bytes)));
    const name = pathname.match(`^/${this.model}/resolve/${COMMIT}/(.+)$`)?.[1];
    const bytes = name === undefined ? undefined : this.files[name];
    if (bytes === undefined) return Response.json({ error: "Repository not found" }, { status: 404 });
    if (bytes.length <= 1000) return ranged(request, bytes);
    const port = this.cuts.length > 0 ? this.#cutter.port : this.#content.port;
    return Response.redirect(`http://127.0.0.1:${port}/${name}?signature=1`, 302);
  }

  async #serve(request: Request): Promise<Response> {
    this.contentRequests.push(logged(request));
    this.mostActive = Math.max(this.mostActive, ++this.active);
    if (this.active === this.atOnce) this.#met.resolve();
    await this.#met.promise;
    await Bun.sleep(5);
    this.active--;
    const bytes = this.files[new URL(request.url).pathname.slice(1)]!;
    if (this.ignoreRange) return new Response(bytes.slice());
    return ranged(request, this.corrupt ? bytes.map((byte) => byte ^ 1) : bytes);
  }

  /** Promises the rest of the file, sends a part of it and, once that has arrived, resets the connection. */
  #serveCut(socket: Socket, request: string): void {
    const path = request.match(/^GET (\/[^? ]*)/)![1]!;
    const range = request.match(/^range: (.*)\r$/im)![1]!;
    this.contentRequests.push({ path, range, authorization: null });
    const bytes = this.files[path.slice(1)]!;
    const start = startOf(range);
    const head = ["HTTP/1.1 206 Partial Content", `Content-Range: ${contentRange(start, bytes)}`];
    head.push(`Content-Length: ${bytes.length - start}`, "", "");
    socket.write(head.join("\r\n"));
    const cut = start + this.cuts.shift()!;
    socket.write(bytes.slice(start, cut));
    void this.arrived(cut).then(() => socket.terminate());
  }
}

function logged(request: Request): HubRequest {
  const { headers, url } = request;
  return {
    path: new URL(url).pathname,
    range: headers.get("range"),
    authorization: headers.get("authorization"),
  };
}

function listed(path: string, bytes: Uint8Array): object {
  const pointer = new Bun.CryptoHasher("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
  const entry = { type: "file", path, size: bytes.length, oid: pointer };
  if (bytes.length <= 1000) return entry;
  const oid = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
  return { ...entry, oid: "f".repeat(40), lfs: { oid, size: bytes.length, pointerSize: 130 } };
}

function ranged(request: Request, bytes: Uint8Array): Response {
  const start = startOf(request.headers.get("range"));
  return new Response(bytes.slice(start), {
    status: 206,
    headers: { "Content-Range": contentRange(start, bytes) },
  });
}

function startOf(range: string | null): number {
  return Number(range?.match(/^bytes=(\d+)-$/)?.[1] ?? 0);
}

function contentRange(start: number, bytes: Uint8Array): string {
  return `bytes ${start}-${bytes.length - 1}/${bytes.length}`;
}
