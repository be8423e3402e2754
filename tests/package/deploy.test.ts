import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { Glob } from "bun";
import manifest from "../../package.json";
import { serve } from "../cli/support.ts";

setDefaultTimeout(300_000);

const ROOT = join(import.meta.dir, "../..");
const DEPLOY = "examples/deploy";
const read = (path: string) => readFileSync(join(ROOT, path), "utf8");

/** Metrics as expressions name them, with what Prometheus adds for histograms. */
const METRIC = /\b(?:vllm|octavo):\w+/g;

interface Dashboard {
  readonly templating: { readonly list: readonly { readonly query: string }[] };
  readonly panels: readonly {
    readonly id: number;
    readonly type: string;
    readonly gridPos: { x: number; y: number; w: number; h: number };
    readonly targets?: readonly { readonly expr: string }[];
  }[];
}

describe("the dashboard", () => {
  const dashboard: Dashboard = JSON.parse(read(`${DEPLOY}/grafana/octavo.json`));
  const expressions = [
    ...dashboard.panels.flatMap(({ targets = [] }) => targets.map(({ expr }) => expr)),
    ...dashboard.templating.list.map(({ query }) => query),
  ];

  test("asks for metrics that a server has, with labels that they have", async () => {
    using server = await serve();
    expect((await server.complete({ prompt: "Once", max_tokens: 3 })).status).toBe(200);
    const metrics = await (await fetch(`${server.url}/metrics`)).text();
    const has = (name: string, label: string) => RegExp(`^${name}\\{[^}]*\\b${label}=`, "m").test(metrics);
    expect(expressions.length).toBeGreaterThan(20);
    let numLabels = 0;
    for (const expression of expressions) {
      const names = expression.match(METRIC) ?? [];
      expect(names, expression).not.toBeEmpty();
      const labels = [...expression.matchAll(/(\w+)=~|by \((\w+)\)|, (\w+)\)$/g)].map(
        ([, a, b, c]) => a ?? b ?? c!,
      );
      numLabels += labels.length;
      for (const name of names) {
        expect(has(name, "\\w+"), name).toBe(true);
        for (const label of labels) expect(has(name, label), `${name} by ${label}`).toBe(true);
      }
    }
    expect(numLabels).toBeGreaterThan(20);
    // Those that documents name are there, too.
    const watched = read("docs/deployment.md").match(METRIC)!;
    for (const name of watched) expect(metrics, name).toContain(`# TYPE ${name} `);
  });

  test("has panels of their own places", () => {
    const places = dashboard.panels.flatMap(({ gridPos: { x, y, w, h } }) =>
      Array.from({ length: w * h }, (_, i) => `${x + (i % w)},${y + Math.floor(i / w)}`),
    );
    expect(new Set(places).size).toBe(places.length);
    expect(new Set(dashboard.panels.map(({ id }) => id)).size).toBe(dashboard.panels.length);
  });
});

describe("the image", () => {
  const dockerfile = read(`${DEPLOY}/Dockerfile`);

  test("is made with the Bun that the package names, of files that are there", () => {
    expect(dockerfile).toContain(`FROM oven/${manifest.packageManager.replace("@", ":")} AS build`);
    const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files]) =>
      files!.split(" "),
    );
    expect(copied.length).toBeGreaterThan(2);
    for (const file of copied) expect(existsSync(join(ROOT, file))).toBe(true);
    const ignored = read(`${DEPLOY}/Dockerfile.dockerignore`).trim().split("\n");
    for (const needed of [".ci", "src", "kernels-cu", "kernels-wasm", "models", "page", "package.json"])
      expect(ignored.some((pattern) => new Glob(pattern).match(needed))).toBe(false);
    expect(ignored).toContain("**/node_modules");
  });

  test("runs as a user without rights, and the compose file takes the rest from it", () => {
    expect(dockerfile).toMatch(/^USER 65532:65532$/m);
    const { services, volumes } = Bun.YAML.parse(read(`${DEPLOY}/compose.yaml`)) as {
      services: Record<
        string,
        {
          read_only?: boolean;
          cap_drop?: string[];
          security_opt?: string[];
          volumes?: string[];
          stop_grace_period?: string;
        }
      >;
      volumes: Record<string, unknown>;
    };
    for (const name of ["octavo", "caddy"])
      expect(services[name]).toMatchObject({
        read_only: true,
        cap_drop: ["ALL"],
        security_opt: ["no-new-privileges:true"],
      });
    expect(services["octavo"]!.stop_grace_period).toBe("40s");
    const mounts = Object.values(services).flatMap(({ volumes = [] }) => volumes);
    const [files, named] = [
      mounts.filter((mount) => mount.startsWith("./")),
      mounts.filter((mount) => !mount.startsWith("./")),
    ];
    expect([files.length > 3, named.length > 1]).toEqual([true, true]);
    const sourceOf = (mount: string) => mount.split(":")[0]!;
    for (const file of files) expect(existsSync(join(ROOT, DEPLOY, sourceOf(file)))).toBe(true);
    for (const name of named) expect(volumes).toHaveProperty(sourceOf(name));
    for (const file of ["prometheus.yaml", "grafana/datasource.yaml", "grafana/dashboards.yaml"])
      expect(Bun.YAML.parse(read(`${DEPLOY}/${file}`))).toBeObject();
  });
});

describe("workflows", () => {
  test.each(["ci", "release"])("%s calls scripts that are there and can be run", (name) => {
    const { jobs } = Bun.YAML.parse(read(`.github/workflows/${name}.yml`)) as {
      jobs: Record<string, { steps: { run?: string }[] }>;
    };
    const scripts = Object.values(jobs)
      .flatMap(({ steps }) => steps)
      .flatMap(({ run = "" }) => run.match(/^\.ci\/\w+/) ?? []);
    expect(scripts).toContain(".ci/run");
    for (const script of scripts) expect(statSync(join(ROOT, script)).mode & 0o111).toBe(0o111);
  });
});
