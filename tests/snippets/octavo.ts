import { join } from "node:path";

/**
 * The program `octavo` as documents' commands call it. `serve` gets a port of its own instead of the one given, and a signal to stop as
 * soon as it serves: both are other tests' matter.
 */
const [command, ...rest] = process.argv.slice(2);
const main = join(import.meta.dir, "../../src/cli/main.ts");
const isServer = command === "serve";
const flags = isServer
  ? [...rest.filter((flag, i) => flag !== "--port" && rest[i - 1] !== "--port"), "--port", "0"]
  : rest;
const child = Bun.spawn([process.execPath, main, command!, ...flags], {
  stdin: "inherit",
  stdout: isServer ? "pipe" : "inherit",
  stderr: "inherit",
});
if (isServer) {
  let output = "";
  for await (const part of child.stdout as ReadableStream<Uint8Array>) {
    output += new TextDecoder().decode(part);
    if (/ serves .* at http/.test(output)) child.kill("SIGTERM");
  }
  process.stdout.write(output);
}
process.exit(await child.exited);
