import { expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { ServerLog } from "../../../src/server/request-log.ts";

setDefaultTimeout(300_000);

test("an entry is one line of printable characters, and comes back whole", () => {
  const lines: string[] = [];
  const path = '/a\r\n{"event":"forged"}\u001b[2J\u007f\u0085\u009b\u2028\u2029';
  new ServerLog((line) => void lines.push(line)).write("request", { path });
  expect(lines).toHaveLength(1);
  expect(lines[0]).toMatch(/^[ -~]*$/);
  expect(JSON.parse(lines[0]!)).toMatchObject({ event: "request", path });
});

test("a log that nobody reads any more stops nothing", async () => {
  const module = join(import.meta.dir, "../../../src/server/request-log.ts");
  const script = `
    import { standardError } from ${JSON.stringify(module)};
    const log = standardError();
    for (let i = 0; i < 10; i++) { log("line"); await Bun.sleep(10); }
    console.log("still here");`;
  const child = Bun.spawn([process.execPath, "-e", script], { stdout: "pipe", stderr: "pipe" });
  await child.stderr.cancel();
  expect(await new Response(child.stdout).text()).toBe("still here\n");
  expect(await child.exited).toBe(0);
});
