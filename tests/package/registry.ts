import { existsSync, mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";

/** A package registry on 127.0.0.1 with the packages of a `node_modules` folder, each in the version that lies there. */
export class Registry implements Disposable {
  readonly #server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: (request) => this.#answer(decodeURIComponent(new URL(request.url).pathname.slice(1))),
  });

  /** @param scratch an empty folder, which tarballs are made in */
  constructor(
    private readonly modules: string,
    private readonly scratch: string,
  ) {}

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}/`;
  }

  [Symbol.dispose](): void {
    void this.#server.stop(true);
  }

  #answer(path: string): Response {
    const name = path.replace(/\.tgz$/, "");
    const file = join(this.modules, name, "package.json");
    if (!existsSync(file)) return new Response(`no ${name} here`, { status: 404 });
    if (path.endsWith(".tgz")) return new Response(this.#tarball(name));
    const manifest = JSON.parse(readFileSync(file, "utf8"));
    const { version } = manifest;
    const dist = { tarball: `${this.url}${encodeURIComponent(name)}.tgz` };
    return Response.json({
      name,
      "dist-tags": { latest: version },
      versions: { [version]: { ...manifest, dist } },
    });
  }

  #tarball(name: string): Uint8Array<ArrayBuffer> {
    const folder = join(this.scratch, encodeURIComponent(name));
    mkdirSync(folder, { recursive: true });
    if (!existsSync(join(folder, "package"))) symlinkSync(join(this.modules, name), join(folder, "package"));
    const { stdout, stderr, success } = Bun.spawnSync(["tar", "czhf", "-", "-C", folder, "package"]);
    if (!success) throw new Error(stderr.toString());
    return new Uint8Array(stdout);
  }
}
